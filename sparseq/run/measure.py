"""From trained stages to figures: what each variant is worth once it is converted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparseq
from sparseq import NM, Unstructured, bench
from sparseq.analysis.candidates import CANDIDATES
from sparseq.flow.macs import Counter, count_macs
from sparseq.lower import layerwise
from sparseq.run import models
from sparseq.run.data import Dataset
from sparseq.run.folder import Stage
from sparseq.run.results import Layer, Run, Variant
from sparseq.run.stage import Workshop

__all__ = ["choose_best", "deployed", "measure", "sensitivity"]


def deployed(workshop: Workshop, chain: str, seed: int) -> nn.Module:
    """A variant as one would ship it: integer layers, batch norms folded in all variants alike."""
    model = workshop.trained(Stage(seed, chain))
    return sparseq.convert(model, workshop.data.example).eval()


def measure(workshop: Workshop, folder: Path) -> list[Variant]:
    """Measure the variants of a recipe whose stages are trained, the baseline first.

    Accuracy is measured for every seed, all else of the first one's. Variants take turns; each is
    timed with one thread and with all that torch has, and its faster setting counts: small layers
    lose more to waking threads than they win.

    Args:
        workshop: knows recipe, data and stages.
        folder: where the models are saved, `NAME.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe, data = workshop.recipe, workshop.data
    first = recipe.seeds[0]
    converted = {name: deployed(workshop, chain, first) for name, chain in recipe.chains.items()}
    times = _times(converted, data.example, recipe.repeats)
    found: list[Variant] = []
    for name, chain in recipe.chains.items():
        model, taken = converted[name], times[name]
        runs = []
        for seed in recipe.seeds:
            other = model if seed == first else deployed(workshop, chain, seed)
            runs.append(_run(workshop, seed, chain, bench.accuracy(other, data.test_batches())))
        mean = statistics.fmean(run.accuracy for run in runs)
        path = folder / f"{name}.safetensors"
        sparseq.save(model, path)
        base = found[0] if found else None
        found.append(
            Variant(
                name=name,
                chain=chain,
                runs=tuple(runs),
                accuracy=mean,
                spread=statistics.stdev(run.accuracy for run in runs) if len(runs) > 1 else 0.0,
                drop=base.accuracy - mean if base else 0.0,
                ms_per_image=taken.per_image_ms,
                p95_ms=taken.p95_ms,
                p99_ms=taken.p99_ms,
                speedup=base.ms_per_image / taken.per_image_ms if base else 1.0,
                threads=taken.threads,
                size_mb=bench.size_mb(path),
                macs=count_macs(lambda model=model: model(data.example), model),  # type: ignore[misc]
                sparsity=100.0 * bench.sparsity(model),
                parameters=models.parameters(workshop.network(Stage(first, chain[:1]))),
                layers=_layers(model, data.example),
            )
        )
    return found


def choose_best(variants: Sequence[Variant], limit: float) -> Variant:
    """The fastest variant that loses less than `limit` points (the baseline loses none)."""
    return min((v for v in variants if v.drop < limit), key=lambda v: v.ms_per_image)


def sensitivity(workshop: Workshop) -> dict[str, dict[str, float]]:
    """What the baseline of the first seed loses where one layer alone is changed: loss added.

    The recipe says on how many training images; none gives an empty answer.
    """
    recipe, data = workshop.recipe, workshop.data
    if not recipe.sensitivity:
        return {}
    model = workshop.trained(Stage(recipe.seeds[0], ""))
    candidates = {
        "int8": CANDIDATES["int8"],
        "int4": CANDIDATES["int4"],
        f"{100 * recipe.prune.sparsity:g} % pruned": sparseq.Layer(
            sparsity=Unstructured(recipe.prune.sparsity)
        ),
        "2:4": sparseq.Layer(sparsity=NM(2, 4)),
    }
    table = sparseq.sensitivity(model, _some(data, recipe.sensitivity), candidates)
    found: dict[str, dict[str, float]] = {}
    for row in table.rows:
        if row.sqnr == math.inf:
            continue  # the layer cannot become that
        found.setdefault(row.name, {})[row.candidate] = row.added
    return found


def _some(data: Dataset, count: int, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Training images from all over the set, which may be sorted by class."""
    count = min(count, len(data.x_train))
    index = torch.linspace(0, len(data.x_train) - 1, count).round().long()
    return [(data.normalise(data.x_train[part]), data.y_train[part]) for part in index.split(size)]


def _run(workshop: Workshop, seed: int, chain: str, percent: float) -> Run:
    losses, accuracies, seconds = {}, {}, 0.0
    for end in range(len(chain) + 1):
        stage = Stage(seed, chain[:end])
        state = workshop.read(stage)
        assert state is not None
        seconds += state["seconds"]
        if end or not chain.startswith("D"):  # the baseline is not the student's past
            losses[stage.what], accuracies[stage.what] = state["losses"], state["accuracies"]
    return Run(seed, percent, losses, accuracies, seconds)


def _times(
    converted: dict[str, nn.Module], example: Tensor, repeats: int | None
) -> dict[str, bench.Latency]:
    def call(model: nn.Module) -> Callable[[], object]:
        return lambda: model(example)

    calls = {name: call(model) for name, model in converted.items()}
    if repeats is None:
        trial = bench.compare(calls, repeats=3, warmup=1)
        one_round = 2 * sum(taken.median_ms for taken in trial.values()) / 1000
        repeats = min(max(int(10 / one_round), 20), 200)
    counts = sorted({1, torch.get_num_threads()})
    settings = [bench.compare(calls, repeats=repeats, threads=n) for n in counts]
    return {n: min((s[n] for s in settings), key=lambda taken: taken.median_ms) for n in calls}


def _layers(model: nn.Module, example: Tensor) -> tuple[Layer, ...]:
    model = layerwise(model)  # programs call no layer
    rows = sparseq.explain(model).rows
    work = _macs_by_layer(model, example, [row.name for row in rows])
    found = []
    for row in rows:
        spec = getattr(model.get_submodule(row.name), "weight_spec", None)
        bits = None if spec is None else spec.bits
        found.append(Layer(row.name, row.kind, row.kernel, bits, row.sparsity, work[row.name]))
    return tuple(found)


def _macs_by_layer(
    model: nn.Module, example: Tensor, names: Sequence[str]
) -> dict[str, int | None]:
    """Multiplications of each layer in one run; None where an op does not tell."""
    counter = Counter()
    begun, found = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    handles = []
    for name in names:

        def before(module: nn.Module, args: Any, name: str = name) -> None:
            begun[name] = counter.total

        def after(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            found[name] += counter.total - begun[name]

        layer = model.get_submodule(name)
        handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        with torch.no_grad(), counter:
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: None if counter.unknown else count for name, count in found.items()}
