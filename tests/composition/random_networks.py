"""Small random networks, and random ways to prune, quantise and distil them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

import sparseq
from sparseq import NM, Channels, Layer, Plan, Quant, Unstructured, distill
from sparseq.flow.prepare import layers_of, transform_of
from sparseq.nn import SparseQuantLayer
from sparseq.sparse import Mask, PruningSchedule

BLOCKS = ("plain", "bare", "residual", "pointwise", "depthwise", "grouped", "concatenated")
CLASSES = 5


class Block(nn.Module):
    """A convolution with what goes around it."""

    def __init__(self, kind: str, norm: str, width: int) -> None:
        super().__init__()
        size = 1 if kind == "pointwise" else 3
        groups = {"depthwise": width, "grouped": 2}.get(kind, 1)
        self.kind = kind
        self.conv = nn.Conv2d(
            width, width, size, padding=size // 2, groups=groups, bias=kind == "bare"
        )
        self.norm: nn.Module = nn.Identity()
        if kind != "bare":
            self.norm = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(2, width)
        self.relu = nn.ReLU()
        if kind == "concatenated":
            self.merge = nn.Conv2d(2 * width, width, 1)

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.kind == "concatenated":
            return self.merge(torch.cat([x, self.relu(y)], 1))
        return self.relu(x + y) if self.kind == "residual" else self.relu(y)


class Network(nn.Module):
    """A stem, blocks, and two linear layers with a batch norm between them."""

    def __init__(self, kinds, norm: str, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(*[Block(kind, norm, width) for kind in kinds])
        self.hidden = nn.Linear(width, 8)
        self.hidden_norm = nn.BatchNorm1d(8)
        self.hidden_relu = nn.ReLU()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.blocks(self.relu(self.norm(self.stem(x))))
        x = self.hidden_relu(self.hidden_norm(self.hidden(x.mean((2, 3)))))
        return self.head(x)


def network(kinds, norm, width, seed):
    """In eval mode; batch norms have seen data, their factors are of both signs, one is 0."""
    torch.manual_seed(seed)
    model = Network(kinds, norm, width)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.2)
            module.weight.data[0] = 0.0
    with torch.no_grad():
        model.train()(images(seed))
    return model.eval()


def images(seed, count=6):
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Recipe:
    """What a test does to which network.

    Attributes:
        pruned: the names of the layers that the plan's sparsity reaches.
        left: a layer that is not quantised, or None.
        order: of "prune", "quantise" and "distil".
    """

    kinds: tuple[str, ...]
    norm: str
    width: int
    seed: int
    sparsity: NM | Unstructured
    iterative: bool
    pruned: tuple[str, ...]
    weight: Quant
    input: Quant
    left: str | None
    order: tuple[str, ...]

    def network(self) -> nn.Module:
        return network(self.kinds, self.norm, self.width, self.seed)

    def images(self, offset: int = 0) -> torch.Tensor:
        return images(self.seed + 100 + offset)

    @property
    def sparsities(self) -> Plan:
        return Plan({name: Layer(sparsity=self.sparsity) for name in self.pruned})

    @property
    def grids(self) -> Plan:
        plan: dict[str, Layer | None] = {"*": Layer(self.weight, self.input)}
        return Plan(plan if self.left is None else {**plan, self.left: None})


@st.composite
def recipes(draw, iterative: bool | None = None) -> Recipe:
    kinds = tuple(draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3)))
    names = ["stem", *(f"blocks.{i}.conv" for i in range(len(kinds))), "hidden", "head"]
    scopes = st.sampled_from(["global", "local"])
    unstructured = st.builds(Unstructured, st.sampled_from([0.3, 0.5, 0.8]), scopes)
    groups = st.sampled_from([NM(2, 4), NM(1, 4), NM(1, 2)])
    sparsity = draw(unstructured if iterative else st.one_of(groups, unstructured))
    if iterative is None:
        iterative = draw(st.booleans()) and isinstance(sparsity, Unstructured)
    weight = st.builds(
        Quant,
        bits=st.sampled_from([4, 8]),
        symmetric=st.booleans(),
        axis=st.just(0),
        learned=st.booleans(),
    )
    return Recipe(
        kinds,
        draw(st.sampled_from(["batch", "group"])),
        draw(st.sampled_from([4, 8])),
        draw(st.integers(0, 50)),
        sparsity,
        iterative,
        tuple(draw(st.lists(st.sampled_from(names), min_size=1, unique=True))),
        draw(weight),
        draw(st.builds(Quant, symmetric=st.booleans(), learned=st.booleans())),
        draw(st.sampled_from([None, *names])),
        tuple(draw(st.permutations(["prune", "quantise", "distil"]))),
    )


channels = st.builds(
    Channels,
    st.sampled_from([0.25, 0.5, 0.8]),
    st.sampled_from(["l1", "l2", "batch_norm", "random"]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["local", "global"]),
)


class Student:
    """A recipe's network on its way."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.model = recipe, recipe.network()
        self.schedule: PruningSchedule | None = None

    def run(self) -> Student:
        """All three in the recipe's order, then training to the end of the schedule."""
        for step in self.recipe.order:
            getattr(self, step)()
        while self.schedule is not None and not self.schedule.done:
            self.distil(1)
        self.distil(1)
        self.model.eval()
        return self

    def remove(self, spec: Channels) -> sparseq.structured.ChannelReport:
        torch.manual_seed(self.recipe.seed)  # of the criterion "random"
        return sparseq.prune_channels(self.model, self.recipe.images()[:1], spec)

    def prune(self) -> None:
        sparseq.prepare(self.model, self.recipe.sparsities)
        if self.recipe.iterative:
            self.schedule = PruningSchedule(self.model, 3)

    def quantise(self) -> None:
        sparseq.prepare(self.model, self.recipe.grids)
        sparseq.calibrate(self.model, [self.recipe.images()])

    def distil(self, steps: int = 2) -> None:
        """Some steps of training, each with one of the schedule, if it runs."""
        recipe, model = self.recipe, self.model
        teacher = network(("plain", "residual"), "batch", 12, 1000)
        terms = [distill.Hint({"blocks": "blocks"}), distill.Relational({"hidden": "hidden"})]
        with distill.Loss(
            teacher, 2.0, 0.5, terms=terms, student=model, example=recipe.images()
        ) as loss:
            parameters = [*model.parameters(), *loss.parameters()]
            optimizer = torch.optim.SGD(parameters, 0.02, momentum=0.9, weight_decay=1e-2)
            model.train()
            for step in range(steps):
                if self.schedule is not None:
                    self.schedule.step()
                x, labels = recipe.images(step + 1), torch.arange(6) % CLASSES
                value = loss(model(x), labels, x)
                optimizer.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
        model.eval()


def masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """Each pruned layer's mask, True is kept, by name."""
    found = {name: transform_of(layer, Mask) for name, layer in layers_of(model).items()}
    return {name: mask.mask.clone() for name, mask in found.items() if mask is not None}


def assert_zero(model: nn.Module, kept: dict[str, torch.Tensor]) -> None:
    """What is masked is exactly zero in a float, prepared or converted model, and stored so."""
    layers = layers_of(model, converted=True)
    for name, mask in kept.items():
        layer = layers[name]
        if isinstance(layer, SparseQuantLayer):
            zero = layer.weight_zero_point
            integers = layer.weight_values.int()
            if zero is not None:
                integers = integers - zero.reshape(-1, *[1] * (integers.dim() - 1))
            assert not integers[~mask].any(), name
            assert not layer.packed().dequantize()[~mask].any(), name
        else:
            assert not layer.weight[~mask].any(), name


def assert_same_state(model: nn.Module, state: dict[str, object]) -> None:
    """The model's state is this one, bit for bit."""
    now = model.state_dict()
    assert now.keys() == state.keys()
    for name, value in now.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, state[name]), name
        else:
            assert value == state[name], name


def snapshot(model: nn.Module) -> dict[str, object]:
    return copy.deepcopy(dict(model.state_dict()))
