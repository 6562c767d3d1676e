"""Recipes as YAML: read with the line of every mistake, overridden, written."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sparseq.run.recipe import Recipe

__all__ = ["READY", "dump", "load", "quoted"]

READY = tuple(
    sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("sparseq").joinpath("recipes").iterdir()
        if entry.name.endswith(".yaml")
    )
)
"""Names of the recipes that the package brings along."""

Place = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML's safe types; 1e-4 is a number, which YAML 1.1 calls text."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:float"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9_]+([eE][-+]?[0-9]+)?|\.(inf|Inf|INF)|(?<![-+])\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def load(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        source: name of a ready recipe (`READY`) or path of a YAML file.
        overrides: "KEY=VALUE", such as "train.epochs=3", the value in YAML; later ones win.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: neither a ready recipe nor a file.
        ValueError: no YAML, an unknown key, a wrong type or value: names file, line, key and what
            is allowed.
    """
    name = os.fspath(source)
    if name in READY:
        text = resources.files("sparseq").joinpath("recipes", f"{name}.yaml").read_text("utf-8")
    else:
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(
                f"recipe: {name} is not a file, nor one of the ready recipes: {', '.join(READY)}"
            )
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: must be text in UTF-8: {error}") from None
    lines: dict[Place, str] = {(): f"{name}:1"}
    content = _read(text, name, lines)
    content.setdefault("name", Path(name).stem)
    for override in overrides:
        _override(content, override, lines)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        told = (_message(lines, entry) for entry in error.errors())
        raise ValueError("; ".join(dict.fromkeys(told))) from None


def dump(recipe: Recipe) -> str:
    """A recipe as YAML, every field written: `load` of it gives the same."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def quoted(text: str) -> str:
    """Text as a value for `load`'s overrides, whatever it looks like."""
    return json.dumps(text)


def _read(text: str, name: str, lines: dict[Place, str]) -> dict[str, Any]:
    """The content of a file; notes the line of each key."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _note(node, (), name, lines)
                content = loader.construct_document(node)
            else:
                content = {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ValueError(f"{where}: must be YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: must be YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}:1: must be keys with values, such as 'model: small'")
    return content


def _note(node: yaml.Node, place: Place, name: str, lines: dict[Place, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            at = (*place, str(key.value))
            line = f"{name}:{key.start_mark.line + 1}"
            if at in lines:
                raise ValueError(f"{line}: {_dotted(at)}: stands twice, first at {lines[at]}")
            lines[at] = line
            _note(value, at, name, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*place, index)] = f"{name}:{value.start_mark.line + 1}"
            _note(value, (*place, index), name, lines)


def _override(content: dict[str, Any], text: str, lines: dict[Place, str]) -> None:
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise ValueError(f"--set: must be KEY=VALUE, such as train.epochs=3, got {text!r}")
    try:
        read = yaml.load(value, _Loader)  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"--set {text}: the value must be YAML: {error}") from None
    held = content
    for part in path[:-1]:
        inner = held.get(part)
        held[part] = held = dict(inner) if isinstance(inner, dict) else {}
    held[path[-1]] = read
    lines[path] = f"--set {key.strip()}"


def _dotted(place: Iterable[str | int]) -> str:
    return ".".join(map(str, place))


def _fields(place: Place) -> list[str]:
    """The keys that are allowed at a place."""
    part: type[BaseModel] = Recipe
    for step in place:
        inner = part.model_fields[str(step)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        part = inner
    return list(part.model_fields)


_WORDS = {
    "Input should": "must",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid tuple": "a list",
}


def _message(lines: dict[Place, str], error: Any) -> str:
    """One mistake: where it stands, of which key, what is allowed, what was given."""
    place: Place = error["loc"]
    noted = next(p for p in (place[:end] for end in range(len(place), -1, -1)) if p in lines)
    kind, got = error["type"], True
    if kind == "extra_forbidden":
        allowed = _fields(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), allowed, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        what, got = f"unknown key{hint}, allowed: {', '.join(allowed)}", False
    elif kind == "value_error":
        what, got = str(error["ctx"]["error"]), False
    elif kind in ("model_type", "model_attributes_type"):
        what = f"must be keys with values, allowed: {', '.join(_fields(place))}"
    elif kind == "string_pattern_mismatch":
        how = ", each once" if place[0] == "order" else ": Q+P (in the order) or QP (as written)"
        what = f"must be letters of D, P, S and Q{how}"
    else:
        what = str(error["msg"])
        for theirs, ours in _WORDS.items():
            what = what.replace(theirs, ours)
    key = f"{_dotted(place)}: " if place else ""
    return f"{lines[noted]}: {key}{what}" + (f", got {error['input']!r}" if got else "")
