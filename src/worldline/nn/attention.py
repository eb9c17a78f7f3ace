"""Spatio-temporal transformer blocks: attention within a grid, causal attention along time, feed-forward."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class TemporalCache:
    """Keys and values of past grids for one layer's temporal attention, `(b s) heads t k` each."""

    length = 0
    """Grids in it."""
    kept: tuple[Tensor, Tensor]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append new grids and return all keys and values so far."""
        if self.length:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self.kept, (keys, values), strict=True))
        self.kept, self.length = (keys, values), keys.shape[2]
        return self.kept


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys (QKNorm; report, section 3.1)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "n t d"], *, causal: bool, cache: TemporalCache | None = None
    ) -> Float[Tensor, "n t d"]:
        q, k, v = rearrange(self.qkv(x), "n t (three h k) -> three n h t k", three=3, h=self.heads)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        past, mask = 0, None
        if cache is not None:
            past, (k, v) = cache.length, cache.extend(k, v)
        if causal and past:
            # The built-in causal mask aligns to the first key; with a past, query i may see keys 0 .. past + i.
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=x.device).tril(past)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal and not past)
        return self.out(rearrange(attended, "n h t k -> n t (h k)"))


class STBlock(nn.Module):
    """Pre-norm spatial attention, causal temporal attention, MLP; each on a residual branch with dropout.

    `modulated`: a condition per grid gives each branch a shift and a scale after its norm and a gate before its sum
    (adaLN-Zero; Peebles & Xie 2022). Their projection must start at zero, so that the block first ignores it.
    """

    def __init__(self, width: int, heads: int, *, mlp_ratio: int, dropout: float, modulated: bool) -> None:
        super().__init__()
        self.spatial_norm, self.spatial = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.temporal_norm, self.temporal = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        expand, contract = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)
        self.mlp = nn.Sequential(expand, nn.GELU(), nn.Dropout(dropout), contract)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(width, 9 * width) if modulated else None

    def forward(
        self,
        x: Float[Tensor, "b t s d"],
        cache: TemporalCache | None = None,
        condition: Float[Tensor, "b t d"] | None = None,
    ) -> Float[Tensor, "b t s d"]:
        b, _, s, _ = x.shape

        def over_space(y: Tensor) -> Tensor:
            y = rearrange(y, "b t s d -> (b t) s d")
            return rearrange(self.spatial(y, causal=False), "(b t) s d -> b t s d", b=b)

        def over_time(y: Tensor) -> Tensor:
            y = rearrange(y, "b t s d -> (b s) t d")
            return rearrange(self.temporal(y, causal=True, cache=cache), "(b s) t d -> b t s d", s=s)

        modulations: Iterable[Tensor | None] = (None, None, None)  # shift, scale and gate of each branch
        if self.modulation is not None and condition is not None:
            pattern = "b t (branch three d) -> branch three b t 1 d"
            modulations = rearrange(self.modulation(F.silu(condition)), pattern, branch=3, three=3)
        branches = (self.spatial_norm, over_space), (self.temporal_norm, over_time), (self.mlp_norm, self.mlp)
        for (norm, branch), by in zip(branches, modulations, strict=True):
            y = norm(x)
            y = branch(y if by is None else torch.addcmul(by[0], y, 1 + by[1]))
            x = x + self.dropout(y if by is None else y * (1 + by[2]))
        return x
