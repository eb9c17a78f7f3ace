"""The compression track's world: a spatio-temporal transformer over discrete video tokens (report, section 3).

One class from 1 M to 134 M parameters. Input position t holds grid t, the states of its frames and its positions;
output position t is the distribution of grid t+1. Sequence length T is one less than the grids of a sample:
teacher forcing shifts them by one. What the report leaves open and we chose: see docs/compression.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from worldline.checks import number, refuse, whole
from worldline.contract import ModelConfig
from worldline.nn.attention import STBlock, TemporalCache
from worldline.nn.fsq import FSQ
from worldline.nn.states import Pooling, StateEncoder
from worldline.process.categorical import Sampling, cross_entropy, draw, likeliest, scheduled
from worldline.schema import Batch, TokenGrid, UsageError
from worldline.worlds.world import GridStep

ONEX_GRID = TokenGrid(height=32, width=32, vocab_size=64_000)
"""Of the 1X challenge."""
CODE_BANDWIDTH = 2.0
"""How fast the similarity of token embeddings falls with the distance of their codes, which lie in [-1, 1]."""


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
    dropout: float = 0.1
    init_std: float = 0.02
    """Standard deviation of the initial weights; 0.02 is the report's, at width 512."""
    code_levels: tuple[int, ...] = ()
    """FSQ levels of the tokenizer: embeddings of tokens with similar codes start similar. Empty: independent (report).

    If a run has such a tokenizer, any list that is not empty is replaced by its levels.
    """
    state_hidden: int = 256
    state_pooling: Pooling = "all"
    conditioning: Literal["add", "adaln"] = "add"
    """How states enter: added to the token embeddings (report), or as adaLN-Zero in every block (sampling track)."""
    normalise_states: bool = False
    """Standardise states with the training data's statistics, which the checkpoint then contains."""
    unconditional: bool = False
    """Ignore the states: the baseline that shows what conditioning on states is worth."""
    scheduled_sampling: float = 0.0
    """Probability that an input token of the future is the model's own instead of the truth (0: teacher forcing).

    In training only: validation and evaluation are teacher-forced, or follow the model's own roll-out.
    """
    scheduled_sampling_rise: float = 0.0
    """Share of the training's steps over which that probability rises linearly from 0; 0: full from the start."""
    loss_chunk: int = 8192
    """Number of tokens whose logits are in memory at once in the loss."""

    def __post_init__(self) -> None:
        whole(self, "context_grids", "horizon_grids", "width", "heads", "layers", "mlp_ratio", "state_hidden")
        whole(self, "loss_chunk")
        whole(self, "code_levels", least=2)
        number(self, "dropout", below=1)
        number(self, "init_std", above=0)
        number(self, "scheduled_sampling", most=1)
        number(self, "scheduled_sampling_rise", most=1)
        if self.width % self.heads:
            refuse(self, "heads", f"a divisor of the width {self.width}")

    def build(self, grid: TokenGrid = ONEX_GRID, state_dim: int = 25) -> "STTransformer":
        """A world over tokens that lie so, told states of so many dimensions; the challenge's if not given."""
        return STTransformer(self, grid, state_dim)


