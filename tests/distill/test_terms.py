"""The terms' values against their papers' formulas, written out sample by sample."""

import math

import pytest
import torch
from torch import nn

from sparseq import distill


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_hint_is_the_squared_error_of_the_projection():
    hint = distill.Hint({"a": "b"})
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    hint.build([(student, teacher)])
    linear = hint.projections[0]
    convolution = nn.functional.conv2d(student, linear.weight[:, :, None, None], linear.bias)
    torch.testing.assert_close(hint([(student, teacher)]), ((convolution - teacher) ** 2).mean())


@pytest.mark.parametrize(
    ("projection", "channels", "learned"),
    [("auto", 3, False), ("auto", 4, True), ("always", 3, True), ("never", 3, False)],
)
def test_hint_projects_where_asked(projection, channels, learned):
    hint = distill.Hint({"a": "b"}, projection=projection)
    pair = torch.randn(2, 3, 4, 4), torch.randn(2, channels, 4, 4)
    hint.build([pair])
    assert bool(list(hint.parameters())) == learned
    if not learned:
        torch.testing.assert_close(hint([pair]), ((pair[0] - pair[1]) ** 2).mean())


def test_hint_averages_the_larger_map_down():
    hint = distill.Hint({"a": "b"}, projection="never")
    small, large = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 4, 4)
    pooled = large.unflatten(2, (2, 2)).mean(3)
    for pair in ((small, large), (large, small)):
        torch.testing.assert_close(hint([pair]), ((small - pooled) ** 2).mean())


@pytest.mark.parametrize(
    ("shape", "other", "dim"), [((2, 5), (2, 7), None), ((2, 9, 5), (2, 9, 7), None),
                                ((2, 5, 9), (2, 7, 9), 1), ((2, 5, 9), (2, 7, 6), 1)]
)  # fmt: skip
def test_hint_on_vectors_tokens_and_sequences(shape, other, dim):
    hint = distill.Hint({"a": "b"}, channel_dim=dim)
    pair = torch.randn(shape), torch.randn(other)
    hint.build([pair])
    assert (hint.projections[0].in_features, hint.projections[0].out_features) == (5, 7)
    assert hint([pair]).isfinite()


@pytest.mark.parametrize(
    ("shape", "other", "message"),
    [
        ((2, 5, 4, 4), (2, 7), "as many dimensions"),
        ((2, 5, 4, 4), (3, 5, 4, 4), "the same batch"),
        ((2, 9, 5), (2, 8, 5), "the same channels"),
        ((2, 4, 5, 5), (2, 3, 5, 5), "the same channels"),
    ],
)
def test_hint_refuses_what_it_cannot_compare(shape, other, message):
    hint = distill.Hint({"left": "right"}, projection="never")
    with pytest.raises(ValueError, match=f"Hint: 'left' and 'right' must give {message}"):
        hint([(torch.randn(shape), torch.randn(other))])


def test_attention_by_hand():
    student = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]], dtype=torch.float64)  # maps 5, 4
    teacher = torch.tensor([[[[0.0, 3.0]]]], dtype=torch.float64)  # maps 0, 9
    length = math.sqrt(41)
    expected = ((5 / length) ** 2 + (4 / length - 1) ** 2) / 2
    assert distill.attention_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    first = ((3 / math.sqrt(13)) ** 2 + (2 / math.sqrt(13) - 1) ** 2) / 2  # power 1: 3, 2
    got = distill.attention_loss(student, teacher, power=1.0).item()
    assert got == pytest.approx(first, rel=1e-12)


def test_attention_knows_no_scale_and_no_number_of_channels():
    student = torch.randn(3, 4, 5, 5)
    doubled = torch.cat([student, student], 1) * 7
    assert distill.attention_loss(student, doubled).item() == pytest.approx(0, abs=1e-12)
    tokens = student.flatten(2).transpose(1, 2)
    wanted = distill.attention_loss(student, torch.ones(3, 1, 5, 5))
    got = distill.attention_loss(tokens, torch.ones(3, 25, 1))
    torch.testing.assert_close(got, wanted)


def test_attention_of_other_sizes_and_its_errors():
    student, teacher = torch.rand(2, 3, 2, 2), torch.rand(2, 5, 4, 4)
    assert distill.attention_loss(student, teacher) > 0
    assert distill.attention_loss(teacher, student) > 0
    with pytest.raises(ValueError, match=r"shape \(N, C, \.\.\.\), got \(2, 3\) and \(2, 5\)"):
        distill.attention_loss(torch.rand(2, 3), torch.rand(2, 5))
    with pytest.raises(ValueError, match="as many places"):
        distill.attention_loss(torch.rand(2, 3, 4), torch.rand(2, 5, 4))
    with pytest.raises(ValueError, match="power must be >= 1, got 0"):
        distill.AttentionTransfer({"a": "b"}, power=0.5)


def distances(x):
    rows = x.flatten(1).tolist()
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    found = {(i, j): math.dist(rows[i], rows[j]) for i, j in pairs}
    mean = sum(found.values()) / len(found)
    return {pair: value / mean for pair, value in found.items()}


