"""How far a build is: bars on a terminal, or calls of the user's function."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Callback = Callable[[str, int, int], Any]


@contextmanager
def shown(progress: bool | Callback) -> Iterator[Callback | None]:
    """What to call with a phase's name, the steps that are done and all its steps.

    Args:
        progress: False for nothing, True for bars on standard error, or the user's function.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield None
    elif importlib.util.find_spec("rich") is None:
        yield _print_phase
    else:
        with _bars() as bars:
            yield bars


def _print_phase(phase: str, done: int, steps: int) -> None:
    if not done:
        print(f"TensorRT: {phase}", file=sys.stderr)


@contextmanager
def _bars() -> Iterator[Callback]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<36}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(phase: str, done: int, steps: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=steps)
            bars.update(tasks[phase], completed=done, total=steps)
            if done >= steps and len(tasks) > 1:
                bars.remove_task(tasks.pop(phase))

        yield update
