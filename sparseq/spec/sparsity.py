"""Which weights become zero."""

from __future__ import annotations

from dataclasses import dataclass

from sparseq.spec.check import check, whole


@dataclass(frozen=True)
class NM:
    """Fine-grained structured sparsity: of every m neighbours along the input, n are kept.

    Along input features of a linear layer, along input channels for each tap of a convolution.
    NM(2, 4) is what 2:4 hardware and kernels take. Layers whose input is not a multiple of m stay
    dense.

    Raises:
        ValueError: unless 1 <= n < m.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        """Check n and m."""
        check(whole(self.m, 2), "NM", "m", "a whole number of at least 2", self.m)
        check(whole(self.n, 1, self.m - 1), "NM", "n", f"from 1 to m - 1 = {self.m - 1}", self.n)

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.n / self.m


@dataclass(frozen=True)
class Unstructured:
    """Unstructured magnitude sparsity: the `sparsity` share of least magnitude becomes zero.

    Args:
        sparsity: share of zeros, in [0, 1).
        scope: "global" ranks all layers of this sparsity together, "local" each on its own.

    Raises:
        ValueError: a value outside of the above.
    """

    sparsity: float = 0.5
    scope: str = "global"

    def __post_init__(self) -> None:
        """Check sparsity and scope."""
        value = self.sparsity
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        check(number and 0 <= value < 1, "Unstructured", "sparsity", "in [0, 1)", value)
        scopes = ("global", "local")
        check(self.scope in scopes, "Unstructured", "scope", f"one of {scopes}", self.scope)


Sparsity = NM | Unstructured
