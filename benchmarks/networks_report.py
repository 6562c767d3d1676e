"""The tables of networks.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def times(ratio: dict[str, Any]) -> str:
    """A ratio with its interval."""
    low, high = ratio["interval"]
    return f"{ratio['ratio']:.2f}x ({low:.2f} to {high:.2f})"


def fastest(rows: list[dict[str, Any]], runtime: str, int8: bool) -> dict[str, Any] | None:
    found = [r for r in rows if r["engine"].startswith(runtime) and r["int8"] == int8]
    return min(found, key=lambda row: row["median_ms"], default=None)


def summary(networks: list[dict[str, Any]], ours: list[str]) -> list[str]:
    """How many times as fast ours are as each peer at its better setting."""
    peers = [("OpenVINO", True), ("ONNX Runtime", True), ("OpenVINO", False),
             ("ONNX Runtime", False), ("torch", False)]  # fmt: skip
    head = ["network", "", *(f"{p} {'INT8' if int8 else 'float32'}" for p, int8 in peers)]
    body = []
    for network in networks:
        for name in ours:
            found = [fastest(network["rows"], peer, int8) for peer, int8 in peers]
            cells = ["" if row is None else times(row["slower_than"][name]) for row in found]
            body.append([network["network"] if name == ours[0] else "", name, *cells])
    return table(head, body)


def _memory(found: dict[str, Any] | None, key: str) -> str:
    if found is None:
        return ""
    if "error" in found:
        return "failed"
    return "" if found[key] is None else f"{found[key] / 1e6:.1f}"


def details(network: dict[str, Any], ours: list[str]) -> list[str]:
    head = ["engine", "median ms", "95 % interval", "p95 ms", *(f"by {name}" for name in ours),
            "same arg-max", "relative error", "memory, MB", "whole process, MB"]  # fmt: skip
    body = []
    for row in network["rows"]:
        low, high = row["interval_ms"]
        ratios = ["" if row["engine"] == name else times(row["slower_than"][name]) for name in ours]
        same = row["same_argmax"]
        body.append(
            [
                row["engine"],
                f"{row['median_ms']:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{row['p95_ms']:.3f}",
                *ratios,
                "" if same is None else f"{same:.1%}",
                f"{row['relative_error']:.2g}",
                _memory(row["memory"], "model"),
                _memory(row["memory"], "peak"),
            ]
        )
    failed = [f"- {name} did not run: {reason}" for name, reason in network["failed"].items()]
    return [f"## {network['network']}", "", *table(head, body), *([""] if failed else []), *failed]


def grown(found: dict[str, Any], ours: list[str]) -> list[str]:
    """Cost by image and by pixel, against that of the first row: 1 where growth is linear."""
    lines = ["## Growth with batch and area", ""]
    for kind, title, work in (("batches", "batch", int), ("areas", "side", lambda n: int(n) ** 2)):
        head = [title]
        for name in ours:
            head += [f"{name}, ms", "by batch" if kind == "batches" else "by area"]
        sizes = list(found[kind][ours[0]])
        body = []
        for size in sizes:
            cells = [str(size)]
            for name in ours:
                each = {n: ms / work(n) for n, ms in found[kind][name].items()}
                cells += [f"{found[kind][name][size]:.3f}", f"{each[size] / each[sizes[0]]:.2f}"]
            body.append(cells)
        lines += [*table(head, body), ""]
    return lines


def page(intro: str, found: dict[str, Any], ours: list[str]) -> str:
    lines = ["# networks", "", intro, ""]
    if found["networks"]:
        lines += [
            "Ours against each peer at its fastest setting: how many times as fast, by medians,",
            "with the 95 % interval of a bootstrap over rounds.",
            "",
            *summary(found["networks"], ours),
            "",
            "Memory: what the model and its calls take at most on top of the runtime, in a process",
            "of its own. Relative error: of the outputs, by the L2 norm of the float ones.",
            "",
        ]
    for network in found["networks"]:
        lines += [*details(network, ours), ""]
    if found["growth"]:
        lines += grown(found["growth"], ours)
    lines += [f"- {key}: {value}" for key, value in found["environment"].items()]
    return "\n".join(lines) + "\n"