def cosine(a, b, c):
    one, two = (torch.tensor(v) - torch.tensor(b) for v in (a, c))
    return (one @ two / one.norm() / two.norm()).item()


def test_relational_by_its_definition():
    student = torch.randn(4, 3, dtype=torch.float64)
    teacher = torch.randn(4, 2, 5, dtype=torch.float64) * 3
    one, other = distances(student), distances(teacher)
    expected = sum(huber(one[p] - other[p]) for p in one) / 12
    got = distill.distance_loss(student, teacher).item()
    assert got == pytest.approx(expected, rel=1e-10)
    rows, others = student.tolist(), teacher.flatten(1).tolist()
    triples = [(i, j, k) for i in range(4) for j in range(4) for k in range(4)
               if len({i, j, k}) == 3]  # fmt: skip
    found = [
        huber(cosine(rows[i], rows[j], rows[k]) - cosine(others[i], others[j], others[k]))
        for i, j, k in triples
    ]
    got = distill.angle_loss(student, teacher).item()
    assert got == pytest.approx(sum(found) / 24, rel=1e-6)
    term = distill.Relational({"a": "b"}, distance=3.0, angle=5.0)
    assert term([(student, teacher)]).item() == pytest.approx(
        3 * expected + 5 * sum(found) / 24, rel=1e-6
    )


def test_relations_survive_turning_shifting_and_scaling():
    teacher = torch.randn(6, 4, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    moved = 5 * teacher @ turn + 2
    assert distill.distance_loss(moved, teacher).item() == pytest.approx(0, abs=1e-20)
    assert distill.angle_loss(moved, teacher).item() == pytest.approx(0, abs=1e-20)


def test_relational_gradients():
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: distill.distance_loss(s, teacher), student)
    assert torch.autograd.gradcheck(lambda s: distill.angle_loss(s, teacher), student)


def test_equal_and_dead_samples_give_a_small_gradient():
    for student in (torch.zeros(4, 3), torch.ones(4, 3), torch.randn(1, 3).expand(4, 3).clone()):
        student.requires_grad_()
        term = distill.Relational({"a": "b"})
        term([(student, torch.randn(4, 5))]).backward()
        assert student.grad.abs().max() < 10
    nearly = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0], [2.0, -1.0]], requires_grad=True)
    distill.Relational({"a": "b"})([(nearly, torch.randn(4, 5))]).backward()
    assert nearly.grad.abs().max() < 10
    dark = torch.zeros(2, 3, 4, 4, requires_grad=True)
    distill.attention_loss(dark, torch.rand(2, 3, 4, 4)).backward()
    assert dark.grad.isfinite().all()


@pytest.mark.parametrize("count", [1, 2])
def test_batches_too_small_to_relate(count):
    student = torch.randn(count, 3, requires_grad=True)
    term = distill.Relational({"a": "b"}, distance=float(count == 1), angle=1.0)
    value = term([(student, torch.randn(count, 3))])
    value.backward()
    assert value.item() == 0 and not student.grad.any()


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (0.0, 0.0), (1.0, math.nan)])
def test_relational_weights_are_checked(weights):
    with pytest.raises(ValueError, match="distance and angle must be finite and >= 0"):
        distill.Relational({"a": "b"}, distance=weights[0], angle=weights[1])
    with pytest.raises(ValueError, match="of the same batch"):
        distill.distance_loss(torch.zeros(2, 3), torch.zeros(3, 3))


@pytest.mark.parametrize("kind", [distill.Hint, distill.AttentionTransfer, distill.Relational])
def test_arguments_that_all_terms_share(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: weight must be finite and >= 0"):
        kind({"a": "b"}, weight=-1.0)
    with pytest.raises(ValueError, match=f"{kind.__name__}: layers must name at least one pair"):
        kind({})
    for layers in ("a", ["a", "b"], {"a": 1}):
        with pytest.raises(TypeError, match=f"{kind.__name__}: layers must map"):
            kind(layers)
    with pytest.raises(ValueError, match="projection must be one of"):
        distill.Hint({"a": "b"}, projection="sometimes")


def test_pairs_are_summed():
    term = distill.AttentionTransfer({"a": "b", "c": "d"})
    one = torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4)
    two = torch.rand(2, 2, 2, 2), torch.rand(2, 5, 2, 2)
    wanted = distill.attention_loss(*one) + distill.attention_loss(*two)
    torch.testing.assert_close(term([one, two]), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_features_are_compared_in_float32_under_autocast(dtype):
    hint, relational = distill.Hint({"a": "b"}), distill.Relational({"a": "b"})
    student = (torch.randn(4, 3, 5, 5) * 300).to(dtype)  # squares overflow float16
    teacher = (torch.randn(4, 6, 5, 5) * 300).to(dtype)
    hint.build([(student, teacher)])
    for term in (hint, relational, distill.AttentionTransfer({"a": "b"})):
        wanted = term([(student.float(), teacher.float())])
        with torch.autocast("cpu", torch.bfloat16):
            got = term([(student, teacher)])
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)
