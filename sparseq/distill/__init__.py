"""Distillation: a small student learns from large teachers' answers and from their features.

``Loss(teacher, terms=[...])`` is the whole of it: what the teacher answers, softened, and any
number of terms on layers paired by name.
"""

from sparseq.distill.attention import AttentionTransfer, attention_loss
from sparseq.distill.cache import CachedLogits, digest
from sparseq.distill.hint import Hint
from sparseq.distill.logits import Decoupled, decoupled_loss, kd_loss, mixed_logits
from sparseq.distill.loss import Loss
from sparseq.distill.relational import Relational, angle_loss, distance_loss
from sparseq.distill.term import Term

__all__ = [
    "AttentionTransfer",
    "CachedLogits",
    "Decoupled",
    "Hint",
    "Loss",
    "Relational",
    "Term",
    "angle_loss",
    "attention_loss",
    "decoupled_loss",
    "digest",
    "distance_loss",
    "kd_loss",
    "mixed_logits",
]
