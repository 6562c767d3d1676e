"""`ptq`: prepare and calibrate, with what makes post-training quantisation more accurate."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparseq.flow.calibrate import calibrate
from sparseq.flow.outputs import float_leaves, run_batch
from sparseq.flow.prepare import SERVED, layers_of, leave_fused_paths, prepare, take_attentions
from sparseq.flow.progress import Progress
from sparseq.modes import evaluating
from sparseq.ptq.adaround import AdaRound, Rounding, round_weights
from sparseq.ptq.bias import correct_biases
from sparseq.ptq.equalize import equalize as equalize_layers
from sparseq.ptq.graph import Graph
from sparseq.ptq.report import PTQReport, Step, measure
from sparseq.ptq.smooth import smooth as smooth_layers
from sparseq.quant import FakeQuantize
from sparseq.spec import Layer, Plan

SAME = {torch.float16: 0.02, torch.bfloat16: 0.1}  # of the greatest output; 1e-3 for the rest


def _checked(
    model: nn.Module, plan: Plan, equalize: object, smooth: object, adaround: object, bias: object
) -> tuple[dict[str, Layer], float | None, AdaRound | None]:
    """The plan by layer, alpha or None, and AdaRound's options or None."""
    if not isinstance(plan, Plan):
        raise TypeError(f"ptq: plan must be a sparseq.Plan, got {type(plan).__name__}")
    for name, switch in (("equalize", equalize), ("bias_correction", bias)):
        if not isinstance(switch, bool):
            raise TypeError(f"ptq: {name} must be True or False, got {type(switch).__name__}")
    if not isinstance(adaround, (bool, AdaRound)):
        raise TypeError(
            f"ptq: adaround must be True, False or an AdaRound, got {type(adaround).__name__}"
        )
    if not isinstance(smooth, (bool, int, float)):
        raise TypeError(f"ptq: smooth must be True, False or a number, got {type(smooth).__name__}")
    if not 0 <= smooth <= 1:
        raise ValueError(f"ptq: smooth must be in [0, 1], got {smooth}")
    if any(isinstance(m, FakeQuantize) for m in model.modules()):
        raise ValueError(
            "ptq: model must be float (masks are welcome), got one that is prepared already"
        )
    alpha = (0.5 if smooth else None) if isinstance(smooth, bool) else float(smooth)
    options = (AdaRound() if adaround else None) if isinstance(adaround, bool) else adaround
    layers = layers_of(model)
    if not layers:
        raise ValueError(f"ptq: model must hold {SERVED} layers, got none")
    return plan.match(layers), alpha, options


@torch.no_grad()
def _same_function(
    model: nn.Module, batch: Any, change: Callable[[], dict[str, str]]
) -> dict[str, str]:
    """Make a change that must not be seen in the model's output; undo it if it is."""
    state = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    before = float_leaves(run_batch("ptq", model, batch))
    before = [t.clone() for t in before]
    skipped = change()
    for a, b in zip(before, float_leaves(run_batch("ptq", model, batch)), strict=True):
        size, moved = float(a.abs().max()), float((a - b).abs().max())
        if not moved <= SAME.get(a.dtype, 1e-3) * size:
            for key, value in model.state_dict().items():
                if key in state:
                    value.copy_(state[key])
            reason = f"undone: the float output moved by {moved:.3g} of {size:.3g}"
            return {"the whole model": reason}
    return skipped


