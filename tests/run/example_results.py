"""Results as an exercise on CIFAR-10 might leave them: nine variants, three seeds."""

import math
import random

from sparseq.run.results import Deployment, Layer, Results, Run, Variant

CHAINS = {
    "baseline": "", "Q": "Q", "P": "P", "D": "D", "Q+P": "PQ", "Q+D": "DQ", "P+D": "DP",
    "Q+P+D": "DPQ", "S": "S", "Q+S": "SQ",
}  # fmt: skip
# accuracy, milliseconds, MB, of each
MEASURED = {
    "baseline": (93.42, 11.84, 44.74), "Q": (93.25, 3.31, 11.29), "P": (92.71, 11.92, 10.12),
    "D": (92.08, 3.05, 5.11), "Q+P": (92.58, 3.35, 3.96), "Q+D": (91.86, 1.12, 1.34),
    "P+D": (90.71, 3.02, 1.21), "Q+P+D": (90.33, 1.10, 0.52), "S": (93.1, 11.8, 25.3),
    "Q+S": (92.93, 2.21, 7.04),
}  # fmt: skip
EPOCHS = {
    "": 8, "D": 8, "P": 6, "S": 4, "Q": 3,
}  # fmt: skip
LIMIT = 2.0


def layers_of(chain, generator):
    names = ["conv1"]
    blocks = 1 if "D" in chain else 2
    for stage in range(1, 5):
        for block in range(blocks):
            names += [f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.conv2"]
    out = []
    for number, name in enumerate([*names, "fc"]):
        first = number == 0
        zeros = 0.004 if "Q" in chain else 0.0
        if "P" in chain:
            zeros = min(0.45 + 0.024 * number + generator.uniform(-0.04, 0.04), 0.93)
        elif "S" in chain and not first:
            zeros = 0.5
        bits = 8 if "Q" in chain else None
        kernel = "float32" if bits is None else "int8 2:4" if "S" in chain and not first else "int8"
        kind = "Linear" if name == "fc" else "Conv2d"
        out.append(Layer(name, kind, kernel, bits, zeros, 5_120 if name == "fc" else 1_769_472 * 8))
    return tuple(out)


def history(chain, seed):
    """What a chain of stages leaves; chains with the same beginning share it."""
    losses, accuracies = {}, {}
    for end, letter in enumerate(["", *chain]):
        generator = random.Random(f"{seed}{chain[:end]}")
        accuracy = next(MEASURED[name][0] for name, of in CHAINS.items() if of == chain[:end])
        stage, epochs = chain[:end] or "baseline", EPOCHS[letter]
        fresh = letter in ("", "D")
        start, end = (2.1, 0.12) if fresh else (0.35, 0.1)
        low = 35.0 if fresh else accuracy - 4
        steps = [1 - math.exp(-3.2 * (epoch + 1) / epochs) for epoch in range(epochs)]
        losses[stage] = [start + (end - start) * s + generator.uniform(0, 0.03) for s in steps]
        accuracies[stage] = [low + (accuracy - low) * s + generator.gauss(0, 0.15) for s in steps]
    return losses, accuracies


def variant(name, baseline=None, seeds=(0, 1, 2)):
    chain = CHAINS[name]
    generator = random.Random(name)
    accuracy, milliseconds, megabytes = MEASURED[name]
    runs = []
    for seed in seeds:
        found = round(accuracy + random.Random(f"{name} {seed}").gauss(0, 0.15), 2)
        runs.append(Run(seed, found, *history(chain, seed), 512.5))
    layers = layers_of(chain, generator)
    mean = sum(run.accuracy for run in runs) / len(runs)
    squares = sum((run.accuracy - mean) ** 2 for run in runs)
    return Variant(
        name=name, chain=chain, runs=tuple(runs), accuracy=mean,
        spread=math.sqrt(squares / (len(runs) - 1)) if len(runs) > 1 else 0.0,
        drop=(baseline or mean) - mean, ms_per_image=milliseconds,
        p95_ms=1.06 * milliseconds, p99_ms=1.15 * milliseconds,
        speedup=MEASURED["baseline"][1] / milliseconds, threads=2, size_mb=megabytes,
        macs=555_000_000 // (6 if "D" in chain else 1),
        sparsity=80.0 if "P" in chain else 50.0 if "S" in chain else 0.0,
        parameters=1_200_000 if "D" in chain else 11_173_962, layers=layers,
    )  # fmt: skip


NINE = tuple(name for name in CHAINS if name != "S")


def example(names=NINE, seeds=(0, 1, 2), best="Q+D"):
    first = variant(names[0], seeds=seeds)
    variants = (first, *(variant(name, first.accuracy, seeds) for name in names[1:]))
    generator = random.Random(5)
    chosen = next(each for each in variants if each.name == best)
    sensitivity = {
        layer.name: {
            "int8": generator.uniform(-0.0005, 0.002), "int4": generator.expovariate(40),
            "pruned 80 %": generator.expovariate(20),
        }
        for layer in variants[0].layers
    }  # fmt: skip
    return Results(
        recipe={
            "name": "cifar10-resnet18", "model": "resnet18", "epochs": 30, "order": "DPQ",
            "seeds": list(seeds), "sparsity": 0.8, "distil": {"temperature": 4.0, "alpha": 0.7},
        },
        data="cifar10 (50,000 + 10,000 images)",
        variants=variants,
        best=Deployment(
            name=best, file="best.onnx", size_mb=chosen.size_mb, onnxruntime_ms=1.31, passed=True,
            verified="ONNX Runtime against sparseq on 10,000 test images: the same classes.",
            kernels="layer  kind    kernel\nconv1  Conv2d  int8\nfc     Linear  int8",
            engine=None, engine_note="TensorRT is not installed: no engine was built.",
        ),
        limit=LIMIT,
        sensitivity=sensitivity,
        environment={
            "cpu": "AMD EPYC 7B13", "isa": "avx2", "threads": "2", "python": "3.11.2",
            "torch": "2.14.1", "sparseq": "0.1.0", "commit": "0123456789ab",
            "date": "2026-11-28T04:00:00+00:00",
        },
        seconds=5231.0,
    )  # fmt: skip
