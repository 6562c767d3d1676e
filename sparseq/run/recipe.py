"""What a run of the exercise is asked for: a recipe, checked field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    field_validator,
    model_validator,
)

__all__ = [
    "BASELINE",
    "Distillation",
    "Pruning",
    "Quantisation",
    "Recipe",
    "SemiStructured",
    "Training",
    "chain_of",
]

BASELINE = "baseline"
LETTERS = "DPSQ"
COMBINATIONS = ("Q", "P", "D", "Q+P", "Q+D", "P+D", "Q+P+D")
NAMING = "QPSD"  # the order in which a name lists its techniques

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[DPSQ](\+?[DPSQ])*$")]
Order = Annotated[str, StringConstraints(pattern=r"^[DPSQ]{4}$")]


def _list(item: Any) -> Any:
    """A tuple in Python, a list in a file, each entry checked strictly."""
    return Annotated[tuple[item, ...], Strict(False), Field(min_length=1)]


class _Part(BaseModel):
    """Unknown keys are errors, values are not converted, nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Training(_Part):
    """Stochastic gradient descent with momentum and one schedule of the rate.

    Attributes:
        epochs: passes over the training images.
        rate: the largest learning rate.
        batch: images in a batch, of all processes together.
        schedule: "one_cycle" (up for a quarter of the steps, then down) or "cosine" (down from the
            first step: for a model that is already good).
        momentum: of the gradient descent, in [0, 1).
        weight_decay: L2 penalty on every parameter.
    """

    epochs: Count = 10
    rate: Positive = 0.1
    batch: Count = 64
    schedule: Literal["one_cycle", "cosine"] = "one_cycle"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4


class Distillation(Training):
    """Training on the labels and on the baseline's answers (D); see `sparseq.distill.Loss`.

    Attributes:
        temperature: that softens the answers.
        alpha: weight of the labels, 0 to 1.
    """

    temperature: Positive = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7


