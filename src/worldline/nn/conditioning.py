"""How the robot's states enter a world: a small module for each way, all of which say it as `Told`.

A world reads `Told` and knows no way by name: it adds what is to be added to its tokens, modulates its blocks, and lets
its tokens read the states' own. Below are the ways of a world over token grids, and the map that both tracks share; the
vectors of a world over latents are `StateModulation` (`nn/states.py`). What each was worth: docs/states.md.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from worldline.nn.kinematics import Silhouette, Skeleton
from worldline.nn.states import Pooling, Standardising, StateEncoder, align
from worldline.schema import TokenGrid, UsageError

Conditioning = Literal["add", "adaln", "cross_attention", "map", "add+map", "adaln+map", "cross_attention+map"]
"""Added to the embeddings of tokens; as shifts, scales and gates of every block; as tokens of their own, which those of
the picture read in every block; as a map of where the robot will be; or as one of the vectors and the map together."""


def vector_of(conditioning: Conditioning) -> str | None:
    """Which of the vectors it has beside the map, if any."""
    vector = conditioning.removesuffix("map").removesuffix("+")
    return vector or None


def has_map(conditioning: Conditioning) -> bool:
    """Whether it is the map, or has it beside a vector."""
    return conditioning.endswith("map")


def refuse_without_skeleton(conditioning: Conditioning, skeleton: Skeleton | None) -> None:
    """Raise `UsageError` where a map is asked for of a robot whose geometry is not known."""
    if has_map(conditioning) and skeleton is None:
        raise UsageError(
            f"conditioning {conditioning!r} draws the robot into its picture, which needs its skeleton: take a recipe "
            "that has one (compression_tiny, sampling_tiny: the twin's), or give your robot's in Python "
            "(model.skeleton, docs/states.md)"
        )


@dataclass(frozen=True, eq=False)
class Told:
    """What a world is told of the states of a window, by where it enters; `l` token grids or latent frames."""

    added: Float[Tensor, "b l #s d"] | None = None
    """To the embeddings of the tokens: the same for all positions of a grid, or one for each."""
    modulation: Float[Tensor, "b l *r d"] | None = None
    """Of every block."""
    tokens: Float[Tensor, "b l m d"] | None = None
    """What the tokens of a grid read by cross-attention."""

    def __getitem__(self, now: slice) -> "Told":
        """Of some of the grids."""
        return Told(*(None if part is None else part[:, now] for part in (self.added, self.modulation, self.tokens)))

    @property
    def grids(self) -> int:
        """How many grids it tells of."""
        return next(part.shape[1] for part in (self.added, self.modulation, self.tokens) if part is not None)

    def first(self, clips: int) -> "Told":
        """Of the first clips."""
        return Told(*(None if part is None else part[:clips] for part in (self.added, self.modulation, self.tokens)))

    def beside(self, places: Float[Tensor, "b l s d"]) -> "Told":
        """The same and a map."""
        return Told(places if self.added is None else self.added + places, self.modulation, self.tokens)


class Added(StateEncoder):
    """Added to the embeddings of a grid's tokens (report, section 3.1; as in Genie)."""

    def told(self, states: Float[Tensor, "b t s"]) -> Told:
        return Told(added=self(states)[:, :, None])


class Modulating(StateEncoder):
    """The same vectors, for adaLN-Zero in every block (Peebles & Xie 2022)."""

    def told(self, states: Float[Tensor, "b t s"]) -> Told:
        return Told(modulation=self(states))


class Attended(Standardising):
    """One token for each state of a grid and of the next one, for cross-attention in every block.

    As much is known of where the robot goes as the other vectors' convolution knows.
    """

    def __init__(
        self, grid: TokenGrid, num_latents: int, state_dim: int, hidden: int, width: int, pooling: Pooling
    ) -> None:
        super().__init__(state_dim)
        self.grid, self.num_frames = grid, grid.frames_of(num_latents)
        self.pooling: Pooling = pooling
        rows = grid.temporal_stride if pooling == "all" else 1
        self.mlp = nn.Sequential(nn.Linear(state_dim, hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.position = nn.Parameter(torch.zeros(2 * rows, width))

    def told(self, states: Float[Tensor, "b t s"]) -> Told:
        x = align((self.first(states, self.num_frames) - self.mean) / self.scale, self.grid, self.pooling)
        own = self.mlp(rearrange(x, "b l (r s) -> b l r s", s=len(self.mean)))
        return Told(tokens=torch.cat([own, following(own)], dim=2) + self.position)


def following(grids: Float[Tensor, "b l *r"]) -> Float[Tensor, "b l *r"]:
    """For each grid what belongs to the next one; the last has none and keeps its own."""
    return torch.cat([grids[:, 1:], grids[:, -1:]], dim=1)


class Drawn(nn.Module):
    """A map of where the robot is in every frame of a grid, to one embedding for each position of the grid.

    The maps of a grid's frames lie side by side, `patch` positions on a side share an embedding. States are raw.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        names: tuple[str, ...],
        shape: tuple[int, int],
        frames: int,
        width: int,
        patch: tuple[int, int] = (1, 1),
    ) -> None:
        """For grids of `shape` positions over so many `frames` each. Raises `UsageError` where these are no square."""
        super().__init__()
        if shape[0] != shape[1]:
            raise UsageError(
                f"a skeleton is drawn into square pictures only, and these are {shape[0]} to {shape[1]}; give another "
                "conditioning (--model.conditioning adaln), or a recipe without one (driven_any)"
            )
        self.silhouette, self.frames, self.patch = Silhouette(skeleton, names, shape[0]), frames, patch
        self.read = nn.Linear(patch[0] * patch[1] * frames * self.silhouette.channels, width)

    def forward(
        self, states: Float[Tensor, "b l r s"], dropped: Bool[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b l n d"]:
        """Of the states of each grid's frames; of `dropped` clips the map is empty."""
        spots = self.silhouette(states.flatten(0, 2)).to(self.read.weight.dtype)
        if dropped is not None:
            spots = spots * ~dropped.repeat_interleave(len(spots) // len(dropped))[:, None, None, None]
        sides = {"b": len(states), "r": self.frames, "p": self.patch[0], "q": self.patch[1]}
        return self.read(rearrange(spots, "(b l r) (i p) (j q) c -> b l (i j) (p q r c)", **sides))
