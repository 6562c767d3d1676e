"""Progress bars of the exercise: one for the whole run, one for each stage at work."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bars"]


class Bars:
    """Shows how far a run is and how long it will take. Finished stages stay as a line each.

    On something that is not a terminal only these lines are printed.

    Args:
        steps: that all stages take together.
        console: where to print; None for nowhere: one of several processes talks.
    """

    def __init__(self, steps: int, console: Console | None) -> None:
        self.console = console
        shown = console is not None and console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not shown,
            transient=True,
        )
        self._whole = self._progress.add_task("[bold]all stages", total=steps, note="")
        self._tasks: dict[str, TaskID] = {}

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

    def start(self, name: str, steps: int, done: int = 0) -> None:
        """Show a bar for a stage of so many steps, of which the first are done."""
        self._tasks[name] = self._progress.add_task(name, total=steps, completed=done, note="")
        self.skip(done)

    def skip(self, steps: int) -> None:
        """So many steps of the run were done before."""
        self._progress.advance(self._whole, steps)

    def step(self, name: str, loss: float) -> None:
        """One more step of a stage."""
        self._progress.update(self._tasks[name], advance=1, note=f"loss {loss:.3f}")
        self._progress.advance(self._whole)

    def finish(self, name: str, line: str) -> None:
        """Put a line in the place of a stage's bar."""
        self._progress.remove_task(self._tasks.pop(name))
        if self.console is not None:
            self.console.print(line, highlight=False)
