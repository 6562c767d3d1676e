"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show(cells: Sequence[Sequence[str]], left: int, footer: bool = False) -> None:
    """Print lines of text, the first as a head.

    Args:
        cells: a head, the body, and with a footer the totals as the last line.
        left: so many columns stand to the left, the others to the right.
        footer: whether the last line is one.
    """
    table = Table(box=box.SIMPLE_HEAD, show_footer=footer)
    totals = cells[-1] if footer else [""] * len(cells[0])
    for number, (title, total) in enumerate(zip(cells[0], totals, strict=True)):
        table.add_column(title, total, justify="right" if number >= left else "left", no_wrap=True)
    for line in cells[1:-1] if footer else cells[1:]:
        table.add_row(*map(escape, line))
    # as wide as the table is: where that does not fit, lines run on, and a pipe gets all of them
    needed = Console(width=10_000).measure(table).maximum
    Console(width=max(Console().width, needed)).print(table, soft_wrap=True)
