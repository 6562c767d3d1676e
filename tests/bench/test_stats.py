"""Percentiles, the median's interval, the ratio's bootstrap."""

import random
import statistics

import pytest

from sparseq.bench import stats


def test_percentiles_by_hand():
    values = [40.0, 10.0, 30.0, 20.0]
    assert stats.percentile(values, 50) == 25
    assert stats.percentile(values, 95) == pytest.approx(38.5)
    assert stats.percentile([7.0], 99) == 7


@pytest.mark.parametrize(
    ("count", "ranks"),  # from tables of the binomial distribution with p = 1/2
    [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (9, (2, 8)), (20, (6, 15)), (100, (40, 61))],
)
def test_median_interval_has_the_ranks_of_the_tables(count, ranks):
    values = list(range(1, count + 1))
    random.Random(0).shuffle(values)
    assert stats.median_interval(values) == ranks


def test_many_values_take_the_normal_distribution():
    values = range(1, 1002)
    low, high = stats.median_interval(values)
    assert abs(low - 470) <= 1 and low + high == 1002
    wide = stats.median_interval(values, 0.99)
    assert wide[0] < low and wide[1] > high


def test_median_interval_holds_the_median_as_often_as_it_says():
    draws, held = random.Random(1), 0
    for _ in range(400):
        low, high = stats.median_interval([draws.expovariate(1) for _ in range(30)])
        held += low <= 0.6931 <= high
    assert held >= 0.93 * 400


def test_ratio_interval_of_paired_rounds():
    draws = random.Random(2)
    busy = [1 + 5 * (draws.random() < 0.2) for _ in range(60)]
    first = [b * draws.gauss(1.0, 0.02) for b in busy]
    second = [b * draws.gauss(1.5, 0.02) for b in busy]
    low, high = stats.ratio_interval(second, first)
    assert low < 1.5 < high and high - low < 0.1
    assert (low, high) == stats.ratio_interval(second, first)  # the same in every run
    assert low <= statistics.median(second) / statistics.median(first) <= high


def test_ratio_interval_is_exact_without_noise():
    assert stats.ratio_interval([3.0] * 4, [2.0] * 4) == (1.5, 1.5)
    with pytest.raises(ValueError, match="one time a round each, got 2 and 1"):
        stats.ratio_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="got 0 and 0"):
        stats.ratio_interval([], [])


def test_steady_is_when_calls_no_longer_get_faster():
    assert not stats.steady([1.0] * 9)
    assert stats.steady([1.0] * 10)
    assert not stats.steady([2.0] * 5 + [1.0] * 5)
    assert stats.steady([1.0] * 5 + [2.0] * 5)
