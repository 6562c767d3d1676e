"""What norms do to labels: their parameters are of the channels that they normalise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparseq.structured.classes import padded, varying
from sparseq.structured.record import Recorder


def _batch_norm(to: Recorder, function: Any, args: Any, _k: Any, result: Any) -> None:
    source = args[0]
    names = [a.name for a in function._schema.arguments]
    labels = list(to.labels(source))
    shape = [-1 if d == 1 else 1 for d in range(source.dim())]
    own = [a.reshape(shape) for t in args[1:5] for a in to.labels(t)]
    if own and not any(1 in varying(a) for a in labels):
        for label in own:
            to.lock_label(label, f"normalises a tensor of fixed size in {to.place}")
    if "training" in names and args[names.index("training")]:  # a standardised weight, say
        for label in labels:
            if varying(label) - {1}:
                to.lock_label(label, f"normalised over in {to.place}")
    made = next(t for t in tree_leaves(result) if isinstance(t, Tensor))
    to.set(made, [*labels, *own])


def _layer_norm(to: Recorder, function: Any, args: Any, _k: Any, result: Any) -> None:
    source, shape = args[0], args[1]
    labels = list(to.labels(source))
    along = set(range(source.dim() - len(shape), source.dim()))
    own = [padded(a, source.dim()) for t in args[2:4] for a in to.labels(t)]
    for label in [*labels, *own]:
        if varying(label) & along:
            to.notes.norms.append((label.reshape(-1), to.place))
    for label in own:
        if not any(varying(label) & varying(a) for a in labels):
            to.lock_label(label, f"normalises a tensor of fixed size in {to.place}")
    made = next(t for t in tree_leaves(result) if isinstance(t, Tensor))
    to.set(made, [*labels, *own])


def _group_norm(to: Recorder, _f: Any, args: Any, _k: Any, result: Any) -> None:
    source, channels, groups = args[0], args[4], args[6]
    labels = list(to.labels(source))
    shape = [-1 if d == 1 else 1 for d in range(source.dim())]
    own = [a.reshape(shape) for t in args[1:3] for a in to.labels(t)]
    if own and not any(1 in varying(a) for a in labels):
        for label in own:
            to.lock_label(label, f"normalises a tensor of fixed size in {to.place}")
    for label in [*labels, *own]:
        if varying(label) == {1} and groups == 1:
            to.notes.norms.append((label.reshape(-1), to.place))
        elif varying(label) == {1} and groups < channels:
            to.notes.groups.append((label.reshape(groups, -1), to.place))
        elif varying(label) & set(range(2, source.dim())):
            to.lock_label(label, f"normalised over in {to.place}")
    made = next(t for t in tree_leaves(result) if isinstance(t, Tensor))
    to.set(made, [*labels, *own])


NORMS: dict[str, Callable[[Recorder, Any, Any, Any, Any], None]] = {
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "native_group_norm": _group_norm,
}
