"""all-MiniLM-L6-v2 on integers, beside ONNX Runtime's dynamic quantisation of the same model.

`make bench ARGS=transformer`. A layer's error is that of its output in the quantised model, which
holds what the layers before it added; over 24 sentences that calibration did not see.

How to read it. sparseq rounds the embedding table row by row, ONNX Runtime with one scale: its form
with float embeddings (and a larger file) is its linear layers' own error. Its 8-bit products may
saturate without VNNI, which reduce_range avoids. The sentences come in pairs of one meaning, so
"same nearest" is easy and tells the models apart no further. SmoothQuant has no row: `ptq(smooth)`
leaves all 36 layers as they are, since each norm of this post-norm encoder is also read by a
residual sum, and the other inputs come through attention or GELU.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import minilm
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

import sparseq
from sparseq import Layer, Plan, Quant, bench
from sparseq.files import atomic_path
from sparseq.lower import layerwise

WEIGHT = Quant(axis=0)
PLANS = {
    "INT8 static, min-max": Layer(WEIGHT, Quant(symmetric=False)),
    "INT8 static, percentile": Layer(WEIGHT, Quant(symmetric=False, observer="percentile")),
    "INT8 static, histogram": Layer(WEIGHT, Quant(symmetric=False, observer="histogram")),
    "INT8 dynamic, per row": Layer(WEIGHT, Quant(symmetric=False, dynamic=True)),
    "INT8 weights only": Layer(WEIGHT),
    "INT4 weights only, groups of 32": Layer(Quant(bits=4, group_size=32)),
}
LAYERS = [
    f"blocks.{i}.{n}" for i in range(6) for n in ("query", "key", "value", "out", "up", "down")
]
TOKENS, ROUNDS, THREADS = 128, 4, 2
Outputs = dict[str, list[Tensor]]  # by layer, one a sentence; "" is the embedding


def outputs(model: nn.Module, inputs: list[Tensor]) -> Outputs:
    found: Outputs = {name: [] for name in ("", *LAYERS)}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, y, name=name: found[name].append(y.detach().clone())
        )
        for name in LAYERS
    ]
    with torch.inference_mode():
        for ids in inputs:
            found[""].append(model(ids))
    for handle in handles:
        handle.remove()
    return found


def linear_outputs(path: Path) -> list[str]:
    """Names of the sums of product and bias, in order: the layers' outputs."""
    graph = onnx.load(path).graph
    stored = {item.name for item in graph.initializer}
    products = {n.output[0] for n in graph.node if n.op_type == "MatMul" and n.input[1] in stored}
    return [
        n.output[0]
        for n in graph.node
        if n.op_type == "Gemm" or (n.op_type == "Add" and products & set(n.input))
    ]


def session(path: Path, threads: int = THREADS) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_outputs(path: Path, names: list[str], inputs: list[Tensor]) -> Outputs:
    """What the layers of a file give: their tensors become outputs of a copy."""
    model = onnx.load(path)
    last = model.graph.output[0].name
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    copied = path.with_suffix(".outputs.onnx")
    onnx.save(model, copied)
    runner, found = session(copied), {name: [] for name in ("", *LAYERS)}
    for ids in inputs:
        values = runner.run([last, *names], {"ids": ids.numpy()})
        for name, value in zip(("", *LAYERS), values, strict=True):
            found[name].append(torch.from_numpy(value).clone())
    return found


def relative(got: list[Tensor], wanted: list[Tensor]) -> float:
    """`||got - wanted|| / ||wanted||` over all sentences."""
    error = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(got, wanted, strict=True)
    )
    return math.sqrt(error / sum(float(b.double().square().sum()) for b in wanted))


def sqnr(share: float) -> float:
    return -20 * math.log10(max(share, 1e-12))


def similarity(got: list[Tensor], wanted: list[Tensor]) -> dict[str, float]:
    """How well the cosine similarities of all pairs of sentences agree with the float model's."""
    a, b = torch.cat(got), torch.cat(wanted)
    ours, theirs = a @ a.T, b @ b.T
    upper = torch.triu(torch.ones_like(ours), 1).bool()
    order = [x[upper].argsort().argsort().double() for x in (ours, theirs)]
    nearest = [(x - 2 * torch.eye(len(x))).argmax(1) for x in (ours, theirs)]
    return {
        "largest difference": float((ours - theirs).abs()[upper].max()),
        "rank correlation": float(torch.corrcoef(torch.stack(order))[0, 1]),
        "same nearest": float((nearest[0] == nearest[1]).double().mean()),
    }


def reach(model: nn.Module, inputs: list[Tensor]) -> dict[str, tuple[float, float]]:
    """Of each layer's input: its greatest magnitude, and the median one of a row, by the RMS."""
    seen: dict[str, list[Tensor]] = {name: [] for name in LAYERS}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen[name].append(args[0].flatten(0, 1))
        )
        for name in LAYERS
    ]
    with torch.inference_mode():
        for ids in inputs:
            model(ids)
    for handle in handles:
        handle.remove()
    found = {}
    for name, rows in seen.items():
        x = torch.cat(rows)
        rms, most = float(x.square().mean().sqrt()), x.abs().amax(1)
        found[name] = float(most.max()) / rms, float(most.median()) / rms
    return found


