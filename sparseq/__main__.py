"""``python -m sparseq``: see :mod:`sparseq.cli`."""

from sparseq.cli import app

app(prog_name="python -m sparseq")
