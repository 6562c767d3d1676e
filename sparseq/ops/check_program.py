"""Whether a program is well-formed: everything about it that needs no tensor."""

from __future__ import annotations

import json
from typing import Any

import torch

from sparseq.program import ACTIVATIONS, FORMS, OPS, VERSION, Grid, Instruction, Program

# of an attribute: how many whole numbers it is a list of, and their least
_LISTS = {"kernel": (2, 1), "stride": (2, 1), "padding": (2, 0), "dilation": (2, 1), "size": (2, 1)}
_LISTS |= {"around": (4, 0), "first": (3, 0)}
# one whole number, at least this
_NUMBERS = {"groups": 1, "columns": 1, "divisor": 0, "heads": 1, "width": 1}
_FLAGS = ("ceil", "include_pad", "causal")
_MOST = 2**30  # of a whole number: products of two stay far inside of int64
_TINY, _HUGE = 2.0**-149, torch.finfo(torch.float32).max
_KEYS = {"version", "inputs", "instructions", "outputs"}


def name_of(number: int, i: Instruction) -> str:
    """An instruction, as errors call it."""
    return f"network: instruction {number} ({i.op})"


def _whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def parse_program(program: Program | str) -> Program:
    """The checked program of a text or an object.

    Raises:
        TypeError: it is neither.
        ValueError: the text is no program, or the program is not well-formed.
    """
    if isinstance(program, Program):
        check_program(program)
        return program
    if not isinstance(program, str):
        raise TypeError(
            f"network: program must be a Program or its JSON, got {type(program).__name__}"
        )
    try:
        whole = json.loads(program)
        if set(whole) != _KEYS:
            raise ValueError(f"its keys must be {sorted(_KEYS)}, got {sorted(whole)}")
        if whole["version"] != VERSION:
            raise ValueError(f"its version must be {VERSION}, got {whole['version']!r}")
        parsed = Program.from_json(program)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"network: program must be the JSON of a Program: {error}") from error
    check_program(parsed)
    return parsed


def _check_grid(where: str, grid: Grid) -> None:
    scale = grid.scale
    if type(scale) not in (int, float) or not _TINY <= scale <= _HUGE:
        raise ValueError(f"{where}: scale must be a positive, finite float32, got {scale!r}")
    low, zero, high = grid.low, grid.zero_point, grid.high
    if not all(_whole(v, 0, 255) for v in (low, zero, high)):
        raise ValueError(
            f"{where}: zero_point, low and high must be whole numbers in [0, 255], "
            f"got {zero!r}, {low!r} and {high!r}"
        )
    if not low <= zero <= high or low == high:
        raise ValueError(
            f"{where}: low <= zero_point <= high and low < high must hold, "
            f"got {low}, {zero} and {high}"
        )


def _check_attribute(where: str, name: str, value: Any) -> None:
    if name in _LISTS:
        count, least = _LISTS[name]
        whole = isinstance(value, (list, tuple)) and len(value) == count
        good = whole and all(_whole(v, least, _MOST) for v in value)
        wanted = f"{count} whole numbers of at least {least} and at most 2^30"
    elif name in _NUMBERS:
        good = _whole(value, _NUMBERS[name], _MOST)
        wanted = f"a whole number of at least {_NUMBERS[name]} and at most 2^30"
    elif name in _FLAGS:
        good, wanted = isinstance(value, bool), "true or false"
    elif name in ("eps", "scale"):
        good = type(value) in (int, float) and (0 if name == "eps" else -_HUGE) <= value <= _HUGE
        wanted = "a finite float32" + (" of at least 0" if name == "eps" else "")
    else:
        good, wanted = value in ACTIVATIONS, f"one of {ACTIVATIONS}"
    if not good:
        raise ValueError(f"{where}: {name} must be {wanted}, got {value!r}")


def _check_attributes(where: str, i: Instruction) -> None:
    defaults = OPS[i.op][2]
    for name, value in i.attributes.items():
        if name not in defaults:
            raise ValueError(
                f"{where}: its attributes must be among {sorted(defaults)}, got {name!r}"
            )
        _check_attribute(where, name, value)
    for name, default in defaults.items():
        if default is None and name not in i.attributes:
            raise ValueError(f"{where}: {name} must be given")
    if i.op in ("max_pool", "avg_pool"):
        kernel, padding = i.get("kernel"), i.get("padding")
        if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
            raise ValueError(
                f"{where}: padding must be at most half of kernel, {kernel}, got {padding}"
            )
    if i.op == "attention" and i.get("width") % i.get("heads"):
        raise ValueError(
            f"{where}: heads must divide width, {i.get('width')}, got {i.get('heads')}"
        )


def _check_counts(where: str, i: Instruction, values: int) -> None:
    (least, most), constants, _ = OPS[i.op]
    if not least <= len(i.inputs) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise ValueError(f"{where}: it must have {wanted} inputs, got {len(i.inputs)}")
    if len(i.constants) not in constants:
        wanted = " or ".join(map(str, constants))
        raise ValueError(f"{where}: it must have {wanted} constants, got {len(i.constants)}")
    for v in i.inputs:
        if not _whole(v, 0, values - 1):
            raise ValueError(f"{where}: inputs must be values before it, below {values}, got {v!r}")
    for c in i.constants:
        if not _whole(c, 0, _MOST):
            raise ValueError(f"{where}: constants must be numbers of constants, got {c!r}")


def _check_form(where: str, form: object) -> None:
    if form not in FORMS:
        raise ValueError(f"network: {where} must have a form of {FORMS}, got {form!r}")


def check_program(program: Program) -> None:
    """ValueError unless each instruction is one, on values before it, with what it needs."""
    for n, form in enumerate(program.inputs):
        _check_form(f"input {n}", form)
    grids: list[Grid | None] = [None] * len(program.inputs)
    for n, i in enumerate(program.instructions):
        if not isinstance(i.op, str) or i.op not in OPS:
            raise ValueError(f"network: instruction {n} must be one of {sorted(OPS)}, got {i.op!r}")
        where = name_of(n, i)
        _check_counts(where, i, len(grids))
        _check_attributes(where, i)
        if i.grid is not None:
            _check_grid(where, i.grid)
        if i.op == "conv" and grids[i.inputs[0]] is None:
            raise ValueError(f"{where}: its first input must be on a grid, got a float32 value")
        if i.op == "attention" and any(grids[v] is not None for v in i.inputs):
            raise ValueError(f"{where}: its inputs must be float32, got a value on a grid")
        grids.append(i.grid)
    for n, (value, form) in enumerate(program.outputs):
        _check_form(f"output {n}", form)
        if not _whole(value, 0, len(grids) - 1):
            raise ValueError(
                f"network: output {n} must be a value, below {len(grids)}, got {value!r}"
            )