class Pruning(Training):
    """Removing the smallest weights step by step, with retraining between (P).

    Attributes:
        sparsity: share of the weights that goes, in [0, 1).
        steps: epochs that begin with a removal; None for the first half of them, at most four.
        curve: how the share rises; see `sparseq.sparse.PruningSchedule`.
    """

    epochs: Count = 6
    rate: Positive = 0.05
    schedule: Literal["one_cycle", "cosine"] = "cosine"
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.8
    steps: Count | None = None
    curve: Literal["cubic", "linear", "one_shot", "geometric"] = "cubic"

    @property
    def removals(self) -> int:
        """Epochs that begin with a removal."""
        return min(4, max(self.epochs // 2, 1)) if self.steps is None else self.steps

    @model_validator(mode="after")
    def _check_steps(self) -> Pruning:
        if self.removals > self.epochs:
            raise ValueError(f"steps must be at most epochs, {self.epochs}, got {self.steps}")
        return self


class SemiStructured(Training):
    """Removing two of every four weights at once, then retraining (S)."""

    epochs: Count = 4
    rate: Positive = 0.05
    schedule: Literal["one_cycle", "cosine"] = "cosine"


class Quantisation(Training):
    """Training with the rounding to INT8 of weights and inputs (Q); its last epoch keeps the grids.

    Attributes:
        calibration: batches that set the first ranges of the inputs.
        symmetric: inputs on grids around zero, which TensorRT's engines need.
    """

    epochs: Count = 2
    rate: Positive = 0.01
    schedule: Literal["one_cycle", "cosine"] = "cosine"
    calibration: Count = 8
    symmetric: bool = False


class Recipe(_Part):
    """One run of the exercise.

    Attributes:
        name: what the report calls it.
        data: "digits", "cifar10", an .npz file or a folder of images; see `sparseq.run.data.load`.
        image_size: of a folder's images, which are scaled to squares of so many pixels.
        model: one of `sparseq.run.models.MODELS`.
        seeds: the whole is trained once with each.
        variants: combinations beside the baseline. "Q+P" takes its techniques in `order`; "QP", in
            the order written.
        order: in which a combination applies its techniques, first to last.
        device: that trains; measurements are the CPU's.
        amp: forward passes under bfloat16 autocast; "auto" where the device has such products.
        gradient_checkpointing: blocks keep their inputs only and run again in the backward pass:
            less memory, more time, the same result.
        train: the baseline.
        distil: D: a student of at most a quarter of the parameters where D comes first, else
            the network itself, learns from the baseline; what follows D in a chain does, too.
        prune: P.
        sparse24: S.
        quantise: Q.
        limit: points of accuracy that a variant worth deploying may lose, exclusive.
        repeats: timed calls of each variant; None for 20 to 200, as many as fit into 10 seconds.
        sensitivity: images for measuring what each layer alone costs; 0 for none.
        engine: build a TensorRT engine of the best variant where a TensorRT is installed.
    """

    name: Annotated[str, Field(min_length=1)] = "exercise"
    data: Annotated[str, Field(min_length=1)] = "digits"
    image_size: Annotated[int, Field(ge=8)] = 32
    model: Literal["small", "resnet20", "resnet18_quarter", "resnet18"] = "small"
    seeds: _list(Annotated[int, Field(ge=0)]) = (0,)  # type: ignore[valid-type]
    variants: _list(Name) = COMBINATIONS  # type: ignore[valid-type]
    order: Order = LETTERS
    device: Literal["cpu", "cuda"] = "cpu"
    amp: Literal["auto", True, False] = "auto"
    gradient_checkpointing: bool = False
    train: Training = Training()
    distil: Distillation = Distillation()
    prune: Pruning = Pruning()
    sparse24: SemiStructured = SemiStructured()
    quantise: Quantisation = Quantisation()
    limit: Annotated[float, Field(gt=0)] = 2.0
    repeats: Count | None = None
    sensitivity: Annotated[int, Field(ge=0)] = 256
    engine: bool = True

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"each seed must be listed once, got {list(seeds)}")
        return seeds

    @field_validator("order")
    @classmethod
    def _check_order(cls, order: str) -> str:
        if set(order) != set(LETTERS):
            raise ValueError(f"must hold each of D, P, S and Q once, got {order!r}")
        return order

    @field_validator("variants")
    @classmethod
    def _check_variants(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            letters = name.replace("+", "")
            if "+" in name and len(name) != 2 * len(letters) - 1:
                raise ValueError(f"{name!r} must have a + between all of its letters, or none")
            if len(set(letters)) < len(letters):
                raise ValueError(f"{name!r} must name each technique once")
            if {"P", "S"} <= set(letters):
                raise ValueError(
                    f"{name!r} must have P or S, not both: a layer has one mask of weights"
                )
        same = [a for a in names if names.count(a) > 1]
        if same:
            raise ValueError(f"each variant must be listed once, got {same[0]!r} twice")
        return names

    @model_validator(mode="after")
    def _check_chains(self) -> Recipe:
        chains: dict[str, str] = {}
        for name in self.variants:
            other = chains.setdefault(chain_of(name, self.order), name)
            if other != name:
                raise ValueError(
                    f"variants: {other!r} and {name!r} are the same chain in the order {self.order}"
                )
        return self

    @property
    def chains(self) -> dict[str, str]:
        """Letters of the techniques by variant, the baseline first."""
        return {BASELINE: ""} | {name: chain_of(name, self.order) for name in self.variants}

    def training(self, stage: str) -> Training:
        """How a stage trains.

        Args:
            stage: the chain so far: its last letter is what this stage does, none the baseline.
        """
        parts = {"": self.train, "D": self.distil, "P": self.prune}
        return (parts | {"S": self.sparse24, "Q": self.quantise})[stage[-1:]]

    def decisive(self) -> dict[str, Any]:
        """What decides the weights of a stage, as plain values: the same here, the same there."""
        told = {"name", "seeds", "variants", "order", "limit", "repeats", "sensitivity", "engine"}
        return self.model_dump(mode="json", exclude=told)


def chain_of(name: str, order: str) -> str:
    """The letters of a variant's techniques, first to last.

    Args:
        name: "Q+P": in `order`; "QP": as written.
        order: of the four letters.
    """
    if "+" not in name:
        return name
    return "".join(letter for letter in order if letter in name)
