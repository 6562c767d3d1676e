"""The command line: `sparseq`, or `python -m sparseq`."""

from sparseq.cli import demo, deploy, machine, measure, report  # each puts its commands into app
from sparseq.cli.app import app, main

__all__ = ["app", "demo", "deploy", "machine", "main", "measure", "report"]
