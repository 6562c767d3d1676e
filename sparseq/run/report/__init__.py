"""What an exercise leaves behind: a page, a text, charts, the numbers, a table for the terminal."""

from sparseq.run.report.files import read, write
from sparseq.run.report.findings import Findings, find
from sparseq.run.report.logs import tensorboard
from sparseq.run.report.rows import table

__all__ = ["Findings", "find", "read", "table", "tensorboard", "write"]
