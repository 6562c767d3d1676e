"""`save` and `load`: one safetensors file with a JSON header. Nothing pickled, nothing executed.

Each tensor has the smallest of four encodings (`sparseq.flow.encodings`), 2:4 weights among them. A
SHA-256 of it all tells a damaged file. docs/format.md says how to read one without sparseq.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparseq.files import atomic_path
from sparseq.flow.convert import set_module
from sparseq.flow.encodings import decode, encode
from sparseq.flow.header import check_identities, check_states, check_values, read_header
from sparseq.flow.mapped import fill, leave_in_file
from sparseq.flow.meta import materialize, shapes_of
from sparseq.flow.precision import own_dtype, restore
from sparseq.flow.prepare import attach, layers_of, leave_fused_paths, take_attentions
from sparseq.flow.resize import noted_sizes, restore_sizes
from sparseq.lower import Lowered, layerwise, lower
from sparseq.nn import InputGrid, MultiheadAttention, SparseQuantLayer, integer_type, outputs_first
from sparseq.packed import PackedWeight
from sparseq.spec import Layer, Quant

Model = TypeVar("Model", bound=nn.Module)
KEY = "sparseq"
VERSION = 1
# what hostile content can raise on its way through the checks
UNSOUND = (
    *(KeyError, IndexError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, RuntimeError, ValueError),
)


def _structure(model: nn.Module) -> dict[str, Any]:
    """What `load` must do to a float model before its tensors fit."""
    integer, prepared, floats, states = {}, {}, {}, {}
    for name, module in model.named_modules():
        if isinstance(module, SparseQuantLayer):
            integer[name] = {
                "kind": module.float_type.__name__,
                "weight": dataclasses.asdict(module.weight_spec),
                "input": module.input_spec and dataclasses.asdict(module.input_spec),
                "static": module.input_scale is not None,
                "rows": module.rows,
                "bias": module.bias is not None,
                "zero_point": module.weight_zero_point is not None,
            }
        elif hasattr(module, "sparseq_layer") and not hasattr(module, "sparseq_reason"):
            prepared[name] = module.sparseq_layer.to_dict()
        elif hasattr(module, "input_quantizer"):  # converted, but in float
            prepared[name] = Layer(input=module.input_quantizer.spec).to_dict()
        elif own_dtype(module) is not None:
            floats[name] = str(own_dtype(module)).removeprefix("torch.")
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            states[name] = value
    identities = [n for n, m in model.named_modules() if type(m) is nn.Identity]
    biased = [n for n, m in layers_of(model).items() if getattr(m, "bias", None) is not None]
    attentions = [n for n, m in model.named_modules() if isinstance(m, MultiheadAttention)]
    dense = {n: m.sparseq_dense for n, m in model.named_modules() if hasattr(m, "sparseq_dense")}
    return {
        "version": VERSION,
        "integer": integer,
        "prepared": prepared,
        "floats": floats,
        "states": states,
        "identities": identities,
        "biased": biased,
        "attentions": attentions,
        "resized": noted_sizes(model),
        "dense": dense,
    }


def save(model: nn.Module, path: str | os.PathLike[str], *, compress: bool = True) -> None:
    """Write a float, prepared or converted model to one safetensors file.

    Args:
        model: any; its architecture is not stored, only what sparseq did to it, and its tensors.
        path: written aside and renamed.
        compress: False to store every tensor plain: a larger file, of which `load` need not decode
            what is sparse or of 4 bits, and can leave all large ones where they are.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save_file

    lowered = None
    if isinstance(model, Lowered):
        dtype = str(model.dtype).removeprefix("torch.")
        lowered = {"shape": list(model.shape), "dtype": dtype}
        model = layerwise(model)
    int4 = {
        f"{name}.weight_values"
        for name, m in model.named_modules()
        if isinstance(m, SparseQuantLayer) and m.weight_spec.bits <= 4
    }
    tensors: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            parts, entries[name] = encode(name, value, name in int4, compress)
            tensors.update({key: part.clone() for key, part in parts.items()})
    header = {**_structure(model), "lowered": lowered, "tensors": entries}
    text = json.dumps(header)
    metadata = {KEY: text, f"{KEY}_sha256": _digest(text, tensors)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _digest(text: str, parts: dict[str, Tensor]) -> str:
    """One checksum over the header and all tensors: safetensors has none."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(parts):
        part = parts[name]
        digest.update(f"{name} {part.dtype} {list(part.shape)}".encode())
        digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _restore_structure(model: Model, header: dict[str, Any]) -> Model:
    attentions = header.get("attentions", [])  # files of earlier versions have none
    take_attentions(model, [f"{name}.out_proj" for name in attentions])
    for name in attentions:
        if not isinstance(model.get_submodule(name), MultiheadAttention):
            raise ValueError(f"{name} must be an nn.MultiheadAttention")
    restore_sizes(model, header.get("resized", {}))  # files of earlier versions have none
    layers = layers_of(model)
    for name, entry in header["integer"].items():
        layer = layers[name]
        kind = integer_type(layer)
        assert kind is not None
        wanted = entry.get("kind", kind.float_type.__name__)  # files of earlier versions have none
        if wanted != kind.float_type.__name__:
            raise ValueError(f"{name} must be an nn.{wanted}, got {type(layer).__name__}")
        spec = Quant(**entry["weight"])
        weight: Tensor = layer.weight  # type: ignore[assignment]
        device = "cpu" if weight.is_meta else weight.device
        packed = PackedWeight.like(outputs_first(layer, weight), spec)
        grid = None
        if entry["input"] is not None:
            scale = torch.ones(1, device=device) if entry["static"] else None
            grid = InputGrid(Quant(**entry["input"]), scale)
        outputs = packed.values.shape[0]
        bias = torch.empty(outputs, device="meta") if entry["bias"] else None
        if entry["zero_point"] and packed.zero_point is None:
            zero = torch.empty_like(packed.scale, dtype=torch.int32)
            packed = dataclasses.replace(packed, zero_point=zero)
        swapped = kind(packed, bias, grid, layer)
        swapped.rows = entry.get("rows")
        materialize(swapped, device)
        model = set_module(model, name, swapped)  # type: ignore[assignment]
    materialize(model)
    for name, entry in header["prepared"].items():
        attach(name, layers[name], Layer.from_dict(entry))
    for name in header["identities"]:
        if type(model.get_submodule(name)) is not nn.Identity:
            set_module(model, name, nn.Identity())
    for name in header["biased"]:
        layer = layers[name]
        if layer.bias is None:
            weight = layer.weight
            layer.bias = nn.Parameter(weight.new_zeros(len(outputs_first(layer, weight))))
    for name, dtype in header.get("floats", {}).items():  # files of earlier versions have none
        wanted = Layer(dtype=dtype)
        restore(layers[name], getattr(torch, dtype))
        layers[name].sparseq_layer = wanted  # type: ignore[assignment]
        layers[name].sparseq_reason = f"{dtype} by the plan"  # type: ignore[assignment]
    for name, reason in header.get("dense", {}).items():  # files of earlier versions have none
        model.get_submodule(name).sparseq_dense = str(reason)  # type: ignore[assignment]
    leave_fused_paths(model)
    return model


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and tensors of a safetensors file; of sparseq's, the checksum is compared.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            parts = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if KEY in metadata and metadata.get(f"{KEY}_sha256") != _digest(metadata[KEY], parts):
        raise ValueError("it is damaged: its checksum does not match its content")
    return metadata, parts


def load(path: str | os.PathLike[str], model: Model, *, mmap: bool = True) -> Model:
    """Read what `save` wrote into a float model of the same architecture, in place.

    Tensors of 64 KiB and more that the file holds plain stay in it: they are mapped, and read when
    they are used, which weights whose layers run on tiles made of them are not. A file that a model
    was loaded from may be removed or replaced, as `save` does, but not be written into.

    Args:
        path: of the file.
        model: as the saved one was before prepare; changed only after the file proved to be sound.
            It may be on the meta device, where it takes no memory: what the file holds is then
            put on the CPU.
        mmap: False to copy every tensor into memory.

    Returns:
        The model, with sparseq's modules in it; in eval mode if it was converted, and lowered again
        (a `sparseq.lower.Lowered` around it) if it was lowered.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, altered, of another version, or of another model.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"load: path must name a file, got {str(path)!r}")
    try:
        metadata, parts = read_file(path)
        header = read_header(metadata[KEY], VERSION)
        check_identities(model, header["identities"])
        draft = _restore_structure(shapes_of(model), header)
        check_states(draft, header["states"])
        state: dict[str, Any] = dict(header["states"])
        for name, like in draft.state_dict().items():
            if isinstance(like, Tensor):
                state[name] = decode(name, header["tensors"][name], parts, like)
        unknown = header["tensors"].keys() - state.keys()
        if unknown:
            raise ValueError(f"the model has no {sorted(unknown)[0]}")
        plain = {n for n, e in header["tensors"].items() if e.get("encoding") == "plain"}
        fill(draft, state, plain)
        check_values(draft)
        del draft  # before the model itself needs the room
    except UNSOUND as error:
        detail = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"load: {str(path)!r} does not fit this model: {detail}") from error
    model = _restore_structure(model, header)
    fill(model, state, plain if mmap else ())
    model = model.eval() if header["integer"] or header.get("floats") else model
    lowered = header.get("lowered")  # files of earlier versions have none
    if lowered is not None:
        example = torch.zeros(lowered["shape"], dtype=getattr(torch, lowered["dtype"]))
        model = lower(model, example)  # type: ignore[assignment]
    leave_in_file(path, parts.values())
    return model
