"""The compression track: discrete tokenizers (ours, Cosmos); over tokens, the ST-Transformer and the driven world."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldline import builtin
from worldline.contract import Contract, FramePattern
from worldline.data.clips import Clips, evenly, open_clips, open_split, open_windows
from worldline.encoding.encode import tokenize
from worldline.families.card import ModelCard
from worldline.families.config import SampleOptions, TrainConfig
from worldline.families.family import Prepared, TokenizerKind, WorldKind, contract_with, register
from worldline.families.tokenizers import cached_clips, keep_tokenizer, load_tokenizer, tokenizer_config
from worldline.files import atomic
from worldline.forecasting.causal import CausalForecaster
from worldline.forecasting.forecaster import Forecaster
from worldline.forecasting.tokens import LOGITS, TokenForecaster
from worldline.formats.source import Source
from worldline.process.categorical import Sampling
from worldline.ranks import Ranks
from worldline.rundir import RunDir
from worldline.schema import Batch, TokenGrid, UsageError
from worldline.tokenizers.fsq_video import HUB_ID, CosmosConfig, FSQVideoConfig, FSQVideoTokenizer
from worldline.worlds.causal import CausalConfig, CausalWorld
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig


class FSQKind(TokenizerKind):
    """Our own tokenizer."""

    config = FSQVideoConfig
    python_only = (
        "model.encoder_kernels",
        "model.past",
        "model.mlp_ratio",
        "model.l1_weight",
        "model.saturation_weight",
    )

    def idle(self, config: TrainConfig, model: FSQVideoConfig) -> dict[str, str]:
        return {"data.pattern.": "a clip is a block, or two (--model.block-frames)"}

    def pattern(self, config: TrainConfig, model: FSQVideoConfig, grid: Any) -> FramePattern:
        return FramePattern(window=model.clip_frames)

    def hysteresis(self, model: FSQVideoConfig) -> float:
        return model.hysteresis

    def kept(self, model: FSQVideoConfig) -> str | None:
        return "--model.keep-tokens" if model.keep_tokens else None


class CosmosKind(TokenizerKind):
    """NVIDIA's tokenizer. It is not trained here and not copied."""

    config = CosmosConfig
    download = f"a folder with encoder.jit and decoder.jit of {HUB_ID}"
    copied = 0

    def published(self, path: Path) -> tuple[CosmosConfig, list[Path]] | None:
        files = [path / "encoder.jit", path / "decoder.jit"]
        return (CosmosConfig(folder=path.resolve()), files) if any(file.is_file() for file in files) else None


