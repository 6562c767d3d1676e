"""What quantisation costs in accuracy: ResNet-20 on CIFAR-10, PTQ and QAT beside the float network.

    make bench ARGS="cifar10 DATA.npz [OUT [LABEL]]"

Stages that OUT (build/cifar10) already holds are not run again. The float network is the committed
one (results/cifar10_resnet20.safetensors) or, where that is missing, is trained first: hours.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, bench
from sparseq.files import atomic_path
from sparseq.run import data, models, train
from sparseq.run.recipe import Training

RESULTS = Path(__file__).parent / "results"
BASELINE = RESULTS / "cifar10_resnet20.safetensors"
EPOCHS, RATE = 3, 0.01
CALIBRATION = 8  # batches of 128

INT8 = Layer(weight=Quant(axis=0), input=Quant(symmetric=False))


def network() -> nn.Module:
    """ResNet-20 of He et al. 2016: three stages of three blocks, 16 to 64 channels."""
    torch.manual_seed(0)
    model = models.ResNet(3, 10, width=16, depth=3, stages=3)
    return model.to(memory_format=torch.channels_last)


def int8(observer: str = "minmax", *, learned: bool = False) -> Plan:
    activations = Quant(symmetric=False, observer=observer, learned=learned)
    return Plan({"*": Layer(weight=Quant(axis=0, learned=learned), input=activations)})


def w4a8(observer: str = "minmax", *, learned: bool = False) -> Plan:
    """Weights of four bits, but in the first and last layer, as is usual since DoReFa-Net."""
    layer = Layer(
        weight=Quant(bits=4, axis=0, observer=observer, learned=learned),
        input=Quant(symmetric=False, observer=observer, learned=learned),
    )
    return Plan({"*": layer, "stem": INT8, "fc": INT8})


def calibration(dataset: data.Dataset) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    batches = dataset.train_batches(128, generator)
    return [images for _, (images, _) in zip(range(CALIBRATION), batches, strict=False)]


def main(arguments: list[str]) -> None:
    dataset = data.load(arguments[0])
    out = Path(arguments[1] if len(arguments) > 1 else "build/cifar10")
    out.mkdir(parents=True, exist_ok=True)
    found_file = out / "results.json"
    found: dict[str, dict[str, float]] = (
        json.loads(found_file.read_text()) if found_file.is_file() else {}
    )
    base = network()
    if BASELINE.is_file():
        base.load_state_dict(load_file(BASELINE))
    else:
        train.train(base, dataset, Training(epochs=36, rate=0.2, batch=128))
        save_file({k: v.contiguous() for k, v in base.state_dict().items()}, BASELINE)
    base.eval()
    batches = calibration(dataset)

    def stage(name: str, build: Callable[[], nn.Module]) -> None:
        if name in found:
            return
        start = time.perf_counter()
        model = build()
        seconds = time.perf_counter() - start
        accuracy = bench.accuracy(model, dataset.test_batches())
        path = out / (name.replace(" ", "_").replace(",", "") + ".safetensors")
        sparseq.save(model, path)
        found[name] = {
            "accuracy": accuracy,
            "seconds": seconds,
            "megabytes": path.stat().st_size / 2**20,
        }
        found_file.write_text(json.dumps(found, indent=1))
        print(name, found[name], flush=True)

    def ptq(plan: Plan) -> nn.Module:
        return sparseq.convert(
            sparseq.calibrate(sparseq.prepare(copy.deepcopy(base), plan), batches)
        )

    def improved(**switches: bool) -> nn.Module:
        model = copy.deepcopy(base)
        print(sparseq.ptq(model, w4a8("histogram"), batches, **switches))
        return sparseq.convert(model)

    def qat(plan: Plan | None) -> nn.Module:
        model = copy.deepcopy(base)
        if plan is not None:
            sparseq.calibrate(sparseq.prepare(model, plan), batches)
        recipe = Training(epochs=EPOCHS, rate=RATE, batch=128, schedule="cosine")
        schedule = sparseq.quant.Schedule(model, observers=EPOCHS - 1, batch_norms=EPOCHS - 1)
        train.train(model, dataset, recipe, seed=3, before_epoch=lambda epoch: schedule.step())
        return sparseq.convert(model) if plan is not None else model

    stage("float32", lambda: base)
    for observer in ("minmax", "moving_average", "percentile", "histogram", "entropy"):
        stage(f"INT8 PTQ, {observer}", lambda observer=observer: ptq(int8(observer)))
    for observer in ("minmax", "histogram"):
        stage(f"W4A8 PTQ, {observer}", lambda observer=observer: ptq(w4a8(observer)))
    stage("W4A8 PTQ, bias correction", lambda: improved(bias_correction=True))
    stage("W4A8 PTQ, AdaRound", lambda: improved(adaround=True))
    stage("W4A8 PTQ, both", lambda: improved(adaround=True, bias_correction=True))
    stage("INT8 QAT", lambda: qat(int8("moving_average")))
    stage("W4A8 QAT, LSQ", lambda: qat(w4a8("histogram", learned=True)))
    stage("float32, trained on as long", lambda: qat(None))
    label = arguments[2] if len(arguments) > 2 else Path(arguments[0]).name
    write(found, f"{label}: {len(dataset.x_test):,} test images.")


def write(found: dict[str, dict[str, float]], data_used: str) -> None:
    """The table and its figures, stamped, to results/cifar10.{md,json}."""
    stamp = bench.environment()
    lines = ["| ResNet-20 | accuracy % | drop | MB | seconds |", "|---|---|---|---|---|"]
    for name, row in found.items():
        drop = found["float32"]["accuracy"] - row["accuracy"]
        lines.append(
            f"| {name} | {row['accuracy']:.2f} | {drop:.2f} | {row['megabytes']:.3f} | "
            f"{row['seconds']:.0f} |"
        )
    about = [f"- {key}: {value}" for key, value in stamp.items()]
    intro = (
        f"{data_used} The float network was trained for 36 epochs on one "
        "core (interrupted after 26); "
        f"PTQ saw {CALIBRATION} batches of 128 images, QAT ran {EPOCHS} epochs (SGD, cosine "
        f"from {RATE}), observers and batch norms frozen in the last. Seconds on one core that "
        "other work shared."
    )
    text = "\n".join(["# cifar10", "", intro, "", *lines, "", *about, ""])
    with atomic_path(RESULTS / "cifar10.json") as path:
        path.write_text(json.dumps({"environment": stamp, "results": found}, indent=1) + "\n")
    with atomic_path(RESULTS / "cifar10.md") as path:
        path.write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
