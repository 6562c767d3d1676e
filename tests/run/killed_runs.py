"""Runs that are killed at many points and called again; a process of its own, which forks."""

import json
import os
import signal
import sys
from pathlib import Path

import small_runs
import torch
import torch._dynamo  # what an optimizer imports when it is made, here once for all lives

from sparseq.run import models

RECIPE = {"variants": ["QP", "Q+P+D"]}
STEPS = small_runs.TRAIN // small_runs.BATCH  # of an epoch
LIVES = 60  # that a run may need


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly(small_runs.Silent):
    """Kills its process at a step."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def step(self, name, loss):
        super().step(name, loss)
        if self.steps == self.last:
            die()


def killed_in_an_epoch():
    return Deadly(2 * STEPS + 2)  # so that each life gets two epochs further


def killed_while_writing():
    """The third file of each life is left half written."""
    save, count = torch.save, 0

    def half(content, path):
        nonlocal count
        count += 1
        save(content, path)
        if count == 3:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    torch.save = half
    return small_runs.Silent()


def killed_after_the_renaming():
    replace, count = Path.replace, 0

    def once(self, target):
        nonlocal count
        result = replace(self, target)
        count += str(target).endswith(".pt")
        if count == 2:
            die()
        return result

    Path.replace = once
    return small_runs.Silent()


WAYS = {
    way.__name__: way
    for way in (killed_in_an_epoch, killed_while_writing, killed_after_the_renaming)
}


def live(path, way):
    """One life of a run; whether it came to its end."""
    process = os.fork()
    if process == 0:
        try:
            models.build = small_runs.tiny
            watcher = way() if way else small_runs.Silent()
            small_runs.trained(path, small_runs.recipe(**RECIPE), watcher)
        except BaseException as error:
            print(f"{way}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def main():
    folder, lives = Path(sys.argv[1]), {}
    torch.set_num_threads(1)  # OpenMP's threads would not live through the forks
    small_runs.digits()  # once, for all lives
    assert live(folder / "never", None)
    for name, way in WAYS.items():
        lives[name] = 1
        while not live(folder / name, way):
            lives[name] += 1
            assert lives[name] < LIVES
    (folder / "lives.json").write_text(json.dumps(lives))


if __name__ == "__main__":
    main()
