"""Taking over what was trained with another quantisation toolkit."""

from sparseq.migrate.torch_ao import from_torch_ao

__all__ = ["from_torch_ao"]
