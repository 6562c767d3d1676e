"""What the dependency graph couples, what it keeps and why."""

import pytest
import torch
from channel_cases import CASES, example
from torch import nn

from sparseq.structured import ChannelGraph


def groups_of(model, x, through_norms=False):
    graph = ChannelGraph(model.eval(), x)
    return graph.groups(graph.pruning_classes(through_norms))


def free(groups):
    return [g for g in groups if g.reason is None]


class Wrapped(nn.Module):
    """A function of some layers."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def test_a_residual_sum_couples_its_layers():
    model = Wrapped(
        lambda m, x: m.head((m.b(m.a(x).relu()) + m.a(x)).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 8, 1),
        head=nn.Linear(8, 2),
    )
    (group,) = free(groups_of(model, torch.randn(1, 3, 6, 6)))
    assert len(group.channels) == 8 and group.width == 1
    assert group.producers == ("a", "b") and set(group.consumers) == {"b", "head"}


def test_concatenated_channels_stay_apart():
    model = Wrapped(
        lambda m, x: m.head(torch.cat([m.a(x), m.b(x)], 1).flatten(1)),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(3, 4, 3),
        head=nn.Linear(12 * 16, 2),
    )
    first, second = free(groups_of(model, torch.randn(1, 3, 6, 6)))
    assert (first.producers, len(first.channels)) == (("a",), 8)
    assert (second.producers, len(second.channels)) == (("b",), 4)
    assert 16 in first.axes.values()  # places of one channel behind the flatten


def test_halves_of_a_split_that_are_multiplied_go_together():
    model = Wrapped(
        lambda m, x: m.head(torch.mul(*m.a(x).chunk(2, dim=-1))),
        a=nn.Linear(4, 16),
        head=nn.Linear(8, 2),
    )
    (group,) = free(groups_of(model, torch.randn(2, 4)))
    assert len(group.channels) == 8 and 2 in group.axes.values()


def test_depthwise_and_grouped_convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 24, 3, groups=4), nn.Conv2d(24, 2, 1),
    )  # fmt: skip
    groups = free(groups_of(model, torch.randn(1, 3, 9, 9)))
    assert [(len(g.channels), g.width) for g in groups] == [(8, 1), (4, 3)]
    assert groups[1].producers == ("2", "3")


def test_transposed_convolutions():
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 8, 2), nn.ConvTranspose2d(8, 8, 2, groups=8),
        nn.ConvTranspose2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1),
    )  # fmt: skip
    (group,) = free(groups_of(model, torch.randn(1, 3, 5, 5)))
    assert len(group.channels) == 4 and set(group.producers) >= {"0", "1"}


def test_norms():
    groups = groups_of(
        nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 6, 1), nn.InstanceNorm2d(6),
            nn.Conv2d(6, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1), nn.GroupNorm(4, 4),
            nn.Conv2d(4, 2, 1),
        ),
        torch.randn(1, 3, 5, 5),
    )  # fmt: skip
    assert [len(g.channels) for g in free(groups)] == [4, 6, 4]
    (tied,) = [g for g in groups if g.producers == ("4",)]
    assert tied.reason == "all of them are one unit: normalised together in 5"


def test_layer_norm_ties_unless_told_otherwise():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    x = torch.randn(2, 4)
    assert free(groups_of(model, x)) == []
    (group,) = free(groups_of(model, x, through_norms=True))
    assert len(group.channels) == 8


def test_a_shared_layer_couples_what_it_makes():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(4, 8), shared, nn.ReLU(), shared, nn.Linear(8, 2))
    (group,) = free(groups_of(model, torch.randn(2, 4)))
    assert set(group.producers) == {"0", "1"}


def test_squeeze_and_excitation():
    def excited(m, x):
        y = m.a(x)
        return m.out(y * m.up(m.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid())

    model = Wrapped(
        excited,
        a=nn.Conv2d(3, 8, 1), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1),
        out=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    first, second = free(groups_of(model, torch.randn(1, 3, 5, 5)))
    assert first.producers == ("a", "up") and second.producers == ("down",)


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_goes_by_heads(need_weights):
    import sparseq

    model = Wrapped(
        lambda m, x: m.head(m.a(x, x, x, need_weights=need_weights)[0]),
        a=sparseq.nn.MultiheadAttention(12, 3, batch_first=True),
        head=nn.Linear(12, 2),
    )
    groups = free(groups_of(model, torch.randn(2, 5, 12)))
    heads = groups[0]
    assert (len(heads.channels), heads.width) == (3, 4)
    assert heads.producers == ("a.q_proj", "a.k_proj", "a.v_proj")
    assert heads.consumers == ("a.out_proj",)
    assert groups[1].producers == ("a.out_proj",)


def standardised(weight):
    """Mean 0 and variance 1 of each output's weights, as timm's StdConv2d."""
    return nn.functional.batch_norm(weight[None], None, None, training=True)[0]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: m.b(m.a(x))[:, :4], None),
        (lambda m, x: m.b(m.a(x).softmax(-1)), "softmax runs along them"),
        (lambda m, x: m.b(m.a(x) * torch.ones(8)), "combined with a tensor of fixed size"),
        (lambda m, x: m.b(torch.fft.rfft(m.a(x)).real.repeat(1, 2)[:, :8]), "which is not known"),
        (lambda m, x: m.b(m.a(x)) + m.a(x).mean(), "reduced over"),
        (lambda m, x: m.b(m.a(x)) + m.a(x)[:, :1], "a part of the channels is taken"),
        (lambda m, x: (m.b(m.a(x)), m.a(x)), "the model's result"),
        (lambda m, x: m.b(torch.cat([*m.a(x).split([5, 3], 1)], 1)), "split into unequal parts"),
        (lambda m, x: m.b(nn.functional.pad(m.a(x), (0, 0))[:, torch.arange(8)]), "an index"),
        (lambda m, x: m.b(torch.cat([m.a(x)[:, None], torch.zeros(len(x), 1, 8)], 1)), "joined"),
        (lambda m, x: m.a(x) @ standardised(m.b.weight).T, "normalised over"),
    ],
)
def test_what_stays_says_why(function, reason):
    model = Wrapped(function, a=nn.Linear(3, 8), b=nn.Linear(8, 6))
    groups = groups_of(model, torch.randn(2, 3))
    made = [g for g in groups if g.producers == ("a",)]
    if reason is None:
        assert [g.reason for g in made] == [None]
    else:
        assert made and all(reason in g.reason for g in made)


def test_padding_along_channels_locks_them():
    model = Wrapped(
        lambda m, x: m.b(nn.functional.pad(m.a(x), (0, 2))), a=nn.Linear(3, 6), b=nn.Linear(8, 6)
    )
    assert free(groups_of(model, torch.randn(2, 3))) == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "vgg"])
def test_the_same_sets_as_torch_pruning(name):
    tp = pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")
    model, x = CASES[name][0](), example(name)
    theirs = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    names = {id(p): n for n, p in model.named_parameters()}
    graph = ChannelGraph(model, x)
    classes = graph.pruning_classes(False)
    compared = 0
    for group in free(graph.groups(classes)):
        root = model.get_submodule(group.producers[0])
        place = next(
            i for i, axis in enumerate(graph.axes)
            if axis.names[0] == f"{group.producers[0]}.weight" and axis.dim == 0
        )  # fmt: skip
        for at in (0, len(group.channels) - 1):
            channel = graph.places(place, classes)[at]
            ours = {
                (axis.names[0], axis.dim, i)
                for index, axis in enumerate(graph.axes) if axis.names[0] in names.values()
                for i in (graph.places(index, classes) == channel).nonzero()[0].tolist()
            }  # fmt: skip
            prune = (
                tp.prune_conv_out_channels
                if isinstance(root, nn.Conv2d)
                else tp.prune_linear_out_channels
            )
            found = set()
            for dependency, indices in theirs.get_pruning_group(root, prune, [at]):
                layer, function = dependency.target.module, dependency.handler
                if not isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                    continue
                reads = "in_channels" in function.__name__ and not isinstance(layer, nn.BatchNorm2d)
                if reads and getattr(layer, "groups", 1) > 1:
                    reads = False  # a depthwise convolution's channels are its outputs
                for i in indices:
                    found.add((names[id(layer.weight)], int(reads), i))
                    if not reads and layer.bias is not None:
                        found.add((names[id(layer.bias)], 0, i))
            assert found == ours, (group.producers, at)
            compared += 1
    assert compared >= 6
