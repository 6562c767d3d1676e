"""Which batch norms follow a layer directly."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from sparseq.nn import MultiheadAttention, outputs_first, own_forward

_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
}


class _Tracer(fx.Tracer):
    """Sees layers as leaves, parametrised or not."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        leaves = (*_NORMS, MultiheadAttention)
        return isinstance(module, leaves) or super().is_leaf_module(module, name)


def _normalises_channels(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether a layer's output channels are what BatchNorm1d normalises: always dimension 1.

    Not behind a Linear on `[N, L, F]`, nor a Conv1d on `[C, L]`. The input quantiser has seen the
    dimensions; where there is none, they are taken to be the usual ones.
    """
    if not isinstance(norm, nn.BatchNorm1d):
        return True
    usual = 3 if isinstance(layer, nn.Conv1d) else 2
    return bool(getattr(layer, "sparseq_dims", usual) == usual)


def batch_norms(model: nn.Module) -> tuple[dict[str, str], str | None]:
    """Pairs of a layer and the batch norm that is its only reader, each called once.

    Args:
        model: traced with torch.fx; not changed.

    Returns:
        ({layer name: batch norm name}, None), or ({}, the reason) where the model cannot be traced.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own forward: it may raise anything
        return {}, f"torch.fx cannot trace the model ({type(error).__name__}: {error})"
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    pairs = {}
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            continue
        source, norm = node.args[0], modules[node.target]
        if source.op != "call_module" or len(source.users) != 1:
            continue
        layer = modules[source.target]
        bases = [a for a, b in _NORMS.items() if isinstance(layer, a) and isinstance(norm, b)]
        fits = bool(bases) and _normalises_channels(layer, norm)
        fits = fits and norm.num_features == len(outputs_first(layer, layer.weight))
        fits = fits and own_forward(layer, bases[0]) is None
        once = calls[node.target] == 1 and calls[source.target] == 1
        if fits and once and norm.running_mean is not None:
            pairs[str(source.target)] = str(node.target)
    return pairs, None
