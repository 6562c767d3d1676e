import dataclasses
import math

import pytest
from example_results import CHAINS, example

from sparseq.run.report.design import designs
from sparseq.run.report.findings import find, within_limit
from sparseq.run.report.noise import Noise
from sparseq.run.report.words import faster, listed, points, smaller


def changed(results, **by_name):
    """The results with fields of some variants replaced; ``Q_P`` means Q+P."""
    fields = {name.replace("_", "+"): values for name, values in by_name.items()}
    variants = tuple(
        dataclasses.replace(v, **fields[v.name]) if v.name in fields else v
        for v in results.variants
    )
    return dataclasses.replace(results, variants=variants)


def with_accuracy(results, accuracies):
    """The results with one run each, of these accuracies."""
    variants = []
    for variant in results.variants:
        accuracy = accuracies.get(variant.name, variant.accuracy)
        run = dataclasses.replace(variant.runs[0], accuracy=accuracy)
        base = accuracies.get("baseline", results.variants[0].accuracy)
        variants.append(
            dataclasses.replace(
                variant, runs=(run,), accuracy=accuracy, spread=0.0, drop=base - accuracy
            )
        )
    return dataclasses.replace(results, variants=tuple(variants))


def test_the_rule_and_the_runner_up():
    results = example()
    found = find(results)
    allowed = within_limit(results)
    assert [v.name for v in allowed] == sorted(
        (v.name for v in results.variants if v.drop < 2),
        key=lambda name: next(v.ms_per_image for v in results.variants if v.name == name),
    )
    assert found.best.name == allowed[0].name == "Q+D" and found.runner_up is allowed[1]
    assert "fastest of the 7 of 9 variants that lose less than 2 points" in found.verdict[0]
    assert any("Runner-up: Q+S, 2 times as slow" in s for s in found.verdict)
    assert any(s.startswith("Q+P+D, equally fast, is left out") for s in found.verdict)


def test_a_best_that_the_rule_would_not_choose_is_told():
    found = find(example(best="Q"))
    assert "as the run chose" in found.verdict[0] and found.verdict[0].endswith("is Q+D.")
    none = dataclasses.replace(example(), limit=-1.0)
    assert "no variant loses less" in find(none).verdict[0]


def test_a_limit_met_or_missed_by_less_than_noise_is_told():
    results = with_accuracy(
        example(names=("baseline", "Q", "D"), best="D"), {"baseline": 92.0, "Q": 90.05, "D": 89.9}
    )
    caution = " ".join(find(dataclasses.replace(results, limit=2.05)).caution)
    assert "misses the limit by 0.05 points, less than noise" in caution  # D: 2.1
    assert "Q meets" not in caution  # it is not the one to deploy
    caution = " ".join(find(dataclasses.replace(results, limit=2.15)).caution)
    assert "D meets the limit of 2.15 points by 0.05, less than noise" in caution


def test_a_baseline_that_stays():
    found = find(example(names=("baseline", "P"), best="baseline"))
    assert any("the baseline stays" in s for s in found.verdict) and not found.reasons


def test_dominated_variants_and_no_others():
    results = example()
    found = find(results)
    worse = {
        v.name
        for v in results.variants
        if any(
            o.accuracy >= v.accuracy and o.ms_per_image <= v.ms_per_image and o.size_mb <= v.size_mb
            for o in results.variants
            if o is not v
        )
    }
    assert set(found.dominated) == worse == {"P"}
    assert found.beaten[1] == "P is dominated by Q+S, as measured."
    assert ", P," not in found.beaten[0] and "Q+P+D" in found.beaten[0]


def test_noise_of_a_test_set():
    noise = Noise(10_000, None, 0)
    assert noise.sampling(90.0) == pytest.approx(100 * math.sqrt(0.9 * 0.1 / 10_000))  # 0.3
    assert noise.sampling(50.0, 90.0) == pytest.approx(0.5)
    assert noise.sampling(100.0) == pytest.approx(0.01)  # one image at least
    bound = 1.96 * math.sqrt(2) * 0.3
    for difference, grade in ((0.3, "noise"), (-0.31, "unsure"), (bound - 0.01, "unsure"),
                              (-bound - 0.01, "clear")):  # fmt: skip
        assert noise.grade(difference, 90.0, margin=None) == grade
    assert noise.grade(2.0, 90.0, margin=2.5) == "noise"  # seeds vary more than that
    unknown = Noise(None, None, 0)
    assert unknown.sampling(90.0) is None and unknown.grade(5.0, 90.0, margin=None) == "unsure"


def test_the_test_set_s_size_is_read_from_the_data_line():
    results = example()
    assert Noise.of(results).images == 10_000
    silent = dataclasses.replace(results, data="photographs")
    assert Noise.of(silent).images is None
    assert any("is not known" in s for s in find(silent).caution)


def test_a_difference_below_noise_is_called_noise_everywhere():
    base = example(seeds=(0,))
    level = {name: 93.0 - 0.01 * i for i, name in enumerate(CHAINS)}
    found = find(with_accuracy(base, level))
    for sentence in (*found.verdict, *found.reasons, *found.effects, *found.two_four):
        if " points" in sentence and ("gains" in sentence or "loses " in sentence):
            assert "no more than noise" in sentence or "less than" in sentence, sentence
    assert all(grade == "noise" for design in found.designs for grade in design.grades)
    assert any("No interaction" in s for s in found.effects)
    assert any("one seed" in s for s in found.caution)


