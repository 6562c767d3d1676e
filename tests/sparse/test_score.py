"""Scores from data, by their formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseq import NM, Block, Layer, Plan, Unstructured, convert, explain, prepare, testing
from sparseq.sparse import Criterion, Movement, PruningSchedule, masks_of, score, update_masks


def network():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )


def batches(count=3):
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(6, 4, 4, 4, generator=generator),
            torch.randint(0, 4, (6,), generator=generator),
        )
        for _ in range(count)
    ]


def by_hand(model, data):
    """Weight and gradients by batch of each layer, of a float model."""
    gradients = {"0": [], "3": []}
    for x, y in data:
        loss = F.cross_entropy(model(x), y)
        found = torch.autograd.grad(loss, [model[0].weight, model[3].weight])
        for name, gradient in zip(gradients, found, strict=True):
            gradients[name].append(gradient)
    return gradients


FORMULAS = {
    "snip": lambda w, gs: (w * sum(gs)).abs(),
    "taylor": lambda w, gs: sum((w * g).square() for g in gs),
    "movement": lambda w, gs: sum(-w * g for g in gs),
    "magnitude": lambda w, gs: w.abs(),
    "l2": lambda w, gs: w * w,
}


@pytest.mark.parametrize("criterion", FORMULAS)
def test_gradient_criteria_by_formula(criterion):
    model, data = network(), batches()
    wanted = by_hand(model, data)
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in wanted}
    prepare(model, Plan({"*": Layer(sparsity=Unstructured(0.5, criterion=criterion))}))
    for mask, _ in masks_of(model):
        mask.mask.fill_(True)
    got = score(model, data)
    assert list(got) == ["0", "3"]
    for name, scores in got.items():
        torch.testing.assert_close(scores, FORMULAS[criterion](weights[name], wanted[name]))
    torch.testing.assert_close(got, score(model, data, criterion))


def test_a_given_loss_and_a_criterion_of_your_own():
    model, data = network(), batches(1)
    x, y = data[0]
    loss = (model(x) ** 2).sum() * y.sum()
    (wanted,) = torch.autograd.grad(loss, [model[0].weight])
    prepare(model, Plan({"0": Layer(sparsity=Block(2, 2, 0.0))}))
    own = Criterion(lambda w, total: total * w, "gradient", lambda w, g: 2 * g)
    got = score(model, data, own, loss=lambda output, labels: (output**2).sum() * labels.sum())
    torch.testing.assert_close(got["0"], 2 * wanted * model[0].parametrizations.weight.original)


def test_weights_masked_before_have_gradients_and_nothing_of_the_model_moves():
    model, data = network(), batches()
    prepare(model, Plan({"*": Layer(sparsity=NM(2, 4, "snip"))})).train()
    masks_of(model)[0][0].mask[:, :2] = False
    model[3].bias.grad = torch.ones(4)
    model[0].parametrizations.weight.original.requires_grad_(False)  # frozen: scored all the same
    state = {key: value.clone() for key, value in model.state_dict().items()}
    got = score(model, data)
    assert bool((got["0"][:, :2] != 0).any())
    assert model.training and model[3].bias.grad.tolist() == [1.0] * 4
    assert model[3].parametrizations.weight.original.grad is None
    for key, value in model.state_dict().items():
        testing.assert_equal(value, state[key])
    x, _ = data[0]
    assert not model[0](x).requires_grad or model[0].bias.requires_grad
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_called_twice_counts_once_with_the_whole_gradient():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(self.layer(x).tanh())

    model, data = Twice(), [(torch.randn(8, 6), torch.randint(0, 6, (8,)))]
    x, y = data[0]
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), [model.layer.weight])
    energy = x.square().sum(0) + model.layer(x).tanh().square().sum(0)
    weight = model.layer.weight.detach()
    prepare(model, Plan({"*": Layer(sparsity=Unstructured(0.0))}))
    torch.testing.assert_close(score(model, data, "taylor")["layer"], (weight * gradient) ** 2)
    wanted = weight.abs() * energy.detach().sqrt()
    torch.testing.assert_close(score(model, data, "wanda")["layer"], wanted)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv1d(6, 4, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), dilation=2, padding="same", padding_mode="circular"),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    ],
    ids=lambda layer: str(layer)[:60],
)
def test_wanda_by_the_columns_of_the_layer_as_a_matrix(layer):
    """A layer is linear: the inputs that a weight meets are its Jacobian's entries."""
    shape = {"Linear": (5, 6), "Conv1d": (2, 6, 7)}.get(type(layer).__name__, (2, 4, 5, 6))
    x = torch.randn(shape)
    jacobian = torch.autograd.functional.jacobian(
        lambda w: torch.func.functional_call(layer, {"weight": w}, x), layer.weight
    )
    energy = jacobian.square().flatten(0, -1 - layer.weight.dim()).sum(0)
    wanted = layer.weight.detach().abs() * energy.sqrt()
    prepare(layer, Plan({"*": Layer(sparsity=Unstructured(0.5, "output", "wanda"))}))
    (mask, _), *_ = masks_of(layer)
    got = score(layer, [x[:1], x[1:]])[""]
    torch.testing.assert_close(got, mask.ordered(wanted))


def test_wanda_of_an_embedding_counts_look_ups():
    layer = nn.Embedding(5, 3)
    model = prepare(nn.Sequential(layer), Plan({"*": Layer(sparsity=Unstructured(0.4, "local"))}))
    got = score(model, [torch.tensor([[0, 1, 1]]), torch.tensor([[1, 4, 4]])], "wanda")["0"]
    times = torch.tensor([1.0, 3.0, 0.0, 0.0, 2.0]).sqrt()
    original = model[0].parametrizations.weight.original.detach()
    torch.testing.assert_close(got, original.abs() * times[:, None])


