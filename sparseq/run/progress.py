"""Progress bars of the exercise: one for the whole run, one for the stage at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bars"]


class Bars:
    """Shows how far a run is. Finished stages stay on the screen as a line each.

    On something that is not a terminal only these lines are printed.

    Args:
        stages: how many stages the run has.
        console: where to print.
    """

    def __init__(self, stages: int, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._whole = self._progress.add_task("[bold]all stages", total=stages, note="")

    def __enter__(self) -> Bars:
        """Show the bars."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bars away."""
        self._progress.stop()

    @contextmanager
    def stage(self, name: str, steps: int) -> Iterator[Callable[[float], None]]:
        """Show a bar for one stage while the block runs.

        Args:
            name: what the stage does.
            steps: how often the yielded function will be called.

        Yields:
            A function to call after every step with its loss.
        """
        task = self._progress.add_task(name, total=steps, note="")

        def advance(loss: float) -> None:
            self._progress.update(task, advance=1, note=f"loss {loss:.3f}")

        try:
            yield advance
        finally:
            self._progress.remove_task(task)
        self._progress.advance(self._whole)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line, highlight=False)
