"""Spatio-temporal transformer blocks: attention within a grid, attention along time, feed-forward.

`STBlock` is of a window of fixed length (the report's), `SlidingBlock` of a past without end, of which it sees a part.
"""

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


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others, with normalised queries and keys.

    The last projection must start at zero where a network is to begin as if there were nothing to read.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.pair = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n s d"], others: Float[Tensor, "n m d"]) -> Float[Tensor, "n s d"]:
        q = rearrange(self.query(x), "n s (h k) -> n h s k", h=self.heads)
        k, v = rearrange(self.pair(others), "n m (two h k) -> two n h m k", two=2, h=self.heads)
        attended = F.scaled_dot_product_attention(self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v)
        return self.out(rearrange(attended, "n h s k -> n s (h k)"))


class Reader(nn.Module):
    """A residual branch before a block: the tokens of a grid read what belongs to their grid."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), CrossAttention(width, heads)

    def forward(self, x: Float[Tensor, "b t s d"], others: Float[Tensor, "b t m d"]) -> Float[Tensor, "b t s d"]:
        read = self.attention(self.norm(x).flatten(0, 1), others.flatten(0, 1))
        return x + read.unflatten(0, x.shape[:2])


class STBlock(nn.Module):
    """Pre-norm spatial attention, temporal attention, MLP; each on a residual branch with dropout.

    `causal`: along time a grid sees itself and those before it; else all of them, and there is no cache.
    `modulated`: a condition per grid gives each branch a shift and a scale after its norm and a gate before its sum
    (adaLN-Zero; Peebles & Xie 2022). Their projection must start at zero, so that the block first ignores it.
    """

    def __init__(
        self, width: int, heads: int, *, mlp_ratio: int, dropout: float, modulated: bool, causal: bool = True
    ) -> None:
        super().__init__()
        self.causal = causal
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
            return rearrange(self.temporal(y, causal=self.causal, cache=cache), "(b s) t d -> b t s d", s=s)

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


class SlidingAttention(nn.Module):
    """Causal attention along time over the last `window` grids and the own one, however long the past is.

    A position in time is told by its distance alone: a learned bias per head. So keys and values hold for good, and a
    cache is never computed again. All heads share one pair of keys and values (Shazeer 2019), which makes the cache
    smaller by the number of heads. Queries and keys are normalised.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window, self.size = heads, window, width // heads
        self.query, self.pair = nn.Linear(width, width), nn.Linear(width, 2 * self.size)
        self.q_norm, self.k_norm = nn.LayerNorm(self.size), nn.LayerNorm(self.size)
        self.out = nn.Linear(width, width)
        self.distance = nn.Parameter(torch.zeros(heads, window + 1))

    def forward(
        self, x: Float[Tensor, "n t d"], past: Float[Tensor, "n p two k"]
    ) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n q two k"]]:
        """The result for the grids that follow `p` earlier ones, and keys and values of the last `window` of all."""
        q = self.q_norm(rearrange(self.query(x), "n t (h k) -> n h t k", h=self.heads))
        keys, values = self.pair(x).chunk(2, dim=-1)
        kept = torch.cat([past, torch.stack([self.k_norm(keys), values], dim=2)], dim=1)
        k, v = (part[:, None].expand(-1, self.heads, -1, -1) for part in kept.unbind(dim=2))
        attended = F.scaled_dot_product_attention(q, k, v, self.bias(past.shape[1], x.shape[1]))
        return self.out(rearrange(attended, "n h t k -> n t (h k)")), kept[:, -self.window :]

    def bias(self, past: int, now: int) -> Float[Tensor, "h now all"]:
        """What is added to the products of queries and keys: by distance, and minus infinity for what is not seen."""
        device = self.distance.device
        distance = torch.arange(past, past + now, device=device)[:, None] - torch.arange(past + now, device=device)
        seen = (distance >= 0) & (distance <= self.window)
        return self.distance[:, distance.clamp(0, self.window)].masked_fill(~seen, -torch.inf)


class SlidingBlock(nn.Module):
    """Attention within a grid, `SlidingAttention` along time, MLP; each a residual branch that a condition modulates.

    A condition per grid gives every branch a shift, a scale and a gate (adaLN; the projection starts at zero, where a
    gate is 1, as in `STBlock`).
    """

    def __init__(self, width: int, heads: int, *, mlp_ratio: int, window: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.spatial, self.temporal = Attention(width, heads, 0.0), SlidingAttention(width, heads, window)
        expand, contract = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)
        self.mlp = nn.Sequential(expand, nn.GELU(), contract)
        self.modulation = nn.Linear(width, 9 * width)

    def forward(
        self, x: Float[Tensor, "b t s d"], condition: Float[Tensor, "b t d"], past: Float[Tensor, "b s p two k"]
    ) -> tuple[Float[Tensor, "b t s d"], Float[Tensor, "b s q two k"]]:
        """Grids after it, and the keys and values that the next ones need."""
        b = len(x)
        by = rearrange(
            self.modulation(F.silu(condition)), "b t (branch three d) -> branch three b t 1 d", branch=3, three=3
        )
        y = rearrange(self._told(0, x, by), "b t s d -> (b t) s d")
        x = x + (1 + by[0, 2]) * rearrange(self.spatial(y, causal=False), "(b t) s d -> b t s d", b=b)
        y = rearrange(self._told(1, x, by), "b t s d -> (b s) t d")
        y, kept = self.temporal(y, past.flatten(0, 1))
        x = x + (1 + by[1, 2]) * rearrange(y, "(b s) t d -> b t s d", b=b)
        x = x + (1 + by[2, 2]) * self.mlp(self._told(2, x, by))
        return x, kept.unflatten(0, (b, -1))

    def _told(self, branch: int, x: Tensor, by: Tensor) -> Tensor:
        return torch.addcmul(by[branch, 0], self.norms[branch](x), 1 + by[branch, 1])
