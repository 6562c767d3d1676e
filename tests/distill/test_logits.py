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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_computed_in_float32(dtype):
    student, teacher = torch.randn(4, 5).to(dtype), torch.randn(4, 5)
    labels = torch.randint(5, (4,))
    got = distill.kd_loss(student, teacher, labels)
    assert got.dtype == torch.float32
    assert torch.equal(got, distill.kd_loss(student.float(), teacher, labels))


def test_decoupled_by_hand():
    # Three classes, T = 2, label 1. Teacher (0.2, 0.5, 0.3), student (0.25, 0.25, 0.5).
    teacher = 2 * torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log()
    student = 2 * torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).log() + 7
    sure = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    rest = 0.4 * math.log(0.4 / (1 / 3)) + 0.6 * math.log(0.6 / (2 / 3))
    label = torch.tensor([1])
    got = distill.decoupled_loss(student, teacher, label, 2.0, target=3.0, non_target=5.0)
    assert got.item() == pytest.approx(4 * (3 * sure + 5 * rest), rel=1e-12)


def test_decoupled_with_the_teachers_doubt_as_weight_is_the_usual_term():
    """Equation 5 of the paper, which the decoupling rests on."""
    for seed in range(5):
        torch.manual_seed(seed)
        student, teacher = torch.randn(2, 1, 7, dtype=torch.float64) * 4
        label = torch.randint(7, (1,))
        doubt = 1 - (teacher / 3).softmax(1)[0, label].item()
        got = distill.decoupled_loss(student, teacher, label, 3.0, 1.0, doubt)
        torch.testing.assert_close(
            got, distill.kd_loss(student, teacher, label, 3.0, alpha=0.0), rtol=1e-10, atol=0
        )


def test_decoupled_is_a_mean_and_its_gradient_reaches_only_the_student():
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 4, 2, 2])
    whole = distill.decoupled_loss(student, teacher, labels)
    parts = [
        distill.decoupled_loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1])
        for i in range(4)
    ]
    torch.testing.assert_close(whole, sum(parts) / 4)
    assert torch.autograd.gradcheck(lambda s: distill.decoupled_loss(s, teacher, labels), student)
    whole.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_decoupled_stays_finite_where_the_teacher_is_certain():
    student = torch.randn(2, 3, requires_grad=True)
    teacher = torch.tensor([[1000.0, 0, 0], [0, 0, 1000.0]])
    distill.decoupled_loss(student, teacher, torch.tensor([0, 0]), 1.0).backward()
    assert student.grad.isfinite().all()


def test_loss_with_decoupled_keeps_the_cross_entropy():
    teacher, inputs = nn.Linear(3, 4), torch.randn(6, 3)
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    loss = distill.Loss(teacher, 3.0, 0.4, soft=distill.Decoupled(2.0, 5.0))
    soft = distill.decoupled_loss(logits, teacher(inputs), labels, 3.0, 2.0, 5.0)
    expected = 0.4 * nn.functional.cross_entropy(logits, labels) + 0.6 * soft
    torch.testing.assert_close(loss(logits, labels, inputs), expected)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_decoupled_weights_are_checked(value):
    with pytest.raises(ValueError, match=f"non_target must be finite and >= 0, got {value}"):
        distill.Decoupled(1.0, value)
    with pytest.raises(ValueError, match=f"target must be finite and >= 0, got {value}"):
        distill.decoupled_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), 1.0, value)
    with pytest.raises(ValueError, match="must have 2 classes, got 1"):
        distill.decoupled_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0]))


def test_mean_of_soft_answers():
    one, two = torch.randn(2, 5, 4, dtype=torch.float64)
    mixed = distill.mixed_logits([one, two], 3.0, [1.0, 3.0])
    wanted = 0.25 * (one / 3).softmax(1) + 0.75 * (two / 3).softmax(1)
    torch.testing.assert_close((mixed / 3).softmax(1), wanted)
    equal = distill.mixed_logits([one, two], 3.0)
    torch.testing.assert_close(
        (equal / 3).softmax(1), ((one / 3).softmax(1) + (two / 3).softmax(1)) / 2
    )
    only = distill.mixed_logits([one, two], 3.0, [0.0, 2.0])
    torch.testing.assert_close((only / 3).softmax(1), (two / 3).softmax(1))


def test_several_teachers_in_the_loss():
    teachers = [nn.Linear(3, 4) for _ in range(3)]
    inputs, logits, labels = torch.randn(6, 3), torch.randn(6, 4), torch.randint(4, (6,))
    loss = distill.Loss(teachers, 2.0, 0.0, weights=[1, 1, 2])
    shares = zip((0.25, 0.25, 0.5), teachers, strict=True)
    target = sum(share * (t(inputs) / 2).softmax(1) for share, t in shares)
    log_student = (logits / 2).log_softmax(1)
    expected = 4 * (target * (target.log() - log_student)).sum(1).mean()
    torch.testing.assert_close(loss(logits, labels, inputs), expected.detach())
    assert loss.teachers == tuple(teachers) and loss.teacher is teachers[0]
    assert not any(p.requires_grad for t in teachers for p in t.parameters())


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan]])
def test_teachers_weights_are_checked(weights):
    with pytest.raises(ValueError, match="weights must be 2 finite numbers >= 0, not all 0"):
        distill.Loss([nn.Identity(), nn.Identity()], weights=weights)


def test_teachers_must_be_there_and_agree():
    with pytest.raises(ValueError, match="at least one teacher"):
        distill.Loss([])
    loss = distill.Loss([nn.Linear(3, 4), nn.Linear(3, 5)])
    with pytest.raises(ValueError, match=r"one shape, got \[\(2, 4\), \(2, 5\)\]"):
        loss(torch.zeros(2, 4), torch.tensor([0, 0]), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="inputs must be given to a teacher, got None"):
        loss(torch.zeros(2, 4), torch.tensor([0, 0]))
    for wrong in (None, len, [nn.Identity(), "teacher"]):
        with pytest.raises(TypeError, match=r"teacher must be an nn\.Module, CachedLogits or"):
            distill.Loss(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_may_be_probabilities(dtype):
    logits, answers = torch.randn(5, 4, dtype=dtype), torch.randn(5, 4)
    classes = torch.randint(4, (5,))
    certain = nn.functional.one_hot(classes, 4).double()
    mixed = 0.3 * certain + 0.7 * certain.roll(1, 0)
    wanted = distill.kd_loss(logits, answers, classes, 3.0, 0.6)
    torch.testing.assert_close(distill.kd_loss(logits, answers, certain, 3.0, 0.6), wanted)
    soft = distill.kd_loss(logits, answers, classes, 3.0, 0.0)
    hard = -(mixed.float() * logits.float().log_softmax(1)).sum(1).mean()
    loss = distill.Loss(nn.Identity(), 3.0, 0.6)
    torch.testing.assert_close(loss(logits, mixed, answers), 0.6 * hard + 0.4 * soft)
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), got \(5, 4\)"):
        loss(logits, certain.long(), answers)
    decoupled = distill.Loss(nn.Identity(), soft=distill.Decoupled())
    with pytest.raises(ValueError, match="decoupled_loss: labels must be one class a sample"):
        decoupled(logits, mixed, answers)
