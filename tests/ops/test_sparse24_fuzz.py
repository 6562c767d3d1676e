"""Buffers and files as chance or an attacker may hand them in: an error, or the right answer."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from sparseq import NM, Layer, Plan, Quant, calibrate, convert, load, ops, prepare, save, testing

DTYPES = (torch.int8, torch.float32, torch.float16, torch.bfloat16)
seeds = st.integers(0, 2**31)


def random_bits(shape, dtype, generator):
    """Every value of the type, NaN and denormals too."""
    width = dtype.itemsize
    flat = torch.randint(0, 256, (torch.Size(shape).numel() * width,), generator=generator)
    return flat.to(torch.uint8).view(dtype).reshape(shape)


def same(a, b):
    """Bit for bit, but for the sign of zero."""
    zero = torch.zeros((), dtype=a.dtype)
    testing.assert_equal(torch.where(a == 0, zero, a), torch.where(b == 0, zero, b))


shapes = st.one_of(
    st.tuples(st.integers(0, 6), st.integers(0, 40)),
    st.tuples(st.integers(0, 4), st.integers(0, 20), st.integers(0, 3), st.integers(0, 3)),
)


@given(shapes, st.sampled_from(DTYPES), seeds, st.booleans())
@settings(max_examples=200)
def test_round_trip(shape, dtype, seed, last):
    generator = torch.Generator().manual_seed(seed)
    weight = random_bits(shape, dtype, generator)
    rank = torch.rand((*shape, 2), generator=generator)[..., 0] if last else weight.float()
    weight = torch.where(ops.mask_24(rank), weight, torch.zeros_like(weight))
    values, indices = ops.pack_24(weight)
    same(ops.unpack_24(values, indices, shape[1]), weight)


@given(
    st.sampled_from([(), (2, 2), (1, 3)]),
    st.integers(0, 5),
    st.integers(0, 21),
    st.sampled_from(DTYPES),
    seeds,
    st.sampled_from(["random", "mutated", "cut"]),
)
@settings(max_examples=600)
def test_any_buffers(taps, outputs, columns, dtype, seed, how):
    """Accepted or ValueError; what is accepted packs to buffers of the same weight."""
    generator = torch.Generator().manual_seed(seed)
    rows, groups = (outputs, *taps), (columns + 3) // 4
    values = random_bits((*rows, 2 * groups), dtype, generator)
    indices = random_bits((*rows, (groups + 1) // 2), torch.uint8, generator)
    if how == "mutated":
        shape = (outputs, columns, *rows[1:])
        weight = random_bits(shape, dtype, generator)
        values, indices = ops.pack_24(weight.where(ops.mask_24(weight.float()), 0))
        buffer = (values if seed % 3 else indices).view(torch.uint8).flatten()
        if buffer.numel():
            place = int(torch.randint(buffer.numel(), (), generator=generator))
            buffer[place] ^= 1 << seed % 8
    elif how == "cut":
        dim = seed % values.dim()
        values, indices = (
            (values.narrow(dim, 0, max(0, values.shape[dim] - 1)), indices)
            if seed % 2
            else (values, indices.narrow(dim, 0, max(0, indices.shape[dim] - 1)))
        )
    kept = values.clone(), indices.clone()
    try:
        weight = ops.unpack_24(values, indices, columns)
    except ValueError as error:
        assert str(error).startswith("unpack_24: values and indices must be")
    else:
        assert weight.shape == (outputs, columns, *rows[1:])
        same(ops.unpack_24(*ops.pack_24(weight), columns), weight)
    testing.assert_equal(values, kept[0])
    testing.assert_equal(indices, kept[1])


@given(st.integers(1, 9), st.integers(1, 70), seeds, st.integers(1, 2**40))
def test_other_column_counts(outputs, columns, seed, other):
    generator = torch.Generator().manual_seed(seed)
    weight = random_bits((outputs, columns), torch.int8, generator)
    values, indices = ops.pack_24(weight.where(ops.mask_24(weight.float()), 0))
    try:
        again = ops.unpack_24(values, indices, other)
    except ValueError:
        return
    assert (other + 3) // 4 == (columns + 3) // 4
    width = min(other, columns)
    testing.assert_equal(again[:, :width], weight.where(ops.mask_24(weight.float()), 0)[:, :width])


# --- tiles: a cache in memory, of which the header is checked ---

HEADER = 144  # bytes of TileHeader in csrc/gemm/tiles.h


def products(shape, groups, tiles):
    """Of zeros with a weight of this shape, through these tiles."""
    weight, scale = torch.ones(shape, dtype=torch.int8), torch.ones(shape[0])
    if len(shape) == 2:
        return ops.int8_linear(
            torch.ones(3, shape[1], dtype=torch.int8), weight, scale, tiles=tiles
        )
    x = torch.ones(1, shape[1] * groups, 5, 5, dtype=torch.int8)
    return ops.int8_conv2d(x, weight, scale, padding=(1, 1), groups=groups, tiles=tiles)


def tiles_of(shape, groups, sparse):
    weight = torch.ones(shape, dtype=torch.int8)
    if sparse:
        weight = weight * ops.mask_24(weight.float())
    return ops.int8_tiles(weight, groups)


LAYERS = [((5, 20), 1), ((40, 300), 1), ((8, 8, 3, 3), 1), ((8, 4, 3, 3), 2), ((6, 1, 3, 3), 6)]
layers = st.tuples(st.sampled_from(LAYERS), st.booleans())


@given(layers, st.integers(0, HEADER - 1), st.integers(1, 255))
@settings(max_examples=400)
def test_a_changed_tile_header_is_refused(layer, place, change):
    (shape, groups), sparse = layer
    tiles = tiles_of(shape, groups, sparse)
    products(shape, groups, tiles)
    tiles[place] ^= change
    with pytest.raises(ValueError, match="tiles must be made by int8_tiles for this weight"):
        products(shape, groups, tiles)


@given(layers, st.floats(0, 1, exclude_max=True), st.booleans())
@example((LAYERS[0], False), 0.0, False)
def test_tiles_of_another_length_are_refused(layer, share, longer):
    (shape, groups), sparse = layer
    tiles = tiles_of(shape, groups, sparse)
    cut = tiles[: int(share * tiles.numel())].clone()
    if longer:
        cut = torch.cat((tiles, tiles[: 1 + cut.numel()]))
    with pytest.raises(ValueError, match="tiles must be made by int8_tiles"):
        products(shape, groups, cut)


def test_tiles_of_another_weight_are_refused():
    for shape, groups in LAYERS:
        for other, other_groups in LAYERS:
            if other != shape:
                with pytest.raises(ValueError, match="tiles must be made by int8_tiles"):
                    products(shape, groups, tiles_of(other, other_groups, False))


@given(st.integers(0, 4096), seeds)
def test_random_bytes_are_no_tiles(length, seed):
    tiles = random_bits((length,), torch.uint8, torch.Generator().manual_seed(seed))
    with pytest.raises(ValueError, match="tiles must be made by int8_tiles"):
        products((5, 20), 1, tiles)


@pytest.mark.parametrize("tiles", [torch.zeros(512), torch.zeros(1024, dtype=torch.uint8)[::2]])
def test_tensors_that_cannot_be_tiles(tiles):
    with pytest.raises((ValueError, RuntimeError), match="tiles must be"):
        products((5, 20), 1, tiles)


# --- saved files ---


def architecture():
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16))


def _saved(tmp_path_factory, bits):
    torch.manual_seed(0)
    layer = Layer(weight=Quant(bits=bits, axis=0), input=Quant(), sparsity=NM(2, 4))
    model = prepare(architecture(), Plan({"*": layer}))
    model = convert(calibrate(model, [torch.randn(2, 4, 4, 4)]))
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    save(model, path)
    return path, path.read_bytes(), model.state_dict()


@pytest.fixture(scope="module", params=[8, 4])
def saved(request, tmp_path_factory):
    return _saved(tmp_path_factory, request.param)


def test_a_file_cut_anywhere_is_refused(saved):
    path, content, _ = saved
    model = architecture()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"^load: "):
            load(path, model)


@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@settings(max_examples=300)
def test_a_changed_byte_is_noticed(saved, place, change):
    path, content, state = saved
    changed = bytearray(content)
    changed[int(place * len(content))] ^= change
    path.write_bytes(changed)
    try:
        model = load(path, architecture())
    except ValueError as error:
        assert str(error).startswith("load: ")
    else:  # blanks of a JSON header may be of another kind
        for name, value in model.state_dict().items():
            if isinstance(value, torch.Tensor):
                testing.assert_equal(value, state[name])


@given(st.binary(max_size=400))
def test_any_bytes_are_no_model(saved, content):
    path, _, _ = saved
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^load: "):
        load(path, architecture())
