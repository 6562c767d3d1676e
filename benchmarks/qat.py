"""A training step of ResNet-18, plain and quantisation-aware, and its peers: `make bench ARGS=qat`.

Batch 128 of 32 x 32, forward, cross-entropy, backward and SGD with momentum, 2 threads. Contenders
take turns, medians are compared. Each one's memory is a process of its own: the most that is
resident during two steps (VmHWM) less what was resident before the network was built. The floor of
a fake-quantised input is its values read and written once in each direction; `passes` says how
long that takes at the speed of a copy.

Brevitas is skipped where it is missing. It wants an older setuptools than the build has, hence
`pip install --no-deps brevitas unfoldNd dependencies==2.0.1`, anywhere on PYTHONPATH.

`calibrate` is timed beside the float32 network in eval mode.

usage: qat.py [--rounds 9] [--batch 128] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import sparseq
from sparseq import Layer, Plan, Quant, bench
from sparseq.files import atomic_path
from sparseq.run import models

THREADS = 2
SKIPPED = "skipped: "
Step = Callable[[], float]


def _plain() -> nn.Module:
    return models.build("resnet18", 3, 10)


def _ours(learned: bool) -> nn.Module:
    spec = Quant(symmetric=False, observer="moving_average", learned=learned)
    layer = Layer(weight=Quant(axis=0, learned=learned), input=spec)
    return sparseq.prepare(_plain(), Plan({"*": layer}))


def _torch_ao() -> nn.Module:
    """Eager `prepare_qat` with the fbgemm settings; it folds batch norms while training."""
    from torch.ao import quantization
    from torchvision.models.quantization import resnet18

    with warnings.catch_warnings():  # a peer still, though deprecated
        warnings.simplefilter("ignore")
        model = resnet18(weights=None, num_classes=10)
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        model.fuse_model(is_qat=True)
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        return quantization.prepare_qat(model)


def _brevitas() -> nn.Module:
    """Weights per channel, inputs per tensor and asymmetric, on scales that it learns."""
    from brevitas import nn as qnn
    from brevitas.quant import Int8WeightPerChannelFloat, ShiftedUint8ActPerTensorFloat

    quantizers = {
        "weight_quant": Int8WeightPerChannelFloat,
        "input_quant": ShiftedUint8ActPerTensorFloat,
        "input_collect_stats_steps": 1,  # 300 by default, with a percentile of all values in each
    }
    model = _plain()
    for name, layer in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, nn.Conv2d):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size)
            new = qnn.QuantConv2d(
                *sizes, stride=layer.stride, padding=layer.padding, bias=False, **quantizers
            )
        elif isinstance(layer, nn.Linear):
            new = qnn.QuantLinear(layer.in_features, layer.out_features, True, **quantizers)
        else:
            continue
        new.weight.data.copy_(layer.weight.data)
        setattr(parent, name.rpartition(".")[2], new)
    return model


CONTENDERS: dict[str, Callable[[], nn.Module]] = {
    "float32": _plain,
    "sparseq QAT": lambda: _ours(False),
    "sparseq QAT, learned scales": lambda: _ours(True),
    "torch.ao QAT": _torch_ao,
    "Brevitas QAT": _brevitas,
}


def step_of(name: str, batch: int) -> Step:
    """One training step, ready to be called again and again."""
    torch.manual_seed(0)
    model = CONTENDERS[name]().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _resident(field: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def peak_of(name: str, batch: int) -> int:
    """Most bytes resident during two steps, less those before the network was built."""
    before = _resident("VmRSS")
    step = step_of(name, batch)
    step()
    step()
    return _resident("VmHWM") - before


def memory(name: str, batch: int) -> int:
    """`peak_of` in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, "--batch", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def in_turn(
    calls: dict[str, Callable[[], object]], rounds: int, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, contenders alternating in random order, after `warm` untimed rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + warm):
        for name in random.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            if turn >= warm:
                times[name].append(time.perf_counter() - start)
    return times


def training(names: list[str], batch: int, rounds: int) -> list[dict[str, object]]:
    """A row a contender: seconds of a step and bytes at its peak, or why it was skipped."""
    steps: dict[str, Callable[[], object]] = {}
    reasons = {}
    for name in names:
        try:
            steps[name] = step_of(name, batch)
        except ImportError as error:
            reasons[name] = f"{SKIPPED}{error}"
    # two untimed steps: the second is the first on a grid that is known
    times = in_turn(steps, rounds, warm=2)
    rows: list[dict[str, object]] = []
    for name in names:
        if name in reasons:
            rows.append({"work": name, "skipped": reasons[name]})
            continue
        seconds, peak = statistics.median(times[name]), memory(name, batch)
        rows.append({"work": name, "seconds": seconds, "peak_bytes": peak, "rounds": rounds})
    return rows


