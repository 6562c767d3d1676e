"""Which weights become zero."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from sparseq.spec.check import check, whole

FROM_DATA = ("snip", "taylor", "movement", "wanda")
CRITERIA = ("magnitude", "l2", *FROM_DATA, "random")
SCOPES = ("global", "local", "output")


def _share(owner: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    check(number and 0 <= value < 1, owner, "sparsity", "in [0, 1)", value)  # type: ignore[operator]


class _Terse:
    """Fields that came later stay unsaid where they are at their default.

    So that texts and files are what they always were, and earlier versions read them.
    """

    later: ClassVar[tuple[str, ...]] = ("criterion",)

    def said(self) -> dict[str, Any]:
        """The fields that `repr` and JSON show."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if field.name not in self.later or getattr(self, field.name) != field.default
        }

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.said().items())
        return f"{type(self).__name__}({fields})"


@dataclass(frozen=True, repr=False)
class NM(_Terse):
    """Fine-grained structured sparsity: of every m neighbours along the input, n are kept.

    Along input features of a linear layer, along input channels for each tap of a convolution.
    NM(2, 4) is what 2:4 hardware and kernels take. Layers whose input is not a multiple of m stay
    dense.

    Args:
        n: how many are kept.
        m: neighbours of a group.
        criterion: what ranks them, as of `Unstructured`.
        refined: above 0 the mask follows the weight: each forward pass in training mode ranks
            anew, what is masked gets the gradient too, and this factor of decay: SR-STE, where
            2e-4 is usual. `sparse.freeze_masks` ends that.

    Raises:
        ValueError: unless 1 <= n < m; an unknown criterion; a negative refined, or one with
            another criterion than the magnitude.

    Reference:
        Mishra et al. 2021; Zhou et al. 2021, Learning N:M Fine-grained Structured Sparse Neural
        Networks From Scratch, eq. 9 (refined).
    """

    later = ("criterion", "refined")

    n: int = 2
    m: int = 4
    criterion: str = "magnitude"
    refined: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(whole(self.m, 2), "NM", "m", "a whole number of at least 2", self.m)
        check(whole(self.n, 1, self.m - 1), "NM", "n", f"from 1 to m - 1 = {self.m - 1}", self.n)
        check(self.criterion in CRITERIA, "NM", "criterion", f"one of {CRITERIA}", self.criterion)
        decay = self.refined
        number = isinstance(decay, (int, float)) and not isinstance(decay, bool)
        check(number and 0 <= decay < float("inf"), "NM", "refined", "at least 0", decay)
        plain = decay == 0 or self.criterion == "magnitude"
        check(plain, "NM", "criterion", '"magnitude" with refined', self.criterion)

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.n / self.m


@dataclass(frozen=True, repr=False)
class Unstructured(_Terse):
    """Unstructured sparsity: the `sparsity` share of least score becomes zero.

    Args:
        sparsity: share of zeros, in [0, 1).
        scope: "global" ranks all layers of this sparsity together, "local" each on its own,
            "output" each output's weights on their own.
        criterion: what the score is. Of the weight alone: "magnitude" (|w|), "l2" (w^2: it ranks
            blocks otherwise than the magnitude, elements alike) or "random" (a baseline). From
            data, by `sparse.score`: "snip" |w g|, "taylor" (w g)^2 summed over batches, "movement"
            -w g summed while training, "wanda" |w| times the L2 norm of the input that w meets; g
            is the loss's gradient.

    Raises:
        ValueError: a value outside of the above.

    Reference:
        Han et al. 2015 (magnitude); Lee et al. 2019 (SNIP); Molchanov et al. 2019 (Taylor); Sanh
        et al. 2020 (movement); Sun et al. 2024 (Wanda).
    """

    sparsity: float = 0.5
    scope: str = "global"
    criterion: str = "magnitude"

    def __post_init__(self) -> None:
        """Check every field."""
        _share("Unstructured", self.sparsity)
        check(self.scope in SCOPES, "Unstructured", "scope", f"one of {SCOPES}", self.scope)
        known = self.criterion in CRITERIA
        check(known, "Unstructured", "criterion", f"one of {CRITERIA}", self.criterion)


@dataclass(frozen=True, repr=False)
class Block(_Terse):
    """Block sparsity: whole blocks of `rows` outputs by `columns` inputs become zero.

    For each tap of a convolution, along its channels. A block's score is the mean of its elements'
    scores; the `sparsity` share of blocks of least score goes. Layers that cannot be cut into such
    blocks stay dense.

    Args:
        rows: outputs of a block.
        columns: inputs of a block.
        sparsity: share of blocks that are zero, in [0, 1).
        scope: "global" ranks all layers of this sparsity together, "local" each on its own.
        criterion: the elements' scores, as of `Unstructured`: with "magnitude" a block counts by
            its L1 norm, with "l2" by its L2 norm.

    Raises:
        ValueError: a value outside of the above.

    Reference:
        Gray et al. 2017, GPU Kernels for Block-Sparse Weights; Narang et al. 2017.
    """

    rows: int
    columns: int
    sparsity: float = 0.5
    scope: str = "global"
    criterion: str = "magnitude"

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("rows", "columns"):
            value = getattr(self, name)
            check(whole(value, 1), "Block", name, "a whole number of at least 1", value)
        _share("Block", self.sparsity)
        check(self.scope in SCOPES[:2], "Block", "scope", f"one of {SCOPES[:2]}", self.scope)
        known = self.criterion in CRITERIA
        check(known, "Block", "criterion", f"one of {CRITERIA}", self.criterion)


Sparsity = NM | Unstructured | Block
