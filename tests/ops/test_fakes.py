"""What ops do where there are only shapes."""

import pytest
import torch

import sparseq  # noqa: F401, which registers the ops

raw = torch.ops.sparseq


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: raw.int8_linear(x[0, 0], x[0, 0, :, 1:].char(), x[0, 0, 0], None, None, None),
         r"int8_linear: x must be \[..., K\]"),
        (lambda x: raw.int8_conv2d(x, x[:, 1:].char(), x[:, 0, 0, 0], None, None, None,
                                   [1, 1], [0, 0], [1, 1], 1),
         r"int8_conv2d: x must be \[N, C, H, W\]"),
        (lambda x: raw.int8_conv2d(x[..., 1:], x.char(), x[:, 0, 0, 0], None, None, None,
                                   [1, 1], [0, 0], [1, 1], 1),
         "at least as large as the kernel"),
        (lambda x: raw.int4_linear(x, x[0, 0].byte(), x[0, 0], None, None), "int4_linear: x must"),
        (lambda x: raw.linear_24(x, x[0, 0], x[0, 0].byte(), None), "linear_24: x must"),
    ],
)  # fmt: skip
def test_shapes_are_checked_where_there_is_nothing_else(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.ones(2, 3, 5, 6, device="meta"))
