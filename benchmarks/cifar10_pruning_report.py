"""The table of cifar10_pruning.py."""

from __future__ import annotations

from typing import Any


def page(
    intro: str, found: dict[str, dict[str, Any]], allowed: dict[str, float], stamp: dict[str, Any]
) -> str:
    """As Markdown.

    Args:
        intro: how the networks were trained.
        found: by stage, "float32" among them.
        allowed: points below it, by how a stage's name begins.
        stamp: the environment.
    """
    lines = [
        "| ResNet-20 | accuracy % | drop | bound | zeros % | MB | seconds | trained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        drop = found["float32"]["accuracy"] - row["accuracy"]
        bound = next((b for start, b in allowed.items() if name.startswith(start)), None)
        shown = "" if bound is None or "not retrained" in name else f"{bound}"
        lines.append(
            f"| {name} | {row['accuracy']:.2f} | {drop:.2f} +- {row['error']:.2f} | {shown} | "
            f"{100 * row['zeros']:.1f} | "
            f"{row['megabytes']:.3f} | {row['seconds']:.0f} | "
            f"{row['date']}{', bfloat16' if row['amp'] else ''} |"
        )
    timed = [
        f"| {name} | {row['speed_on']} | {r['batch']} | {r['threads']} | {r['whole']:.2f} | "
        f"{r['narrow']:.2f} | {r['whole'] / r['narrow']:.2f}x |"
        for name, row in found.items()
        for r in row.get("speed", ())
    ]
    if timed:
        lines += ["", "Fewer channels in float32 beside the whole network, medians in turns:", ""]
        lines += ["| | ISA | batch | threads | whole ms | ms | speed-up |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += timed
    left = [
        f"- {name}: " + "; ".join(f"{layer}: {why}" for layer, why in row["dense"].items())
        for name, row in found.items()
        if row["dense"]
    ]
    about = [f"- {key}: {value}" for key, value in stamp.items()]
    parts = ["# cifar10_pruning", "", intro, "", *lines, "", "Layers left dense:", "", *left, ""]
    return "\n".join([*parts, *about, ""])
