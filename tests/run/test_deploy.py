import dataclasses

from example_results import example

from sparseq.run.measure import choose_best


def test_the_best_is_the_fastest_that_loses_less_than_the_limit():
    variants = example().variants
    for limit in (0.05, 0.5, 2.0, 5.0):
        best = choose_best(variants, limit)
        assert best.drop < limit
        for other in variants:
            assert other.drop >= limit or other.ms_per_image >= best.ms_per_image


def test_a_drop_of_the_limit_itself_is_too_much():
    first, *others = example().variants
    edge = dataclasses.replace(others[0], drop=2.0, ms_per_image=1e-3)
    assert choose_best([first, edge], 2.0) is first
    assert choose_best([first, edge], 2.0 + 1e-9) is edge


def test_the_baseline_is_deployed_where_all_lose_too_much():
    first, *others = example().variants
    worse = [dataclasses.replace(variant, drop=50.0) for variant in others]
    assert choose_best([first, *worse], 2.0) is first
