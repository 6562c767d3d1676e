"""Whether a difference of accuracies is more than noise."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from sparseq.run.report.effects import difference_margin, pooled
from sparseq.run.results import Results, Variant

__all__ = ["Grade", "Noise"]

Grade = Literal["noise", "unsure", "clear"]


@dataclass(frozen=True)
class Noise:
    """How far accuracies vary by chance: with the images of the test set, and from seed to seed.

    Attributes:
        images: of the test set, None where the results do not say.
        scale: standard deviation of a variant's accuracy from seed to seed in points, pooled over
            the variants; None where there is one seed.
        degrees: of freedom of ``scale``.
    """

    images: int | None
    scale: float | None
    degrees: int

    @classmethod
    def of(cls, results: Results) -> Noise:
        """Return the noise of an exercise's results."""
        scale, degrees = pooled([_accuracies(variant) for variant in results.variants])
        return cls(test_images(results), scale, degrees)

    def sampling(self, *accuracies: float) -> float | None:
        """Return the standard error in points that the finite test set gives an accuracy.

        ``100 sqrt(p (1 - p) / n)``, the largest of the accuracies', and at least one image's
        worth: at 100 % the formula would promise that no image can ever be missed. Seeds do not
        average it out, because all of them are tested on the same images.
        """
        if self.images is None:
            return None
        shares = [accuracy / 100 for accuracy in accuracies]
        return max(100 / self.images, *(100 * math.sqrt(p * (1 - p) / self.images) for p in shares))

    def grade(self, difference: float, *accuracies: float, margin: float | None) -> Grade:
        """Say how sure a difference of accuracies is.

        Args:
            difference: in points.
            accuracies: those compared, in percent.
            margin: half the width of the difference's 95 % interval over the seeds, None with one.

        Returns:
            "noise" up to the test set's standard error or within the seeds' margin; "clear"
            beyond ``1.96 sqrt(2)`` standard errors, the 95 % bound for two independent test sets;
            "unsure" in between, and where the size of the test set is not known.
        """
        sampling = self.sampling(*accuracies)
        if abs(difference) <= max(sampling or 0.0, margin or 0.0):
            return "noise"
        if sampling is None:
            return "unsure"
        return "clear" if abs(difference) > 1.96 * math.sqrt(2) * sampling else "unsure"

    def compare(self, one: Variant, two: Variant) -> Grade:
        """Say how sure the difference of two variants' accuracies is."""
        margin = difference_margin(_accuracies(one), _accuracies(two), self.scale, self.degrees)
        return self.grade(one.accuracy - two.accuracy, one.accuracy, two.accuracy, margin=margin)


def _accuracies(variant: Variant) -> list[float]:
    return [run.accuracy for run in variant.runs] or [variant.accuracy]


def test_images(results: Results) -> int | None:
    """Return how many test images the line about the data names, "... + 500 images"."""
    match = re.search(r"\+ ([\d,]+)(?: test)? images", results.data)
    return int(match[1].replace(",", "")) or None if match else None
