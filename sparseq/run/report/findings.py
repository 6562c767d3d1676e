"""What the numbers say, and what they do not: the report's sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparseq.run.report.design import Design, by_set, designs
from sparseq.run.report.noise import Noise
from sparseq.run.report.pareto import dominates
from sparseq.run.report.words import SAME, TECHNIQUES, faster, listed, points, smaller
from sparseq.run.results import Results, Variant

__all__ = ["Findings", "find", "within_limit"]


@dataclass(frozen=True)
class Findings:
    """The analysis of an exercise.

    Attributes:
        best: the variant to deploy.
        runner_up: the next by the rule, None where there is none.
        dominated: by name of a variant, the names of those that are nowhere worse in accuracy,
            time and size, and somewhere better.
        noise: how far accuracies vary by chance.
        designs: factorials of the techniques.
        verdict: what to deploy and by which rule, in sentences.
        reasons: what each technique contributes to it.
        effects: what the techniques do on average, and together.
        two_four: 2:4 sparsity beside pruning.
        beaten: which variants are dominated.
        caution: what the numbers cannot tell.
    """

    best: Variant
    runner_up: Variant | None
    dominated: dict[str, tuple[str, ...]]
    noise: Noise
    designs: tuple[Design, ...]
    verdict: tuple[str, ...]
    reasons: tuple[str, ...]
    effects: tuple[str, ...]
    two_four: tuple[str, ...]
    beaten: tuple[str, ...]
    caution: tuple[str, ...]


def find(results: Results) -> Findings:
    """Analyse results.

    Raises:
        ValueError: there are no variants, a name is there twice, or the best is none of them.
    """
    names = [variant.name for variant in results.variants]
    if not names:
        raise ValueError("results: must hold at least one variant, got none")
    if len(set(names)) < len(names):
        raise ValueError(f"results: names of variants must differ, got {names}")
    if results.best.name not in names:
        raise ValueError(f"results: best must be one of {names}, got {results.best.name!r}")
    noise = Noise.of(results)
    best = results.variants[names.index(results.best.name)]
    ranked = [variant for variant in within_limit(results) if variant is not best]
    dominated = _dominated(results.variants)
    found = tuple(designs(results.variants, noise))
    return Findings(
        best=best,
        runner_up=ranked[0] if ranked else None,
        dominated=dominated,
        noise=noise,
        designs=found,
        verdict=tuple(_verdict(results, best, ranked, noise)),
        reasons=tuple(_reasons(results, best, noise)),
        effects=tuple(sentence for design in found for sentence in _effects(design)),
        two_four=tuple(_two_four(results.variants, noise)),
        beaten=tuple(_beaten(results.variants, dominated)),
        caution=tuple(_caution(results, best, noise)),
    )


def within_limit(results: Results) -> list[Variant]:
    """Return the variants that lose less than the limit, fastest first: the rule of choice."""
    allowed = [variant for variant in results.variants if variant.drop < results.limit]
    return sorted(allowed, key=lambda variant: variant.ms_per_image)


def _dominated(variants: Sequence[Variant]) -> dict[str, tuple[str, ...]]:
    place = {v.name: (v.ms_per_image, v.size_mb, -v.accuracy) for v in variants}
    by = {
        name: tuple(other for other in place if dominates(place[other], place[name]))
        for name in place
    }
    return {name: others for name, others in by.items() if others}


def _verdict(
    results: Results, best: Variant, others: Sequence[Variant], noise: Noise
) -> Iterator[str]:
    baseline, limit = results.variants[0], f"{results.limit:g}"
    count = len(within_limit(results))
    whole = len(results.variants)
    yield (
        f"Deploy {best.name}: the fastest of the {count} of {whole} variants that lose less than "
        f"{limit} points of accuracy."
        if within_limit(results)[:1] == [best]
        else f"Deploy {best.name}, as the recipe chose; the fastest variant that loses less than "
        f"{limit} points is {within_limit(results)[0].name if count else 'none of them'}."
    )
    if best is baseline:
        yield "No variant is faster within the limit: the baseline stays."
    else:
        change = points(best.accuracy - baseline.accuracy, noise.compare(best, baseline))
        yield (
            f"Against the baseline it is {faster(best.ms_per_image / baseline.ms_per_image)}, "
            f"{smaller(best.size_mb / baseline.size_mb)}, and {change}."
        )
    if others:
        second = others[0]
        time = faster(second.ms_per_image / best.ms_per_image)
        tie = ", a tie" if time == "equally fast" else ""
        size = smaller(second.size_mb / best.size_mb)
        change = points(second.accuracy - best.accuracy, noise.compare(second, best))
        yield f"Runner-up: {second.name}, {time}{tie}, {size}; {change}."


def _reasons(results: Results, best: Variant, noise: Noise) -> Iterator[str]:
    known = by_set(results.variants)
    for letter in sorted(set(best.chain), key="QPSD".index):
        without = known.get(frozenset(best.chain) - {letter})
        if without is None:
            continue
        change = points(best.accuracy - without.accuracy, noise.compare(best, without))
        yield (
            f"{TECHNIQUES[letter].capitalize()} ({letter}), against {without.name}: "
            f"{faster(best.ms_per_image / without.ms_per_image)}, "
            f"{smaller(best.size_mb / without.size_mb)}; {change}."
        )


def _effects(design: Design) -> Iterator[str]:
    main = zip(design.factors, design.accuracy, design.grades, strict=False)
    for letter, effect, grade in main:
        time = faster(design.ratio(design.latency, letter))
        size = smaller(design.ratio(design.size, letter))
        yield (
            f"{TECHNIQUES[letter].capitalize()} ({letter}), on average over "
            f"{2 ** (len(design.factors) - 1)} pairs of variants: {time}, {size}; "
            f"{points(effect.value, grade)}."
        )
    joint = list(zip(design.accuracy, design.grades, design.latency, design.size, strict=True))
    clear = False
    for accuracy, grade, latency, size in joint[len(design.factors) :]:
        clear = clear or grade != "noise"
        if len(accuracy.factors) > 2:
            continue
        one, two = accuracy.factors
        for effects, effect, said in (
            (design.latency, latency, faster),
            (design.size, size, smaller),
        ):
            if abs(effect.value) >= math.log1p(SAME):
                yield (
                    f"{accuracy.name}: with {two}, {one} makes a network "
                    f"{said(design.ratio(effects, one, two, 1))}; without, "
                    f"{said(design.ratio(effects, one, two, -1))}."
                )
        if grade != "noise":
            mains = {e.factors: e.value for e in design.accuracy}
            doubt = "; this may still be chance" if grade == "unsure" else ""
            yield (
                f"{accuracy.name}: with {two}, {one} changes the accuracy by "
                f"{mains[one] + accuracy.value:+.2f} points; without, by "
                f"{mains[one] - accuracy.value:+.2f}{doubt}."
            )
    if len(design.factors) > 1 and not clear:
        yield (
            f"No interaction of {listed(design.factors)} on accuracy is more than noise: as far as "
            "these runs can tell, what the techniques cost adds up."
        )


def _two_four(variants: Sequence[Variant], noise: Noise) -> Iterator[str]:
    known = by_set(variants)
    for letters, variant in known.items():
        if "S" not in letters:
            continue
        rest = letters - {"S"}
        for other in (known.get(rest), known.get(rest | {"P"})):
            if other is not None and other is not variant:
                change = points(variant.accuracy - other.accuracy, noise.compare(variant, other))
                yield (
                    f"{variant.name} against {other.name}: "
                    f"{faster(variant.ms_per_image / other.ms_per_image)}, "
                    f"{smaller(variant.size_mb / other.size_mb)}; {change}."
                )


def _beaten(variants: Sequence[Variant], dominated: dict[str, tuple[str, ...]]) -> Iterator[str]:
    kept = [variant.name for variant in variants if variant.name not in dominated]
    yield (
        f"No other variant is at least as accurate, as fast and as small as {listed(kept)}."
        if len(kept) == 1
        else f"Each of {listed(kept)} is the best trade of accuracy, time and size for somebody: "
        "no other is at least as good in all three."
    )
    for name, others in dominated.items():
        yield f"{name} is dominated by {listed(others)}, as measured."


def _caution(results: Results, best: Variant, noise: Noise) -> Iterator[str]:
    baseline = results.variants[0]
    sampling = noise.sampling(baseline.accuracy)
    if sampling is None:
        yield "How many images the test set has is not known, and so not what its noise is."
    else:
        yield (
            f"The test set has {noise.images:,} images: the standard error of an accuracy of "
            f"{baseline.accuracy:.2f} % is {sampling:.2f} points. Smaller differences are noise; "
            f"beyond {1.96 * math.sqrt(2) * sampling:.2f} points they are clear."
        )
    if noise.scale is None:
        yield "There is one seed: how much the accuracy varies from training to training is open."
    else:
        count = max(len(variant.runs) for variant in results.variants)
        yield (
            f"Accuracies are means over up to {count} seeds; from seed to seed a variant's "
            f"accuracy has a standard deviation of {noise.scale:.2f} points (pooled over the "
            "variants)."
        )
    yield f"Times and sizes within {SAME:.0%} of each other are called equal."
    if sampling is None:
        return
    if best is not baseline and 0 <= results.limit - best.drop < sampling:
        yield (
            f"{best.name} meets the limit of {results.limit:g} points by "
            f"{results.limit - best.drop:.2f}, less than noise: other test images might rule it "
            "out."
        )
    for variant in results.variants:
        if 0 <= variant.drop - results.limit < sampling:
            yield (
                f"{variant.name} misses the limit by {variant.drop - results.limit:.2f} points, "
                "less than noise: other test images might let it in."
            )
