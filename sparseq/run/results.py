"""What a run of the exercise found: plain values, with a JSON round trip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Deployment", "Layer", "Results", "Run", "Variant"]


@dataclass(frozen=True)
class Layer:
    """One layer of a deployed model, as `sparseq.explain` tells it.

    Attributes:
        name: in the model, such as "blocks.0.conv1".
        kind: its class.
        kernel: what runs it.
        bits: of its weight's integers; None where the weight is float.
        sparsity: share of zeros among its weights, 0 to 1.
        macs: multiplications for one image, zeros included; None where nobody counted them.
    """

    name: str
    kind: str
    kernel: str
    bits: int | None
    sparsity: float
    macs: int | None


@dataclass(frozen=True)
class Run:
    """One training of a variant.

    Attributes:
        seed: of everything random.
        accuracy: of the converted model on the test images, percent.
        train_losses: mean training loss of each epoch, by stage, in the order they ran.
        accuracies: test accuracy after each epoch, percent, by stage.
        seconds: that the stages of the chain took, those shared with other variants included.
    """

    seed: int
    accuracy: float
    train_losses: dict[str, list[float]]
    accuracies: dict[str, list[float]]
    seconds: float


@dataclass(frozen=True)
class Variant:
    """A combination of techniques: its trainings, and what was measured of the first of them.

    Attributes:
        name: such as "Q+P+D"; "baseline" for none.
        chain: its techniques in the order they are applied, such as "DPQ": Q quantises, P prunes
            weights anywhere, S prunes 2:4, D distils.
        runs: one for each seed.
        accuracy: mean over the runs, percent.
        spread: sample standard deviation over the runs, points; 0 of a single run.
        drop: points below the baseline's mean.
        ms_per_image: median time of a batch of one image.
        p95_ms: 95 % of the calls were faster.
        p99_ms: 99 % of the calls were faster.
        speedup: the baseline's `ms_per_image` divided by this one's.
        threads: of torch in that measurement.
        size_mb: of the saved file, 10^6 bytes.
        macs: multiplications for one image, zeros included; None where nobody counted them.
        sparsity: zeros among the weights, percent.
        parameters: of the network before it was converted.
        layers: of the converted model.
    """

    name: str
    chain: str
    runs: tuple[Run, ...]
    accuracy: float
    spread: float
    drop: float
    ms_per_image: float
    p95_ms: float
    p99_ms: float
    speedup: float
    threads: int
    size_mb: float
    macs: int | None
    sparsity: float
    parameters: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Deployment:
    """The variant to deploy, as exported.

    Attributes:
        name: the variant's.
        file: name of the ONNX file, in the run's folder.
        size_mb: of that file, 10^6 bytes.
        onnxruntime_ms: milliseconds per image in ONNX Runtime, batch 1.
        passed: whether ONNX Runtime gives the model's numbers on the test images.
        verified: what was compared and how close it is, one line.
        kernels: what runs each layer in torch, a table.
        engine: name of the TensorRT engine, in the same folder; None where none was built.
        engine_note: what the engine is, or why there is none, one line.
    """

    name: str
    file: str
    size_mb: float
    onnxruntime_ms: float
    passed: bool
    verified: str
    kernels: str
    engine: str | None
    engine_note: str


@dataclass(frozen=True)
class Results:
    """All that a report says.

    Attributes:
        recipe: what was asked for, as plain values: see `sparseq.run.recipe`.
        data: name and sizes of the data set, one line.
        variants: the baseline first.
        best: the variant to deploy: the fastest that loses less than `limit` points.
        limit: the drop in points that a variant worth deploying stays under.
        sensitivity: by layer of the baseline, what the network loses where that layer alone is
            changed: by what becomes of it, such as "int8", the loss added.
        environment: where it was measured, from `sparseq.bench.environment`.
        seconds: that all of it took, earlier parts of a resumed run included.
    """

    recipe: dict[str, Any]
    data: str
    variants: tuple[Variant, ...]
    best: Deployment
    limit: float
    sensitivity: dict[str, dict[str, float]]
    environment: dict[str, str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Results:
        """The results that `to_dict` wrote, JSON's lists for tuples included.

        Raises:
            ValueError: an entry is missing or of another type; says which.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(dict(content))
