"""What each of torch's functions does to labels (see `sparseq.structured.record`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sparseq.structured.classes import FIXED, compress, padded, varying
from sparseq.structured.norms import NORMS
from sparseq.structured.products import PRODUCTS
from sparseq.structured.record import Recorder

Rule = Callable[[Recorder, Any, tuple[Any, ...], dict[str, Any], Any], None]

# element by element, but without torch's tag for that
_POINTWISE = {"hardswish", "hardsigmoid", "hardtanh", "relu6", "prelu", "_prelu_kernel", "silu",
              "gelu", "elu", "leaky_relu", "mish", "native_dropout", "bernoulli", "masked_fill",
              "copy", "where", "softplus", "celu", "selu", "threshold", "log_sigmoid_forward",
              "lerp", "addcmul", "addcdiv"}  # fmt: skip
# the same places, perhaps in another order; each works on numbers as it does on values
_MOVES = {"view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t",
          "expand", "unsqueeze", "squeeze", "roll", "flip", "repeat", "select", "slice", "unbind",
          "split", "split_with_sizes", "index", "index_select", "unfold", "im2col", "pixel_shuffle",
          "pixel_unshuffle", "diagonal", "narrow", "channel_shuffle"}  # fmt: skip
_SAME = {"clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "to", "zeros_like",
         "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "positive",
         "resolve_conj", "resolve_neg", "view_as"}  # fmt: skip
# along the last dimensions only, each channel on its own
_SPATIAL = {"max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d", "max_pool3d",
            "max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
            "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_max_pool2d",
            "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest1d",
            "upsample_linear1d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
            "reflection_pad2d", "replication_pad2d", "reflection_pad1d", "mkldnn_max_pool2d",
            "mkldnn_adaptive_avg_pool2d", "max_pool1d_with_indices"}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "prod",
               "argmax", "argmin", "linalg_vector_norm", "norm", "logsumexp", "std_mean", "any",
               "all"}  # fmt: skip
_ALONG = {"_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "topk",
          "glu"}  # fmt: skip
_SILENT = {"size", "stride", "numel", "dim", "empty", "zeros", "ones", "full", "arange",
           "new_zeros", "new_ones", "new_empty", "new_full", "rand", "randn", "scalar_tensor",
           "linspace", "eye",
           "_local_scalar_dense", "is_nonzero", "equal", "empty_strided", "new_empty_strided",
           "_assert_async", "lift", "fill", "zero", "randperm"}  # fmt: skip


def follow(
    to: Recorder, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Label a function's result and unite what it combines."""
    packet = getattr(function, "overloadpacket", function)
    name = str(getattr(packet, "__name__", packet))
    if not name.startswith("__"):
        name = name.removesuffix("_")
    if name in _SILENT:
        return
    rule = RULES.get(name)
    if rule is None and torch.Tag.pointwise in getattr(function, "tags", ()):
        rule = _elementwise
    if rule is None:
        to.lock((args, kwargs), f"read by {name} in {to.place}, which is not known")
        return
    rule(to, function, args, kwargs, result)


def _elementwise(to: Recorder, _f: Any, args: Any, kwargs: Any, result: Any) -> None:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    for made in tree_leaves(result):
        if not isinstance(made, Tensor):
            continue
        dims, labels = made.dim(), []
        fitting = [t for t in tensors if t.dim() <= dims]
        for tensor in fitting:
            labels += [padded(label, dims) for label in to.labels(tensor)]
        for tensor in fitting:  # what has as many places but no channels cannot shrink along
            shape = [1] * (dims - tensor.dim()) + list(tensor.shape)
            own = frozenset().union(*(varying(padded(a, dims)) for a in to.labels(tensor)))
            for label in labels:
                if any(shape[d] > 1 and d not in own for d in varying(label)):
                    to.lock_label(label, f"combined with a tensor of fixed size in {to.place}")
        to.set(made, labels)