class TokenWorldKind(WorldKind):
    """A `TokenWorld` on tokens as they are, or on frames that are tokenized into a cache first.

    Its configuration has `context_grids`, `horizon_grids` and `build(grid, state_dim)`.
    """

    over = "tokens"
    reads = ("tokenizer", "start_offsets")
    options = ("temperature", "top_k", "top_p", "mixture", "decode_mode", "blend_last_frame")
    counts: ClassVar[bool] = True
    """Whether tokens of its future are scored, beside baselines that count those of the training."""

    def idle(self, config: TrainConfig, model: Any) -> dict[str, str]:
        return {"data.pattern.": "a clip is context and horizon (--model.context-grids, --model.horizon-grids)"}

    def build(self, model: Any, contract: Contract) -> Any:
        return model.build(contract.tokens, len(contract.state_names))

    def pattern(self, config: TrainConfig, model: Any, grid: TokenGrid) -> FramePattern:
        """Context and horizon, in whole blocks."""
        for name, grids in (("context", model.context_grids), ("horizon", model.horizon_grids)):
            if grids % grid.latents_per_block:
                raise UsageError(
                    f"a {name} of {grids} grids is no whole number of blocks, which have {grid.latents_per_block} "
                    f"grids (--model.{name}-grids)"
                )
        return FramePattern(window=grid.frames_of(model.context_grids + model.horizon_grids))

    def fitted(self, model: Any, tokenizer: Any) -> Any:
        """The configuration with what the tokenizer decides."""
        return model

    # --- training ---

    def prepare(self, config: TrainConfig, model: Any, ranks: Ranks) -> Prepared:
        tokenizer: Any = load_tokenizer(config.tokenizer, "tokens") if config.tokenizer else None
        train, val = self.as_tokens(config, model, tokenizer, ranks)
        model = self.fitted(model, tokenizer)
        contract = contract_with(train.source, config.data, train.source.grid, train.pattern)
        torch.manual_seed(config.seed)  # the first weights are a function of the seed
        world = self.build(model, contract)

        def keep(run: RunDir) -> None:
            if config.tokenizer and tokenizer:
                keep_tokenizer(run, config.tokenizer, tokenizer)
            if self.counts:
                _write_counts(run, train, contract.tokens, model.context_grids)

        config = replace(config, model=model)
        return self.prepared(config, world, (train, val), contract, tokenizer=tokenizer, keep=keep)

    def as_tokens(self, config: TrainConfig, model: Any, tokenizer: Any, ranks: Ranks) -> tuple[Clips, Clips]:
        """Clips of tokens of both splits: directly from a token source, else from a cache that is filled now."""
        data = config.data
        source, _ = open_split(data, "train")
        if source.grid is not None:
            data = replace(data, pattern=self.pattern(config, model, source.grid))
            return open_clips(data, "train"), open_clips(data, "val")
        size = source.video_size(data.image_size)
        if tokenizer is None:
            raise UsageError(f"{source.path} holds frames; give the tokenizer to tokenize them with (--tokenizer RUN)")
        if data.cache is None:
            raise UsageError(f"{source.path} holds frames; give a folder to keep their tokens in (--data.cache DIR)")
        grid: TokenGrid = tokenizer.grid(*size)
        pattern = self.pattern(config, model, grid)  # what cannot be is refused before anything is tokenized
        if data.window_stride % grid.block:
            fits = max(grid.block, round(data.window_stride / grid.block) * grid.block)
            raise UsageError(
                f"windows of tokens begin with a block of {grid.block} frames, so none can begin every "
                f"{data.window_stride} frames; give a multiple (--data.window-stride {fits}), and for more starts more "
                "--start-offsets"
            )
        open_windows(replace(data, pattern=pattern), "train")
        open_windows(replace(data, pattern=pattern), "val")
        augment = data.augment if data.augment.changes else None
        of_training = {"start_offsets": config.start_offsets, "augment": augment}
        clips = cached_clips(tokenize, config, tokenizer, ranks, window=pattern.window, of_training=of_training)
        tokenizer.to("cpu")
        return clips

    def figures(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {"autoregressive_loss": autoregressive_loss(model, batch)}

    def roll_out(self, world: Any, batch: Batch) -> Tensor:
        assert batch.tokens is not None, "a batch of tokens"
        context = batch.tokens[:, : world.context_grids]
        return torch.stack([step.tokens for step in world.forecast(context, batch.states, sampling=Sampling())], dim=1)

    # --- forecasts ---

    def temperature(self, card: ModelCard, options: SampleOptions) -> float:
        return options.temperature or 0.0

    def check_options(self, card: ModelCard, options: SampleOptions) -> None:
        super().check_options(card, options)
        Sampling(temperature=self.temperature(card, options)).refuse_alike(options.num_samples)

    def refuse_unfit(self, source: Source, card: ModelCard, *, tokenizer: bool, shown: bool) -> None:
        grid = card.promise.tokens
        if (source.grid is None or shown) and not tokenizer:
            instead = "" if source.grid is None else ", or ask for tokens alone (--format npz)"
            raise UsageError(
                f"this world was trained on tokens alone; give the tokenizer they came from (--tokenizer DIR){instead}"
            )
        if source.grid is None and source.image_size is None:
            raise UsageError(f"{source.path} holds neither frames nor tokens, but {source.kind} (--data)")
        if source.grid not in (None, grid):
            raise UsageError(f"{source.path} holds tokens of {source.grid}, but this world uses those of {grid}")

    def forecaster(
        self, world: Any, card: ModelCard, tokenizer: Any, options: SampleOptions, device: torch.device
    ) -> Forecaster:
        grid = card.promise.tokens
        refuse_other_tokens(tokenizer, grid)
        return TokenForecaster(
            tokenizer=tokenizer,
            world=world.to(device),
            grid=grid,
            sampling=options.tokens,
            num_samples=options.num_samples,
            mixture=options.mixture,
            decode_mode=options.decode_mode,
            blend_last_frame=options.blend_last_frame,
            rows=options.rows,
            device=device,
        )

    # --- for planning ---

    def encoder(self, config: TrainConfig, model: Any) -> Any:
        """For a token source: Cosmos, as in the challenge."""
        return tokenizer_config(config.tokenizer) if config.tokenizer else CosmosConfig(folder=Path())


class STKind(TokenWorldKind):
    """The ST-Transformer."""

    config = STTransformerConfig
    python_only = tuple(
        f"model.{name}"
        for name in (
            *("mlp_ratio", "init_std", "state_hidden", "state_pooling", "loss_chunk"),
            *("scheduled_sampling", "scheduled_sampling_rise", "skeleton"),
        )
    )

    def build(self, model: STTransformerConfig, contract: Contract) -> STTransformer:
        return model.build(contract.tokens, len(contract.state_names), contract.state_names)

    def idle(self, config: TrainConfig, model: STTransformerConfig) -> dict[str, str]:
        found = super().idle(config, model)
        if model.code_levels and config.tokenizer and not (config.tokenizer / "encoder.jit").is_file():  # Cosmos'
            found["model.code_levels"] = "the tokenizer's own levels are taken; an empty list takes none"
        if model.direct:
            unread = ("scheduled_sampling", "scheduled_sampling_rise")
            found |= {f"model.{name}": "a direct world reads no grids of the future" for name in unread}
        elif model.scheduled_sampling == 0:
            found["model.scheduled_sampling_rise"] = "no token is the model's own (scheduled_sampling is 0)"
        if model.unconditional:
            states = ("state_hidden", "state_pooling", "conditioning", "normalise_states", "skeleton")
            found |= {f"model.{name}": "the world is unconditional" for name in states}
        elif model.conditioning == "map":
            states = ("state_hidden", "state_pooling", "normalise_states")
            found |= {f"model.{name}": "no states enter as numbers (--model.conditioning)" for name in states}
        return found

    def figures(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """A direct world's loss is that of its own forecast already."""
        return {} if model.config.direct else super().figures(model, batch)

    def check_options(self, card: ModelCard, options: SampleOptions) -> None:
        super().check_options(card, options)
        assert isinstance(card.config, STTransformerConfig), "a card of this kind"
        if options.mixture > 1 and card.config.direct:
            raise UsageError(
                "this world predicts every token given the context alone: its roll-outs have one distribution, and "
                "--mixture would change nothing"
            )

    def finish(self, model: Any, made: Prepared, config: TrainConfig) -> None:
        if not model.config.calibrated:
            return
        chosen, device = evenly(len(made.val), config.validation_clips), next(model.parameters()).device
        batches = made.val.batches(chosen, _rows_at_once(model.grid))
        model.calibrate(made.ready(batch.to(device)) for batch in batches)

    def normalises(self, model: STTransformerConfig) -> bool | None:
        return None if model.unconditional or model.conditioning == "map" else model.normalise_states

    def fitted(self, model: STTransformerConfig, tokenizer: Any) -> STTransformerConfig:
        return with_levels_of(tokenizer, model) if model.code_levels else model

    def clips_followed(self, model: STTransformerConfig, contract: Contract) -> tuple[int, ...]:
        """The logits of a loss grow with the clips up to one chunk."""
        whole = model.loss_chunk // (model.horizon_grids * contract.tokens.height * contract.tokens.width)
        return tuple(sorted({1, max(1, whole), whole + 1, 2 * whole + 2}))


class CausalKind(TokenWorldKind):
    """The driven world: one grid a step."""

    config = CausalConfig
    options = ("temperature", "top_k", "top_p", "decode_mode")
    python_only = tuple(f"model.{name}" for name in ("mlp_ratio", "init_std", "state_hidden", "skeleton"))
    psnr_clips = 16
    counts = False

    def build(self, model: CausalConfig, contract: Contract) -> CausalWorld:
        return model.build(contract.tokens, contract.state_names)

    def idle(self, config: TrainConfig, model: CausalConfig) -> dict[str, str]:
        found = super().idle(config, model)
        if config.tokenizer:
            found["model.code_levels"] = "the tokenizer's own levels are taken"
        if model.unconditional:
            found |= {
                f"model.{name}": "the world is unconditional"
                for name in ("state_hidden", "normalise_states", "skeleton")
            }
        return found

    def encoder(self, config: TrainConfig, model: Any) -> Any:
        """For a token source: one grid a frame, as the built-in tokenizer of such worlds makes them."""
        return tokenizer_config(config.tokenizer or builtin.TOKENIZER_DRIVEN)

    def normalises(self, model: CausalConfig) -> bool | None:
        return None if model.unconditional else model.normalise_states

    def fitted(self, model: CausalConfig, tokenizer: Any) -> CausalConfig:
        return with_levels_of(tokenizer, model)

    def figures(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Nats per token of the true future along the world's own greedy roll-out."""
        return {"autoregressive_loss": model.own_loss(batch)}

    def roll_out(self, world: Any, batch: Batch) -> Tensor:
        return world.roll_out(batch)

    def temperature(self, card: ModelCard, options: SampleOptions) -> float:
        assert isinstance(card.config, CausalConfig), "a card of this kind"
        return card.config.temperature if options.temperature is None else options.temperature

    def forecaster(
        self, world: Any, card: ModelCard, tokenizer: Any, options: SampleOptions, device: torch.device
    ) -> Forecaster:
        """Raises `UsageError` where the tokenizer makes other tokens."""
        refuse_other_tokens(tokenizer, card.promise.tokens)
        return CausalForecaster(
            tokenizer=tokenizer,
            world=world.to(device),
            grid=card.promise.tokens,
            sampling=options.tokens,
            num_samples=options.num_samples,
            decode_mode=options.decode_mode,
            rows=options.rows,
            device=device,
        )


Levelled = TypeVar("Levelled", STTransformerConfig, CausalConfig)


def with_levels_of(tokenizer: Any, model: Levelled) -> Levelled:
    """The configuration of a world with the levels of its tokenizer's codes, if it is one of ours."""
    return replace(model, code_levels=tokenizer.config.levels) if isinstance(tokenizer, FSQVideoTokenizer) else model


def refuse_other_tokens(tokenizer: Any, grid: TokenGrid) -> None:
    """Raise `UsageError` where a tokenizer, if there is one, makes other tokens than a world uses."""
    if tokenizer is None:
        return
    stride = tokenizer.spatial_stride
    if (made := tokenizer.grid(grid.height * stride, grid.width * stride)) != grid:
        raise UsageError(f"the tokenizer makes tokens of {made}, but this world uses those of {grid}")


@torch.no_grad()
def autoregressive_loss(world: Any, batch: Batch) -> Tensor:
    """Cross-entropy in nats per token of the true future along the world's own greedy roll-out (report, figure 3b).

    The difference to the teacher-forced loss is the cost of the world's own mistakes. Runs a few clips at a time.
    """
    assert batch.tokens is not None, "the teacher-forced loss has read them"
    costs = []
    rows = _rows_at_once(world.grid)
    for tokens, states in zip(batch.tokens.split(rows), batch.states.split(rows), strict=True):
        context, future = tokens.tensor_split([world.context_grids], dim=1)
        for index, step in enumerate(world.forecast(context, states, sampling=Sampling())):
            for logits, truth in zip(step.logits, future[:, index], strict=True):  # comparable: never calibrated
                costs.append(F.cross_entropy(logits.flatten(0, 1), truth.flatten()))
    return torch.stack(costs).mean()


def _rows_at_once(grid: TokenGrid) -> int:
    """Clips whose logits of one grid exist at once."""
    return max(1, LOGITS // (4 * grid.height * grid.width * grid.vocab_size))


def _write_counts(run: RunDir, train: Clips, grid: TokenGrid, context_grids: int) -> None:
    """Count the training tokens, for the baselines of the evaluation: how often each occurs, and how many stay."""
    counts = np.zeros(grid.vocab_size, np.int64)
    kept = 0
    for number in range(len(train)):
        tokens = train[number].tokens
        assert tokens is not None
        counts += np.bincount(tokens.flatten().numpy(), minlength=grid.vocab_size)
        stays = (tokens[context_grids:] == tokens[context_grids - 1]).flatten(1).sum(dim=1)
        kept = kept + np.stack([stays.numpy(), tokens[0].numel() - stays.numpy()], axis=1)
    for name, array in (("unigram", counts), ("kept", kept)):
        with atomic(run.path / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)


for kind in (FSQKind(), CosmosKind(), STKind(), CausalKind()):
    register(kind)
