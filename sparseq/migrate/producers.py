"""Whose output each layer reads: one run of a model, values followed by tensor identity."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What torch's quantised kernels compute on the grid of their input: the result keeps its range.
KEEP_RANGE = frozenset(
    "relu relu_ relu6 relu6_ hardtanh hardtanh_ clamp clamp_ clamp_min clip max_pool1d max_pool2d "
    "max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d mean max amax dropout dropout1d "
    "dropout2d flatten unflatten view view_as reshape permute transpose t squeeze unsqueeze "
    "contiguous clone detach chunk split narrow select unbind expand repeat flip roll movedim "
    "swapaxes pad interpolate upsample pixel_shuffle pixel_unshuffle channel_shuffle cat stack "
    "__getitem__ __get__".split()
)


@dataclass
class Flow:
    """What the run showed.

    Attributes:
        reads: by layer, the names of the observers whose output it read; None for a value that
            nothing observes.
        sources: by layer, what made such a value.
        followers: by module, the Identity modules that its result went through, in order: what
            fusing left in place of the modules that it took in.
    """

    reads: dict[str, set[str | None]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    followers: dict[str, list[str]] = field(default_factory=dict)


class _Tags(TorchFunctionMode):
    """Hands an observer's name on from tensor to tensor while the range stays."""

    def __init__(self) -> None:
        super().__init__()
        self.observed: dict[int, str] = {}
        self.made_by: dict[int, str] = {}
        self.held: list[Tensor] = []  # an id is a tensor's own only while the tensor lives

    def hold(self, value: Any) -> list[Tensor]:
        items = value if isinstance(value, (tuple, list)) else [value]
        tensors = [item for item in items if isinstance(item, Tensor)]
        self.held += tensors
        return tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        given = self.hold(args[0]) if args else []
        tags = {self.observed.get(id(tensor)) for tensor in given}
        tag = tags.pop() if len(tags) == 1 and name in KEEP_RANGE else None
        for tensor in self.hold(result):
            if tag is not None:
                self.observed[id(tensor)] = tag
            elif not any(tensor is item for item in given) or not name.startswith("__"):
                self.observed.pop(id(tensor), None)
                self.made_by[id(tensor)] = name
        return result


def follow(
    model: nn.Module, example: Any, layers: list[str], observers: list[str], fused: list[str]
) -> Flow:
    """Run a copy of the model once, in eval mode.

    Args:
        model: with torch.ao's observers or fake-quantisers in it; not changed.
        example: an input, or a tuple of inputs.
        layers: names of the modules whose input is asked for.
        observers: names of the modules that observe.
        fused: names of the modules whose followers are asked for.
    """
    from torch.ao.quantization import disable_observer

    model = copy.deepcopy(model).eval()
    model.apply(disable_observer)  # ranges stay
    modules = dict(model.named_modules())
    flow, tags = Flow(), _Tags()
    origin: dict[int, str] = {}

    def observe(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in tags.hold(output):
                tags.observed[id(tensor)] = name

        return hook

    def read(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            tag = tags.observed.get(id(args[0]))
            flow.reads.setdefault(name, set()).add(tag)
            if tag is None:
                made = tags.made_by.get(id(args[0]))
                flow.sources[name] = "the model's input" if made is None else f"a {made}"

        return hook

    def begin(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in tags.hold(output):
                origin[id(tensor)] = name

        return hook

    def pass_on(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            source = origin.get(id(output))
            if source is not None and name not in flow.followers.setdefault(source, []):
                flow.followers[source].append(name)

        return hook

    for name in observers:
        modules[name].register_forward_hook(observe(name))
    for name in layers:
        modules[name].register_forward_pre_hook(read(name))
    for name in fused:
        modules[name].register_forward_hook(begin(name))
    for name, module in modules.items():
        if type(module) is nn.Identity and not name.endswith("activation_post_process"):
            module.register_forward_hook(pass_on(name))
    inputs = example if isinstance(example, tuple) else (example,)
    with torch.no_grad(), tags:
        model(*inputs)
    return flow
