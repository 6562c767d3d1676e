"""What layers cost: bytes in a file, and milliseconds on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from sparseq.analysis.network import Network
from sparseq.batches import Batch
from sparseq.bench import compare
from sparseq.bench.sizes import file_bytes
from sparseq.flow.encodings import encode
from sparseq.nn import SparseQuantLayer

REPEATS, WARMUP = 15, 2
Costs = dict[tuple[str, str], float]


def file_megabytes(model: nn.Module) -> float:
    """Size of the file that `save` writes."""
    return file_bytes(model) / 1e6


def layer_megabytes(layer: nn.Module) -> float:
    """What a converted layer takes of the file, its entries in the header left out."""
    int4 = isinstance(layer, SparseQuantLayer) and layer.weight_spec.bits <= 4
    total = 0
    for name, value in layer.state_dict().items():
        if isinstance(value, Tensor):
            parts, _ = encode(name, value, int4 and name == "weight_values")
            total += sum(part.numel() * part.element_size() for part in parts.values())
    return total / 1e6


def megabytes(networks: Mapping[str, nn.Module], names: list[str]) -> tuple[Costs, float]:
    """Of each layer under each candidate, and of all the rest.

    Args:
        networks: converted, by candidate.
        names: of the layers.
    """
    costs = {
        (name, label): layer_megabytes(network.get_submodule(name))
        for name in names
        for label, network in networks.items()
    }
    beside = {
        label: file_megabytes(network) - sum(costs[name, label] for name in names)
        for label, network in networks.items()
    }
    rest = min(beside.values())
    # what a candidate's layers say of themselves in the header, in equal parts
    costs = {
        (name, label): cost + (beside[label] - rest) / len(names)
        for (name, label), cost in costs.items()
    }
    return costs, rest


def milliseconds(
    plain: nn.Module, networks: Mapping[str, nn.Module], names: list[str], example: Tensor
) -> tuple[Costs, float]:
    """Of each layer under each candidate on the inputs it really gets, and of all the rest.

    Candidates take turns, so that a busy moment of the machine hits them all; medians.

    Args:
        plain: the float network.
        networks: converted for the example, by candidate.
        names: of the layers.
        example: an input of the network.
    """
    calls: dict[str, list[tuple[Any, Any]]] = {name: [] for name in names}

    def note(name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        copies = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
        calls[name].append((copies, kwargs))

    Network("search", plain, names, ()).record(Batch((example,), {}, None), note)
    costs: Costs = {}
    for name in names:
        times = dict.fromkeys(networks, 0.0)
        for args, kwargs in calls[name]:
            timed = compare(
                {
                    label: partial(network.get_submodule(name), *args, **kwargs)
                    for label, network in networks.items()
                },
                repeats=REPEATS,
                warmup=WARMUP,
            )
            for label, latency in timed.items():
                times[label] += latency.median_ms
        costs |= {(name, label): time for label, time in times.items()}
    whole = network_milliseconds(networks, example)
    rests = [whole[label] - sum(costs[name, label] for name in names) for label in networks]
    return costs, max(0.0, statistics.median(rests))


def network_milliseconds(networks: Mapping[str, nn.Module], example: Tensor) -> dict[str, float]:
    """Medians of one call of each network, taking turns."""
    calls = {label: partial(network, example) for label, network in networks.items()}
    timed = compare(calls, repeats=REPEATS, warmup=WARMUP)
    return {label: latency.median_ms for label, latency in timed.items()}
