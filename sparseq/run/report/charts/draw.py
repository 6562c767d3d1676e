"""All charts of a report, with what each says in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparseq.run.report.charts import bars, curves, layers
from sparseq.run.report.charts.tradeoff import trade_off
from sparseq.run.report.findings import Findings
from sparseq.run.report.pareto import front
from sparseq.run.report.words import listed
from sparseq.run.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Chart", "draw_all"]


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        name: of its file, without the suffix.
        section: of the report, that it belongs to.
        alt: what it shows, for readers who do not see it.
        caption: how to read it.
        figure: matplotlib's.
    """

    name: str
    section: str
    alt: str
    caption: str
    figure: Figure


def draw_all(results: Results, findings: Findings) -> Iterator[Chart]:
    """Draw what the results have data for."""
    yield from _trade_offs(results)
    variants, best = results.variants, findings.best
    ranked = sorted(variants, key=lambda variant: -variant.speedup)
    yield Chart(
        "speedups", "trade-offs",
        "Bars of the speed-ups: "
        + ", ".join(f"{variant.name} {variant.speedup:.2f} times" for variant in ranked) + ".",
        "The line is the baseline's speed. Blue: float; orange: INT8.",
        bars.speed_ups(variants, best.name),
    )  # fmt: skip
    for design in findings.designs:
        several = any(effect.margin is not None for effect in design.accuracy)
        yield Chart(
            f"effects-{design.factors}", "effects",
            "Effects on accuracy in points: "
            + ", ".join(f"{effect.name} {effect.value:+.2f}" for effect in design.accuracy) + ".",
            "Effects that stand apart from the line change something. Grey: one standard error of "
            "the test set" + ("; bars: 95 % intervals over the seeds." if several else "."),
            bars.effects(design, findings.noise.sampling(*(v.accuracy for v in design.variants))),
        )  # fmt: skip
    if best.layers:
        yield Chart(
            "layers-best", "layers",
            f"Zeros of the {len(best.layers)} layers of {best.name}, from "
            f"{100 * min(layer.sparsity for layer in best.layers):.0f} to "
            f"{100 * max(layer.sparsity for layer in best.layers):.0f} percent.",
            "Zeros of each layer's weights; the colour is their bits.",
            layers.layers_of(best),
        )  # fmt: skip
    if sum(bool(variant.layers) for variant in variants) > 1:
        yield Chart(
            "layers-all", "layers",
            "Map of the zeros and bits of every layer in every variant; sparsity of the whole: "
            + ", ".join(f"{v.name} {v.sparsity:.0f} %" for v in variants) + ".",
            "Darker has more zeros. Numbers are bits, f is float32. Empty: the variant has no such "
            "layer.",
            layers.all_layers(variants),
        )  # fmt: skip
    yield from _trainings(results)
    if any(results.sensitivity.values()):
        worst = max(
            results.sensitivity, key=lambda n: max(results.sensitivity[n].values(), default=0.0)
        )
        yield Chart(
            "sensitivity", "sensitivity",
            f"What each of {len(results.sensitivity)} layers loses by itself; most: {worst}.",
            "Each layer is treated alone, all others stay as they were; the most sensitive is at "
            "the top.",
            bars.sensitivity(results.sensitivity),
        )  # fmt: skip


def _trade_offs(results: Results) -> Iterator[Chart]:
    variants = results.variants
    measures = [
        ("latency", "Accuracy against latency", "milliseconds per image, batch 1",
         [variant.ms_per_image for variant in variants]),
        ("size", "Accuracy against size", "MB on disk", [variant.size_mb for variant in variants]),
    ]  # fmt: skip
    macs = [variant.macs for variant in variants]
    if all(macs):
        millions = [(count or 0) / 1e6 for count in macs]
        measures.append(("macs", "Accuracy against MACs", "million MACs per image", millions))
    several = any(variant.spread for variant in variants)
    for name, title, unit, costs in measures:
        at = dict(zip((variant.name for variant in variants), costs, strict=True))
        kept = front([(at[variant.name], -variant.accuracy) for variant in variants])
        kept.sort(key=lambda i: costs[i])
        said = listed(
            f"{variants[i].name} ({variants[i].accuracy:.2f} % at {costs[i]:.3g})" for i in kept
        )
        yield Chart(
            f"accuracy-{name}", "trade-offs", f"{title}, {unit}. Pareto front: {said}.",
            "Up and to the left is better; on the grey line no variant is beaten in both."
            + (" Bars: one standard deviation over the seeds." if several else ""),
            trade_off(variants, lambda variant, at=at: at[variant.name],  # type: ignore[misc]
                      best=results.best.name, limit=results.limit, title=title, unit=unit),
        )  # fmt: skip


def _trainings(results: Results) -> Iterator[Chart]:
    several = any(len(variant.runs) > 1 for variant in results.variants)
    how = "Lines: means over the seeds; bands: from the least to the greatest. " if several else ""
    for name, what, said in (
        ("training-loss", "train_losses", "Mean training loss"),
        ("training-accuracy", "accuracies", "Test accuracy"),
    ):
        figure = curves.curves(results.variants, what)  # type: ignore[arg-type]
        if figure is None:
            continue
        found = curves.lines(results.variants, what)  # type: ignore[arg-type]
        ends = ", ".join(f"{v} {s} {values[:, -1].mean():.3g}" for s, v, values in found)
        yield Chart(
            name, "training", f"{said} by epoch. After the last epoch of a stage: {ends}.",
            how + "A stage that several variants share is one line, in the first one's name.",
            figure,
        )  # fmt: skip
