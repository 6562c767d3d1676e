"""Where something was measured."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch


def environment() -> dict[str, str]:
    """Return what a report must say of where it was made.

    Returns:
        Text by name: cpu, isa, threads, python, torch, sparseq, commit (empty outside a git
        checkout of this package) and date (UTC, ISO 8601).
    """
    from sparseq import _C

    return {
        "cpu": _cpu(),
        "isa": _C.isa(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparseq": metadata.version("sparseq"),
        "commit": commit(Path(__file__).resolve().parents[2]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    """Its name, and what tells generations apart that virtual machines name alike."""
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return platform.processor() or platform.machine()
    found: dict[str, str] = {}
    for line in information.read_text().splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or platform.processor() or platform.machine()
    if "cpu family" not in found or "model" not in found:
        return name
    return f"{name}, family {found['cpu family']}, model {found['model']}"


def commit(root: Path) -> str:
    """The commit that a folder is a checkout of; empty where it is none."""
    if not (root / ".git").exists():  # an installed copy inside somebody else's checkout
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
