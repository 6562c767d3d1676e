"""`lottery`: is there a small network in the large one that trains as well from the same start?"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparseq.files import atomic_path
from sparseq.sparse.schedule import PruningSchedule, Scores
from sparseq.sparse.update import named_masks

Train = Callable[[nn.Module, int, int], Any]
_INK, _PALE, _TICKET, _CONTROL = "#2b2f36", "#d9dde3", "#2f77b4", "#e0701a"


@dataclass(frozen=True)
class LotteryRow:
    """One round.

    Attributes:
        round: 0 is the dense network.
        sparsity: share of zeros in the masked layers.
        accuracy: of the ticket: the pruned network, trained from the rewound weights.
        control: of the same mask trained from random weights; None if there was no control.
    """

    round: int
    sparsity: float
    accuracy: float
    control: float | None


@dataclass(frozen=True)
class Lottery:
    """The rounds of a lottery; `print` shows the table.

    Attributes:
        rows: by round.
        rewind: the step whose weights the tickets started from.
        steps: of a whole training.
    """

    rows: tuple[LotteryRow, ...]
    rewind: int
    steps: int

    def __str__(self) -> str:
        """A line a round."""
        lines = [f"rewound to step {self.rewind} of {self.steps}"]
        lines.append(f"{'round':>5}  {'zeros':>6}  {'ticket':>8}  {'random':>8}")
        for row in self.rows:
            control = "-" if row.control is None else f"{row.control:.4g}"
            lines.append(
                f"{row.round:>5}  {row.sparsity:>6.1%}  {row.accuracy:>8.4g}  {control:>8}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"rewind": self.rewind, "steps": self.steps, "rows": [asdict(r) for r in self.rows]}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw accuracy against the share of weights that are left, as a PNG.

        Args:
            path: of the picture; written aside and renamed.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
            OSError: the file cannot be written.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Lottery.plot needs the package matplotlib: pip install 'sparseq[run]'"
            ) from error
        # a Figure of its own, not pyplot's: no global state, nothing to close
        figure = Figure(figsize=(7.5, 4.6), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        left = [100 * (1 - row.sparsity) for row in self.rows]
        start = "its first weights" if self.rewind == 0 else f"the weights of step {self.rewind}"
        axes.plot(left, [row.accuracy for row in self.rows], "o-", color=_TICKET, linewidth=2,
                  label=f"ticket, from {start}")  # fmt: skip
        control = [
            (x, r.control) for x, r in zip(left, self.rows, strict=True) if r.control is not None
        ]
        if control:
            axes.plot(*zip(*control, strict=True), "s--", color=_CONTROL, linewidth=2,
                      label="same mask, new random weights")  # fmt: skip
        axes.axhline(self.rows[0].accuracy, color=_INK, linewidth=0.8, linestyle=":", zorder=1)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks(left, [f"{x:.3g}" for x in left], rotation=45 if len(left) > 8 else 0)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("weights left, %", color=_INK)
        axes.set_ylabel("accuracy", color=_INK)
        axes.legend(frameon=False, labelcolor=_INK)
        axes.grid(color=_PALE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_PALE)
        axes.tick_params(colors=_INK, length=0)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")


def lottery(
    model: nn.Module,
    train: Train,
    evaluate: Callable[[nn.Module], float],
    *,
    steps: int,
    rounds: int = 5,
    rewind: int = 0,
    control: bool = True,
    fresh: Callable[[], nn.Module] | None = None,
    scores: Callable[[], Scores] | None = None,
    progress: Callable[[LotteryRow], None] | None = None,
) -> Lottery:
    """Find lottery tickets: train, prune, rewind, train again, round by round.

    Each round drops the same share of the weights that are left (`PruningSchedule`'s geometric
    curve to the plan's sparsity), ranked by their trained values, sets everything else back to
    what it was at step `rewind`, and trains from there. The control trains the same masks from new
    random weights: where it does as well, the mask alone is what counts.

    Args:
        model: prepared with Unstructured or Block sparsity, freshly initialised; holds the last
            round's trained ticket in the end.
        train: called with (model, first, last) trains the steps from first up to last of one
            training of `steps` steps; a schedule of the learning rate goes by them. It makes its
            own optimizer.
        evaluate: from a model to its accuracy.
        steps: of a training.
        rounds: how many times weights are dropped.
        rewind: the step to rewind to; 0 is the initialisation, some percent of `steps` is needed
            for large networks.
        control: whether to train the control, which doubles the time.
        fresh: makes a newly initialised float network of the same architecture, for the control;
            None calls `reset_parameters` of each module that has it.
        scores: what weights are ranked by, for each round anew; None ranks by the criterion of
            the plan.
        progress: told of each round when it is done.

    Returns:
        The table, which can plot itself.

    Raises:
        ValueError: a number out of its range, or a model without such masks.

    Reference:
        Frankle and Carbin 2019, The Lottery Ticket Hypothesis; Frankle et al. 2020, Linear Mode
        Connectivity and the Lottery Ticket Hypothesis (rewinding).
    """
    if rounds < 1:
        raise ValueError(f"lottery: rounds must be at least 1, got {rounds}")
    if not 0 <= rewind < steps:
        raise ValueError(f"lottery: rewind must be in [0, steps = {steps}), got {rewind}")
    schedule = PruningSchedule(model, rounds, "geometric", scores=scores)
    if rewind:
        train(model, 0, rewind)
    start = copy.deepcopy(model.state_dict())
    rows: list[LotteryRow] = []
    for number in range(rounds + 1):
        if number:
            schedule.step()
            _rewind(model, start)
        train(model, rewind, steps)
        accuracy = float(evaluate(model))
        reached = None
        if number and control:
            other = copy.deepcopy(model)
            _reinitialise(other, fresh)
            train(other, 0, steps)
            reached = float(evaluate(other))
        rows.append(LotteryRow(number, schedule.sparsity, accuracy, reached))
        if progress is not None:
            progress(rows[-1])
    return Lottery(tuple(rows), rewind, steps)


def _rewind(model: nn.Module, start: dict[str, Any]) -> None:
    """Everything but the masks as it was."""
    masks = {name: mask.mask.clone() for name, (mask, _) in named_masks(model).items()}
    settled = {name: mask.settled for name, (mask, _) in named_masks(model).items()}
    model.load_state_dict(start)
    for name, (mask, _) in named_masks(model).items():
        mask.mask.copy_(masks[name])
        if settled[name]:
            mask.settle()


@torch.no_grad()
def _reinitialise(model: nn.Module, fresh: Callable[[], nn.Module] | None) -> None:
    """New random weights under the masks that are there."""
    if fresh is not None:
        _copy(model, fresh().state_dict())
        return
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if not callable(reset):
            continue
        if not parametrize.is_parametrized(module):
            reset()
            continue
        # resetting what a parametrisation computes would change nothing: reset a plain twin
        twin = copy.deepcopy(module)
        weights: nn.ModuleDict = twin.parametrizations  # type: ignore[assignment]
        values = {name: held.original for name, held in weights.items()}
        del twin.parametrizations
        twin.__class__ = parametrize.type_before_parametrizations(module)
        for name, value in values.items():
            setattr(twin, name, nn.Parameter(value))  # type: ignore[arg-type]
        twin.reset_parameters()  # type: ignore[operator]
        _copy(module, twin.state_dict())


def _copy(target: nn.Module, values: dict[str, Tensor]) -> None:
    """A float network's tensors into a prepared one."""
    state = target.state_dict()
    for key, value in values.items():
        head, _, last = key.rpartition(".")
        prepared = ".".join(filter(None, (head, "parametrizations", last, "original")))
        if prepared in state:
            state[prepared].copy_(value)
        elif key in state and ".parametrizations." not in f".{key}":
            state[key].copy_(value)
