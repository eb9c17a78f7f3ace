"""Preparing the compression track: the discrete tokenizer, and the world over its tokens."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from worldline.contract import FramePattern
from worldline.data.augment import AugmentConfig
from worldline.data.clips import Clips, all_clips, open_clips, open_split
from worldline.encoding.tokens import tokenize
from worldline.families.card import ModelCard
from worldline.families.config import TrainConfig
from worldline.families.prepared import (
    Prepared,
    Progress,
    contract,
    frame_size,
    initialise,
    keep_tokenizer,
    picture_size,
)
from worldline.files import atomic
from worldline.formats.source import Source
from worldline.formats.states import compute_stats
from worldline.ranks import Ranks
from worldline.rundir import RunDir
from worldline.schema import TokenGrid, UsageError
from worldline.tokenizers.fsq_video import FSQVideoConfig, FSQVideoTokenizer
from worldline.tokenizers.load import AnyTokenizer, fingerprint, load_tokenizer
from worldline.worlds.st_transformer import STTransformerConfig


def prepare_fsq(config: TrainConfig, model_config: FSQVideoConfig, ranks: Ranks, progress: Progress) -> Prepared:
    """Clips of one block of frames, and a tokenizer with fresh weights."""
    data = replace(config.data, pattern=FramePattern.consecutive(model_config.block_frames))
    torch.manual_seed(config.seed)  # the first weights are a function of the seed
    model = model_config.build()
    grid = model.grid(*frame_size(data))
    train = open_clips(data, "train", ranks=ranks, progress=lambda *at: progress("decoding training frames", *at))
    val = open_clips(data, "val", ranks=ranks, progress=lambda *at: progress("decoding validation frames", *at))
    initialise(model, config.init_from)
    card = ModelCard(config=model_config, contract=contract(train.source, data, grid, data.pattern))
    return Prepared(model=model, train=train, val=val, card=card, tokenizer=None, left_out=train.source.left_out)


def prepare_token_world(
    config: TrainConfig, model_config: STTransformerConfig, ranks: Ranks, progress: Progress
) -> Prepared:
    """Tokens of both splits (made now where there are frames), and a world that fits them."""
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    train, val = _as_tokens(config, model_config, tokenizer, ranks, progress)
    grid = train.source.grid
    assert grid is not None, "_as_tokens leaves clips of tokens"
    model_config = replace(
        model_config,
        grid_height=grid.height,
        grid_width=grid.width,
        vocab_size=grid.vocab_size,
        block=grid.block,
        temporal_stride=grid.temporal_stride,
        state_dim=train.source.layout.dim,
        code_levels=_levels(model_config, tokenizer),
    )
    torch.manual_seed(config.seed)  # the first weights are a function of the seed
    model = model_config.build()
    statistics = compute_stats(train.source, episodes=sorted(set(train.windows.episode.tolist())))
    if model.states is not None and model_config.normalise_states:
        model.states.set_statistics(torch.tensor(statistics.mean), torch.tensor(statistics.std))
    initialise(model, config.init_from)
    card = ModelCard(
        config=model_config,
        contract=contract(train.source, config.data, grid, train.pattern),
        statistics=statistics,
    )

    def keep(run: RunDir) -> None:
        if config.tokenizer and tokenizer:
            keep_tokenizer(run, config.tokenizer, tokenizer, weights=config_is_ours(tokenizer))
        _write_counts(run, train, grid, model_config.context_grids)

    return Prepared(
        model=model,
        train=train,
        val=val,
        card=card,
        tokenizer=tokenizer,
        left_out=open_split(config.data, "train")[0].left_out,
        keep=keep,
    )


def _levels(model: STTransformerConfig, tokenizer: AnyTokenizer | None) -> tuple[int, ...]:
    """The levels that tokens begin by, if any: those of the tokenizer that made them, where it is at hand."""
    if model.code_levels and isinstance(tokenizer, FSQVideoTokenizer):
        return tokenizer.config.levels
    return model.code_levels


def _as_tokens(
    config: TrainConfig, model: STTransformerConfig, tokenizer: AnyTokenizer | None, ranks: Ranks, progress: Progress
) -> tuple[Clips, Clips]:
    """Clips of tokens of both splits: as they are in a token source, else of a cache that is filled now."""
    data = config.data
    source, chosen = open_split(data, "train")
    if source.grid is not None:
        data = replace(data, pattern=_pattern(model, source.grid))
        return open_clips(data, "train"), open_clips(data, "val")
    size = picture_size(data, source)
    if tokenizer is None or config.tokenizer is None:
        raise UsageError(f"{source.path} holds frames; give the tokenizer to tokenize them with (--tokenizer RUN)")
    if data.cache is None:
        raise UsageError(f"{source.path} holds frames; give a folder to keep their tokens in (--data.cache DIR)")
    future, held_out = tokenizer.grid(*size), open_split(data, "val")
    pattern, block = _pattern(model, future), future.block  # what cannot be is refused before anything is tokenized
    _check_stride(data.window_stride, block)
    _check_lengths(source, chosen, 2 * block)
    _check_lengths(*held_out, 2 * block)
    augment = data.augment if data.augment.changes else None
    device, cache, identity = ranks.device(config.device), data.cache, fingerprint(config.tokenizer)
    tokenizer.to(device)

    def clips(source: Source, episodes: Sequence[int], *, start_offsets: int, augment: AugmentConfig | None) -> Clips:
        made = tokenize(
            source,
            tokenizer,
            cache,
            fingerprint=identity,
            episodes=episodes,
            size=data.image_size,
            start_offsets=start_offsets,
            augment=augment,
            device=device,
            ranks=ranks,
            in_cache=True,
            progress=lambda *at: progress(f"tokenizing into {cache}", *at),
        )
        return all_clips(made.open(), window=pattern.window, stride=data.window_stride)

    train = clips(source, chosen, start_offsets=config.start_offsets, augment=augment)
    val = clips(*held_out, start_offsets=1, augment=None)
    tokenizer.to("cpu")
    return train, val


def _pattern(model: STTransformerConfig, grid: TokenGrid) -> FramePattern:
    """The frames of a clip: context and horizon, in whole blocks."""
    for name, grids in (("context", model.context_grids), ("horizon", model.horizon_grids)):
        if grids % grid.latents_per_block:
            raise UsageError(
                f"a {name} of {grids} grids is no whole number of blocks, which have {grid.latents_per_block} grids "
                f"(--model.{name}-grids)"
            )
    return FramePattern.consecutive(grid.frames_of(model.context_grids + model.horizon_grids))


def _check_lengths(source: Source, episodes: Sequence[int], least: int) -> None:
    longest = max(source.episodes[i].length for i in episodes)
    if longest < least:
        raise UsageError(
            f"{source.path}: none of the {len(episodes)} episodes has the {least} frames of two token blocks, the "
            f"longest has {longest}; record longer episodes, or train the sampling track on a shorter window"
        )


def _check_stride(stride: int, block: int) -> None:
    if stride % block:
        fits = max(block, round(stride / block) * block)
        raise UsageError(
            f"windows of tokens begin with a block of {block} frames, so that every {stride} frames none can begin; "
            f"give a multiple of {block} (--data.window-stride {fits}), and for more starts more --start-offsets"
        )


def config_is_ours(tokenizer: AnyTokenizer) -> bool:
    """Whether a tokenizer's weights are small and ours to copy; Cosmos stays where it is."""
    return isinstance(tokenizer.config, FSQVideoConfig)


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
