"""What zeros and missing channels cost in accuracy: ResNet-20 on CIFAR-10, pruned and retrained.

    make bench ARGS="cifar10_pruning DATA.npz [OUT] [--stages NAME ...] [--epochs N] [--label TEXT]
                     [--smoke]"

Stages that OUT (build/cifar10_pruning) already holds are not run again; a training that was killed
goes on with its next epoch. All start from the committed network
(results/cifar10_resnet20.safetensors). --stages runs these alone (and "float32"); the table has
what OUT holds. --label is what the table calls the data: say there if DATA are not the original
images. --smoke runs stages for a few steps on a few images, into OUT only: it shows that the script
works.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cifar10
import torch
from cifar10_pruning_measures import drop_error, right, speed
from cifar10_pruning_report import page
from resume import trained
from safetensors.torch import load_file
from torch import nn

import sparseq
from sparseq import NM, Channels, Layer, Plan, Unstructured, analysis, bench, distill, sparse
from sparseq.files import atomic_path
from sparseq.run import data
from sparseq.run.recipe import Training
from sparseq.run.stage import has_bfloat16

ROUNDS, ROUND_EPOCHS, ROUND_RATE = 5, 2, 0.02
EPOCHS, RATE = 16, 0.1
TAUGHT_EPOCHS, TAUGHT_RATE = 2.5, 0.2  # of EPOCHS; the rate of the network's first training
TEMPERATURE, ALPHA = 4.0, 0.1  # of what is distilled; alpha: the labels' share
ESCAPES = 100  # of the search for a permutation
TARGET = 0.8
SMOKE = 256  # images
# points below the baseline, the bounds to meet
ALLOWED = {"80 % unstructured": 0.5, "2:4": 0.3, "half the MACs": 1.0}
WHOLE = Plan({"*": Layer(sparsity=Unstructured(TARGET))})
TWO_OF_FOUR = Plan({"*": Layer(sparsity=NM(2, 4))})
IMAGE = (1, 3, 32, 32)
AMP = has_bfloat16("cpu")


@dataclasses.dataclass
class Run:
    """The data, the folder, and what was found so far."""

    dataset: data.Dataset
    out: Path
    base: nn.Module
    rounds: int = ROUNDS
    round_epochs: int = ROUND_EPOCHS
    epochs: int = EPOCHS
    escapes: int = ESCAPES

    def __post_init__(self) -> None:
        self.file = self.out / "results.json"
        self.kept = self.out / "stage.pt"  # of the stage that is being trained
        self.found: dict[str, dict[str, Any]] = (
            json.loads(self.file.read_text()) if self.file.is_file() else {}
        )

    def path(self, name: str) -> Path:
        return self.out / f"{name.translate(str.maketrans(' ', '_', ',:%'))}.safetensors"

    def stage(self, name: str, build: Callable[[], nn.Module]) -> None:
        if name in self.found:
            return
        path = self.path(name)
        self.kept = path.with_suffix(".pt")
        start = time.perf_counter()
        model = build()
        seconds = time.perf_counter() - start
        fast = sparseq.convert(model)
        sparseq.save(fast, path)
        weights = [m.weight for m in fast.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        self.found[name] = {
            "accuracy": bench.accuracy(fast, self.dataset.test_batches()),
            "zeros": sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights),
            "seconds": seconds,
            "megabytes": path.stat().st_size / 2**20,
            "dense": sparseq.explain(fast).dense,
            "date": bench.environment()["date"][:10],
            "amp": AMP,
        }
        self.write()
        print(name, self.found[name], flush=True)

    def retrain(
        self,
        model: nn.Module,
        seed: int,
        recipe: Training | None = None,
        **how: Any,
    ) -> nn.Module:
        """By one cycle of the learning rate, or as the recipe says; `how` as train takes it.

        A rate as large as the first training's wins back more than a small one (Renda et al. 2020).
        """
        recipe = recipe or Training(epochs=self.epochs, rate=RATE, batch=128)
        trained(model, self.dataset, recipe, self.kept, seed=seed, amp=AMP, **how)
        return model

    @property
    def taught_epochs(self) -> int:
        return int(TAUGHT_EPOCHS * self.epochs)

    def taught(self) -> distill.Loss:
        """The loss of a student of the float network."""
        return distill.Loss(copy.deepcopy(self.base), TEMPERATURE, ALPHA)  # which freezes it

    def pruned(self, plan: Plan, escapes: int | None = None) -> nn.Module:
        model = copy.deepcopy(self.base)
        if escapes is not None:
            print(sparseq.permute_channels(model, torch.randn(IMAGE), plan, escapes=escapes))
        return sparseq.prepare(model, plan)

    def batches(self, count: int) -> list[Any]:
        generator = torch.Generator().manual_seed(0)
        found = self.dataset.train_batches(128, generator)
        return [batch for _, batch in zip(range(count), found, strict=False)]

    def iterative(
        self, name: str, plan: Plan, criterion: str | None = None, taught: bool = False
    ) -> nn.Module:
        """Rounds of pruning and retraining; each round is kept, and not run again.

        What is taught by the float network gains from a longer last cycle, with the rate of that
        network's first training (learning rate rewinding, Renda et al. 2020).
        """
        model = self.pruned(plan)
        how = {"criterion": self.taught()} if taught else {}
        last = Training(epochs=self.taught_epochs, rate=TAUGHT_RATE, batch=128) if taught else None

        def scores() -> dict[str, torch.Tensor]:
            return sparse.score(model, self.batches(16), criterion)

        schedule = sparse.PruningSchedule(
            model, self.rounds, "geometric", scores=scores if criterion else None
        )
        between = Training(epochs=self.round_epochs, rate=ROUND_RATE, batch=128, schedule="cosine")
        kept = self.out / f"{name}.rounds.pt"
        if kept.is_file():
            state = torch.load(kept, weights_only=True)
            model.load_state_dict(state["model"])
            schedule.load_state_dict(state["schedule"])
        while not schedule.done:
            schedule.step()
            self.retrain(model, schedule.taken, last if schedule.done else between, **how)
            with atomic_path(kept) as temporary:
                state = {"model": model.state_dict(), "schedule": schedule.state_dict()}
                torch.save(state, temporary)
            print(f"{name}: round {schedule.taken}, {schedule.sparsity:.1%} zeros", flush=True)
        return model

    def by_sensitivity(self) -> Plan:
        levels = analysis.sparsity_levels()
        table = sparseq.sensitivity(self.base, self.batches(4), levels)
        print(table, flush=True)
        return analysis.sparsity_plan(self.base, table, levels, TARGET)

    def refined(self) -> nn.Module:
        """SR-STE for most of the epochs, then the mask is fixed."""
        model = self.pruned(Plan({"*": Layer(sparsity=NM(2, 4, refined=2e-4))}))
        fixed = self.epochs - max(self.epochs // 5, 1)

        def before_epoch(epoch: int) -> None:
            if epoch >= fixed:  # again where a killed training goes on
                sparse.freeze_masks(model)

        return self.retrain(model, 1, before_epoch=before_epoch)

    def narrow(self, spec: Channels, **how: Any) -> nn.Module:
        model = copy.deepcopy(self.base)
        print(sparseq.prune_channels(model, torch.randn(IMAGE), spec, macs=0.5), flush=True)
        return self.retrain(model, 1, **how)

    def stages(self) -> dict[str, Callable[[], nn.Module]]:
        """What each is made by, in the order of the table."""
        narrow = {
            f"half the MACs, {scope} {criterion}": Channels(0.5, criterion, 4, scope)
            for scope, criterion in (("global", "l2"), ("local", "l2"), ("global", "batch_norm"))
        }
        first, unstructured = next(iter(narrow)), "80 % unstructured"
        return {
            "float32": lambda: self.base,
            f"{unstructured}, one shot, not retrained": lambda: self.pruned(WHOLE),
            f"{unstructured}, iterative magnitude": lambda: self.iterative("magnitude", WHOLE),
            f"{unstructured}, iterative magnitude, distilled": lambda: self.iterative(
                "distilled", WHOLE, taught=True
            ),
            f"{unstructured}, iterative Taylor": lambda: self.iterative("taylor", WHOLE, "taylor"),
            f"{unstructured}, iterative, ratios by sensitivity": lambda: self.iterative(
                "sensitivity", self.by_sensitivity()
            ),
            "2:4, not retrained": lambda: self.pruned(TWO_OF_FOUR),
            "2:4, channels permuted, not retrained": lambda: self.pruned(TWO_OF_FOUR, self.escapes),
            "2:4, magnitude": lambda: self.retrain(self.pruned(TWO_OF_FOUR), 1),
            "2:4, SR-STE": self.refined,
            **{name: lambda spec=spec: self.narrow(spec) for name, spec in narrow.items()},
            f"{first}, distilled": lambda: self.narrow(narrow[first], criterion=self.taught()),
            "float32, trained on as long": lambda: self.retrain(copy.deepcopy(self.base), 1),
        }

    def loaded(self, name: str) -> nn.Module:
        model = copy.deepcopy(self.base)
        sparseq.load(self.path(name), model)
        return model

    def write(self) -> None:
        with atomic_path(self.file) as temporary:
            temporary.write_text(json.dumps(self.found, indent=1))

    def measure(self, repeats: int = 50) -> None:
        """What was not measured yet: the error of each drop, the speed with fewer channels."""
        before: torch.Tensor | None = None
        for name, row in self.found.items():
            if "error" not in row:
                if before is None:
                    before = right(self.base, self.dataset)
                row["error"] = drop_error(before, right(self.loaded(name), self.dataset))
            if name.startswith("half") and "speed" not in row:
                row["speed"] = speed(self.base, self.loaded(name), IMAGE, repeats)
                row["speed_on"] = bench.environment()["isa"]
            self.write()


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cifar10_pruning")
    parser.add_argument("data")
    parser.add_argument("out", nargs="?", default="build/cifar10_pruning", type=Path)
    parser.add_argument("--stages", nargs="+", default=None, help="names; all without it")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--label", help="the data's name in the table; DATA's without it")
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    given = parsed(arguments)
    dataset = data.load(given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    base = cifar10.network()
    base.load_state_dict(load_file(cifar10.BASELINE))
    run = Run(dataset, given.out, base.eval(), epochs=given.epochs)
    if given.smoke:
        few = {name: getattr(dataset, name)[:SMOKE] for name in data.ARRAYS}
        run = Run(dataclasses.replace(dataset, **few), given.out, base, 2, 1, 2, 0)
    stages = run.stages()
    unknown = set(given.stages or ()) - stages.keys()
    if unknown:
        raise SystemExit(f"cifar10_pruning: --stages must be of {list(stages)}, got {unknown}")
    for name, build in stages.items():
        if given.stages is None or name in ("float32", *given.stages):
            run.stage(name, build)
    run.measure(2 if given.smoke else 50)
    label = f"{len(dataset.x_test):,} test images of {given.label or dataset.name}"
    order = [name for name in stages if name in run.found]
    write(run, order, label, given.out if given.smoke else cifar10.RESULTS)


def write(run: Run, order: list[str], label: str, folder: Path) -> None:
    """The table and its figures, stamped, to cifar10_pruning.{md,json}."""
    intro = (
        f"{label}. All from the committed float network. Iterative: {run.rounds} rounds that each "
        f"drop the same share of what is left, {run.round_epochs} epochs of retraining after each "
        f"(cosine from {ROUND_RATE}), {run.epochs} after the last (one cycle to {RATE}); all "
        f"others {run.epochs} epochs alike, SR-STE's mask (decay 2e-4) fixed in the last fifth. "
        f"Distilled: taught by the float network (T = {TEMPERATURE:g}, alpha = {ALPHA:g}), "
        f"that of 80 % in all rounds and {run.taught_epochs} epochs after the last (one cycle to "
        f"{TAUGHT_RATE}). "
        "Trained under autocast of bfloat16 where it says so. "
        "Drop: +- its standard error over the images, as both networks see the same. "
        "Zeros: of all convolutions and the classifier; files hold float32. Seconds on cores that "
        "other work shared; of a stage that was interrupted, since it went on."
    )
    stamp, found = bench.environment(), {name: run.found[name] for name in order}
    text = page(intro, found, ALLOWED, stamp)
    with atomic_path(folder / "cifar10_pruning.json") as path:
        path.write_text(json.dumps({"environment": stamp, "results": found}, indent=1) + "\n")
    with atomic_path(folder / "cifar10_pruning.md") as path:
        path.write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
