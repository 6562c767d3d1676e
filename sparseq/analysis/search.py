"""`search`: the best plan of mixed precision under a budget."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.analysis.budget import Budget
from sparseq.analysis.candidates import Candidates, named, pattern
from sparseq.analysis.costs import (
    Costs,
    file_megabytes,
    megabytes,
    milliseconds,
    network_milliseconds,
)
from sparseq.analysis.diagnose import plain_copy
from sparseq.analysis.knapsack import Point, frontier
from sparseq.analysis.loss import Loss
from sparseq.analysis.sensitivity import Progress, Sensitivity, measure
from sparseq.batches import Batch, output_of, read_batches
from sparseq.flow.calibrate import calibrate
from sparseq.flow.convert import convert
from sparseq.flow.prepare import input_quantizers, prepare
from sparseq.lower import layerwise
from sparseq.spec import Layer, Plan
from sparseq.table import text_table

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Found:
    """A plan and what it is worth; `print` shows it.

    Attributes:
        plan: one rule a layer.
        choices: each layer's candidate, by label.
        table: what each layer alone costs under each candidate (`sensitivity`).
        budget: that was asked for.
        predicted_added: loss added, by the additive model: the sum over the layers.
        measured_added: loss really added.
        predicted_cost: megabytes or milliseconds, by the additive model.
        measured_cost: of the converted network.
        float_metric: of the float network.
        metric: of the converted network.
        evaluated: how many plans were really converted and measured.
    """

    plan: Plan
    choices: Mapping[str, str]
    table: Sensitivity
    budget: Budget
    predicted_added: float
    measured_added: float
    predicted_cost: float
    measured_cost: float
    float_metric: float
    metric: float
    evaluated: int

    @property
    def drop(self) -> float:
        """How much of the metric is lost."""
        return self.float_metric - self.metric

    def __str__(self) -> str:
        """The choices, and predicted beside measured."""
        unit = self.budget.cost
        choices = text_table(("layer", "candidate"), self.choices.items())
        return (
            f"{choices}\n"
            f"{unit}: predicted {self.predicted_cost:.4g}, measured {self.measured_cost:.4g}\n"
            f"{self.table.loss} added: predicted {self.predicted_added:.3g}, measured "
            f"{self.measured_added:.3g}\n"
            f"metric: float {self.float_metric:.4g}, plan {self.metric:.4g} "
            f"({self.drop:.3g} lost); {self.evaluated} plans measured"
        )


@dataclass(frozen=True)
class _Outcome:
    """A plan, really converted: its metric, the loss it adds, its cost."""

    metric: float
    added: float
    cost: float


class _Search:
    """The additive model, and the trials that hold it to account."""

    def __init__(
        self,
        model: nn.Module,
        batches: list[Batch],
        wanted: dict[str, Layer],
        budget: Budget,
        evaluate: Evaluate | None,
        example: Tensor | None,
        progress: Progress | None,
    ) -> None:
        self.model = plain_copy("search", model, "model")
        self.batches = [replace(batch, labels=None) for batch in batches]
        self.labels = [batch.labels for batch in batches]
        self.inputs = [batch.inputs for batch in batches]
        self.budget, self.example, self.wanted = budget, example, wanted
        self.loss = Loss("search", None, self.batches)
        candidates = Candidates("search", self.model, wanted, self.inputs)
        self.names = candidates.names
        self.options = {name: candidates.labels_of(name) for name in self.names}
        self.table = measure(self.model, candidates, self.batches, self.loss, progress, "search")
        # layers that can be timed one by one
        fast = {b: layerwise(convert(net, example)) for b, net in candidates.networks.items()}
        costs, self.rest = self._costs(fast)
        added = {(row.name, row.candidate): max(0.0, row.added) for row in self.table.rows}
        self.free = [name for name in self.names if self.options[name]]
        self.rest += sum(min(costs[n, b] for b in wanted) for n in self.names if n not in self.free)
        self.points = frontier(
            [[costs[name, label] for label in self.options[name]] for name in self.free],
            [[added[name, label] for label in self.options[name]] for name in self.free],
        )
        self.references = [self._output(self.model, batch) for batch in self.batches]
        self.evaluate = evaluate or self._points
        self.float_metric = float(self.evaluate(copy.deepcopy(self.model)))
        self.trials: dict[tuple[int, ...], _Outcome] = {}

    def _costs(self, fast: dict[str, nn.Module]) -> tuple[Costs, float]:
        if self.budget.cost == "megabytes":
            return megabytes(fast, self.names)
        assert self.example is not None
        return milliseconds(self.model, fast, self.names, self.example)

    @staticmethod
    def _output(model: nn.Module, batch: Batch) -> Tensor:
        return output_of("search", model(*batch.args, **batch.kwargs))

    def _points(self, model: nn.Module) -> float:
        """Top-1 accuracy, or agreement with the float arg-max without labels, in percent."""
        right = total = 0
        for batch, labels, reference in zip(
            self.batches, self.labels, self.references, strict=True
        ):
            wanted = reference.argmax(1) if labels is None else labels
            hits = self._output(model, batch).argmax(1) == wanted
            right, total = right + int(hits.sum()), total + hits.numel()
        return 100.0 * right / max(total, 1)

    def choices(self, point: Point) -> dict[str, str]:
        """The label of each layer that has one."""
        pairs = zip(self.free, point.options, strict=True)
        return {name: self.options[name][option] for name, option in pairs}

    def plan(self, point: Point) -> Plan:
        """One rule a layer."""
        chosen = self.choices(point)
        return Plan(
            {pattern(n): self.wanted[chosen[n]] if n in chosen else None for n in self.names}
        )

    def trial(self, point: Point) -> _Outcome:
        """Convert by the plan and measure."""
        if point.options in self.trials:
            return self.trials[point.options]
        model = prepare(copy.deepcopy(self.model), self.plan(point))
        if input_quantizers(model):
            calibrate(model, self.inputs)
        fast = convert(model, self.example)
        added = rows = 0.0
        for batch, reference in zip(self.batches, self.references, strict=True):
            added += self.loss(self._output(fast, batch), batch, reference) * len(reference)
            rows += len(reference)
        if self.budget.cost == "megabytes":
            cost = file_megabytes(fast)
        else:
            assert self.example is not None
            cost = network_milliseconds({"plan": fast}, self.example)["plan"]
        outcome = _Outcome(float(self.evaluate(fast)), added / rows, cost)
        self.trials[point.options] = outcome
        return outcome

    def under_cost(self, limit: float) -> Point:
        """The plan of least loss whose measured cost is within the limit."""
        held = [point.cost for point in self.points]
        fits, exceeds, rest = -1, len(held), self.rest  # indices; what the layers do not explain
        while True:
            index = min(bisect.bisect_right(held, limit - rest), exceeds) - 1
            if index <= fits:
                break
            cost = self.trial(self.points[index]).cost
            rest = cost - held[index]  # the next prediction starts from what was measured
            if cost <= limit:
                fits = index
            else:
                exceeds = index
        if fits < 0 and exceeds > 0 and self.trial(self.points[0]).cost <= limit:
            fits = 0
        if fits < 0:
            least = self.trial(self.points[0]).cost
            raise ValueError(
                f"search: budget must be at least {least:.4g} {self.budget.cost}, which the "
                f"cheapest plan takes, got {limit:g}"
            )
        return self.points[fits]

    def under_drop(self, drop: float) -> Point:
        """The cheapest plan, by bisection over the best ones, whose measured drop is allowed."""

        def allowed(index: int) -> bool:
            return self.float_metric - self.trial(self.points[index]).metric <= drop

        low, high = -1, len(self.points) - 1
        if not allowed(high):
            best = self.float_metric - max(t.metric for t in self.trials.values())
            raise ValueError(
                f"search: budget must allow a drop of at least {best:.4g}, which the most exact "
                f"plan of these candidates has, got {drop:g}"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if allowed(middle) else (middle, high)
        return self.points[high]

    def found(self) -> Found:
        """The best plan."""
        limit = self.budget.limit
        if limit is not None:
            point = self.under_cost(limit)
        else:
            assert self.budget.drop is not None
            point = self.under_drop(self.budget.drop)
        outcome = self.trial(point)
        return Found(
            self.plan(point),
            self.choices(point),
            self.table,
            self.budget,
            point.loss,
            outcome.added,
            point.cost + self.rest,
            outcome.cost,
            self.float_metric,
            outcome.metric,
            len(self.trials),
        )


@torch.no_grad()
def search(
    model: nn.Module,
    batches: Iterable[Any],
    candidates: Mapping[str, Layer] | Iterable[Layer] | None = None,
    *,
    budget: Budget,
    evaluate: Evaluate | None = None,
    example: Tensor | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find which layer should have which precision: the best plan under a budget.

    Each layer alone is measured under each candidate: the mean squared error that it adds to the
    float output, and its bytes or milliseconds. The additive model, `sum of what layers add`, then
    gives every plan that is best for some budget (`analysis.knapsack`), and the plan that is
    returned was really converted, calibrated and measured: where the model was too hopeful, the
    search went on to the next plan. Deterministic, except for what it reads from the clock.

    Args:
        model: float; not changed.
        batches: as for `calibrate`: ranges and errors are those of these.
        candidates: what a layer may become, by label or in a list; None takes INT8, INT4 weights
            with INT8 inputs, float16 and float32.
        budget: what the plan may cost.
        evaluate: from a converted model to its metric, more is better; None takes top-1 accuracy
            on the batches in percent or, without labels, the share of rows with the float network's
            arg-max.
        example: an input of the batch size to be used; for budgets of milliseconds.
        progress: called with how many of how many measurements of layers are done.

    Returns:
        The plan, and what was predicted and measured of it.

    Raises:
        ValueError: a budget that no plan meets (says what the best one has), an example that is
            missing, a model that is not float, no batch, or no candidate.
        TypeError: an argument of another type.

    Reference:
        Hubara et al. 2021, Accurate Post Training Quantization With Small Calibration Sets, section
        3.4 (additive losses under a budget); Nemhauser and Ullmann 1969.
    """
    if not isinstance(budget, Budget):
        raise TypeError(f"search: budget must be a Budget, got {type(budget).__name__}")
    if budget.cost == "milliseconds" and example is None:
        raise ValueError("search: example must be given where milliseconds count, got None")
    if example is not None and not isinstance(example, Tensor):
        raise TypeError(f"search: example must be a tensor, got {type(example).__name__}")
    wanted, read = named("search", candidates), read_batches("search", batches)
    return _Search(model, read, wanted, budget, evaluate, example, progress).found()
