"""How far a pass over the data is: a bar of rich, or a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Progress = bool | Callable[[str, int, int | None], None]


def length_of(items: Iterable[Any]) -> int | None:
    """How many items there are, or None where that is unknown."""
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:  # an iterator, or a DataLoader over one
        return None


@contextmanager
def _bar(caller: str, step: str, total: int | None) -> Iterator[Callable[[str, int, Any], None]]:
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{caller}: progress=True needs the package rich: pip install 'sparseq[run]', or pass "
            "a function of (step, done, total)"
        ) from error
    columns = TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, *times, console=Console(stderr=True)) as bars:
        task = bars.add_task(step, total=total)
        yield lambda step, done, total: bars.update(task, completed=done, total=total)


def tracked(
    items: Iterable[Item], progress: Progress, step: str, caller: str = "calibrate"
) -> Iterator[Item]:
    """The items, with the progress shown after each.

    Args:
        items: any; where they have a length the bar says how long it will take.
        progress: True for a bar on stderr; or a function of the step's name, how many items are
            done and how many there are (None if unknown), called before the first and after each.
        step: what is being done.
        caller: named in an error.

    Raises:
        ModuleNotFoundError: progress is True and rich is not installed.
        TypeError: progress is neither a bool nor a function.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            f"{caller}: progress must be True, False or a function of (step, done, total), "
            f"got {type(progress).__name__}"
        )
    if progress is False:
        yield from items
        return
    total = length_of(items)
    if progress is True:
        with _bar(caller, step, total) as show:
            yield from _told(items, show, step, total)
    else:
        yield from _told(items, progress, step, total)


def _told(
    items: Iterable[Item],
    show: Callable[[str, int, int | None], None],
    step: str,
    total: int | None,
) -> Iterator[Item]:
    show(step, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        show(step, done, total)
