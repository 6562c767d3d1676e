"""The program that the commands belong to, and how it tells errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Quantise, prune and distil PyTorch models, run them fast, and export them.",
)


@contextmanager
def user_errors(extra: str | None = None) -> Iterator[None]:
    """Turn an error of the user's input into one red line and exit code 2.

    Args:
        extra: what to install where a package is missing, unless the error says it.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        line = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError) and extra and "pip install" not in line:
            line += f"; this needs: pip install 'sparseq[{extra}]'"
        Console(stderr=True).print(Text(f"error: {line}", style="bold red"), soft_wrap=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Run the command line; the ``sparseq`` script."""
    app()
