"""Finite scalar quantisation: a codebook without parameters (Mentzer et al. 2023, arXiv 2309.15505).

Index order and code values are those of NVIDIA's Cosmos tokenizers: `digit = code * (L // 2) + L // 2`,
`index = sum(digit * basis)`, `basis = (1, L0, L0*L1, ...)`.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class FSQ(nn.Module):
    """Quantise the last axis to `levels`, one channel per level. Holds no parameters."""

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.vocab_size = math.prod(levels)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis), persistent=False)

    def forward(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Codes in [-1, 1] nearest to the bounded input; gradients pass straight through the rounding."""
        bounded = self._bound(z)
        return self._codes(bounded, bounded.round())

    def with_hysteresis(self, z: Float[Tensor, "b l *n d"], margin: float) -> Float[Tensor, "b l *n d"]:
        """Codes that stay the same along time while the input is within half a level plus `margin` levels of them.

        That is, every channel of it; otherwise the nearest code is taken. At 0 this is `forward`.
        """
        bounded = self._bound(z)
        codes = [bounded[:, 0].round()]
        for now in bounded[:, 1:].unbind(dim=1):
            near = ((now - codes[-1]).abs() <= 0.5 + margin).all(dim=-1, keepdim=True)
            codes.append(torch.where(near, codes[-1], now.round()))
        return self._codes(bounded, torch.stack(codes, dim=1))

    def _codes(self, bounded: Tensor, levels: Tensor) -> Tensor:
        return (bounded + (levels - bounded).detach()) / (self._levels // 2)

    def _bound(self, z: Tensor) -> Tensor:
        # Even level counts have no level at zero: shift by half a step so that rounding still gives L levels.
        # The tiny excess keeps the outermost levels reachable at finite z.
        half = (self._levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def indices(self, codes: Float[Tensor, "*n d"]) -> Int64[Tensor, "*n"]:
        """Token ids in `0 .. vocab_size-1` of codes as `forward` gives them."""
        half = self._levels // 2
        return self.of_digits((codes * half + half).round().long())

    def codes(self, indices: Int64[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Codes in [-1, 1] of token ids; the inverse of `indices`."""
        half = self._levels // 2
        return (self.digits(indices) - half).float() / half

    def digits(self, indices: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n d"]:
        """Levels of the codes of token ids, each counted from 0."""
        return indices.unsqueeze(-1) // self._basis % self._levels

    def of_digits(self, digits: Int64[Tensor, "*n d"]) -> Int64[Tensor, "*n"]:
        """Token ids of levels; the inverse of `digits`."""
        return (digits * self._basis).sum(dim=-1)

    def mean_codes(self, chances: Float[Tensor, "*n d l"]) -> Float[Tensor, "*n d"]:
        """Mean codes in [-1, 1] where every level of a code has a probability of its own."""
        half = self._levels // 2
        values = (torch.arange(chances.shape[-1], device=chances.device) - half[:, None]) / half[:, None]
        return (chances * values).sum(dim=-1)

    @property
    def codebook(self) -> Float[Tensor, "v d"]:
        """Codes of all token ids, in order."""
        return self.codes(torch.arange(self.vocab_size, device=self._basis.device))