def export_float(model: nn.Module, ids: Tensor, path: Path) -> None:
    dynamic = {"ids": {1: torch.export.Dim("tokens", max=512)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (ids,), str(path), dynamo=True, dynamic_shapes=dynamic, verbose=False,
            input_names=["ids"], external_data=False,
        )  # fmt: skip


def times(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median ms, contenders taking turns."""
    torch.set_num_threads(THREADS)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            seconds = bench.burst(call)
            found[name] += seconds if number else []
    return {name: 1000 * statistics.median(t) for name, t in found.items()}


def measure(folder: Path) -> dict[str, object]:
    tokens, base = minilm.Tokens(), minilm.encoder()
    seen = [tokens(text) for text in minilm.CALIBRATION]
    inputs = [tokens(text) for text in minilm.SENTENCES]
    long = torch.cat([ids[:, 1:-1] for ids in seen], 1)[:, :TOKENS].contiguous()
    assert long.shape[1] == TOKENS
    wanted = outputs(base, inputs)
    results: dict[str, Outputs] = {}
    sizes, calls = {}, {}

    def timed(model: nn.Module) -> Callable[[], object]:
        def call() -> Tensor:
            with torch.inference_mode():
                return model(long)

        return call

    sparseq.save(base, folder / "float.safetensors")
    sizes["torch float32"] = (folder / "float.safetensors").stat().st_size
    calls["torch float32"] = timed(base)
    for name, layer in PLANS.items():
        model = sparseq.prepare(copy.deepcopy(base), Plan({"*": layer}))
        if layer.input is not None and not layer.input.dynamic:
            sparseq.calibrate(model, seen)
        fast = sparseq.convert(model, long)
        results[name] = outputs(layerwise(fast), inputs)
        with torch.inference_mode():
            results[name][""] = [fast(ids) for ids in inputs]
        sparseq.save(fast, folder / "ours.safetensors")
        sizes[name] = (folder / "ours.safetensors").stat().st_size
        calls[name] = timed(fast)
    path, quantized = folder / "float.onnx", folder / "dynamic.onnx"
    export_float(base, long, path)
    names = linear_outputs(path)
    assert len(names) == len(LAYERS), f"{len(names)} layers in the file"
    check = onnx_outputs(path, names, inputs)
    assert max(relative(check[n], wanted[n]) for n in wanted) < 1e-4, "the export differs"
    label = "ONNX Runtime dynamic INT8"
    # without VNNI its 8-bit products saturate: reduce_range spares the weights a bit
    variants: dict[str, dict[str, object]] = {
        label: {},
        f"{label}, per channel": {"per_channel": True},
        f"{label}, per channel, reduce_range": {"per_channel": True, "reduce_range": True},
        f"{label}, per channel, reduce_range, float embeddings": {
            "per_channel": True,
            "reduce_range": True,
            "op_types_to_quantize": ["MatMul"],
        },
    }
    for name, options in variants.items():
        quantize_dynamic(str(path), str(quantized), weight_type=QuantType.QInt8, **options)
        results[name] = onnx_outputs(quantized, names, inputs)
        sizes[name] = quantized.stat().st_size
        runner = session(quantized)
        calls[name] = lambda runner=runner: runner.run(None, {"ids": long.numpy()})
    runner = session(path)
    calls["ONNX Runtime float32"] = lambda: runner.run(None, {"ids": long.numpy()})
    sizes["ONNX Runtime float32"] = path.stat().st_size
    milliseconds = times(calls)
    models = {
        name: {
            "bytes": sizes[name],
            "ms": milliseconds[name],
            **(
                {
                    "embedding": relative(found[""], wanted[""]),
                    **similarity(found[""], wanted[""]),
                    "layers": {n: relative(found[n], wanted[n]) for n in LAYERS},
                }
                if (found := results.get(name))
                else {}
            ),
        }
        for name in calls
    }
    return {"models": models, "reach": reach(base, inputs)}


def table(found: dict) -> str:  # type: ignore[type-arg]
    models = found["models"]
    lines = [
        "| model | MB | ms, 128 tokens | embedding: relative L2 | SQNR dB | worst cosine | ranks | "
        "same nearest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, m in models.items():
        start = f"| {name} | {m['bytes'] / 1e6:.1f} | {m['ms']:.1f} | "
        if "embedding" not in m:
            lines.append(start + "| | | | |")
            continue
        lines.append(
            f"{start}{m['embedding']:.4f} | {sqnr(m['embedding']):.1f} | "
            f"{m['largest difference']:.4f} | {m['rank correlation']:.5f} | "
            f"{m['same nearest']:.0%} |"
        )
    shown = [name for name in models if "layers" in models[name]]
    lines += [
        "",
        "SQNR of each layer's output, dB; reach: the greatest magnitude of its input, and the",
        "median of its rows' greatest, by the root mean square.",
        "",
    ]
    lines += [
        "| layer | reach | row's | " + " | ".join(shown) + " |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for layer in LAYERS:
        whole, row = found["reach"][layer]
        cells = " | ".join(f"{sqnr(models[name]['layers'][layer]):.1f}" for name in shown)
        lines.append(f"| {layer} | {whole:.0f} | {row:.1f} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sparseq-transformer-") as name:
        found = measure(Path(name))
    stamp = bench.environment()
    results = Path(__file__).parent / "results"
    with atomic_path(results / "transformer.json") as path:
        path.write_text(json.dumps({"environment": stamp, **found}, indent=1) + "\n")
    about = "\n".join(f"- {key}: {value}" for key, value in stamp.items())
    text = f"# transformer\n\n{(__doc__ or '').strip()}\n\n{table(found)}\n\n{about}\n"
    with atomic_path(results / "transformer.md") as path:
        path.write_text(text)
    print(text)
