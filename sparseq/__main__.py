"""``python -m sparseq``: see :mod:`sparseq.cli`."""

from sparseq.cli import app

if __name__ == "__main__":  # worker processes import this module, too
    app(prog_name="python -m sparseq")