def _same(to: Recorder, _f: Any, args: Any, _k: Any, result: Any) -> None:
    to.set(result, to.labels(args[0]))


def _strided(to: Recorder, function: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    if result.shape == args[0].shape:  # only its memory order is another
        to.set(result, to.labels(args[0]))
    else:
        to.lock(args[0], f"read by as_strided in {to.place}, which is not known")


def _move(to: Recorder, function: Any, args: Any, kwargs: Any, result: Any) -> None:
    source = args[0]
    outs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    made: list[list[Tensor]] = [[] for _ in outs]
    if any(to.labels(t) for t in tree_leaves(args[1:])):
        to.lock(args[1:], f"used as an index in {to.place}")
    rest = tree_map(lambda a: a.cpu() if isinstance(a, Tensor) else a, args[1:])  # labels are there
    for label in to.labels(source):
        if _cuts(to, function, args, label, source.shape):
            continue
        full = label.expand(source.shape).contiguous()
        moved = [t for t in tree_leaves(function(full, *rest, **kwargs))]
        for place, part in zip(made, moved, strict=True):
            short = compress(part)
            if len(varying(short)) > len(varying(label)):
                to.notes.grids.append(short.squeeze())
            place.append(short)
    for tensor, labels in zip(outs, made, strict=True):
        to.set(tensor, labels)


def _cuts(to: Recorder, function: Any, args: Any, label: Tensor, shape: torch.Size) -> bool:
    """Whether a function takes a fixed part of a channel dimension: the channels are then kept."""
    name = function.overloadpacket.__name__
    if name in ("split", "split_with_sizes", "unbind", "select", "slice", "index", "index_select"):
        along = varying(label)
        if name in ("split", "split_with_sizes"):
            dim = (args[2] if len(args) > 2 else 0) % len(shape)
            sizes = args[1]
            if name == "split":
                sizes = [min(args[1], shape[dim] - at) for at in range(0, shape[dim], args[1])]
            if along == {dim} and len(sizes) > 1:
                if len(set(sizes)) == 1:
                    to.notes.grids.append(label.reshape(len(sizes), -1))
                    return False
                to.lock_label(label, f"split into unequal parts in {to.place}")
            return False
        if name == "index":
            index = args[1]
            if along & {d for d, i in enumerate(index) if i is not None}:
                to.lock_label(label, f"picked by an index in {to.place}")
                return len(index) > 1
            return False
        dim = (args[1] if len(args) > 1 else 0) % len(shape)
        if name == "slice":
            start, end = [*args[2:4], None, None][:2]
            whole = not start and (end is None or end >= shape[dim])
            whole = whole and (len(args) < 5 or args[4] == 1)
            if whole:
                return False
        if along == {dim}:
            to.lock_label(label, f"a part of the channels is taken in {to.place}")
            return name in ("select", "unbind")
    return False


def _spatial(to: Recorder, _f: Any, args: Any, _k: Any, result: Any) -> None:
    first = args[0]
    for made in tree_leaves(result):
        if not isinstance(made, Tensor) or made.dim() != first.dim():
            continue
        labels = []
        for label in to.labels(first):
            changed = {d for d in varying(label) if made.shape[d] != first.shape[d]}
            changed |= {d for d in varying(label) if d >= max(first.dim() - 2, 1)} - {1}
            if changed:
                to.lock_label(label, f"pooled or resampled along in {to.place}")
            else:
                labels.append(label)
        to.set(made, labels)


def _dims(dims: Any, count: int) -> set[int]:
    """Dimensions as a function's argument names them; all where it names none."""
    if dims is None or dims == []:
        return set(range(count))
    return {d % count for d in (dims if isinstance(dims, (list, tuple)) else [dims])}


def _reduce(to: Recorder, function: Any, args: Any, kwargs: Any, result: Any) -> None:
    source = args[0]
    given = {a.name: i for i, a in enumerate(function._schema.arguments)}
    at = given.get("dim")
    value = kwargs.get("dim", args[at] if at is not None and at < len(args) else None)
    along = _dims(value, source.dim())
    labels: list[Tensor] = []
    lost: list[Tensor] = []
    for label in to.labels(source):
        (lost if varying(label) & along else labels).append(label)
    for made in tree_leaves(result):
        if not isinstance(made, Tensor):
            continue
        for label in lost:  # attention weights averaged over heads are mostly thrown away
            to.lock_if_read(made, label, f"reduced over in {to.place}")
        if made.dim() == source.dim():
            to.set(made, labels)
        else:
            kept = [d for d in range(source.dim()) if d not in along]
            to.set(made, [a.reshape([a.shape[d] for d in kept]) for a in labels])


def _along(to: Recorder, function: Any, args: Any, kwargs: Any, result: Any) -> None:
    source = args[0]
    names = [a.name for a in function._schema.arguments]
    at = names.index("dim")
    dim = (kwargs.get("dim", args[at] if at < len(args) else -1)) % max(source.dim(), 1)
    labels = []
    for label in to.labels(source):
        if dim in varying(label):
            name = function.overloadpacket.__name__.strip("_")
            to.lock_label(label, f"{name} runs along them in {to.place}")
        else:
            labels.append(label)
    for made in tree_leaves(result):
        to.set(made, labels)


def _cat(to: Recorder, function: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    tensors = [t for t in args[0] if not (t.dim() == 1 and t.numel() == 0)]
    given = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    stack = function.overloadpacket.__name__ == "stack"
    dims = result.dim()
    dim = given % dims

    def of(tensor: Tensor) -> list[Tensor]:
        found = to.labels(tensor)
        return [a.unsqueeze(dim) for a in found] if stack else found

    shapes = [list(t.unsqueeze(dim).shape if stack else t.shape) for t in tensors]
    joined: list[Tensor] = []
    if not stack and any(dim in varying(a) for t in tensors for a in of(t)):
        parts = []
        for tensor, shape in zip(tensors, shapes, strict=True):
            mine = [a for a in of(tensor) if dim in varying(a)]
            none = torch.full([1] * dims, FIXED)
            parts.append((mine[0] if mine else none).expand(shape))
        joined.append(compress(torch.cat(parts, dim)))
    others: list[Tensor] = []
    for tensor in tensors:
        others += [a for a in of(tensor) if dim not in varying(a)]
    for label in others:
        for tensor in tensors:
            if not any(varying(a) & varying(label) for a in of(tensor)):
                to.lock_label(label, f"joined with a tensor of fixed size in {to.place}")
    to.set(result, [*joined, *others])


def _pad(to: Recorder, _f: Any, args: Any, _k: Any, result: Tensor) -> None:
    source, pads = args[0], args[1]
    padded = {source.dim() - 1 - i // 2 for i, p in enumerate(pads) if p}
    labels = []
    for label in to.labels(source):
        if varying(label) & padded:
            to.lock_label(label, f"padded along in {to.place}")
        else:
            labels.append(label)
    to.set(result, labels)


def _embedding(to: Recorder, _f: Any, args: Any, _k: Any, result: Tensor) -> None:
    labels = []
    for label in to.labels(args[0]):
        if 0 in varying(label):
            to.lock_label(label, f"looked up by an index in {to.place}")
        else:
            to.notes.mark(to.notes.outputs, label)
            labels.append(label.reshape([1] * (result.dim() - 1) + [-1]))
    to.lock(args[1], f"used as an index in {to.place}")
    to.set(result, labels)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE, _elementwise),
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_SPATIAL, _spatial),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_ALONG, _along),
    **PRODUCTS,
    **NORMS,
    "as_strided": _strided,
    "cat": _cat,
    "stack": _cat,
    "constant_pad_nd": _pad,
    "embedding": _embedding,
}
