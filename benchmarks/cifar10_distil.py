"""What distillation gains: a small student on CIFAR-10, alone and taught by ResNet-20.

    make bench ARGS="cifar10_distil DATA.npz [OUT] [--epochs N] [--seeds N] [--methods M ...]
                     [--label TEXT] [--smoke]"

Every run of a seed starts from the same weights and sees the same batches in the same order; only
the loss differs. Runs that OUT (build/cifar10_distil) already holds are not run again; one that was
killed goes on with its next epoch. The teacher is the committed network
(results/cifar10_resnet20.safetensors). --smoke trains for an epoch on a few images, into OUT only:
it shows that the script works. --label is what the table calls the data: say there if DATA are not
the original images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import cifar10
import torch
from resume import trained
from safetensors.torch import load_file
from torch import nn

import sparseq
from sparseq import bench, distill
from sparseq.files import atomic_path
from sparseq.run import data, models, train
from sparseq.run.recipe import Training

EPOCHS, SEEDS, RATE, BATCH = 20, 3, 0.1, 128
TEMPERATURE, ALPHA = 4.0, 0.1  # alpha: the labels' share
ALLOWED, WANTED = 0.25, 1.0  # the student's share of the parameters, points it shall gain
SMOKE = 256  # images
ALONE = "alone"
STAGES = {"blocks.1": "blocks.2", "blocks.3": "blocks.5", "blocks.5": "blocks.8"}
METHODS = {
    ALONE: {},
    "KD": {},
    "decoupled KD": {"soft": distill.Decoupled()},
    "KD and attention transfer": {"terms": distill.AttentionTransfer, "weight": 500.0},
    "KD and relational": {"terms": distill.Relational, "weight": 1.0},
}
DEFAULT = (ALONE, "KD", "KD and attention transfer")


def student(seed: int) -> nn.Module:
    """ResNet-14 of half the teacher's width: two blocks in each of its three stages."""
    torch.manual_seed(seed)
    model = models.ResNet(3, 10, width=8, depth=2, stages=3)
    return model.to(memory_format=torch.channels_last)


def criterion(method: str, model: nn.Module, teacher: nn.Module) -> Any:
    """The loss of a method: the labels' alone, or a distill.Loss."""
    if method == ALONE:
        return train.cross_entropy
    chosen: dict[str, Any] = dict(METHODS[method])
    kind, weight = chosen.pop("terms", None), chosen.pop("weight", 1.0)
    if kind is not None:
        pooled = {"flatten": "flatten"}
        layers = pooled if kind is distill.Relational else STAGES
        chosen |= {"terms": [kind(layers, weight)], "student": model}
    return distill.Loss(teacher, TEMPERATURE, ALPHA, **chosen)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cifar10_distil")
    parser.add_argument("data")
    parser.add_argument("out", nargs="?", default="build/cifar10_distil", type=Path)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(DEFAULT))
    parser.add_argument("--label", help="the data's name in the table; DATA's without it")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args(arguments)
    if given.epochs < 1 or given.seeds < 1:
        parser.error("--epochs and --seeds must be at least 1")
    if given.smoke:
        given.epochs = 1
    return given


def kept(file: Path, epochs: int) -> dict[str, dict[str, Any]]:
    """The runs that OUT holds; they must have taken as long."""
    found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    others = {row["epochs"] for row in found.values()} - {epochs}
    if others:
        raise SystemExit(
            f"cifar10_distil: OUT must hold runs of {epochs} epochs, got {sorted(others)}: "
            "give another folder"
        )
    return found


