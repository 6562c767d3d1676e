"""Chains of techniques: each does what its letter says, in any order, and the seed decides."""

import pytest
import small_runs
import torch
from torch import nn

import sparseq
from sparseq import bench
from sparseq.flow.prepare import input_quantizers
from sparseq.run import measure, models, recompute
from sparseq.run.folder import Stage, stages_of
from sparseq.sparse import masks_of
from sparseq.sparse.mask import nm_mask

VARIANTS = ["Q", "P", "S", "D", "Q+P", "Q+S", "P+D", "Q+P+D", "QP", "QS", "PD", "QD"]
WANTED = small_runs.recipe(variants=VARIANTS)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """All stages, trained."""
    with pytest.MonkeyPatch.context() as patch, sparseq.testing.threads(1):
        patch.setattr(models, "build", small_runs.tiny)
        yield small_runs.trained(tmp_path_factory.mktemp("all"), WANTED)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(models, "build", small_runs.tiny)


def weights(model):
    """Each layer's weight as it computes, by name."""
    layers = (nn.Conv2d, nn.Linear)
    return {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, layers)}


def tensors(model):
    return {n: v for n, v in model.state_dict().items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("name", WANTED.chains)
def test_a_variant_is_what_its_name_says(shop, name):
    chain = WANTED.chains[name]
    model = measure.deployed(shop, chain, 0)
    integer = [isinstance(m, sparseq.nn.SparseQuantConv2d) for m in model.modules()]
    assert any(integer) == ("Q" in chain)
    share = bench.sparsity(model)
    if "P" in chain:
        assert share == pytest.approx(0.8, abs=0.03)
    assert ("P" in chain or "S" in chain) == (share > 0.3)
    small = models.parameters(small_runs.tiny("", 1, 10, student=True))
    large = models.parameters(small_runs.tiny("", 1, 10))
    count = models.parameters(shop.network(Stage(0, chain[:1])))
    assert count == (small if chain.startswith("D") else large)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_two_of_four_stay_in_every_layer_that_can(shop):
    for chain in ("S", "SQ", "QS"):
        model = shop.trained(Stage(0, chain))
        pairs = masks_of(model)
        assert len(pairs) >= 5
        for mask, weight in pairs:
            assert torch.equal(mask.mask, nm_mask(torch.where(mask.mask, weight, 0 * weight)))
            assert float(mask.mask.float().mean()) == 0.5


@pytest.mark.parametrize(
    ("before", "after"), [("P", "PQ"), ("S", "SQ"), ("DP", "DPQ"), ("P", "PD")]
)
def test_what_is_pruned_stays_so(shop, before, after):
    earlier, later = (weights(shop.trained(Stage(0, chain))) for chain in (before, after))
    for name, weight in earlier.items():
        assert bool((later[name][weight == 0] == 0).all())
        assert not torch.equal(later[name], weight)  # and what is left was trained on


def test_orders_are_different_networks(shop):
    assert WANTED.chains["Q+P"] == "PQ"
    one, other = (weights(shop.trained(Stage(0, chain))) for chain in ("PQ", "QP"))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_ranges_follow_again_after_quantisation_is_done(shop):
    """In QP the pruned network gets ranges of its own, and they are held at the end."""
    first, later = (input_quantizers(shop.trained(Stage(0, c))) for c in ("Q", "QP"))
    assert all(q.frozen for q in [*first.values(), *later.values()])
    assert any(not torch.equal(first[name].scale, later[name].scale) for name in first)


def test_converted_models_answer_as_the_trained_ones(shop):
    inputs = shop.data.normalise(shop.data.x_test)
    for chain in WANTED.chains.values():
        trained, converted = shop.trained(Stage(0, chain)), measure.deployed(shop, chain, 0)
        with torch.no_grad():
            torch.testing.assert_close(converted(inputs), trained(inputs), rtol=0.05, atol=0.1)


def test_a_chain_alone_gives_what_it_gives_among_the_others(shop, tmp_path):
    alone = small_runs.recipe(variants=["Q+P"])
    with sparseq.testing.threads(1):
        small_runs.trained(tmp_path, alone)
    assert small_runs.differences(shop.folder.path, tmp_path, alone) == []


def test_seeds_are_trained_apart_and_decide(shop, tmp_path):
    both = small_runs.recipe(seeds=[0, 1], variants=["D"])
    with sparseq.testing.threads(1):
        two = small_runs.trained(tmp_path, both)
    first = small_runs.recipe(variants=["D"])
    assert small_runs.differences(shop.folder.path, tmp_path, first) == []
    for chain in ("", "D"):
        one, other = (tensors(two.trained(Stage(seed, chain))) for seed in (0, 1))
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_gradient_checkpointing_changes_nothing(shop, tmp_path):
    recipe = small_runs.recipe(variants=["Q+P+D"], gradient_checkpointing=True)
    calls = []
    with pytest.MonkeyPatch.context() as patch, sparseq.testing.threads(1):
        again = recompute._keeping_statistics
        patch.setattr(
            recompute, "_keeping_statistics", lambda block: calls.append(block) or again(block)
        )
        small_runs.trained(tmp_path, recipe)
    assert calls  # blocks did run again
    assert small_runs.differences(shop.folder.path, tmp_path, recipe) == []


def test_amp_trains(tmp_path):
    recipe = small_runs.recipe(variants=["Q"], amp=True)
    shop = small_runs.trained(tmp_path, recipe)
    assert shop.amp and all(shop.read(stage)["done"] for stage in stages_of(recipe))


def test_divergence_names_the_stage(tmp_path):
    train = {**small_runs.SHORT, "rate": 1e30}
    with pytest.raises(ArithmeticError, match=r"0-baseline: train: the loss became .* lower the r"):
        small_runs.trained(tmp_path, small_runs.recipe(train=train))


def test_an_unfinished_stage_is_no_result(tmp_path):
    shop = small_runs.workshop(tmp_path, WANTED)
    with pytest.raises(ValueError, match="the stage 0-PQ is not finished"):
        shop.trained(Stage(0, "PQ"))


def test_measure(shop, tmp_path):
    with sparseq.testing.threads(1):
        variants = measure.measure(shop, tmp_path / "models")
    assert [v.name for v in variants] == list(WANTED.chains)
    assert variants[0].drop == 0 and variants[0].speedup == 1 and variants[0].spread == 0
    for variant in variants:
        path = tmp_path / "models" / f"{variant.name}.safetensors"
        assert variant.size_mb == path.stat().st_size / 1e6
        model = measure.deployed(shop, variant.chain, 0)
        assert variant.accuracy == bench.accuracy(model, shop.data.test_batches())
        assert variant.drop == pytest.approx(variants[0].accuracy - variant.accuracy)
        assert 0 < variant.ms_per_image <= variant.p95_ms <= variant.p99_ms
        layers = variant.layers
        assert sum(layer.macs for layer in layers) == variant.macs > 0
        assert {layer.bits for layer in layers} == ({8} if "Q" in variant.chain else {None})
        (run,) = variant.runs
        own = variant.chain if variant.chain.startswith("D") else f"B{variant.chain}"
        assert len(run.train_losses) == len(run.accuracies) == len(own)
        assert run.train_losses.keys() == run.accuracies.keys()
    saved = sparseq.load(tmp_path / "models" / "Q+P.safetensors", small_runs.tiny("", 1, 10))
    inputs = shop.data.normalise(shop.data.x_test)
    assert torch.equal(saved.eval()(inputs), measure.deployed(shop, "PQ", 0)(inputs))


def test_sensitivity_is_told_for_every_layer(shop):
    found = measure.sensitivity(shop)
    assert found.keys() == weights(shop.network(Stage(0, ""))).keys()
    assert found["fc"].keys() == {"int8", "int4", "80 % pruned", "2:4"}
    assert "2:4" not in found["stem"]  # its single input channel
    assert found["blocks.0.conv1"]["80 % pruned"] != 0
