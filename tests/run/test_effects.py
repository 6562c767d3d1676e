import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseq.run.report.effects import difference_margin, factorial, pooled, student
from sparseq.run.report.pareto import dominates, front

# Box, Hunter and Hunter, 2nd edition, chapter 5, the pilot plant: temperature, concentration,
# catalyst; two runs of each.
PLANT = {
    "": (59, 61), "T": (74, 70), "C": (50, 58), "TC": (69, 67), "K": (50, 54), "TK": (81, 85),
    "CK": (46, 44), "TCK": (79, 81),
}  # fmt: skip


def test_the_book_s_example():
    effects = {effect.factors: effect for effect in factorial(PLANT, "TCK")}
    assert {name: effect.value for name, effect in effects.items()} == {
        "T": 23.0, "C": -5.0, "K": 1.5, "TC": 1.5, "TK": 10.0, "CK": 0.0, "TCK": 0.5,
    }  # fmt: skip
    assert pooled(PLANT.values()) == (pytest.approx(math.sqrt(8)), 8)
    for effect in effects.values():
        assert effect.error == pytest.approx(math.sqrt(4 * 8 / 16))
        assert effect.margin == pytest.approx(2.306 * math.sqrt(2), rel=1e-3)  # t of 8 degrees
    assert effects["TK"].name == "T\N{MULTIPLICATION SIGN}K"


def sets_of(factors):
    return ["".join(c) for k in range(len(factors) + 1) for c in combinations(factors, k)]


@given(st.data(), st.integers(1, 4))
def test_effects_are_twice_the_coefficients_of_least_squares(data, count):
    factors = "QPDS"[:count]
    sets = sets_of(factors)
    number = st.floats(-100, 100)
    cells = {key: data.draw(st.lists(number, min_size=1, max_size=3)) for key in sets}
    # Cells of different sizes: the saturated model fits the means whatever the weights.
    signs = np.array([[1 if f in key else -1 for f in factors] for key in sets])
    columns = [signs[:, [factors.index(f) for f in key]].prod(1) for key in sets]
    rows = [i for i, key in enumerate(sets) for _ in cells[key]]
    design = np.stack(columns, 1)[rows].astype(float)
    responses = np.array([value for key in sets for value in cells[key]])
    coefficients = np.linalg.lstsq(design, responses, rcond=None)[0]
    found = factorial(cells, factors)
    assert [effect.factors for effect in found] == sets[1:]
    np.testing.assert_allclose([e.value for e in found], 2 * coefficients[1:], atol=1e-8)
    degrees = len(responses) - len(sets)
    if degrees:
        rest = responses - design @ coefficients
        variance = float(rest @ rest) / degrees
        errors = 2 * np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design))[1:])
        np.testing.assert_allclose([e.error for e in found], errors, atol=1e-6)
    else:
        assert all(e.error is None and e.margin is None for e in found)


def test_a_pairing_widens_the_margin_where_repetitions_disagree_together():
    # Seed 2 learns nothing of Q in both cells with Q: within each cell the scatter is the same as
    # below, but the effect itself jumps from seed to seed.
    cells = {"": (90.0, 90.1, 89.9), "Q": (92.0, 92.0, 89.0), "P": (90.0, 89.9, 90.1),
             "QP": (92.0, 92.0, 89.0)}  # fmt: skip
    alone = factorial(cells, "QP")[0]
    together = factorial(cells, "QP", paired=True)[0]
    each = [2.0, 2.0, -1.0]
    assert together.value == alone.value == pytest.approx(1.0)
    wide = student(2) * np.std(each, ddof=1) / math.sqrt(3)
    assert together.margin == pytest.approx(wide) and wide > alone.margin
    # where the pairing cancels what seeds share, the pooled margin stays
    shifted = {"": (90.0, 91.0, 89.0), "Q": (92.0, 93.0, 91.0)}
    kept = factorial(shifted, "Q", paired=True)[0]
    assert (
        kept.margin
        == factorial(shifted, "Q")[0].margin
        == pytest.approx(student(4) * math.sqrt(2 / 3))
    )


def test_margins():
    assert student(8) == pytest.approx(2.306, abs=5e-4)  # tables of Student's t
    assert student(2) == pytest.approx(4.303, abs=5e-4)
    assert pooled([[1.0], [2.0]]) == (None, 0)
    assert difference_margin([1.0], [2.0], None, 0) is None
    assert difference_margin([1, 2], [2, 3, 4], 0.5, 8) == pytest.approx(
        student(8) * 0.5 * math.sqrt(1 / 2 + 1 / 3)
    )


@pytest.mark.parametrize(
    ("cells", "paired", "message"),
    [
        ({"": [1.0]}, False, "must be those of '', 'Q'"),
        ({"": [1.0], "Q": [1.0], "P": [1.0]}, False, "must be those of"),
        ({"": [1.0], "Q": []}, False, "an empty one"),
        ({"": [1.0], "Q": [1.0, 2.0]}, True, r"one count where they are paired, got \[1, 2\]"),
    ],
)
def test_bad_cells(cells, paired, message):
    with pytest.raises(ValueError, match=message):
        factorial(cells, "Q", paired=paired)


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points):
    kept = front(points)
    assert kept == sorted(set(kept)) and bool(kept) == bool(points)
    for i, point in enumerate(points):
        beaten = any(
            all(a <= b for a, b in zip(other, point, strict=True))
            and any(a < b for a, b in zip(other, point, strict=True))
            for other in points
        )
        assert (i in kept) == (not beaten)
        # whatever is beaten is beaten by a point of the front
        assert i in kept or any(dominates(points[j], point) for j in kept)


def test_equal_points_do_not_dominate_each_other():
    assert front([(1, 2), (1, 2), (2, 1), (2, 2)]) == [0, 1, 2]