class STTransformer(nn.Module):
    """A `TokenWorld`. States enter in raw units, one row per video frame of context and horizon."""

    progress: float = 1.0
    """Share of the training that is done, as the training loop tells every model that has such an attribute."""

    def __init__(self, config: STTransformerConfig, grid: TokenGrid, state_dim: int) -> None:
        super().__init__()
        if config.code_levels and math.prod(config.code_levels) != grid.vocab_size:
            raise UsageError(
                f"code levels of {config.code_levels} make {math.prod(config.code_levels)} tokens, but the tokens have "
                f"{grid.vocab_size}; give the tokenizer's levels, or none (--model.code-levels)"
            )
        self.config, self.grid, self.state_dim = config, grid, state_dim
        self.embedding = nn.Embedding(grid.vocab_size, config.width)  # also the output layer: tied
        self.spatial_position = nn.Parameter(torch.empty(grid.height * grid.width, config.width))
        self.temporal_position = nn.Parameter(torch.empty(self.length, config.width))
        self.states = None if config.unconditional else self._state_encoder()
        self.dropout = nn.Dropout(config.dropout)
        modulated = config.conditioning == "adaln" and not config.unconditional
        sizes = {"mlp_ratio": config.mlp_ratio, "dropout": config.dropout, "modulated": modulated}
        self.blocks = nn.ModuleList(STBlock(config.width, config.heads, **sizes) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.initialise()

    def _state_encoder(self) -> StateEncoder:
        config = self.config
        return StateEncoder(
            self.grid,
            num_latents=config.context_grids + config.horizon_grids,
            state_dim=self.state_dim,
            hidden=config.state_hidden,
            width=config.width,
            pooling=config.state_pooling,
        )

    @property
    def context_grids(self) -> int:
        return self.config.context_grids

    @property
    def horizon_grids(self) -> int:
        return self.config.horizon_grids

    @property
    def length(self) -> int:
        """T, the grids the transformer reads at once."""
        return self.config.context_grids + self.config.horizon_grids - 1

    def initialise(self) -> None:
        """Set every parameter, here and nowhere else (report, section 3.2, for `init_std` = 0.02).

        | parameters                                        | value       |
        |---------------------------------------------------|-------------|
        | weights of linear and convolution layers          | N(0, std)   |
        | token embedding (= output layer), positions       | N(0, std)   |
        | token embedding with `code_levels`                | see below   |
        | biases                                            | 0           |
        | LayerNorm gain, bias                              | 1, 0        |
        | projections to adaLN shifts, scales and gates     | 0           |
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.normal_(module.weight, std=self.config.init_std)
                nn.init.zeros_(_bias(module))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
            elif isinstance(module, StateEncoder):
                nn.init.normal_(module.position, std=self.config.init_std)
        for block in self.blocks:
            assert isinstance(block, STBlock)
            if block.modulation is not None:
                nn.init.zeros_(block.modulation.weight)
        nn.init.normal_(self.spatial_position, std=self.config.init_std)
        nn.init.normal_(self.temporal_position, std=self.config.init_std)
        if self.config.code_levels:
            with torch.no_grad():
                self.embedding.weight.mul_(0.5).add_(self._code_features(), alpha=2 * self.config.init_std)

    def _code_features(self) -> Float[Tensor, "v d"]:
        """Smooth random functions of the tokens' codes, unit variance (random Fourier features, Rahimi & Recht 2007).

        Their products fall with the distance of two codes as exp(-(bandwidth distance)^2 / 2): 0.88 for a step on one
        of 8 levels. The embedding is the output layer too, so a target also lifts the tokens beside it.
        """
        codes = FSQ(self.config.code_levels).codebook
        frequencies = torch.randn(codes.shape[-1], self.config.width) * CODE_BANDWIDTH
        phases = torch.rand(self.config.width) * 2 * math.pi
        return math.sqrt(2) * (codes @ frequencies + phases).cos()

    # --- predict ---

    def hidden(
        self,
        tokens: Int64[Tensor, "b t h w"],
        state_codes: Float[Tensor, "b l d"] | None,
        caches: list[TemporalCache] | None = None,
    ) -> Float[Tensor, "b t s d"]:
        """Features whose product with the embedding are the logits of the NEXT grid, for each input grid.

        With caches, `tokens` are the grids that follow those already in the caches.
        """
        if tokens.shape[2:] != (self.grid.height, self.grid.width):
            raise UsageError(
                f"this world was built for grids of {self.grid.height}x{self.grid.width}, "
                f"but the tokens are {tokens.shape[2]}x{tokens.shape[3]}"
            )
        start = caches[0].length if caches else 0
        now = slice(start, start + tokens.shape[1])
        x = self.embedding(rearrange(tokens, "b t h w -> b t (h w)"))
        x = x + self.spatial_position + self.temporal_position[now, None]
        condition = None if state_codes is None else state_codes[:, now]
        if condition is not None and self.config.conditioning == "add":
            x = x + condition[:, :, None]
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, caches[index] if caches else None, condition)
        return self.norm(x)

    def state_codes(self, states: Float[Tensor, "b t s"]) -> Float[Tensor, "b l d"] | None:
        """One vector per latent frame, for addition or modulation; None for an unconditional world."""
        if self.states is None:
            return None
        if states.shape[-1] != self.state_dim:
            raise UsageError(
                f"this world was trained with {self.state_dim}-dimensional states, "
                f"but the data have {states.shape[-1]} dimensions"
            )
        return self.states(states)

    def logits(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        return F.linear(hidden, self.embedding.weight)

    # --- train ---

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Teacher-forced cross-entropy in nats per token, over the future grids only (report, equation 2).

        In training with scheduled sampling, some input tokens of the future are the world's own.

        Raises:
            UsageError: the batch has no tokens, or grids, states or counts of another shape than the world's.
        """
        tokens, context = self._tokens(batch), self.config.context_grids
        codes = self.state_codes(batch.states)
        inputs, figures = tokens[:, :-1], {}
        if self.training and self.config.scheduled_sampling > 0:
            figures["scheduled_sampling"] = self.own_share
            inputs = self._self_corrupted(inputs, codes, generator)
        hidden = self.hidden(inputs, codes)[:, context - 1 :]
        loss = cross_entropy(
            rearrange(hidden, "b t s d -> (b t s) d"),
            self.embedding.weight,
            rearrange(tokens[:, context:], "b t h w -> (b t h w)"),
            chunk=self.config.loss_chunk,
        )
        return loss, figures

    @property
    def own_share(self) -> float:
        """Probability, now, that an input token of the future is the world's own."""
        rise = self.config.scheduled_sampling_rise
        return self.config.scheduled_sampling * (min(1.0, self.progress / rise) if rise else 1.0)

    def _self_corrupted(self, inputs: Tensor, codes: Tensor | None, generator: torch.Generator) -> Tensor:
        context = self.config.context_grids
        if inputs.shape[1] == context:
            return inputs  # a horizon of one grid has no future inputs
        with torch.no_grad():
            hidden = self.hidden(inputs[:, :-1], codes)[:, context - 1 :]
        predicted = likeliest(hidden.flatten(0, 2), self.embedding.weight, chunk=self.config.loss_chunk)
        future = scheduled(inputs[:, context:], predicted.view_as(inputs[:, context:]), self.own_share, generator)
        return torch.cat([inputs[:, :context], future], dim=1)

    def _tokens(self, batch: Batch) -> Int64[Tensor, "b l h w"]:
        if batch.tokens is None:
            raise UsageError("a token world needs tokens; tokenize the source first (`worldline data tokenize`)")
        _check_count(batch.tokens, self.length + 1, what="context and horizon")
        return batch.tokens

    # --- forecast ---

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
        """Yield the horizon grid by grid; `cached=False` recomputes the past each time (same result, slower)."""
        _check_count(context, self.context_grids, what="context")
        codes = self.state_codes(states)
        caches = [TemporalCache() for _ in self.blocks] if cached else None
        past = new = context
        for _ in range(self.config.horizon_grids):
            hidden = self.hidden(new if cached else past, codes, caches)[:, -1]
            logits = rearrange(self.logits(hidden), "b (h w) v -> b h w v", h=self.grid.height)
            step = GridStep(draw(logits, sampling, generators), logits)
            yield step
            new = step.tokens[:, None]
            past = torch.cat([past, new], dim=1)

    @torch.no_grad()
    def teacher_forced(self, tokens: Int64[Tensor, "b l h w"], states: Float[Tensor, "b t s"]) -> Iterator[GridStep]:
        """Yield each future grid's logits given the true grids before it, and their arg max."""
        _check_count(tokens, self.length + 1, what="context and horizon")
        hidden = self.hidden(tokens[:, :-1], self.state_codes(states))
        for t in range(self.config.context_grids - 1, self.length):
            logits = rearrange(self.logits(hidden[:, t]), "b (h w) v -> b h w v", h=self.grid.height)
            yield GridStep(logits.argmax(dim=-1), logits)


def _check_count(tokens: Tensor, expected: int, *, what: str) -> None:
    if tokens.shape[1] != expected:
        raise UsageError(f"expected {expected} token grids of {what}, found {tokens.shape[1]}")


def _bias(layer: nn.Linear | nn.Conv1d) -> Tensor:
    assert layer.bias is not None, "every layer of this model has a bias"
    return layer.bias
