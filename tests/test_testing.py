import pytest
import sparseq._C as core
import torch

from sparseq import testing

nan = float("nan")


def test_isa_is_lowered_and_restored():
    before = core.isa()
    with testing.isa("scalar") as name:
        assert name == core.isa() == "scalar"
    assert core.isa() == before
    with pytest.raises(RuntimeError, match="inside"), testing.isa("scalar"):
        raise RuntimeError("inside")
    assert core.isa() == before


def test_unknown_isa_is_named():
    with pytest.raises(ValueError, match="mmx"), testing.isa("mmx"):
        pass


def test_every_isa_visits_each_and_restores():
    before = core.isa()
    assert [(name, core.isa()) for name in testing.every_isa()] == [
        (name, name) for name in core.supported_isas()
    ]
    assert core.isa() == before


@pytest.mark.parametrize(
    ("actual", "expected", "text"),
    [
        (torch.zeros(2), torch.zeros(3), r"shape must be \(3,\), got \(2,\)"),
        (torch.zeros(2), torch.zeros(2).half(), "dtype must be torch.float16"),
        (torch.tensor([1.0, 0.0]), torch.tensor([1.0, -0.0]), "1 of 2 values .* index 1"),
        (torch.tensor([1.0]), torch.tensor([nan]), "must be nan, got 1.0"),
        (torch.tensor([nan]), torch.tensor([1.0]), "must be 1.0, got nan"),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), "1 of 1"),
        (torch.tensor([1], dtype=torch.int8), torch.tensor([2], dtype=torch.int8), "must be 2"),
        (torch.tensor([True]), torch.tensor([False]), "must be False"),
    ],
)
def test_assert_equal_finds_differences(actual, expected, text):
    with pytest.raises(AssertionError, match=text):
        testing.assert_equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_assert_equal_takes_nan_for_nan_and_any_layout(dtype):
    x = torch.tensor([[1.0, nan], [float("inf"), -0.0]], dtype=dtype)
    testing.assert_equal(x, x.clone())
    testing.assert_equal(x.T.contiguous().T, x)
    testing.assert_equal(torch.tensor(nan, dtype=dtype), -torch.tensor(nan, dtype=dtype))
    with pytest.raises(AssertionError, match="case 7: strides"):
        testing.assert_equal(x.T.contiguous().T, x, strides=True, message="case 7")


def test_assert_within_lsb():
    x = torch.tensor([1.0, 2.0])
    testing.assert_within_lsb(x, x + 0.5, 0.5)
    with pytest.raises(AssertionError, match="1 steps"):
        testing.assert_within_lsb(x, x + 0.51, 0.5)
    with pytest.raises(AssertionError, match="nan"):
        testing.assert_within_lsb(x, x * nan, 0.5)
    with pytest.raises(AssertionError, match="shape"):
        testing.assert_within_lsb(x, x[:1], 0.5)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4, 5), (0, 3)])
def test_layouts_hold_the_same_values(shape):
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    names = []
    for name, y in testing.layouts(x):
        names.append(name)
        wanted = x[:1].expand_as(x) if name == "expanded" else x
        testing.assert_equal(y, wanted)
    assert ("channels_last" in names) == (len(shape) == 4)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_edge_values_hold_what_they_promise(dtype):
    x = testing.edge_values(dtype, 0.5)
    assert x.dtype == dtype and int(x.isnan().sum()) == 1 and int(x.isinf().sum()) == 2
    assert bool((x == torch.finfo(dtype).max).any())
    assert bool(((x != 0) & (x.abs() < torch.finfo(dtype).smallest_normal)).any())
    assert bool(((x == 0) & x.signbit()).any())
    assert bool((x == 0.25).any())
