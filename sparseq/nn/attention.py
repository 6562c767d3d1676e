"""MultiheadAttention with projections that are layers of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_PACKED = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _linear(weight: Tensor, bias: Tensor | None, training: bool) -> nn.Linear:
    """A Linear of these very tensors."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = _parameter(weight)
    if bias is not None:
        made.bias = _parameter(bias)
    return made.train(training)


def _parameter(value: Tensor) -> nn.Parameter:
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.detach(), requires_grad=value.requires_grad)


def projections(attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """The projections of torch's attention as layers, on views of its parameters.

    They are to look at: nothing calls them.
    """
    packed, bias = attention.in_proj_weight, attention.in_proj_bias
    names = PROJECTIONS[:3]
    weights = [getattr(attention, f"{name}_weight") for name in names]
    if packed is not None:
        weights = list(packed.chunk(3))
    biases = [None] * 3 if bias is None else list(bias.chunk(3))
    linears = {
        name: _linear(w, b, attention.training)
        for name, w, b in zip(names, weights, biases, strict=True)
    }
    out = attention.out_proj
    linears["out_proj"] = _linear(out.weight, out.bias, attention.training)
    return linears


class MultiheadAttention(nn.Module):
    """nn.MultiheadAttention with `q_proj`, `k_proj`, `v_proj` and `out_proj` as nn.Linear.

        heads = softmax(q k^T / sqrt(d) + masks) v,    y = out_proj(heads side by side)

    torch's own keeps three of them in one parameter and calls none, so that nothing can be hung on
    them. Arguments and results are torch's; `prepare` makes one of torch's where its plan reaches a
    projection. Between the projections it computes in float. It takes no nested tensors.

    Args:
        embed_dim: features of query and result.
        num_heads: divides embed_dim.
        dropout: of the attention weights, in training.
        bias: of the projections.
        add_bias_kv: one learned key and value more.
        add_zero_attn: one key and value of zeros more.
        kdim: features of key; None for embed_dim.
        vdim: features of value; None for embed_dim.
        batch_first: `[batch, length, features]` rather than `[length, batch, features]`.

    Reference:
        Vaswani et al. 2017, section 3.2.
    """

    # what nn.TransformerEncoder and its layer look at, to keep them off their fused float kernel
    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    embed_dim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        like = nn.MultiheadAttention(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first
        )
        self.__dict__.update(take_over(like).__dict__)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention.

        Args:
            query: `[L, N, E]`, `[N, L, E]` if batch_first, or `[L, E]`.
            key: `[S, N, kdim]`, alike.
            value: `[S, N, vdim]`, alike.
            key_padding_mask: `[N, S]` or `[S]`: bool, True leaves out; or float, added.
            need_weights: return the attention weights, too.
            attn_mask: `[L, S]` or `[N * heads, L, S]`: bool, True leaves out; or float, added.
            average_attn_weights: the mean over heads.
            is_causal: a hint that attn_mask is the causal one.

        Returns:
            (y, weights): y shaped as query; weights `[N, L, S]`, `[N, heads, L, S]` if they are not
            averaged, without N as query; None if not needed.

        Raises:
            ValueError: a shape.
            RuntimeError: is_causal without attn_mask.
        """
        batched = query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if query.dim() != 3 or key.dim() != 3 or key.shape[:2] != value.shape[:2]:
            raise ValueError(
                "MultiheadAttention: query, key and value must have 3 dimensions, or 2, and key "
                f"and value the same length, got {tuple(query.shape)}, {tuple(key.shape)} and "
                f"{tuple(value.shape)}"
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("MultiheadAttention: is_causal must come with its attn_mask")
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None  # the product knows it without
        else:
            is_causal = False
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        k, v, mask = self._extended(k, v, mask)
        q, k, v = (
            x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v)
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * math.sqrt(1.0 / self.head_dim) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, dropout) if dropout else weights
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        y = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights

    def _mask(
        self, q: Tensor, k: Tensor, attention: Tensor | None, padding: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores, for a shape of `[N, heads, L, S]`."""
        (batch, length, _), (_, keys, _) = q.shape, k.shape
        shapes = [(length, keys), (batch * self.num_heads, length, keys)]
        if attention is not None and tuple(attention.shape) not in shapes:
            raise ValueError(
                f"MultiheadAttention: attn_mask must have shape {shapes[0]} or {shapes[1]}, "
                f"got {tuple(attention.shape)}"
            )
        if padding is not None and padding.shape != (batch, keys):
            raise ValueError(
                f"MultiheadAttention: key_padding_mask must have shape {(batch, keys)}, "
                f"got {tuple(padding.shape)}"
            )
        mask = None
        if attention is not None:
            mask = _added("attn_mask", attention, q)
            mask = (
                mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (batch, self.num_heads))
            )
        if padding is None:
            return mask
        keep = _added("key_padding_mask", padding, q)[:, None, None]
        return keep if mask is None else mask + keep

    def _extended(
        self, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with the learned pair and the pair of zeros, where there are such."""
        count = k.shape[1]
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, bias.to(x.dtype).expand(len(x), -1, -1)], 1)
                for x, bias in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        more = k.shape[1] - count
        return k, v, mask if mask is None or not more else functional.pad(mask, (0, more))

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}"


def _added(name: str, mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add."""
    if mask.is_floating_point():
        return mask
    if mask.dtype != torch.bool:
        got = str(mask.dtype).removeprefix("torch.")
        raise TypeError(f"MultiheadAttention: {name} must be bool or floating, got {got}")
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def take_over(attention: nn.MultiheadAttention) -> MultiheadAttention:
    """Make torch's attention ours in place: the object, its hooks and settings stay.

    Its projections' parameters are new ones, so that each has a gradient of its own.
    """
    made = projections(attention)
    for name in PROJECTIONS[:3]:  # views of one parameter become tensors of their own
        linear = made[name]
        for key, held in list(linear.named_parameters()):
            copied = nn.Parameter(held.detach().clone(), requires_grad=held.requires_grad)
            setattr(linear, key, copied)
    for name in _PACKED:
        del attention._parameters[name]
    del attention._modules["out_proj"], attention.__dict__["_qkv_same_embed_dim"]
    attention.__class__ = MultiheadAttention  # type: ignore[assignment]
    for name, linear in made.items():
        attention.register_module(name, linear)
    return attention  # type: ignore[return-value]
