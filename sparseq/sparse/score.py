"""`score`: what each weight counts for, from data; `Movement`: the same while training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparseq.batches import Batch, output_of, read_batch
from sparseq.modes import evaluating
from sparseq.sparse.criteria import CRITERIA, Criterion
from sparseq.sparse.inputs import input_energy
from sparseq.sparse.mask import Mask
from sparseq.sparse.update import Pairs, named_masks

Loss = Callable[[Tensor, Tensor | None], Tensor]


def _loss(result: Any, batch: Batch, loss: Loss | None) -> Tensor:
    if loss is not None:
        return loss(output_of("score", result), batch.labels)
    own = getattr(result, "loss", None)  # of a Hugging Face model that was given labels
    if isinstance(own, Tensor):
        return own
    if batch.labels is None or batch.labels.is_floating_point():
        raise ValueError("score: loss must be given where batches have no integer labels, got None")
    return F.cross_entropy(output_of("score", result).float(), batch.labels)


class _Sums:
    """What batches give for each mask, summed."""

    def __init__(self, model: nn.Module, pairs: Pairs, rules: dict[str, Criterion]) -> None:
        self.model, self.pairs, self.rules = model, pairs, rules
        self.totals: dict[str, Tensor] = {}
        self.leaves: dict[str, list[Tensor]] = {}
        self.energies: dict[str, Tensor] = {}

    def hooks(self) -> list[Any]:
        """Watch the masks and layers that criteria want to see."""
        handles: list[Any] = []
        for name, rule in self.rules.items():
            mask = self.pairs[name][0]
            if rule.sees == "gradient":
                handles.append(mask.register_forward_hook(self._cut(name)))
            elif rule.sees == "input":
                layer = self.model.get_submodule(name)
                watch = self._watch(name)
                handles.append(layer.register_forward_pre_hook(watch, with_kwargs=True))
        return handles

    def _cut(self, name: str) -> Any:
        def hook(mask: nn.Module, args: Any, output: Tensor) -> Tensor:
            # a leaf: its gradient is that of the weight in use, whatever is trained or frozen
            leaf = output.detach().requires_grad_()
            self.leaves.setdefault(name, []).append(leaf)
            return leaf

        return hook

    def _watch(self, name: str) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: Any) -> None:
            mask, weight = self.pairs[name]
            found = input_energy(layer, args[0] if args else kwargs["input"], weight)
            if found is None:
                kind = type(layer).__name__
                raise ValueError(
                    f"score: {name} must be linear, a convolution or an embedding for a criterion "
                    f"that sees inputs, got {kind}"
                )
            found = mask.ordered(found)
            held = self.energies.get(name)
            self.energies[name] = found if held is None else held + found

        return hook

    def add(self, name: str, seen: Tensor) -> None:
        """Take in what one batch gave for a mask."""
        weight = self.weight(name)
        part = self.rules[name].gather(weight, seen.float())
        if not bool(torch.isfinite(part).all()):
            what = "loss's gradient" if self.rules[name].sees == "gradient" else "input"
            raise ValueError(f"score: the {what} of {name} must be finite, got an infinity or NaN")
        self.totals[name] = part if name not in self.totals else self.totals[name] + part

    def weight(self, name: str) -> Tensor:
        """The weight in the order of its mask, float32."""
        mask, weight = self.pairs[name]
        return mask.ordered(weight.detach()).float()

    def batch(self, batch: Batch, loss: Loss | None, gradients: bool) -> None:
        """Run the model on a batch."""
        self.leaves, self.energies = {}, {}
        with torch.set_grad_enabled(gradients):
            result = self.model(*batch.args, **batch.kwargs)
            if gradients:
                value = _loss(result, batch, loss)
                flat = [leaf for leaves in self.leaves.values() for leaf in leaves]
                found = torch.autograd.grad(value, flat, allow_unused=True) if flat else ()
                grads = iter(found)
        for name, leaves in self.leaves.items():
            parts = [g for g in (next(grads) for _ in leaves) if g is not None]
            if parts:
                self.add(name, torch.stack([g.float() for g in parts]).sum(0))
        for name, energy in self.energies.items():
            self.add(name, energy)


def score(
    model: nn.Module,
    batches: Iterable[Any] = (),
    criterion: str | Criterion | None = None,
    *,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """What each weight of a model's masked layers counts for: the least goes first.

    The model runs in eval mode with its masks on; gradients are those with respect to the masked
    weight, so that weights masked before have scores too. `.grad` of the parameters stays as it is.

    Args:
        model: prepared, with masks.
        batches: as for `calibrate`; (input, labels) tuples, or dicts with labels, where gradients
            are wanted. Not needed for criteria of the weight alone.
        criterion: a name of `Unstructured`'s, or a Criterion, for all masks; None takes each
            mask's own.
        loss: from output and labels (None where a batch has none) to a scalar; None takes the
            result's own `loss` where it has one, else the cross-entropy.

    Returns:
        By layer, float32, of its mask's shape: for `update_masks` or `PruningSchedule`.

    Raises:
        ValueError: no mask, an unknown criterion, no batch where one is needed, no loss, or a
            gradient or input that is not finite.
        TypeError: a batch of another type.

    Reference:
        Lee et al. 2019, SNIP, eq. 4; Molchanov et al. 2019, Importance Estimation for Neural
        Network Pruning, eq. 8; Sanh et al. 2020, Movement Pruning; Sun et al. 2024, Wanda, eq. 1.
    """
    pairs = named_masks(model)
    if not pairs:
        raise ValueError("score: model must be prepared with a sparsity, got no mask")
    if isinstance(criterion, str) and criterion not in CRITERIA:
        raise ValueError(f"score: criterion must be one of {tuple(CRITERIA)}, got {criterion!r}")
    rules: dict[str, Criterion] = {}
    for name, (mask, _) in pairs.items():
        wanted = mask.spec.criterion if criterion is None else criterion
        rules[name] = CRITERIA[wanted] if isinstance(wanted, str) else wanted
    sums = _Sums(model, pairs, rules)
    seen = {rule.sees for rule in rules.values()} - {""}
    if seen:
        _run(model, batches, sums, loss, "gradient" in seen)
    with torch.no_grad():
        found = {}
        for name, rule in rules.items():
            weight = sums.weight(name)
            default = torch.zeros_like(weight) if rule.sees else weight.new_empty(0)
            found[name] = rule.score(weight, sums.totals.get(name, default))
    return found


def _run(
    model: nn.Module, batches: Iterable[Any], sums: _Sums, loss: Loss | None, gradients: bool
) -> None:
    count = 0
    with ExitStack() as after:
        after.enter_context(evaluating(model))
        for handle in sums.hooks():
            after.callback(handle.remove)
        for batch in batches:
            sums.batch(read_batch("score", batch), loss, gradients)
            count += 1
    if count == 0:
        raise ValueError("score: batches must hold at least one batch, got none")


class Movement:
    """Sums `-w * g` of every masked weight over the backward passes of your own loop.

    Weights that training moves away from zero score high, those that move towards it low. It is
    its own function of scores, for `PruningSchedule(model, steps, scores=movement)`; what a
    GradScaler scales it sees scaled.

    Args:
        model: prepared, with masks; watched until `close()`, or the end of a `with` block.

    Raises:
        ValueError: no mask.

    Reference:
        Sanh et al. 2020, Movement Pruning: Adaptive Sparsity by Fine-Tuning, eq. 3.
    """

    def __init__(self, model: nn.Module) -> None:
        pairs = named_masks(model)
        if not pairs:
            raise ValueError("Movement: model must be prepared with a sparsity, got no mask")
        self._totals = {
            name: torch.zeros_like(mask.mask, dtype=torch.float32)
            for name, (mask, _) in pairs.items()
        }
        self._handles = [
            mask.register_forward_hook(self._hook(name)) for name, (mask, _) in pairs.items()
        ]

    def _hook(self, name: str) -> Any:
        def forward(mask: Mask, args: Any, output: Tensor) -> None:
            if not output.requires_grad:
                return
            weight = args[0].detach()

            def backward(gradient: Tensor) -> None:
                moved = -(weight.float() * gradient.float())
                # a step that overflowed under a GradScaler moves nothing
                self._totals[name] += moved.nan_to_num(0.0, 0.0, 0.0)

            output.register_hook(backward)

        return forward

    def __call__(self) -> dict[str, Tensor]:
        """The sums so far, by layer; float32, of the mask's shape."""
        return {name: total.clone() for name, total in self._totals.items()}

    def reset(self) -> None:
        """Start the sums anew."""
        for total in self._totals.values():
            total.zero_()

    def close(self) -> None:
        """Watch no more; the sums stay."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Movement:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Watch no more."""
        self.close()