def test_wanda_keeps_the_best_of_each_output():
    model, data = nn.Sequential(nn.Linear(8, 5)), [torch.randn(20, 8) * torch.arange(8.0)]
    prepare(model, Plan({"*": Layer(sparsity=Unstructured(0.5, "output", "wanda"))}))
    update_masks(model, scores=score(model, data))
    weight, norms = model[0].parametrizations.weight.original, data[0].norm(dim=0)
    for row, kept in zip(weight, masks_of(model)[0][0].mask, strict=True):
        best = (row.abs() * norms).topk(4).indices
        assert set(kept.nonzero().flatten().tolist()) == set(best.tolist())


@pytest.mark.parametrize("spec", [Unstructured(0.5, criterion="snip"), NM(2, 4, "wanda"),
                                  Block(2, 4, 0.5, criterion="taylor")])  # fmt: skip
def test_masks_wait_for_their_scores(spec):
    model, data = prepare(network(), Plan({"*": Layer(sparsity=spec)})), batches()
    assert all(bool(mask.mask.all()) and not mask.settled for mask, _ in masks_of(model))
    assert "not ranked yet" in explain(model).dense["0"]
    with pytest.raises(ValueError, match="convert: the mask of 0 was not ranked yet"):
        convert(model)
    with pytest.raises(ValueError, match="update_masks: scores must hold 0, whose criterion"):
        update_masks(model)
    update_masks(model, scores=score(model, data))
    assert explain(model).dense == {}
    zeros = sum(int((~mask.mask).sum()) for mask, _ in masks_of(model))
    assert zeros == (8 * 36 + 8 * 16 * 4) // 2
    again = prepare(network(), Plan({"*": Layer(sparsity=spec)}))
    again.load_state_dict(model.state_dict())
    x = data[0][0]
    testing.assert_equal(convert(again)(x), model.eval()(x))


def test_a_schedule_with_scores():
    plan = Plan({"*": Layer(sparsity=Unstructured(0.5, criterion="snip"))})
    with pytest.raises(ValueError, match="PruningSchedule: scores must be given, got None"):
        PruningSchedule(prepare(network(), plan), 2)
    model, data, calls = prepare(network(), plan), batches(), []

    def scores():
        calls.append(score(model, data))
        return calls[-1]

    schedule = PruningSchedule(model, 2, "linear", scores=scores)
    assert not calls  # nothing goes at the start
    schedule.step()
    schedule.step()
    assert len(calls) == 2 and schedule.sparsity == 0.5
    kept = torch.cat([mask.mask.flatten() for mask, _ in masks_of(model)])
    last = torch.cat([s.flatten() for s in calls[-1].values()])
    first = torch.cat([s.flatten() for s in calls[0].values()]).argsort()[:200]
    assert not bool(kept[first].any())  # of 800 the least quarter, and then of the rest the least
    last[first] = -1
    assert set(last.argsort()[:400].tolist()) == set((~kept).nonzero().flatten().tolist())
    with pytest.raises(ValueError, match=r"PruningSchedule: scores must be of masked layers"):
        PruningSchedule(model, 1, start=0.1, scores={"head": torch.ones(3)})


def test_a_step_whose_scores_fail_was_not_taken():
    model = prepare(network(), Plan({"*": Layer(sparsity=Unstructured(0.5))}))

    def scores():
        raise RuntimeError("no data")

    schedule = PruningSchedule(model, 2, scores=scores)
    with pytest.raises(RuntimeError, match="no data"):
        schedule.step()
    assert schedule.taken == 0 and schedule.sparsity == 0


def test_movement_sums_what_training_did():
    model = prepare(network(), Plan({"*": Layer(sparsity=Unstructured(0.5, "local", "movement"))}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = torch.zeros(8, 4, 3, 3)
    with Movement(model) as movement:
        schedule = PruningSchedule(model, 2, "linear", scores=movement)
        for x, y in batches(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            original = model[0].parametrizations.weight.original
            total -= original.detach() * original.grad
            optimizer.step()
        with torch.no_grad():
            model(x)  # not a training step
        torch.testing.assert_close(movement()["0"], total)
        schedule.step()
    least = total.flatten().argsort()[: 8 * 36 // 4]
    assert not bool(masks_of(model)[0][0].mask.flatten()[least].any())
    F.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(movement()["0"], total)  # closed
    movement.reset()
    assert not bool(movement()["0"].any())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((batches(1), "best"), ValueError, "score: criterion must be one of .* got 'best'"),
        (([], "snip"), ValueError, "score: batches must hold at least one batch, got none"),
        (([torch.randn(2, 4, 4, 4)], "snip"), ValueError, "loss must be given where batches have"),
        ((["x"], "wanda"), TypeError, "score: a batch must be a tensor"),
        (([torch.full((1, 4, 4, 4), float("inf"))], "wanda"), ValueError,
         "the input of 0 must be finite"),
        (([(torch.full((1, 4, 4, 4), float("nan")), torch.tensor([1]))], "snip"), ValueError,
         "the loss's gradient of . must be finite"),
    ],
)  # fmt: skip
def test_score_says_what_is_wrong(arguments, error, text):
    model = prepare(network(), Plan({"*": Layer(sparsity=Unstructured(0.5))})).train()
    with pytest.raises(error, match=text):
        score(model, *arguments)
    assert model.training and not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="score: model must be prepared with a sparsity"):
        score(network(), batches(1))
    with pytest.raises(ValueError, match="Movement: model must be prepared with a sparsity"):
        Movement(network())
    with pytest.raises(ValueError, match="Criterion: sees must be"):
        Criterion(lambda w, t: w, "labels")
