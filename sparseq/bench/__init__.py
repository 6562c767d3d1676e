"""Measure a model: time, throughput, memory, size, accuracy; and two beside each other."""

from sparseq.bench.benchmark import Benchmark, benchmark_model
from sparseq.bench.comparison import Agreement, Comparison, agreement, burst_ratio, compare
from sparseq.bench.environment import environment
from sparseq.bench.memory import Memory, measure_memory
from sparseq.bench.sizes import Size, accuracy, model_size, size_mb, sparsity
from sparseq.bench.sweep import Throughput, throughput
from sparseq.bench.timing import Latency, alternate, burst, latency

__all__ = [
    "Agreement",
    "Benchmark",
    "Comparison",
    "Latency",
    "Memory",
    "Size",
    "Throughput",
    "accuracy",
    "agreement",
    "alternate",
    "benchmark_model",
    "burst",
    "burst_ratio",
    "compare",
    "environment",
    "latency",
    "measure_memory",
    "model_size",
    "size_mb",
    "sparsity",
    "throughput",
]
