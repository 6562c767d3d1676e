"""Counts and choices of masks, against brute force."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseq import NM, Block, Layer, Plan, Unstructured, ops, prepare, testing
from sparseq.sparse import masks_of, nm_mask, update_masks
from sparseq.sparse.rank import block_scores, keep_by_output, keep_greatest, keep_nm, spread_blocks

# few, so that many are equal; negative ones as movement gives them
values = st.sampled_from((-2.0, -1.0, 0.0, 0.5, 1.0, float("inf")))


def dropped_by_hand(scores, count, before):
    """The first `count` of: what was dropped, then ascending scores, among equals the first."""
    order = sorted(range(len(scores)), key=lambda i: (before[i], scores[i], i))
    return set(order[:count])


@st.composite
def score_lists(draw):
    lists = draw(st.lists(st.lists(values, min_size=1, max_size=12), min_size=1, max_size=3))
    before = [[draw(st.booleans()) for _ in scores] for scores in lists]
    return lists, before, draw(st.floats(0, 1, exclude_max=True))


@given(score_lists())
def test_the_least_go_and_what_went_before_first(case):
    lists, before, sparsity = case
    masks = keep_greatest(
        [torch.tensor(s) for s in lists], sparsity, [torch.tensor(b) for b in before]
    )
    flat, held = list(itertools.chain(*lists)), list(itertools.chain(*before))
    wanted = dropped_by_hand(flat, round(sparsity * len(flat)), held)
    kept = torch.cat([m.flatten() for m in masks]).tolist()
    assert {i for i, k in enumerate(kept) if not k} == wanted


@given(score_lists())
def test_each_output_on_its_own(case):
    lists, before, sparsity = case
    width = min(len(s) for s in lists)
    scores = torch.tensor([s[:width] for s in lists])
    held = torch.tensor([b[:width] for b in before])
    mask = keep_by_output(scores, sparsity, held)
    for row, scored, was in zip(mask, scores, held, strict=True):
        wanted = dropped_by_hand(scored.tolist(), round(sparsity * width), was.tolist())
        assert {i for i, k in enumerate(row.tolist()) if not k} == wanted


@st.composite
def grouped_scores(draw):
    m = draw(st.integers(2, 6))
    shape = [draw(st.integers(1, 3)), m * draw(st.integers(1, 2))]
    shape += draw(st.sampled_from(([], [2], [2, 1])))
    count = torch.Size(shape).numel()
    flat = draw(st.lists(values | st.just(float("nan")), min_size=count, max_size=count))
    return torch.tensor(flat).reshape(shape), draw(st.integers(1, m - 1)), m


@given(grouped_scores())
def test_n_of_m_by_hand(case):
    scores, n, m = case
    mask = keep_nm(scores, n, m)
    rows = scores.movedim(1, -1).reshape(-1, m).nan_to_num(float("-inf"), float("inf")).tolist()
    for row, kept in zip(rows, mask.movedim(1, -1).reshape(-1, m).tolist(), strict=True):
        wanted = sorted(range(m), key=lambda i: (-row[i], i))[:n]
        assert {i for i, k in enumerate(kept) if k} == set(wanted)


@st.composite
def blocked_weights(draw):
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = [rows * draw(st.integers(1, 3)), columns * draw(st.integers(1, 3))]
    shape += draw(st.sampled_from(([], [2], [2, 3])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, generator=generator), rows, columns


@given(blocked_weights(), st.floats(0, 1, exclude_max=True), st.sampled_from(("magnitude", "l2")))
def test_blocks_by_hand(case, sparsity, criterion):
    weight, rows, columns = case
    norm = torch.abs if criterion == "magnitude" else torch.square
    scores, places = [], []
    taps = [range(size) for size in weight.shape[2:]]
    corners = [range(0, weight.shape[0], rows), range(0, weight.shape[1], columns)]
    for r, c, *tap in itertools.product(*corners, *taps):
        places.append((slice(r, r + rows), slice(c, c + columns), *tap))
        scores.append(float(norm(weight[places[-1]].double()).mean()))
    count = round(sparsity * len(scores))
    wanted = torch.ones_like(weight, dtype=torch.bool)
    for index in sorted(range(len(scores)), key=scores.__getitem__)[:count]:
        wanted[places[index]] = False
    layers = {2: torch.nn.Linear, 3: torch.nn.Conv1d, 4: torch.nn.Conv2d}
    size = weight.shape[2:]
    layer = layers[weight.dim()](weight.shape[1], weight.shape[0], *([size] if size else []))
    with torch.no_grad():
        layer.weight.copy_(weight)
    spec = Block(rows, columns, sparsity, criterion=criterion)
    mask = masks_of(prepare(torch.nn.Sequential(layer), Plan({"*": Layer(sparsity=spec)})))[0][0]
    testing.assert_equal(mask.mask, wanted)


def test_blocks_in_and_out_again():
    scores = torch.arange(24.0).reshape(4, 6)
    testing.assert_equal(block_scores(scores, 2, 3), torch.tensor([[4.0, 7.0], [16.0, 19.0]]))
    spread = spread_blocks(torch.tensor([[True, False]]), 2, 3)
    assert spread.tolist() == [[True] * 3 + [False] * 3] * 2


def model_of(spec):
    layers = torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 4)
    return prepare(torch.nn.Sequential(*layers), Plan({"*": Layer(sparsity=spec)}))


@pytest.mark.parametrize("criterion", ["magnitude", "l2"])
def test_two_of_four_by_magnitude_is_the_fast_op(criterion, monkeypatch):
    calls = []
    fast = ops.mask_24
    monkeypatch.setattr(ops, "mask_24", lambda w: calls.append(w) or fast(w))
    for mask, weight in masks_of(model_of(NM(2, 4, criterion))):
        testing.assert_equal(mask.mask, nm_mask(weight))
    assert len(calls) == 4


@pytest.mark.parametrize(
    "spec",
    [
        Unstructured(0.6, "local", "random"),
        Unstructured(0.6, "output", "random"),
        Block(2, 2, 0.6, "local", "random"),
        NM(1, 4, "random"),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_random_masks_count_right_and_follow_the_seed(spec):
    torch.manual_seed(3)
    model = model_of(spec)
    masks = [mask.mask.clone() for mask, _ in masks_of(model)]
    torch.manual_seed(3)
    same = [mask.mask for mask, _ in masks_of(model_of(spec))]
    assert all(torch.equal(a, b) for a, b in zip(masks, same, strict=True))
    other = [mask.mask for mask, _ in masks_of(model_of(spec))]
    assert not all(torch.equal(a, b) for a, b in zip(masks, other, strict=True))
    for mask, weight in zip(masks, (w for _, w in masks_of(model)), strict=True):
        zeros = int((~mask).sum())
        if isinstance(spec, NM):
            assert bool((mask.unflatten(1, (-1, 4)).sum(-1) == 1).all())
        elif isinstance(spec, Block):
            assert zeros == 4 * round(0.6 * weight.numel() / 4)
        elif spec.scope == "output":
            assert set((~mask).sum(1).tolist()) == {round(0.6 * weight.shape[1])}
        else:
            assert zeros == round(0.6 * weight.numel())


def test_scores_of_your_own_win():
    model = model_of(Unstructured(0.25, "local"))
    scores = {"0": torch.arange(96.0).reshape(12, 8), "2": -torch.arange(48.0).reshape(4, 12)}
    for mask, _ in masks_of(model):
        mask.mask.fill_(True)
    update_masks(model, scores=scores)
    (first, _), (second, _) = masks_of(model)
    assert first.mask.flatten().tolist() == [False] * 24 + [True] * 72
    assert second.mask.flatten().tolist() == [True] * 36 + [False] * 12


@pytest.mark.parametrize(
    ("scores", "error", "text"),
    [
        ({"fc": torch.ones(2)}, ValueError, r"masked layers \(0, 2\), got 'fc'"),
        ({"0": torch.ones(8, 12)}, ValueError, r"of 0 must have shape \(12, 8\), got \(8, 12\)"),
        ({"0": None}, ValueError, "must have shape .* got NoneType"),
        ({"0": torch.full((12, 8), float("nan"))}, ValueError, "of 0 must be numbers, got NaN"),
    ],
)
def test_scores_that_do_not_fit(scores, error, text):
    model = model_of(Unstructured(0.5))
    before = [mask.mask.clone() for mask, _ in masks_of(model)]
    with pytest.raises(error, match=f"update_masks: scores .*{text}"):
        update_masks(model, scores=scores)
    assert all(torch.equal(m.mask, b) for (m, _), b in zip(masks_of(model), before, strict=True))


@pytest.mark.parametrize("spec", [Unstructured(0.5), Block(2, 2, 0.5)], ids=str)
def test_nothing_comes_back_where_less_is_asked_for(spec):
    model = model_of(spec)
    before = [mask.mask.clone() for mask, _ in masks_of(model)]
    update_masks(model, 0.5)
    for (mask, _), held in zip(masks_of(model), before, strict=True):
        testing.assert_equal(mask.mask, held)


def test_pairs_have_no_names_for_scores():
    pairs = masks_of(model_of(Unstructured(0.5)))
    with pytest.raises(TypeError, match="update_masks: masks must be a model where scores"):
        update_masks(pairs, scores={})


@pytest.mark.parametrize("arguments", [(1.5,), (-0.1,), (float("nan"),), (1.0, 1.1), (0.5, -1)])
def test_shares_that_are_none(arguments):
    model = model_of(Unstructured(0.5))
    before = [mask.mask.clone() for mask, _ in masks_of(model)]
    with pytest.raises(
        ValueError, match=r"update_masks: (fraction|floor) must be in \[0, 1\], got"
    ):
        update_masks(model, *arguments)
    assert all(torch.equal(m.mask, b) for (m, _), b in zip(masks_of(model), before, strict=True))
