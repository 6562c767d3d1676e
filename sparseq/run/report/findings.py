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
        effects=tuple(
            sentence
            for number, design in enumerate(found)
            for sentence in _effects(design, "S" if number else "")
        ),
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
    baseline, limit = results.variants[0], results.limit
    allowed = within_limit(results)
    if allowed[:1] == [best]:
        yield (
            f"Deploy {best.name}: the fastest of the {len(allowed)} of {len(results.variants)} "
            f"variants that lose less than {limit:g} points of accuracy."
        )
    else:
        rule = f"the fastest variant that loses less than {limit:g} points of accuracy"
        yield (
            f"Deploy {best.name}, as the run chose; {rule} is {allowed[0].name}."
            if allowed
            else f"Deploy {best.name}, as the run chose; no variant loses less than {limit:g} "
            "points of accuracy."
        )
    if best is baseline:
        yield "No variant is faster within the limit: the baseline stays."
    else:
        change = points(best.accuracy - baseline.accuracy, noise.compare(best, baseline))
        yield (
            f"Against the baseline it is {faster(best.ms_per_image / baseline.ms_per_image)}, "
            f"{smaller(best.size_mb / baseline.size_mb)}, and {change}."
        )
    for variant in results.variants:
        if variant.drop >= limit and variant.ms_per_image < best.ms_per_image:
            time = faster(variant.ms_per_image / best.ms_per_image)
            yield f"{variant.name}, {time}, is left out: it loses {variant.drop:.2f} points."
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


def _effects(design: Design, about: str = "") -> Iterator[str]:
    """Sentences on the effects, or on those alone that have the letter ``about``."""
    pairs = 2 ** (len(design.factors) - 1)
    over = f", on average over {pairs} pairs of variants" if pairs > 1 else ""
    for letter, main, grade in zip(design.factors, design.accuracy, design.grades, strict=False):
        if about in letter:
            yield (
                f"{TECHNIQUES[letter].capitalize()} ({letter}){over}: "
                f"{faster(design.ratio(design.latency, letter))}, "
                f"{smaller(design.ratio(design.size, letter))}; {points(main.value, grade)}."
            )
    mains = {effect.factors: effect.value for effect in design.accuracy}
    joint = [
        each
        for each in zip(design.accuracy, design.grades, design.latency, design.size, strict=True)
        if len(each[0].factors) > 1 and about in each[0].factors
    ]
    for accuracy, grade, latency, size in joint:
        if len(accuracy.factors) > 2:
            continue
        one, two = tuple(accuracy.factors)
        for effects, joined, say in (
            (design.latency, latency, faster),
            (design.size, size, smaller),
        ):
            if abs(joined.value) >= math.log1p(SAME):
                yield (
                    f"{accuracy.name}: with {two}, {one} makes a network "
                    f"{say(design.ratio(effects, one, two, 1))}; without, "
                    f"{say(design.ratio(effects, one, two, -1))}."
                )
        if grade != "noise":
            doubt = "; the difference may still be chance" if grade == "unsure" else ""
            yield (
                f"{accuracy.name}: with {two}, {one} changes the accuracy by "
                f"{mains[one] + accuracy.value:+.2f} points; without, by "
                f"{mains[one] - accuracy.value:+.2f}{doubt}."
            )
    if joint and all(grade == "noise" for _, grade, _, _ in joint):
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
    yield f"No other variant is at least as accurate, as fast and as small: {listed(kept)}."
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
