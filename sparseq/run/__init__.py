"""The exercise: data, models, a plain training loop, the eight variants and their report."""