def main(arguments: list[str]) -> None:
    given = parsed(arguments)
    dataset = data.load(given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "results.json"
    found = kept(file, given.epochs)
    teacher = cifar10.network()
    teacher.load_state_dict(load_file(cifar10.BASELINE))
    teacher.eval()
    share = models.parameters(student(0)) / models.parameters(teacher)
    assert share <= ALLOWED, share
    if given.smoke:
        few = {name: getattr(dataset, name)[:SMOKE] for name in data.ARRAYS}
        dataset = dataclasses.replace(dataset, **few)
    for seed in range(given.seeds):
        for method in given.methods:
            name = f"{method}, seed {seed}"
            if name in found:
                continue
            model = student(seed)
            loss = criterion(method, model, teacher)
            recipe = Training(epochs=given.epochs, rate=RATE, batch=BATCH)
            path = given.out / (name.replace(",", "").replace(" ", "_") + ".safetensors")
            history, seconds = trained(
                model, dataset, recipe, path.with_suffix(".pt"), criterion=loss, seed=seed
            )
            if isinstance(loss, distill.Loss):
                loss.close()
            sparseq.save(model, path)
            found[name] = {
                "method": method,
                "seed": seed,
                "epochs": given.epochs,
                "accuracy": bench.accuracy(model, dataset.test_batches()),
                "loss": history[-1],
                "seconds": seconds,
            }
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(found, indent=1))
            print(name, found[name], flush=True)
    taught_by = bench.accuracy(teacher, dataset.test_batches())
    tested = f"{len(dataset.x_test):,} test images of {given.label or dataset.name}"
    about = (
        f"{tested}. Teacher: ResNet-20, {taught_by:.2f} %. Student: ResNet-14 of half its width, "
        f"{share:.1%} of its parameters, {given.epochs} epochs (SGD, one cycle to {RATE}, batches "
        f"of {BATCH}), T = {TEMPERATURE:g}, alpha = {ALPHA:g}. Each method of a seed starts from "
        "the same weights and sees the same batches. Gain: over alone, pair by pair of seeds; "
        "after +-, the standard deviation. Seconds on cores that other work shared."
    )
    text = f"{about}\n\n{table(found)}"
    print(text)
    if not given.smoke:
        write(found, taught_by, text)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Mean and spread over the seeds; what each method gains over the same seeds alone."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    for row in found.values():
        rows.setdefault(row["method"], {})[row["seed"]] = row
    lines = [
        "| student | accuracy %, by seed | mean | gain | least gain | seconds a run |",
        "|---|---|---|---|---|---|",
    ]
    for method, seeds in rows.items():
        values = [row["accuracy"] for _, row in sorted(seeds.items())]
        shared = seeds.keys() & rows.get(ALONE, {}).keys()
        gains = [seeds[s]["accuracy"] - rows[ALONE][s]["accuracy"] for s in sorted(shared)]
        compared = method != ALONE and bool(gains)
        lines.append(
            f"| {method} | {', '.join(f'{v:.2f}' for v in values)} | {spread(values)} | "
            f"{spread(gains) if compared else ''} | {f'{min(gains):.2f}' if compared else ''} | "
            f"{statistics.mean(row['seconds'] for row in seeds.values()):.0f} |"
        )
    reached = [
        f"{method} {gain:.2f} ({'reached' if gain >= WANTED else 'missed'})"
        for method, gain in mean_gains(rows).items()
    ]
    if reached:
        lines += ["", f"To reach, a mean gain of {WANTED:g} point: {', '.join(reached)}."]
    return "\n".join(lines)


def mean_gains(rows: dict[str, dict[int, dict[str, Any]]]) -> dict[str, float]:
    """Of each method but alone; not of the best one only, which chance would choose with."""
    alone = rows.get(ALONE, {})
    found = {}
    for method, seeds in rows.items():
        if method == ALONE:
            continue
        gains = [seeds[s]["accuracy"] - alone[s]["accuracy"] for s in seeds.keys() & alone.keys()]
        if gains:
            found[method] = statistics.mean(gains)
    return found


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}"


def write(found: dict[str, dict[str, Any]], taught_by: float, text: str) -> None:
    """The table and its figures, stamped, to results/cifar10_distil.{md,json}."""
    stamp = bench.environment()
    about = [f"- {key}: {value}" for key, value in stamp.items()]
    whole = "\n".join(["# cifar10_distil", "", text, "", *about, ""])
    results = {"environment": stamp, "teacher": taught_by, "results": found}
    with atomic_path(cifar10.RESULTS / "cifar10_distil.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n")
    with atomic_path(cifar10.RESULTS / "cifar10_distil.md") as path:
        path.write_text(whole)


if __name__ == "__main__":
    main(sys.argv[1:])
