import math

import pytest
import torch
from torch import nn

from sparseq import distill


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_value_by_hand():
    # Two classes, one image. At T = 2 the teacher says (0.8, 0.2), the student (0.5, 0.5).
    teacher = torch.tensor([[2 * logit(0.8), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    divergence = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    expected = 0.3 * math.log(2) + 0.7 * 4 * divergence
    got = distill.kd_loss(student, teacher, torch.tensor([1]), temperature=2.0, alpha=0.3)
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_divergence_is_from_the_teacher_to_the_student():
    # KL is not symmetric: swapping the two must give the other, hand-computed number.
    certain = torch.tensor([[logit(0.9), 0.0]], dtype=torch.float64)
    unsure = torch.tensor([[logit(0.6), 0.0]], dtype=torch.float64)
    label = torch.tensor([0])
    forward = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    backward = 0.6 * math.log(0.6 / 0.9) + 0.4 * math.log(0.4 / 0.1)
    got = distill.kd_loss(unsure, certain, label, temperature=1.0, alpha=0.0)
    assert got.item() == pytest.approx(forward, rel=1e-12)
    got = distill.kd_loss(certain, unsure, label, temperature=1.0, alpha=0.0)
    assert got.item() == pytest.approx(backward, rel=1e-12)


def test_both_terms_are_means_over_the_batch():
    student, teacher = torch.randn(2, 1, 5), torch.randn(2, 1, 5)
    labels = torch.tensor([[3], [1]])
    each = [distill.kd_loss(s, t, y) for s, t, y in zip(student, teacher, labels, strict=True)]
    both = distill.kd_loss(student[:, 0], teacher[:, 0], labels[:, 0])
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_alpha_one_is_cross_entropy_and_equal_logits_leave_only_it():
    student, labels = torch.randn(6, 4), torch.randint(4, (6,))
    plain = nn.functional.cross_entropy(student, labels)
    torch.testing.assert_close(
        distill.kd_loss(student, torch.randn(6, 4), labels, alpha=1.0), plain
    )
    torch.testing.assert_close(
        distill.kd_loss(student, student.clone(), labels, alpha=0.25), 0.25 * plain
    )


def test_gradient_by_hand_and_only_into_the_student():
    # d/ds of T^2 KL is T (softmax(s / T) - softmax(t / T)), for a batch of one.
    student = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    distill.kd_loss(student, teacher, torch.tensor([2]), temperature=3.0, alpha=0.0).backward()
    expected = 3 * ((student / 3).softmax(1) - (teacher / 3).softmax(1))
    torch.testing.assert_close(student.grad, expected.detach())
    assert teacher.grad is None


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_finite_and_positive(temperature):
    message = rf"temperature must be finite and > 0, got {temperature}"
    with pytest.raises(ValueError, match=message):
        distill.kd_loss(
            torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), temperature=temperature
        )
    with pytest.raises(ValueError, match=message):
        distill.Loss(nn.Identity(), temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_must_be_a_share(alpha):
    with pytest.raises(ValueError, match=rf"alpha must be in \[0, 1\], got {alpha}"):
        distill.kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), alpha=alpha)
    with pytest.raises(ValueError, match="alpha"):
        distill.Loss(nn.Identity(), alpha=alpha)


def test_shapes_must_fit():
    labels = torch.tensor([0])
    with pytest.raises(ValueError, match=r"teacher_logits must .*\(1, 3\), got \(1, 4\)"):
        distill.kd_loss(torch.zeros(1, 3), torch.zeros(1, 4), labels)
    with pytest.raises(ValueError, match=r"student_logits must .*\(N, classes\), got \(3,\)"):
        distill.kd_loss(torch.zeros(3), torch.zeros(3), labels)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(1,\)"):
        distill.kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), labels)


def teacher_with_state() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_loss_runs_the_teacher_in_evaluation_mode():
    teacher = teacher_with_state()
    inputs, labels = torch.randn(8, 3), torch.randint(2, (8,))
    logits = torch.randn(8, 2)
    loss = distill.Loss(teacher, temperature=3.0, alpha=0.4).train()
    before = teacher[1].running_mean.clone()
    got = loss(logits, labels, inputs)
    assert torch.equal(teacher[1].running_mean, before)
    answers = teacher.eval()(inputs)
    assert torch.equal(got, distill.kd_loss(logits, answers, labels, 3.0, 0.4))


def test_teacher_put_into_training_mode_by_somebody_still_answers_in_evaluation_mode():
    teacher = teacher_with_state()
    loss = distill.Loss(teacher)
    arguments = torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), torch.randn(4, 3)
    expected = loss(*arguments)
    teacher.train()
    assert torch.equal(loss(*arguments), expected)


def test_teacher_is_frozen_and_not_part_of_the_loss():
    teacher = teacher_with_state()
    loss = distill.Loss(teacher)
    loss.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert list(loss.parameters()) == [] and list(loss.buffers()) == []
    assert loss.state_dict() == {}
    assert loss.teacher is teacher


def test_student_learns_what_the_teacher_knows():
    torch.manual_seed(0)
    teacher, student = nn.Linear(5, 3), nn.Linear(5, 3)
    inputs = torch.randn(256, 5)
    labels = torch.zeros(256, dtype=torch.int64)  # of no use: alpha is 0
    loss = distill.Loss(teacher, temperature=2.0, alpha=0.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    for _ in range(200):
        value = loss(student(inputs), labels, inputs)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert (student(inputs).argmax(1) == teacher(inputs).argmax(1)).float().mean() > 0.98
