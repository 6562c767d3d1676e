"""The command line: `sparseq`, or `python -m sparseq`."""

from sparseq.cli import deploy, machine, measure, report, run  # each puts its commands into app
from sparseq.cli.app import app, main

__all__ = ["app", "deploy", "machine", "main", "measure", "report", "run"]