def ptq(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    *,
    equalize: bool = False,
    smooth: bool | float = False,
    adaround: bool | AdaRound = False,
    bias_correction: bool = False,
    progress: Progress = False,
) -> PTQReport:
    """Post-training quantisation, in place: `prepare`, `calibrate`, and what makes it better.

    Each switch is one technique; the report says what each gained. Then the model is prepared as
    any other: `convert`, `save` and export it, or train on (`sparseq.AdaRound`'s weights are
    frozen on their grid's points: see docs/ptq.md).

    Args:
        model: float, its masks apart; in any mode, which it keeps.
        plan: as for `prepare`.
        batches: as for `calibrate`, and gone through several times (what can be gone through only
            once is kept in memory). The same samples each time, without random augmentation; some
            hundred will do.
        equalize: cross-layer equalisation: channels made equally large in the weights before and
            behind an activation (`sparseq.ptq.equalize`).
        smooth: SmoothQuant: outlying channels of linear layers' inputs moved into their weights;
            a number is alpha, True 0.5.
        adaround: rounding of the weights chosen for the layers' outputs; `AdaRound(...)` says how.
        bias_correction: the mean error of each output channel taken out of the biases.
        progress: True shows a bar for each step; or a function of (step, done, total).

    Returns:
        The report.

    Raises:
        TypeError: an argument of another type.
        ValueError: a model that is prepared already, an alpha outside of [0, 1], no batch, or what
            `prepare` and `calibrate` refuse.
        ModuleNotFoundError: progress is True and rich is not installed.
    """
    matched, alpha, options = _checked(model, plan, equalize, smooth, adaround, bias_correction)
    data = list(batches) if isinstance(batches, Iterator) else batches
    first = next(iter(data), None)
    if first is None:
        raise ValueError("ptq: batches must hold at least one batch, got none")
    take_attentions(model, matched)  # their projections are seen as layers from here on
    leave_fused_paths(model)
    with evaluating(model):
        work = _Work(model, plan, matched, data, first, progress)
        return work.run(equalize, alpha, options, bias_correction)


class _Work:
    """One run: the steps that it makes, and what is known of them."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        matched: dict[str, Layer],
        batches: Iterable[Any],
        first: Any,
        progress: Progress,
    ) -> None:
        self.model, self.plan, self.matched = model, plan, matched
        self.batches, self.first, self.progress = batches, first, progress
        self.graph = Graph(model, first)
        called = [u for u in self.graph.layers() if u.name in matched]
        norms = {u.name: self.graph.batch_norm(u) for u in called}
        self.points = {name: name if norm is None else norm.name for name, norm in norms.items()}
        unseen = {n: "not called on the first batch" for n in matched if n not in self.points}
        self.skipped: dict[str, dict[str, str]] = {"nearest": unseen} if unseen else {}
        self.steps: list[Step] = []
        self.rounding: dict[str, Rounding] = {}

    def _quantise(self, model: nn.Module) -> nn.Module:
        return calibrate(prepare(model, self.plan), self.batches, self.progress)

    def _note(self, name: str, reference: nn.Module, model: nn.Module, seconds: float) -> None:
        sqnr, layers = measure(reference, model, self.points, self.batches)
        gain = sqnr - self.steps[-1].sqnr if self.steps else None
        self.steps.append(Step(name, sqnr, gain, layers, seconds))

    def run(
        self, equalize: bool, alpha: float | None, options: AdaRound | None, biases: bool
    ) -> PTQReport:
        """All steps that are wished for."""
        model, graph, batches = self.model, self.graph, self.batches
        before: list[tuple[str, Callable[[], dict[str, str]]]] = []
        if equalize:
            before.append(("equalize", lambda: equalize_layers(graph, self.matched)))
        if alpha is not None:
            before.append(
                ("smooth", lambda: smooth_layers(graph, model, self.matched, batches, alpha))
            )
        reference = copy.deepcopy(model)
        start = time.perf_counter()
        trial = self._quantise(copy.deepcopy(model) if before else model)
        self._note("nearest", reference, trial, time.perf_counter() - start)
        for name, change in before:
            start = time.perf_counter()
            left = _same_function(model, self.first, change)
            seconds = time.perf_counter() - start
            if left:
                self.skipped[name] = left
            reference = copy.deepcopy(model)
            last = name == before[-1][0]
            trial = self._quantise(model if last else copy.deepcopy(model))
            self._note(name, reference, trial, seconds)
        self._after(reference, options, biases)
        return PTQReport(tuple(self.steps), self.skipped, self.rounding)

    def _after(self, reference: nn.Module, options: AdaRound | None, biases: bool) -> None:
        """The steps on the quantised model."""
        model, graph, batches = self.model, self.graph, self.batches
        if options is not None:
            start = time.perf_counter()
            names = {name: graph.calls[name] for name in self.points}
            self.rounding, left = round_weights(
                reference, model, names, batches, options, self.progress
            )
            if left:
                self.skipped["adaround"] = left
            self._note("adaround", reference, model, time.perf_counter() - start)
        if biases:
            start = time.perf_counter()
            left = correct_biases(
                graph, reference, model, list(self.points), batches, self.progress
            )
            if left:
                self.skipped["bias correction"] = left
            self._note("bias correction", reference, model, time.perf_counter() - start)
