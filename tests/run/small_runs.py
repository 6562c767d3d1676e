"""A run so small that tests afford many: 96 digits, a network of 3,000 weights, one thread."""

import dataclasses
import functools

import torch

from sparseq.run import data, models
from sparseq.run.folder import Folder, stages_of
from sparseq.run.recipe import Recipe
from sparseq.run.stage import Workshop
from sparseq.run.sweep import train_stages

TRAIN, TEST, BATCH = 96, 40, 32
SHORT = {"epochs": 2, "batch": BATCH}
PARTS = {"train": SHORT, "distil": SHORT, "prune": {**SHORT, "epochs": 3}, "sparse24": SHORT}
PARTS |= {"quantise": {**SHORT, "calibration": 2}}


class Silent:
    """Shows nothing; notes what it was told."""

    def __init__(self):
        self.lines, self.steps, self.skipped = [], 0, 0

    def start(self, name, steps, done=0):
        self.skip(done)

    def skip(self, steps):
        self.skipped += steps

    def step(self, name, loss):
        self.steps += 1

    def finish(self, name, line):
        self.lines.append(line)


def recipe(**changes):
    return Recipe.model_validate({**PARTS, "repeats": 2, "sensitivity": 32, **changes})


@functools.cache
def _all_digits():
    return data.load("digits")


def digits():
    all_ = _all_digits()
    cut = {f"{x}_{part}": getattr(all_, f"{x}_{part}")[:count]
           for x in "xy" for part, count in (("train", TRAIN), ("test", TEST))}  # fmt: skip
    return dataclasses.replace(all_, **cut)


def tiny(name, channels, classes, *, student=False):
    # not 4 channels: oneDNN's gradients of those write past their end (torch 2.14.1)
    return models.ResNet(channels, classes, width=8, depth=1, stages=1 if student else 2)


def workshop(path, wanted, ranks=None):
    folder = Folder(path)
    folder.stages.mkdir(parents=True, exist_ok=True)
    return Workshop(wanted, digits(), folder, ranks)


def trained(path, wanted, watcher=None, workers=1):
    """Train all stages of a recipe, as `exercise.run` does before it measures."""
    shop = workshop(path, wanted)
    with shop.folder.claim(wanted, shop.data):
        train_stages(shop, watcher or Silent(), workers)
    return shop


def same(one, two):
    """Whether two values of a state are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    return one == two


def differences(first, second, wanted):
    """Stages that two folders hold differently; seconds apart, which no two runs share."""
    found = []
    for stage in stages_of(wanted):
        one, two = (dict(Folder(path).read(stage)) for path in (first, second))
        assert one["done"] and two["done"]
        found += [f"{stage.name}: {k}" for k in one if k != "seconds" and not same(one[k], two[k])]
    return found
