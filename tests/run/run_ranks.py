"""What each rank of a distributed run does; torchrun starts it, test_ranks.py reads it."""

import os
import sys
from pathlib import Path

import small_runs
import torch

from sparseq.run import exercise, models

RECIPE = {"variants": ["Q+P", "D"], "engine": False}


def main():
    models.build = small_runs.tiny
    torch.set_num_threads(1)
    few = small_runs.digits()
    exercise.data.load = lambda *arguments, **options: few
    finish = exercise._finish

    def note(workshop, out, seconds):
        (out / "finished").touch()
        return finish(workshop, out, seconds)

    exercise._finish = note
    out = Path(sys.argv[1]) / os.environ["RANK"]  # a folder of its own shows what a rank writes
    results = exercise.run(small_runs.recipe(**RECIPE), out)
    assert (results is None) == (os.environ["RANK"] != "0")


if __name__ == "__main__":
    main()
