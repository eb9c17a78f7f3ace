"""The driven world: a causal transformer over token grids that predicts the next grid from the states up to that grid.

It has no window: keys and values of the last grids are kept (`Past`), and one more grid costs one pass over that grid,
for ever. Where the report's world (`st_transformer.py`) reads and predicts whole tokens out of a vocabulary, this one
reads and predicts the digits of a token's FSQ code, each by itself, which takes 32 numbers in place of 4,096 and lets
several tokens share a position. All of this was chosen by us; what it was worth: docs/driven.md.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from worldline.checks import MOST, Limit, Positive, Share, refuse
from worldline.contract import ModelConfig
from worldline.nn.attention import SlidingBlock
from worldline.nn.conditioning import Drawn, Told
from worldline.nn.fsq import FSQ
from worldline.nn.kinematics import Skeleton
from worldline.nn.states import Standardising, align
from worldline.process.categorical import Sampling, draw
from worldline.schema import Batch, TokenGrid, UsageError
from worldline.worlds.grids import refuse_other_grids, refuse_other_levels

Digits = Float[Tensor, "b t h w n levels"]
"""Logits of the digits of each token; minus infinity beyond the levels of a digit."""
Past = Float[Tensor, "b layers s _ two k"]
"""Keys and values of the last grids, in every layer and at every position of a grid."""
STEP = 10.0
"""A state changes by about a tenth of its deviation from one frame to the next."""


@dataclass(frozen=True, kw_only=True)
class CausalConfig(ModelConfig):
    """All of the world that is chosen; grid and state come from the data (`build`)."""

    kind: Literal["causal"] = "causal"
    context_grids: Annotated[int, Limit(least=2)] = 16
    """Grids that an imagined episode begins with, and that attention along time sees ever after: the present one and
    those before it. So the past is as long at the first step as at every other."""
    horizon_grids: Annotated[int, Limit(least=1)] = 24
    """Grids after the context in a clip of the training."""
    width: int = 160
    heads: int = 4
    layers: int = 4
    mlp_ratio: int = 4
    patch: Annotated[int, Limit(least=1)] = 2
    """Tokens on a side that share a position of the transformer."""
    code_levels: tuple[Annotated[int, Limit(least=2, most=MOST)], ...] = (8, 8, 8, 8)
    """FSQ levels of the tokenizer; a run with one puts its own here."""
    init_std: Positive = 0.02
    skeleton: Skeleton | None = None
    """Where to find the robot in its own picture: then the world is also shown where each of its parts will be."""
    state_hidden: int = 256
    normalise_states: bool = True
    """Standardise states with the training data's statistics, which the checkpoint then contains."""
    unconditional: bool = False
    """Ignore the states: the baseline that shows what conditioning on states is worth."""
    own_from: Share = 1.0
    """Share of the training after which the world goes on from its own roll-outs: the grids after the context are then
    what it predicts itself, and the targets stay the real future. 1: never."""

    temperature: float = 0.3
    """At which a forecast draws each digit, if no other is asked for; 0 takes the likeliest. Where a pushed object goes
    is never quite certain; the likeliest digits are then the table's, and it fades away. Drawn with some care it stays
    (chosen on starts of its own: docs/driven.md)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            refuse(self, "heads", f"a divisor of the width {self.width}")

    @property
    def draws_map(self) -> bool:
        return self.skeleton is not None and not self.unconditional

    def build(self, grid: TokenGrid, state_names: tuple[str, ...]) -> "CausalWorld":
        """A world over tokens that lie so, told states of these names. Raises `UsageError` where there is none."""
        return CausalWorld(self, grid, state_names)


class CausalWorld(nn.Module):
    """Predicts the next grid. States enter in raw units, one row per video frame."""

    progress: float = 1.0
    """Share of the training that is done (`training.loop.Paced`)."""

    def __init__(self, config: CausalConfig, grid: TokenGrid, state_names: tuple[str, ...]) -> None:
        super().__init__()
        if grid.latents_per_block != 1:
            raise UsageError(
                f"a causal world predicts one grid a frame, but this tokenizer makes {grid.latents_per_block} grids of "
                f"{grid.block} frames; give one of single frames (a training of tokenizer_driven)"
            )
        refuse_other_levels(config.code_levels, grid)
        if grid.height % config.patch or grid.width % config.patch:
            sides = f"{grid.height}x{grid.width}"
            raise UsageError(f"grids of {sides} tokens do not divide into squares of {config.patch} (--model.patch)")
        self.config, self.grid, self.state_dim = config, grid, len(state_names)
        self.context_grids, self.quantiser = config.context_grids, FSQ(config.code_levels)
        self.levels, digits = max(config.code_levels), len(config.code_levels)
        inside, width = config.patch**2 * digits * self.levels, config.width
        self.shape = {"h": grid.height // config.patch, "p": config.patch, "q": config.patch, "n": digits}
        self.read, self.write = nn.Linear(inside, width), nn.Linear(width, inside)
        self.position = nn.Parameter(torch.empty(self.shape["h"] * grid.width // config.patch, width))
        self.states = None if config.unconditional else MoveEncoder(grid, self.state_dim, config.state_hidden, width)
        self.still = nn.Parameter(torch.zeros(width)) if config.unconditional else None
        self.drawn = None
        if config.draws_map:
            assert config.skeleton is not None, "a map is drawn of one only"
            sides = (grid.height, grid.width), 1, width, (config.patch, config.patch)
            self.drawn = Drawn(config.skeleton, state_names, *sides)
        sizes = {"mlp_ratio": config.mlp_ratio, "window": config.context_grids - 1}
        self.blocks = nn.ModuleList(SlidingBlock(width, config.heads, **sizes) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        real = torch.arange(self.levels) < torch.tensor(config.code_levels)[:, None]
        self.register_buffer(
            "beyond", torch.zeros(digits, self.levels).masked_fill(~real, -torch.inf), persistent=False
        )
        self.initialise()

    beyond: Tensor

    def initialise(self) -> None:
        """N(0, std) for weights of linear layers and positions, 0 for biases and the projections of adaLN."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.init_std)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.position, std=self.config.init_std)
        for block in self.blocks:
            if isinstance(block, SlidingBlock):
                nn.init.zeros_(block.modulation.weight)

    def conditions(self, states: Float[Tensor, "b t s"]) -> Told:
        """What each grid but the last is told of the way to the next one."""
        if self.states is None:
            assert self.still is not None, "an unconditional world"
            return Told(modulation=self.still.expand(len(states), self.grid.grids_of(states.shape[1]) - 1, -1))
        told = Told(modulation=self.states(states))
        if self.drawn is None:
            return told
        then = align(states, self.grid, "last")[:, 1:]
        return told.beside(self.drawn(then[:, :, None]))

    def forward(self, tokens: Int64[Tensor, "b t h w"], told: Told, past: Past | None = None) -> tuple[Digits, Past]:
        """Logits of the grid after each, and the past with these grids: a pass over the new ones alone."""
        refuse_other_grids(tokens, self.grid)
        hot = F.one_hot(self.quantiser.digits(tokens), self.levels).to(self.position.dtype)
        sides = {"p": self.config.patch, "q": self.config.patch}
        x = self.read(rearrange(hot, "b t (i p) (j q) n l -> b t (i j) (p q n l)", **sides))
        x, kept = self.through(x, told, past)
        grid = {"i": self.shape["h"], **sides, "n": self.shape["n"]}
        logits = rearrange(self.write(x), "b t (i j) (p q n l) -> b t (i p) (j q) n l", **grid)
        return logits.float() + self.beyond, kept

    def through(
        self, x: Float[Tensor, "b t s d"], told: Told, past: Past | None
    ) -> tuple[Float[Tensor, "b t s d"], Past]:
        """What has been read of grids, to features of what follows each, and the past with these grids."""
        assert told.modulation is not None, "conditions gives every grid a vector"
        x = x + self.position if told.added is None else x + self.position + told.added
        if past is None:
            past = x.new_zeros(len(x), len(self.blocks), x.shape[2], 0, 2, self.config.width // self.config.heads)
        kept = []
        for block, own in zip(self.blocks, past.unbind(dim=1), strict=True):
            x, grown = block(x, told.modulation, own)
            kept.append(grown)
        return self.norm(x), torch.stack(kept, dim=1)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of every grid but the first, in nats per token: the sum over the digits of its code.

        From `own_from` on, of the grids after the context alone, along the world's own greedy roll-out.

        Raises `UsageError` for a batch without tokens, or with another number of grids.
        """
        del generator  # nothing is drawn
        count = self.config.context_grids + self.config.horizon_grids
        if batch.tokens is None:
            raise UsageError("a token world needs tokens; tokenize the source first (`worldline data tokenize`)")
        if batch.tokens.shape[1] != count:
            raise UsageError(f"expected {count} token grids of context and horizon, found {batch.tokens.shape[1]}")
        tokens, told = batch.tokens, self.conditions(batch.states)
        own = self.training and self.progress >= self.config.own_from < 1
        loss = self.own_cost(tokens, told) if own else self.cost(self.forward(tokens[:, :-1], told)[0], tokens[:, 1:])
        return loss.mean(), {"own_roll_outs": float(own)}

    def own_loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Nats per token of the true grids after the context, along the world's own greedy roll-out."""
        assert batch.tokens is not None, "the teacher-forced loss has read them"
        return self.own_cost(batch.tokens, self.conditions(batch.states)).mean()

    def roll_out(self, batch: Batch) -> Int64[Tensor, "b f h w"]:
        """The world's own greedy grids after the context."""
        assert batch.tokens is not None, "a batch of tokens"
        context = batch.tokens[:, : self.context_grids]
        return self.rolled(context, self.conditions(batch.states))[:, self.context_grids :]

    def own_cost(self, tokens: Int64[Tensor, "b l h w"], told: Told) -> Float[Tensor, "b f h w"]:
        """Nats of each true token after the context, along the world's own greedy roll-out."""
        context = self.context_grids
        logits, _ = self.forward(self.rolled(tokens[:, :context], told)[:, :-1], told)
        return self.cost(logits[:, context - 1 :], tokens[:, context:])

    def cost(self, logits: Digits, tokens: Int64[Tensor, "b t h w"]) -> Float[Tensor, "b t h w"]:
        """Nats of each true token."""
        digits = self.quantiser.digits(tokens)
        costs = F.cross_entropy(logits.flatten(0, -2), digits.flatten(), reduction="none")
        return costs.view_as(digits).sum(dim=-1)

    @torch.no_grad()
    def rolled(self, context: Int64[Tensor, "b c h w"], told: Told) -> Int64[Tensor, "b l h w"]:
        """The context and the world's own greedy grids after it, as far as it is told of."""
        count = context.shape[1]
        logits, past = self.forward(context, told[:count])
        grids = [context, self.quantiser.of_digits(logits[:, -1:].argmax(dim=-1))]
        for t in range(count, told.grids):
            logits, past = self.forward(grids[-1], told[t : t + 1], past)
            grids.append(self.quantiser.of_digits(logits.argmax(dim=-1)))
        return torch.cat(grids, dim=1)

    def chosen(
        self, logits: Float[Tensor, "b h w n l"], sampling: Sampling, generators: list[torch.Generator] | None
    ) -> Int64[Tensor, "b h w"]:
        """Tokens of one grid, each digit chosen by itself."""
        return self.quantiser.of_digits(draw(logits, sampling, generators))

    def mean_codes(self, logits: Float[Tensor, "b h w n l"]) -> Float[Tensor, "b h w n"]:
        """The mean code of each token's distribution, in [-1, 1]."""
        return self.quantiser.mean_codes(logits.softmax(dim=-1))


class MoveEncoder(Standardising):
    """The states of a grid and of the next one, and their difference, to one vector: where the robot is led now."""

    def __init__(self, grid: TokenGrid, state_dim: int, hidden: int, width: int) -> None:
        super().__init__(state_dim)
        self.grid = grid
        self.mlp = nn.Sequential(nn.Linear(3 * state_dim, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, states: Float[Tensor, "b t s"]) -> Float[Tensor, "b u d"]:
        """One vector for each grid but the last. Raises `UsageError` for states of another dimension."""
        x = align((self.first(states, states.shape[1]) - self.mean) / self.scale, self.grid, "last")
        now, then = x[:, :-1], x[:, 1:]
        return self.mlp(torch.cat([now, then, STEP * (then - now)], dim=-1))
