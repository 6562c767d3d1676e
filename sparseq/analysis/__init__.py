"""Where accuracy goes, and which layer should have which precision."""

from sparseq.analysis.budget import Budget
from sparseq.analysis.candidates import CANDIDATES
from sparseq.analysis.diagnose import diagnose
from sparseq.analysis.diagnosis import Diagnosis, DiagnosisRow, PartRow
from sparseq.analysis.ratios import sparsity_levels, sparsity_plan
from sparseq.analysis.search import Found, search
from sparseq.analysis.sensitivity import Sensitivity, SensitivityRow, sensitivity

__all__ = [
    "CANDIDATES",
    "Budget",
    "Diagnosis",
    "DiagnosisRow",
    "Found",
    "PartRow",
    "Sensitivity",
    "SensitivityRow",
    "diagnose",
    "search",
    "sensitivity",
    "sparsity_levels",
    "sparsity_plan",
]
