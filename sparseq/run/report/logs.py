"""TensorBoard logs of an exercise."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sparseq.run.report.findings import find
from sparseq.run.results import Results

__all__ = ["tensorboard"]


def tensorboard(results: Results, folder: str | os.PathLike[str]) -> Path:
    """Write losses and accuracies by epoch and the measured values for TensorBoard.

    Each variant and seed is a run, ``<variant>/seed-<seed>``: ``loss/<stage>`` and
    ``accuracy/<stage>`` by epoch, and ``result/...`` what was measured. The verdict is a text of
    the run ``analysis``. View them with ``tensorboard --logdir FOLDER``.

    Args:
        results: what to log.
        folder: where; it is made if need be.

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
        OSError: the folder cannot be written.
        ValueError: the results hold no variants, or the best is none of them.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "TensorBoard logs need the package tensorboard: pip install 'sparseq[tensorboard]'"
        ) from error
    findings, folder = find(results), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for variant in results.variants:
        for run in variant.runs:
            name = re.sub(r"[^\w+.-]", "_", variant.name)
            with SummaryWriter(str(folder / name / f"seed-{run.seed}")) as writer:
                for kind, histories in (("loss", run.train_losses), ("accuracy", run.accuracies)):
                    for stage, values in histories.items():
                        for epoch, value in enumerate(values, 1):
                            writer.add_scalar(f"{kind}/{stage}", value, epoch)
                for what, number in (
                    ("accuracy", run.accuracy),
                    ("ms_per_image", variant.ms_per_image),
                    ("size_mb", variant.size_mb),
                    ("sparsity", variant.sparsity),
                ):
                    writer.add_scalar(f"result/{what}", number, 0)
    with SummaryWriter(str(folder / "analysis")) as writer:
        sentences = (*findings.verdict, *findings.reasons, *findings.effects, *findings.caution)
        writer.add_text("analysis", "\n\n".join(sentences), 0)
    return folder