def test_effects_say_what_was_put_in():
    # Q halves the time of the full network and quarters the student's; P halves the size; P costs
    # 3 points, with D 5.
    results = example(names=("baseline", "Q", "P", "D", "Q+P", "Q+D", "P+D", "Q+P+D"))
    times = {"": 8.0, "Q": 4.0, "P": 8.0, "D": 4.0, "QP": 4.0, "QD": 1.0, "PD": 4.0, "QPD": 1.0}
    cost = {"": 0.0, "Q": 0.0, "P": 3.0, "D": 1.0, "QP": 3.0, "QD": 1.0, "PD": 6.0, "QPD": 6.0}
    variants = []
    for v in results.variants:
        key = "".join(letter for letter in "QPD" if letter in v.chain)
        runs = tuple(
            dataclasses.replace(r, accuracy=90 - cost[key] + 0.01 * r.seed) for r in v.runs
        )
        size = 10.0 / (2 if "P" in key else 1)
        mean = sum(run.accuracy for run in runs) / 3
        variants.append(dataclasses.replace(v, runs=runs, accuracy=mean, ms_per_image=times[key],
                                            size_mb=size, drop=90.01 - mean))  # fmt: skip
    results = dataclasses.replace(results, variants=tuple(variants))
    (design,) = designs(results.variants, Noise.of(results))
    effects = dict(zip((e.factors for e in design.accuracy), design.accuracy, strict=True))
    assert effects["P"].value == pytest.approx(-4) and effects["PD"].value == pytest.approx(-1)
    assert effects["Q"].value == pytest.approx(0, abs=1e-9)
    assert design.ratio(design.latency, "Q", "D", 1) == pytest.approx(1 / 4)
    assert design.ratio(design.latency, "Q", "D", -1) == pytest.approx(1 / 2)
    assert design.ratio(design.latency, "Q") == pytest.approx(1 / math.sqrt(8))
    assert design.ratio(design.size, "P") == pytest.approx(1 / 2)
    said = find(results).effects
    assert any(
        s.startswith("Q\N{MULTIPLICATION SIGN}D: with D, Q makes a network 4 times as fast")
        and s.endswith("without, 2 times as fast.")
        for s in said
    )
    assert any("with D, P changes the accuracy by -5.00 points; without, by -3.00" in s
               for s in said)  # fmt: skip
    assert not any(s.startswith("Q\N{MULTIPLICATION SIGN}P") for s in said)


def test_an_incomplete_factorial_falls_back_to_a_smaller_one():
    def factors(*names):
        results = example(names=("baseline", *names), best=names[0])
        return [design.factors for design in designs(results.variants, Noise.of(results))]

    assert factors("Q", "P", "D", "Q+P", "Q+D", "P+D", "Q+P+D") == ["QPD"]
    assert factors("Q", "P", "D", "Q+D") == ["QD"]
    assert factors("Q", "P") == ["Q"]
    assert factors("Q+P") == []
    assert factors("Q", "S", "Q+S") == ["Q", "QS"]
    assert find(example(names=("baseline", "Q+P"), best="Q+P")).effects == ()


def test_two_four_stands_beside_pruning():
    found = find(example(names=(*CHAINS,)))
    assert any(s.startswith("Q+S against Q+P: ") for s in found.two_four)
    assert any(s.startswith("S against P: ") for s in found.two_four)
    assert [design.factors for design in found.designs] == ["QPD", "QS"]
    about_s = [s for s in found.effects if "2:4" in s or "\N{MULTIPLICATION SIGN}S" in s]
    assert about_s and sum(s.startswith("Quantisation") for s in found.effects) == 1


def test_seeds_that_differ_between_variants_are_not_paired():
    results = example(names=("baseline", "Q"), best="Q")
    other = dataclasses.replace(results.variants[1].runs[0], seed=7)
    odd = changed(results, Q={"runs": (other, *results.variants[1].runs[1:])})
    (design,) = designs(odd.variants, Noise.of(odd))
    assert design.accuracy[0].margin > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: dataclasses.replace(r, variants=()), "at least one variant"),
        (lambda r: dataclasses.replace(r, variants=r.variants + r.variants[:1]), "must differ"),
        (
            lambda r: dataclasses.replace(r, best=dataclasses.replace(r.best, name="X")),
            "best must be one of .* got 'X'",
        ),
    ],
)
def test_bad_results(change, message):
    with pytest.raises(ValueError, match=message):
        find(change(example()))


def test_words():
    assert faster(0.5) == "2 times as fast" and faster(3.0) == "3 times as slow"
    assert faster(1.04) == faster(0.96) == "equally fast"
    assert smaller(0.25) == "4 times smaller" and smaller(2.0) == "2 times larger"
    assert smaller(1.0) == "of the same size"
    assert points(-0.5, "unsure") == "loses 0.50 points, which may still be chance"
    assert points(0.001, "noise") == "has the same accuracy"
    assert listed(["a"]) == "a" and listed("abc") == "a, b and c" and listed([]) == ""
