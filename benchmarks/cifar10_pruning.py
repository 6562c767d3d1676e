"""What zeros cost in accuracy: ResNet-20 on CIFAR-10, pruned in rounds, 2:4, 2:4 by SR-STE.

    make bench ARGS="cifar10_pruning DATA.npz [OUT] [smoke]"

Stages that OUT (build/cifar10_pruning) already holds are not run again; iterative pruning goes on
from its last round. All start from the committed network
(results/cifar10_resnet20.safetensors). "smoke" runs every stage for a few steps on a few images,
into OUT only: it shows that the script works.
"""

from __future__ import annotations

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
from safetensors.torch import load_file
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Unstructured, analysis, bench, sparse
from sparseq.files import atomic_path
from sparseq.run import data, train

ROUNDS, ROUND_EPOCHS, EPOCHS, RATE = 5, 2, 10, 0.02
TARGET = 0.8
SMOKE = 256  # images
ALLOWED = {"80 % unstructured": 0.5, "2:4": 0.3}  # points below the baseline, the bounds
Found = dict[str, dict[str, Any]]


@dataclasses.dataclass
class Run:
    """The data, the folder, and what was found so far."""

    dataset: data.Dataset
    out: Path
    base: nn.Module
    rounds: int = ROUNDS
    round_epochs: int = ROUND_EPOCHS
    epochs: int = EPOCHS

    def __post_init__(self) -> None:
        self.file = self.out / "results.json"
        self.found: Found = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def stage(self, name: str, build: Callable[[], nn.Module]) -> None:
        if name in self.found:
            return
        start = time.perf_counter()
        model = build()
        seconds = time.perf_counter() - start
        fast = sparseq.convert(model)
        path = self.out / (
            name.replace(" ", "_").replace(",", "").replace(":", "") + ".safetensors"
        )
        sparseq.save(fast, path)
        weights = [m.weight for m in fast.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        self.found[name] = {
            "accuracy": bench.accuracy(fast, self.dataset.test_batches()),
            "zeros": zeros,
            "seconds": seconds,
            "megabytes": path.stat().st_size / 2**20,
            "dense": sparseq.explain(fast).dense,
        }
        with atomic_path(self.file) as temporary:
            temporary.write_text(json.dumps(self.found, indent=1))
        print(name, self.found[name], flush=True)

    def retrain(self, model: nn.Module, epochs: int, seed: int) -> nn.Module:
        recipe = train.Recipe(epochs=epochs, rate=RATE, batch=128, schedule="cosine")
        train.train(model, self.dataset, recipe, seed=seed)
        return model

    def pruned(self, plan: Plan) -> nn.Module:
        return sparseq.prepare(copy.deepcopy(self.base), plan)

    def batches(self, count: int) -> list[Any]:
        generator = torch.Generator().manual_seed(0)
        found = self.dataset.train_batches(128, generator)
        return [batch for _, batch in zip(range(count), found, strict=False)]

    def iterative(self, name: str, plan: Plan, criterion: str | None = None) -> nn.Module:
        """Rounds of pruning and retraining; each round is kept, and not run again."""
        model = self.pruned(plan)

        def scores() -> dict[str, torch.Tensor]:
            return sparse.score(model, self.batches(16), criterion)

        schedule = sparse.PruningSchedule(
            model, self.rounds, "geometric", scores=scores if criterion else None
        )
        kept = self.out / f"{name}.rounds.pt"
        if kept.is_file():
            state = torch.load(kept, weights_only=True)
            model.load_state_dict(state["model"])
            schedule.load_state_dict(state["schedule"])
        while not schedule.done:
            schedule.step()
            last = self.epochs if schedule.done else self.round_epochs
            self.retrain(model, last, seed=schedule.taken)
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
        recipe = train.Recipe(epochs=self.epochs, rate=RATE, batch=128, schedule="cosine")
        fixed = self.epochs - max(self.epochs // 5, 1)

        def before_epoch(epoch: int) -> None:
            if epoch == fixed:
                sparse.freeze_masks(model)

        train.train(model, self.dataset, recipe, seed=1, before_epoch=before_epoch)
        return model


def main(arguments: list[str]) -> None:
    smoke = "smoke" in arguments
    places = [a for a in arguments if a != "smoke"]
    dataset = data.load(places[0])
    out = Path(places[1] if len(places) > 1 else "build/cifar10_pruning")
    out.mkdir(parents=True, exist_ok=True)
    base = cifar10.network()
    base.load_state_dict(load_file(cifar10.BASELINE))
    run = Run(dataset, out, base.eval())
    if smoke:
        few = {name: getattr(dataset, name)[:SMOKE] for name in data.ARRAYS}
        small = dataclasses.replace(dataset, **few)
        run = Run(small, out, base, rounds=2, round_epochs=1, epochs=2)
    whole = Plan({"*": Layer(sparsity=Unstructured(TARGET))})
    two_of_four = Plan({"*": Layer(sparsity=NM(2, 4))})
    run.stage("float32", lambda: run.base)
    run.stage("80 % unstructured, one shot, not retrained", lambda: run.pruned(whole))
    run.stage("80 % unstructured, iterative magnitude", lambda: run.iterative("magnitude", whole))
    run.stage(
        "80 % unstructured, iterative Taylor", lambda: run.iterative("taylor", whole, "taylor")
    )
    run.stage(
        "80 % unstructured, iterative, ratios by sensitivity",
        lambda: run.iterative("sensitivity", run.by_sensitivity()),
    )
    run.stage("2:4, not retrained", lambda: run.pruned(two_of_four))
    run.stage("2:4, magnitude", lambda: run.retrain(run.pruned(two_of_four), run.epochs, seed=1))
    run.stage("2:4, SR-STE", run.refined)
    run.stage(
        "float32, trained on as long",
        lambda: run.retrain(copy.deepcopy(run.base), run.epochs, seed=1),
    )
    write(run.found, out if smoke else cifar10.RESULTS)


def write(found: Found, folder: Path) -> None:
    """The table and its figures, stamped, to cifar10_pruning.{md,json}."""
    stamp = bench.environment()
    lines = [
        "| ResNet-20 | accuracy % | drop | bound | zeros % | MB | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        drop = found["float32"]["accuracy"] - row["accuracy"]
        bound = next((b for start, b in ALLOWED.items() if name.startswith(start)), None)
        shown = "" if bound is None or "not retrained" in name else f"{bound}"
        lines.append(
            f"| {name} | {row['accuracy']:.2f} | {drop:.2f} | {shown} | {100 * row['zeros']:.1f} | "
            f"{row['megabytes']:.3f} | {row['seconds']:.0f} |"
        )
    left = [
        f"- {name}: " + "; ".join(f"{layer}: {why}" for layer, why in row["dense"].items())
        for name, row in found.items()
        if row["dense"]
    ]
    about = [f"- {key}: {value}" for key, value in stamp.items()]
    intro = (
        "CIFAR-10's test images. All from the committed float network. Iterative: "
        f"{ROUNDS} rounds that each drop the same share of what is left, {ROUND_EPOCHS} epochs of "
        f"retraining after each, {EPOCHS} after the last; 2:4: {EPOCHS} epochs, SR-STE's mask "
        f"(decay 2e-4) fixed in the last fifth (SGD, cosine from {RATE}). Zeros: of all "
        "convolutions and the classifier; files hold float32. Seconds on cores that other work "
        "shared; of a stage that was interrupted, since it went on."
    )
    parts = ["# cifar10_pruning", "", intro, "", *lines, "", "Layers left dense:", "", *left, ""]
    text = "\n".join([*parts, *about, ""])
    with atomic_path(folder / "cifar10_pruning.json") as path:
        path.write_text(json.dumps({"environment": stamp, "results": found}, indent=1) + "\n")
    with atomic_path(folder / "cifar10_pruning.md") as path:
        path.write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
