"""Whole networks on integers beside ONNX Runtime, OpenVINO and torch, in one run.

    make bench ARGS="networks [NAME ...] [smoke]"

Names: resnet18, resnet18-cifar-1, resnet18-cifar-32, resnet50, mobilenet_v2, minilm, growth; all of
them without one, else their results have them in their names; `smoke`: tiny networks, seconds, into
results/smoke. Weights are random and bell-shaped; batch norms have the statistics of a few passes
over random images. Every INT8 network is made from the same float weights, and each engine's
outputs are first compared with its own float network's, on inputs that calibration saw and others.
Then all engines of a network take turns, in bursts, at 2 threads. Without VNNI the peers' 8-bit
products saturate. Ours are exact, and take longer where two weights side by side add up to more
than 128: hence a row whose weights have 7 bits. Needs the peers: `pip install -e ".[peers]"`. Our
files are saved with `compress=False`: what is 2:4 stays in its file, too.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from networks_report import page
from networks_work import SMOKE, WORKS, Work, resnet18, small
from peers import float_onnx, nncf_int8, static_int8
from torch import Tensor, nn

import sparseq
from sparseq import NM, Layer, Plan, Quant, bench
from sparseq.bench.contenders import Contender, opened
from sparseq.bench.timing import summarise
from sparseq.files import atomic_path

RESULTS = Path(__file__).parent / "results"
THREADS, ROUNDS, CHECKS, CALIBRATION = 2, 15, 8, 4
OURS = {  # bits of the weights, sparsity
    "sparseq INT8": (8, None),
    "sparseq INT8, 7-bit weights": (7, None),
    "sparseq INT8 2:4": (8, NM(2, 4)),
    "sparseq INT8 2:4, 7-bit weights": (7, NM(2, 4)),
}


def prepared(work: Work, base: nn.Module, bits: int, sparsity: NM | None) -> nn.Module:
    """Calibrated; the rows of embeddings in 8 bits and never sparse, as in the peers."""
    layer = Layer(Quant(bits=bits, axis=0), input=Quant(symmetric=False), sparsity=sparsity)
    rows = Layer(Quant(axis=0))
    rules = {"*": layer}
    rules |= {n: rows for n, m in base.named_modules() if isinstance(m, nn.Embedding)}
    model = sparseq.prepare(copy.deepcopy(base), Plan(rules))
    return sparseq.calibrate(model, [work.inputs(seed) for seed in range(CALIBRATION)])


def masked(base: nn.Module) -> nn.Module:
    """The float network with the 2:4 zeros: what the 2:4 one is compared with."""
    embeddings = {n: None for n, m in base.named_modules() if isinstance(m, nn.Embedding)}
    plan = Plan({"*": Layer(sparsity=NM(2, 4)), **embeddings})
    return sparseq.prepare(copy.deepcopy(base), plan).eval()


@dataclass(frozen=True)
class Engine:
    """How a contender is opened, and which file its memory is measured with."""

    given: Any  # a module, a callable or a file
    file: Path | None
    runtime: str | None = None
    int8: bool = False


def engines(work: Work, base: nn.Module, x: Tensor, folder: Path, smoke: bool) -> dict[str, Engine]:
    found, held = {}, {}
    for name, scheme in OURS.items():
        fast = sparseq.convert(prepared(work, base, *scheme), x)
        held[name] = folder / f"{name.replace(':', '')}.safetensors"
        sparseq.save(fast, held[name], compress=False)
        found[name] = Engine(fast, held[name], int8=True)
    plain, whole = folder / "float.safetensors", str(folder / "float.onnx")
    sparseq.save(base, plain)
    found["torch float32"] = Engine(base, plain)
    if not work.vocabulary:
        last = copy.deepcopy(base).to(memory_format=torch.channels_last)
        found["torch float32, channels_last"] = Engine(last, None)
    if not smoke:
        found["torch.compile float32"] = Engine(torch.compile(copy.deepcopy(base)), None)
    seen = [work.inputs(seed).numpy() for seed in range(CALIBRATION)]
    float_onnx(base, x, whole)
    found["ONNX Runtime float32"] = Engine(whole, Path(whole))
    own = folder / "static.onnx"
    static_int8(whole, str(own), seen)
    found["ONNX Runtime INT8"] = Engine(own, own, int8=True)
    if work.vocabulary:  # what its users take for transformers
        from onnxruntime.quantization import QuantType, quantize_dynamic

        own = folder / "dynamic.onnx"
        quantize_dynamic(whole, str(own), weight_type=QuantType.QInt8, per_channel=True)
        found["ONNX Runtime INT8, dynamic"] = Engine(own, own, int8=True)
    import openvino

    xml = folder / "int8.xml"
    quantised = nncf_int8(whole, seen, transformer=bool(work.vocabulary))
    openvino.save_model(quantised, str(xml), compress_to_fp16=False)
    found["OpenVINO float32"] = Engine(whole, Path(whole), "openvino")
    found["OpenVINO INT8"] = Engine(xml, xml, int8=True)
    return found


def checked(
    contenders: dict[str, Contender], work: Work, base: nn.Module, held: list[Tensor]
) -> dict[str, bench.Agreement]:
    """Each engine's outputs beside its own float network's; engines read `held`, which changes."""
    sparse = masked(base)
    got: dict[str, list[Tensor]] = {name: [] for name in contenders}
    wanted: dict[str, list[Tensor]] = {name: [] for name in contenders}
    for seed in range(CHECKS if work.batch == 1 else 1):
        for x in held:
            x.copy_(work.inputs(seed))
        with torch.inference_mode():
            plain, zeroed = base(held[0]), sparse(held[0])
        for name, contender in contenders.items():
            got[name] += contender.outputs()
            wanted[name].append(zeroed if "2:4" in name else plain)
    return {
        name: bench.agreement([torch.cat(got[name])], [torch.cat(wanted[name])]) for name in got
    }


def memory(engine: Engine, work: Work, x: Tensor) -> dict[str, Any] | None:
    if engine.file is None:
        return None
    options: dict[str, Any] = {"architecture": partial(work.build, settle=False)}
    try:
        found = bench.measure_memory(
            engine.file, x, runtime=engine.runtime, threads=THREADS, **options
        )
    except ValueError as error:
        return {"error": str(error)}
    return {"peak": found.peak_bytes, "model": found.model_bytes, "method": found.method}


def measure(work: Work, smoke: bool, folder: Path) -> dict[str, Any]:
    base, x = work.build(), work.inputs(0)
    last = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    if last is x:
        last = x.clone()
    made = engines(work, base, x, folder, smoke)
    with ExitStack() as stack:
        contenders, failed = {}, {}
        for name, engine in made.items():
            example = last if name.endswith("channels_last") else x
            options: dict[str, Any] = {"threads": THREADS, "runtime": engine.runtime, "name": name}
            contender = stack.enter_context(opened("networks", engine.given, example, **options))
            try:
                contender.call()
            except Exception as error:  # torch.compile needs a compiler
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            else:
                contenders[name] = contender
        agreements = checked(contenders, work, base, [x, last])
        for name, found in agreements.items():
            if not made[name].int8 and not found.relative < 1e-3:
                raise SystemExit(f"networks: {name} does not compute {work.title}: {found}")
        calls = {name: contender.call for name, contender in contenders.items()}
        bursts = bench.alternate(
            calls, rounds=2 if smoke else ROUNDS, order="random", threads=THREADS
        )
    rows = []
    for name, times in bursts.items():
        latency, found = summarise(list(chain(*times)), work.batch, THREADS), agreements[name]
        ratios = {}
        for ours in OURS:
            ratio, interval = bench.burst_ratio(bursts[ours], times)
            ratios[ours] = {"ratio": ratio, "interval": interval}
        rows.append(
            {
                "engine": name,
                "int8": made[name].int8,
                "median_ms": latency.median_ms,
                "interval_ms": latency.interval_ms,
                "p95_ms": latency.p95_ms,
                "min_ms": latency.min_ms,
                "calls": latency.repeats,
                "slower_than": ratios,
                "same_argmax": found.same_argmax,
                "relative_error": found.relative,
                "memory": memory(made[name], work, x),
            }
        )
    explained = {name: str(sparseq.explain(made[name].given)) for name in OURS}
    return {"network": work.title, "rows": rows, "failed": failed, "explained": explained}


def growth(smoke: bool) -> dict[str, Any]:
    """Time over batch sizes and over image areas, of ResNet-18 on integers."""
    build, side = (small, 16) if smoke else (resnet18, 224)
    base = build()
    batches, sides = ((1, 2), (16, 32)) if smoke else ((1, 2, 4, 8, 16), (112, 160, 224, 320, 448))
    often: dict[str, Any] = {"repeats": 2, "warmup": 0} if smoke else {"seconds": 4.0}
    work = Work("growth", build, (3, side, side))
    found: dict[str, Any] = {"batches": {}, "areas": {}}
    for name, scheme in OURS.items():
        ready = prepared(work, base, *scheme)
        fast = sparseq.convert(ready, work.inputs(0))
        table = bench.throughput(fast, work.inputs(0), batches=batches, threads=(THREADS,), **often)
        found["batches"][name] = {row.images: row.median_ms for row in table.rows}
        areas = {}
        for edge in sides:
            x = Work("", build, (3, edge, edge)).inputs(0)
            fast = sparseq.convert(ready, x)
            areas[edge] = bench.latency(fast, x, threads=THREADS, **often).median_ms
        found["areas"][name] = areas
    return found


def main(arguments: list[str], results: Path | None = None) -> None:
    smoke = "smoke" in arguments
    if results is None:
        results = RESULTS / "smoke" if smoke else RESULTS
    results.mkdir(exist_ok=True)
    works = SMOKE if smoke else WORKS
    given = [name for name in arguments if name != "smoke"]
    names = given or [*works, "growth"]
    unknown = set(names) - {*works, "growth"}
    if unknown:
        known = ", ".join([*works, "growth"])
        raise SystemExit(f"networks: names must be of {known}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(THREADS)
    found: dict[str, Any] = {"environment": bench.environment(), "networks": [], "growth": None}
    for name in names:
        if name == "growth":
            found["growth"] = growth(smoke)
        else:
            with (
                tempfile.TemporaryDirectory(prefix="sparseq-networks-") as folder,
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # of the peers' own deprecated imports
                found["networks"].append(measure(works[name], smoke, Path(folder)))
        print(name, "done", flush=True)
        text = write(found, results, given)  # after each: a run of all takes its time
    print(text)


def write(found: dict[str, Any], results: Path, names: list[str]) -> str:
    """To networks_{ISA}_{the CPU's maker and family}{_NAME ...}.json and .md; the latter's text."""
    cpu, isa = found["environment"]["cpu"], found["environment"]["isa"]
    maker = re.match(r"\w*", cpu)[0].lower()  # type: ignore[index]  # matches anything
    family = re.search(r"family (\d+)", cpu)
    stem = f"networks_{isa}_{maker}{family[1] if family else ''}"
    stem = "_".join([stem, *names])
    with atomic_path(results / f"{stem}.json") as path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    text = page((__doc__ or "").strip(), found, list(OURS))
    with atomic_path(results / f"{stem}.md") as path:
        path.write_text(text)
    return text
