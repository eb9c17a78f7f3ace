"""The compression track's world: a spatio-temporal transformer over discrete video tokens (report, section 3).

Input position t holds grid t, the states of its frames and its positions; output position t is the distribution of grid
t+1: teacher forcing shifts by one the grids of a sample. What the report leaves open and we chose: docs/compression.md.

Two ways to a future, of the same weights: grid by grid, each given those before it (the report's), or `direct`, all of
them in one pass, each given the context and all states. The metric scores the second, the distribution of every token
given the context alone (docs/beyond_tokens.md).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from worldline.checks import MOST, Limit, Positive, Share, refuse
from worldline.contract import ModelConfig
from worldline.nn.attention import Reader, STBlock, TemporalCache
from worldline.nn.conditioning import (
    Added,
    Attended,
    Conditioning,
    Drawn,
    Modulating,
    Told,
    following,
    has_map,
    refuse_without_skeleton,
    vector_of,
)
from worldline.nn.fsq import FSQ
from worldline.nn.kinematics import Skeleton
from worldline.nn.states import Pooling, StateEncoder, first_rows, owned
from worldline.nn.weights import MayLack
from worldline.process.categorical import GridStep, Sampling, cross_entropy, draw, scheduled, sharpened_costs
from worldline.schema import Batch, TokenGrid, UsageError
from worldline.worlds.grids import refuse_other_grids, refuse_other_levels

ONEX_GRID = TokenGrid(height=32, width=32, vocab_size=64_000)
CODE_BANDWIDTH = 2.0
"""How fast the similarity of token embeddings falls with the distance of their codes, which lie in [-1, 1]."""
SHARPNESS = torch.logspace(-2, 1, 25, base=2)
"""Factors of logits among which `calibrate` chooses; the cost is flat around the best, so steps of 9 % are enough."""
WAYS = {"add": Added, "adaln": Modulating, "cross_attention": Attended}
"""How states enter as vectors (`Conditioning`)."""


@dataclass(frozen=True, kw_only=True)
class STTransformerConfig(ModelConfig):
    """All of the world that is chosen; grid, vocabulary and state come from the data (`build`)."""

    kind: Literal["st-transformer"] = "st-transformer"
    context_grids: int = 3
    horizon_grids: int = 3
    width: int = 512
    heads: int = 8
    layers: int = 24
    mlp_ratio: int = 4
    dropout: Annotated[float, Limit(below=1)] = 0.1
    init_std: Positive = 0.02
    """Standard deviation of the initial weights; 0.02 is the report's, at width 512."""
    code_levels: tuple[Annotated[int, Limit(least=2, most=MOST)], ...] = ()
    """FSQ levels of the tokenizer (a run with one puts its own here): embeddings of tokens with similar codes start
    similar. Empty: independent (report)."""
    state_hidden: int = 256
    state_pooling: Pooling = "all"
    conditioning: Conditioning = "add"
    """How states enter (docs/states.md): added to the token embeddings (report), as adaLN-Zero in every block (sampling
    track), by cross-attention, as a map of where the robot will be, or as one of these and the map."""
    skeleton: Skeleton | None = None
    """The robot's, as its own camera sees it, for the map."""
    normalise_states: bool = False
    """Standardise states with the training data's statistics, which the checkpoint then contains."""
    direct: bool = False
    """Predict all future grids in one pass, each from context and states alone, where the report predicts one after the
    other. Tokens of one forecast are then independent of each other: its draws do not fit together."""
    calibrated: bool = False
    """At the end of training, fit on validation clips how sharp the forecast distributions of each future grid are. A
    world that goes grid by grid is sure of what follows from its own guess of the first, which may be wrong."""
    unconditional: bool = False
    """Ignore the states: the baseline that shows what conditioning on states is worth."""
    scheduled_sampling: Share = 0.0
    """Probability, in training alone, that an input token of the future is the model's own and not the truth."""
    scheduled_sampling_rise: Share = 0.0
    """Share of the training's steps over which that probability rises linearly from 0; 0: full from the start."""
    loss_chunk: int = 8192
    """Number of tokens whose logits are in memory at once in the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            refuse(self, "heads", f"a divisor of the width {self.width}")
        refuse_without_skeleton(self.conditioning, self.skeleton)

    @property
    def draws_map(self) -> bool:
        return has_map(self.conditioning) and not self.unconditional

    def build(
        self, grid: TokenGrid = ONEX_GRID, state_dim: int = 25, state_names: tuple[str, ...] = ()
    ) -> "STTransformer":
        """A world over tokens that lie so, told states of so many dimensions; the challenge's if not given.

        The names are for the map alone. Raises `UsageError` where they are not those of its robot.
        """
        return STTransformer(self, grid, state_dim, state_names)


class STTransformer(nn.Module):
    """A `TokenWorld`. States enter in raw units, one row per video frame of context and horizon."""

    progress: float = 1.0
    """Share of the training that is done (`training.loop.Paced`)."""
    may_lack = MayLack(new=("places.",), measured=("sharpness",))
    """A map starts at zero: a world without one becomes one with it."""
    sharpness: Tensor
    """Of a calibrated world, factors of the logits along its own forecasts, one for each future grid."""

    def __init__(
        self, config: STTransformerConfig, grid: TokenGrid, state_dim: int, state_names: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        if config.code_levels:
            refuse_other_levels(config.code_levels, grid)
        self.config, self.grid, self.state_dim = config, grid, state_dim
        self.context_grids, self.horizon_grids = config.context_grids, config.horizon_grids
        self.length = config.context_grids + config.horizon_grids - 1  # T, the grids the transformer reads at once
        self.embedding = nn.Embedding(grid.vocab_size, config.width)  # also the output layer: tied
        self.spatial_position = nn.Parameter(torch.empty(grid.height * grid.width, config.width))
        self.temporal_position = nn.Parameter(torch.empty(self.length, config.width))
        vector = None if config.unconditional else vector_of(config.conditioning)
        self.states: Added | Modulating | Attended | None = None
        self.places: Drawn | None = None
        if vector is not None:
            sizes = {"num_latents": self.length + 1, "state_dim": state_dim, "hidden": config.state_hidden}
            self.states = WAYS[vector](grid, **sizes, width=config.width, pooling=config.state_pooling)
        if config.draws_map:
            assert config.skeleton is not None, "a map without one is refused"
            shape = grid.height, grid.width
            self.places = Drawn(config.skeleton, state_names, shape, grid.temporal_stride, config.width)
        self.dropout = nn.Dropout(config.dropout)
        readers = config.layers if vector == "cross_attention" else 0
        self.readers = nn.ModuleList(Reader(config.width, config.heads) for _ in range(readers))
        options: Any = {"mlp_ratio": config.mlp_ratio, "dropout": config.dropout, "modulated": vector == "adaln"}
        options["causal"] = not config.direct
        self.blocks = nn.ModuleList(STBlock(config.width, config.heads, **options) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        if config.calibrated:
            self.register_buffer("sharpness", torch.ones(config.horizon_grids))
        self.initialise()

    def initialise(self) -> None:
        """Set every parameter that is not a LayerNorm's (report, section 3.2, for `init_std` = 0.02).

        N(0, std): weights of linear and convolution layers, token embedding (the output layer too), positions; 0:
        biases, the projections to adaLN's shifts, scales and gates, the last ones of cross-attention, and those of
        the map. With `code_levels` half of an embedding is drawn so, and features of the token's code are added.
        """
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, StateEncoder | Attended):
                nn.init.normal_(module.position, std=std)
        if self.places is not None:
            nn.init.zeros_(self.places.read.weight)
        for reader in self.readers:
            nn.init.zeros_(reader.get_submodule("attention.out").get_parameter("weight"))
        for block in self.blocks:
            if isinstance(block, STBlock) and block.modulation is not None:
                nn.init.zeros_(block.modulation.weight)
        for position in (self.spatial_position, self.temporal_position):
            nn.init.normal_(position, std=std)
        if self.config.code_levels:
            with torch.no_grad():
                self.embedding.weight.mul_(0.5).add_(self._code_features(), alpha=2 * std)

    def _code_features(self) -> Float[Tensor, "v d"]:
        """Random Fourier features of the tokens' codes, unit variance (Rahimi & Recht 2007).

        Their products fall with the distance of two codes as exp(-(bandwidth distance)^2 / 2): 0.88 for a step on one
        of 8 levels. The embedding is the output layer too, so a target also lifts the tokens beside it.
        """
        codes = FSQ(self.config.code_levels).codebook
        frequencies = torch.randn(codes.shape[-1], self.config.width) * CODE_BANDWIDTH
        phases = torch.rand(self.config.width) * 2 * math.pi
        return math.sqrt(2) * (codes @ frequencies + phases).cos()

    def hidden(
        self,
        tokens: Int64[Tensor, "b t h w"],
        state_codes: Told | None,
        caches: list[TemporalCache] | None = None,
    ) -> Float[Tensor, "b t s d"]:
        """Features of the NEXT grid's logits, for each input grid; with caches, `tokens` follow the grids in these."""
        refuse_other_grids(tokens, self.grid)
        start = caches[0].length if caches else 0
        now = slice(start, start + tokens.shape[1])
        x = self.embedding(rearrange(tokens, "b t h w -> b t (h w)"))
        x = x + self.spatial_position + self.temporal_position[now, None]
        told = Told() if state_codes is None else state_codes[now]
        if told.added is not None:
            x = x + told.added
        x = self.dropout(x)
        for number, (block, cache) in enumerate(zip(self.blocks, caches or [None] * len(self.blocks), strict=True)):
            if told.tokens is not None:
                x = self.readers[number](x, told.tokens)
            x = block(x, cache, told.modulation)
        return self.norm(x)

    def direct_hidden(self, context: Int64[Tensor, "b c h w"], state_codes: Told | None) -> Float[Tensor, "b f s d"]:
        """Features of all future grids' logits in one pass.

        Where the first way reads grids of the future, the last one of the context stands, the best guess before any
        computation. Positions in time tell it from the context, so that no weights are added. All places see each
        other: none holds anything of the true future.
        """
        asked = context[:, -1:].expand(-1, self.horizon_grids - 1, -1, -1)
        return self.hidden(torch.cat([context, asked], dim=1), state_codes)[:, self.context_grids - 1 :]

    def state_codes(self, states: Float[Tensor, "b t s"]) -> Told | None:
        """What each grid is told of its states and the next one's, which it predicts; None if unconditional."""
        told = None if self.states is None else self.states.told(states)
        if self.places is None:
            return told
        states = first_rows(states, self.grid.frames_of(self.length + 1), self.state_dim)
        then = following(owned(states, self.grid.block, self.grid.temporal_stride))
        return (told or Told()).beside(self.places(then))

    def logits(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        return F.linear(hidden, self.embedding.weight)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy in nats per token over the future grids alone (report, equation 2), teacher-forced or direct.

        Raises `UsageError` for a batch without tokens, or with grids, states or counts of another shape.
        """
        if batch.tokens is None:
            raise UsageError("a token world needs tokens; tokenize the source first (`worldline data tokenize`)")
        _check_count(batch.tokens, self.length + 1, what="context and horizon")
        tokens, context, figures = batch.tokens, self.context_grids, {}
        codes, inputs = self.state_codes(batch.states), tokens[:, :-1]
        chunk, weights, true = self.config.loss_chunk, self.embedding.weight, tokens[:, context:].flatten()
        if self.config.direct:
            hidden = self.direct_hidden(tokens[:, :context], codes).flatten(0, 2)
            return cross_entropy(hidden, weights, true, chunk=chunk), figures
        if self.training and self.config.scheduled_sampling > 0:
            rise = self.config.scheduled_sampling_rise
            share = self.config.scheduled_sampling * (min(1.0, self.progress / rise) if rise else 1.0)
            figures["scheduled_sampling"] = share
            inputs = self._self_corrupted(inputs, codes, share, generator)
        hidden = self.hidden(inputs, codes)[:, context - 1 :].flatten(0, 2)
        return cross_entropy(hidden, weights, true, chunk=chunk), figures

    def _self_corrupted(
        self, inputs: Tensor, codes: Told | None, share: float, generator: torch.Generator
    ) -> Int64[Tensor, "b t h w"]:
        """Inputs with so large a share of the future's tokens replaced by the world's own."""
        past, future = inputs[:, : self.context_grids], inputs[:, self.context_grids :]
        if not future.shape[1]:
            return inputs  # of a horizon of one grid
        with torch.no_grad():
            hidden = self.hidden(inputs[:, :-1], codes)[:, self.context_grids - 1 :].flatten(0, 2)
            parts = hidden.split(self.config.loss_chunk)  # the logits of all at once would be too many
            own = torch.cat([F.linear(part, self.embedding.weight).argmax(dim=-1) for part in parts])
        return torch.cat([past, scheduled(future, own.view_as(future), share, generator)], dim=1)

    @torch.no_grad()
    def forecast(
        self,
        context: Int64[Tensor, "b c h w"],
        states: Float[Tensor, "b t s"],
        *,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None = None,
        cached: bool = True,
    ) -> Iterator[GridStep]:
        """Yield the horizon grid by grid; `cached=False` recomputes the past each time (same result, slower).

        A direct world has computed all of them before the first, and no token that it is given changes the next. A
        calibrated one draws the same tokens, and says otherwise how sure it is of them.
        """
        _check_count(context, self.context_grids, what="context")
        codes, read = self.state_codes(states), context
        if self.config.direct:
            for grid, hidden in enumerate(self.direct_hidden(context, codes).unbind(dim=1)):
                logits = self._grid_logits(hidden)
                yield GridStep(draw(logits, sampling, generators), logits, sharpness=self._sharpness(grid))
            return
        caches = [TemporalCache() for _ in self.blocks] if cached else None
        for grid in range(self.horizon_grids):
            hidden = self.hidden(read, codes, caches)[:, -1]
            logits = self._grid_logits(hidden)
            step = GridStep(draw(logits, sampling, generators), logits, sharpness=self._sharpness(grid))
            yield step
            new = step.tokens[:, None]
            read = new if cached else torch.cat([read, new], dim=1)

    @torch.no_grad()
    def teacher_forced(self, tokens: Int64[Tensor, "b l h w"], states: Float[Tensor, "b t s"]) -> Iterator[GridStep]:
        """Yield each future grid's logits given the true grids before it, and their arg max.

        A direct world reads no grids of the future: these are the logits of its forecast.
        """
        _check_count(tokens, self.length + 1, what="context and horizon")
        context = self.context_grids
        if self.config.direct:
            yield from self.forecast(tokens[:, :context], states, sampling=Sampling())
            return
        hidden = self.hidden(tokens[:, :-1], self.state_codes(states))[:, context - 1 :]
        for features in hidden.unbind(dim=1):
            logits = self._grid_logits(features)
            yield GridStep(logits.argmax(dim=-1), logits)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Set `sharpness` to what costs least along the world's own greedy forecasts of all these clips.

        A temperature for each future grid (Guo et al. 2017), found by trying `SHARPNESS`.
        """
        costs = torch.zeros(self.horizon_grids, len(SHARPNESS))
        for batch in batches:
            assert batch.tokens is not None, "a batch of tokens"
            context, future = batch.tokens.tensor_split([self.context_grids], dim=1)
            for grid, step in enumerate(self.forecast(context, batch.states, sampling=Sampling())):
                costs[grid] += sharpened_costs(step.logits, future[:, grid], SHARPNESS).cpu()
        self.sharpness.copy_(SHARPNESS[costs.argmin(dim=1)])

    def _sharpness(self, grid: int) -> float:
        return self.sharpness[grid].item() if self.config.calibrated and not self.sharpness.is_meta else 1.0

    def _grid_logits(self, hidden: Float[Tensor, "b s d"]) -> Float[Tensor, "b h w v"]:
        return rearrange(self.logits(hidden), "b (h w) v -> b h w v", h=self.grid.height)


def _check_count(tokens: Tensor, expected: int, *, what: str) -> None:
    if tokens.shape[1] != expected:
        raise UsageError(f"expected {expected} token grids of {what}, found {tokens.shape[1]}")