def _inference(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return model(x)

    return call


def calibration(batch: int, rounds: int) -> list[dict[str, object]]:
    """Images a second of the plain network in eval mode, and of `calibrate` by each observer."""
    torch.manual_seed(0)
    x, base = torch.randn(batch, 3, 32, 32), _plain().eval()
    calls = {"float32 inference": _inference(base, x)}
    for observer in ("minmax", "moving_average", "percentile", "histogram", "entropy"):
        spec = Quant(symmetric=False, observer=observer)
        layer = Layer(weight=Quant(axis=0), input=spec)
        model = sparseq.prepare(copy.deepcopy(base), Plan({"*": layer}))
        calls[f"calibrate, {observer}"] = lambda model=model: sparseq.calibrate(model, [x])
    times = in_turn(calls, rounds)
    return [
        {"work": name, "images_per_second": batch / statistics.median(t), "rounds": rounds}
        for name, t in times.items()
    ]


def passes(batch: int) -> dict[str, float]:
    """What fake-quantised inputs are: values, and their bytes in two passes at a copy's speed."""
    model, values = _plain().eval(), 0

    def count(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal values
        values += args[0].numel() * batch

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_pre_hook(count)
    model(torch.randn(1, 3, 32, 32))
    x, y = torch.randn(2**23), torch.randn(2**23)
    copies = in_turn({"copy": lambda: y.copy_(x)}, 9)["copy"]
    # forward: x read, y written; backward: x and the gradient read, its product written
    moved = values * 4 * (2 + 3)
    return {"values": values, "seconds": moved / (2 * x.nbytes) * statistics.median(copies)}


def tables(result: dict[str, object]) -> str:
    """The page: both tables and the floor."""
    lines = ["| step | s | of float32 | peak MB | of float32 |", "|---|---|---|---|---|"]
    rows: list[dict] = result["training"]  # type: ignore[assignment]
    plain = rows[0]
    for row in rows:
        if "skipped" in row:
            lines.append(f"| {row['work']} | {row['skipped']} | | | |")
            continue
        seconds, peak = row["seconds"], row["peak_bytes"]
        lines.append(
            f"| {row['work']} | {seconds:.3f} | {seconds / plain['seconds']:.2f}x | "
            f"{peak / 1e6:.0f} | {peak / plain['peak_bytes']:.2f}x |"
        )
    lines += ["", "| calibration | images/s | of inference |", "|---|---|---|"]
    rows = result["calibration"]  # type: ignore[assignment]
    for row in rows:
        rate = row["images_per_second"]
        share = rate / rows[0]["images_per_second"]
        lines.append(f"| {row['work']} | {rate:.1f} | {share:.2f}x |")
    floor: dict[str, float] = result["floor"]  # type: ignore[assignment]
    lines += [
        "",
        f"The inputs' {floor['values'] / 1e6:.1f} million values, read and written once in each "
        f"direction at the speed of a copy: {floor['seconds'] * 1e3:.0f} ms of a step.",
    ]
    return "\n".join(lines)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--memory", choices=CONTENDERS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(given)
    torch.set_num_threads(THREADS)
    if options.memory:
        print(peak_of(options.memory, options.batch))
        return
    names = list(dict.fromkeys(["float32", *options.only]))
    result: dict[str, object] = {
        "training": training(names, options.batch, options.rounds),
        "calibration": calibration(options.batch, options.rounds),
        "floor": passes(options.batch),
    }
    stamp = {**bench.environment(), "threads": THREADS, "batch": options.batch}
    options.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(options.out / "qat.json") as path:
        path.write_text(json.dumps({"environment": stamp, **result}, indent=1) + "\n")
    about = "\n".join(f"- {key}: {value}" for key, value in stamp.items())
    text = f"# qat\n\nMedians, contenders alternating; `make bench ARGS=qat`.\n\n{tables(result)}\n"
    with atomic_path(options.out / "qat.md") as path:
        path.write_text(f"{text}\n{about}\n")
    print(text)


if __name__ == "__main__":
    main()
