import dataclasses
import io

import pytest
import torch
from rich.console import Console
from torch import nn

import sparseq
from sparseq import bench
from sparseq.run import data, models
from sparseq.run.exercise import VARIANTS, Exercise, Settings, measure
from sparseq.run.progress import Bars


@pytest.fixture(scope="module")
def few():
    digits = data.load("digits")
    return dataclasses.replace(
        digits,
        x_train=digits.x_train[:256],
        y_train=digits.y_train[:256],
        x_test=digits.x_test[:50],
        y_test=digits.y_test[:50],
    )


def tiny(name, channels, classes, *, student=False):
    return models.ResNet(channels, classes, width=4 if student else 8, depth=1, stages=2)


def start(few, **settings):
    return Exercise(few, Settings(epochs=2, **settings), Bars(8, Console(file=io.StringIO())))


@pytest.fixture(scope="module")
def course(few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", tiny)
        course = start(few)
        course.variants = {variant.name: variant for variant in course.run()}
        yield course


def tensors(model):
    return [value for value in model.state_dict().values() if isinstance(value, torch.Tensor)]


def assert_same(one, two):
    for left, right in zip(tensors(one), tensors(two), strict=True):
        assert torch.equal(left, right)


def masked(model):
    """Zeros of each weight by layer name, as the layer computes."""
    layers = (nn.Conv2d, nn.Linear, sparseq.nn.SparseQuantConv2d, sparseq.nn.SparseQuantLinear)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, layers):
            integer = isinstance(module, layers[2:])
            found[name] = (module.packed().dequantize() if integer else module.weight) == 0
    return found


def test_variants_are_all_combinations_in_one_order():
    chains = {
        "".join(letter for letter in "DPQ" if keep >> "DPQ".index(letter) & 1) for keep in range(8)
    }
    assert set(VARIANTS.values()) == chains and len(VARIANTS) == 8
    for name, chain in VARIANTS.items():
        assert set(chain) == set(name.replace("baseline", "").replace("+", ""))


def test_every_variant_is_there_and_every_training_is_noted(course):
    assert list(course.variants) == list(VARIANTS)
    assert len(course.losses) == 8 and all(course.losses.values())
    assert not any(variant.deployed.training for variant in course.variants.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_what_its_name_says(course, name):
    variant = course.variants[name]
    integer = [
        isinstance(module, sparseq.nn.SparseQuantConv2d) for module in variant.deployed.modules()
    ]
    assert any(integer) == ("Q" in name)
    share = bench.sparsity(variant.deployed)
    assert share == pytest.approx(0.8, abs=0.02) if "P" in name else share < 0.2
    large = models.parameters(tiny("", 1, 10))
    small = models.parameters(tiny("", 1, 10, student=True))
    assert variant.parameters == (small if "D" in name else large)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in variant.deployed.modules())


@pytest.mark.parametrize(("pruned", "both"), [("P", "Q+P"), ("P+D", "Q+P+D")])
def test_the_mask_survives_quantisation(course, pruned, both):
    before = masked(course.variants[pruned].deployed)
    after = masked(course.variants[both].deployed)
    for name, zeros in before.items():
        assert bool(after[name][zeros].all())


def test_converted_models_answer_as_the_trained_ones(course, few):
    inputs = few.normalise(few.x_test)
    for variant in course.variants.values():
        with torch.no_grad():
            expected, got = variant.trained(inputs), variant.deployed(inputs)
        assert (expected.argmax(1) == got.argmax(1)).float().mean() >= 0.9
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.1)


def test_a_chain_alone_gives_what_it_gives_among_the_others(course, few):
    alone = start(few)
    pruned = alone.prune(alone.baseline())
    assert_same(pruned, course.variants["P"].trained)
    assert_same(alone.quantise(pruned), course.variants["Q+P"].trained)


def test_the_seed_decides_the_baseline(few, course):
    assert_same(start(few).baseline(), course.variants["baseline"].trained)
    other = start(few, seed=1).baseline()
    assert not torch.equal(tensors(other)[0], tensors(course.variants["baseline"].trained)[0])


def test_techniques_leave_their_input_alone(few, course):
    model = course.variants["baseline"].trained
    before = [value.clone() for value in tensors(model)]
    kinds = [type(module) for module in model.modules()]
    course.prune(model)
    course.quantise(model)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(model), strict=True))
    assert [type(module) for module in model.modules()] == kinds
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_measure(course, few, tmp_path):
    variants = list(course.variants.values())
    threads = torch.get_num_threads()
    rows = measure(variants, few, tmp_path / "models", threads=1, repeats=3)
    assert torch.get_num_threads() == threads
    assert [row.name for row in rows] == list(VARIANTS)
    assert rows[0].drop == 0 and rows[0].speedup == 1
    for row, variant in zip(rows, variants, strict=True):
        path = tmp_path / "models" / f"{row.name}.safetensors"
        assert row.size_mb == path.stat().st_size / 1e6
        assert row.accuracy == bench.accuracy(variant.deployed, few.test_batches())
        assert row.drop == pytest.approx(rows[0].accuracy - row.accuracy)
        assert 0 < row.ms_per_image <= row.p95_ms <= row.p99_ms
        assert row.speedup == pytest.approx(rows[0].ms_per_image / row.ms_per_image)
    size = {row.name: row.size_mb for row in rows}
    assert size["Q"] < size["baseline"] and size["P"] < size["baseline"]
    assert size["Q+P"] < size["Q"] and size["D"] < size["baseline"]


def test_saved_variants_load_into_a_fresh_network(course, few, tmp_path):
    variants = [course.variants[name] for name in ("baseline", "P", "Q+P")]
    measure(variants, few, tmp_path, repeats=1)
    for variant in variants:
        again = sparseq.load(tmp_path / f"{variant.name}.safetensors", tiny("", 1, 10)).eval()
        inputs = few.normalise(few.x_test)
        assert torch.equal(again(inputs), variant.deployed(inputs))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="epochs: must be at least 1, got 0"):
        Settings(epochs=0)


def test_one_epoch_still_prunes_to_the_target(few, monkeypatch):
    monkeypatch.setattr(models, "build", tiny)
    course = Exercise(few, Settings(epochs=1), Bars(8, Console(file=io.StringIO())))
    pruned = course.prune(course.baseline())
    assert bench.sparsity(pruned) == pytest.approx(0.8, abs=0.02)
