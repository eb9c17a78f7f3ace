"""From a configuration to what the loop needs: clips to train on, a model that fits them, and its description.

All that can go wrong with a request goes wrong here, before the first step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from worldline.data.clips import Clips, DataConfig, open_clips, parse_slice
from worldline.data.open import open_source
from worldline.data.source import Source
from worldline.data.states import StateStats, compute_stats
from worldline.data.windows import FramePattern
from worldline.nn.load import load_weights
from worldline.rundir import RunDir, model_folder, new_folder, read_model, to_json, write_model
from worldline.schema import TokenGrid, UsageError
from worldline.tokenizers.fsq_video import FSQVideoConfig
from worldline.tokenizers.load import AnyTokenizer, describe, fingerprint, load_tokenizer
from worldline.tokenizers.tokenise import key_hash, token_key, tokenise
from worldline.training.config import TrainConfig
from worldline.worlds.st_transformer import STTransformerConfig

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total) during long preparations."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the loop trains, on what, and how a checkpoint will describe it."""

    model: nn.Module
    train: Clips
    val: Clips
    description: dict[str, Any]
    tokenizer: AnyTokenizer | None
    """The tokenizer behind a token world, to show its samples; None for a tokenizer or where it is not given."""
    left_out: tuple[str, ...]
    """What the training data list but do not have."""


def prepare(config: TrainConfig, run: RunDir, progress: Progress) -> Prepared:
    """Open the data, tokenise or decode what is needed into caches, build the model.

    Raises:
        DataError: the data or given weights are not what they should be.
        UsageError: the configuration asks for something impossible.
    """
    match config.model:
        case FSQVideoConfig():
            return _prepare_tokenizer(config, config.model, progress)
        case STTransformerConfig():
            return _prepare_world(config, config.model, run, progress)


def _prepare_tokenizer(config: TrainConfig, model_config: FSQVideoConfig, progress: Progress) -> Prepared:
    data = replace(config.data, pattern=FramePattern.consecutive(model_config.block_frames))
    train = open_clips(data, "train", progress=lambda *at: progress("decoding training frames", *at))
    val = open_clips(data, "val", progress=lambda *at: progress("decoding validation frames", *at))
    torch.manual_seed(config.seed)  # the first weights are a function of the seed
    model = model_config.build()
    shape = train[0].frames
    if shape is None:
        raise UsageError(f"{data.path} holds tokens only; a tokenizer trains on frames")
    grid = model.grid(shape.shape[-2], shape.shape[-1])
    _initialise(model, config.initial)
    description = {**describe(model), "contract": contract(train.source, data, grid)}
    return Prepared(
        model=model, train=train, val=val, description=description, tokenizer=None, left_out=train.source.left_out
    )


def _prepare_world(config: TrainConfig, model_config: STTransformerConfig, run: RunDir, progress: Progress) -> Prepared:
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    data = _as_tokens(config, model_config, tokenizer, progress)
    train, val = open_clips(data, "train"), open_clips(data, "val")
    grid = train.source.grid
    assert grid is not None, "_as_tokens leaves a token source"
    if model_config.context_grids % grid.latents_per_block or model_config.horizon_grids % grid.latents_per_block:
        raise UsageError(
            f"context ({model_config.context_grids} grids) and horizon ({model_config.horizon_grids}) must be whole "
            f"blocks of {grid.latents_per_block} grids"
        )
    model_config = replace(
        model_config,
        grid_height=grid.height,
        grid_width=grid.width,
        vocab_size=grid.vocab_size,
        block=grid.block,
        temporal_stride=grid.temporal_stride,
        state_dim=train.source.layout.dim,
    )
    torch.manual_seed(config.seed)  # the first weights are a function of the seed
    model = model_config.build()
    statistics = compute_stats(train.source, episodes=sorted(set(train.windows.episode.tolist())))
    if model.states is not None and model_config.normalise_states:
        model.states.set_statistics(torch.tensor(statistics.mean), torch.tensor(statistics.std))
    _initialise(model, config.initial)
    description = {
        "config": to_json(STTransformerConfig, model_config),
        "contract": contract(train.source, config.data, grid),
        "statistics": to_json(StateStats, statistics),
        "tokenizer": fingerprint(config.tokenizer) if config.tokenizer else None,
    }
    if config.tokenizer and tokenizer:
        _keep_tokenizer(run, config.tokenizer, tokenizer)
    _write_unigram(run, train, grid)
    return Prepared(
        model=model,
        train=train,
        val=val,
        description=description,
        tokenizer=tokenizer,
        left_out=_open(config.data, config.data.path).left_out,
    )


def contract(source: Source, data: DataConfig, grid: TokenGrid) -> dict[str, Any]:
    """What a model was trained on and must be given: rates, units and order of the state, image and token sizes."""
    return {
        "fps": source.fps,
        "image_size": data.image_size,
        "conditioning": data.conditioning,
        "camera": data.camera,
        "state_names": list(source.layout.names),
        "state_kinds": list(source.layout.kinds),
        "token_grid": to_json(TokenGrid, grid),
        "source_kind": source.kind,
    }


def _as_tokens(
    config: TrainConfig, model: STTransformerConfig, tokenizer: AnyTokenizer | None, progress: Progress
) -> DataConfig:
    """The data configuration over tokens: as it is for a token source, else over a cache that is filled now."""
    data = config.data
    source = _open(data, data.path)
    if source.grid is not None:
        return data
    if tokenizer is None or config.tokenizer is None:
        raise UsageError(f"{data.path} holds frames; give the tokenizer to tokenise them with (--tokenizer RUN)")
    if data.cache is None:
        raise UsageError(f"{data.path} holds frames; give a folder to keep their tokens in (--data.cache DIR)")
    train = _tokenised(config, source, tokenizer, data.train_episodes, config.phases, progress)
    val_source = _open(data, data.val_path) if data.val_path else source
    val = _tokenised(config, val_source, tokenizer, data.val_episodes, 1, progress)
    grid = open_source(train).grid
    assert grid is not None, "tokenise writes tokens"
    pattern = FramePattern.consecutive(grid.frames_of(model.context_grids + model.horizon_grids))
    return DataConfig(path=train, val_path=val, pattern=pattern, window_stride=grid.block)


def _tokenised(
    config: TrainConfig,
    source: Source,
    tokenizer: AnyTokenizer,
    episodes: str,
    phases: int,
    progress: Progress,
) -> Path:
    assert config.tokenizer is not None
    assert config.data.cache is not None
    chosen = parse_slice(episodes, len(source.episodes))
    identity = fingerprint(config.tokenizer)
    size = config.data.image_size
    key = token_key(source, fingerprint=identity, episodes=chosen, size=size, phases=phases)
    out = config.data.cache / f"tokens-{key_hash(key)}"
    report = tokenise(
        source,
        tokenizer,
        out,
        fingerprint=identity,
        episodes=chosen,
        size=size,
        phases=phases,
        progress=lambda *at: progress(f"tokenising into {out}", *at),
    )
    if report.episodes_too_short == report.episodes:
        raise UsageError(f"{source.path}: no episode of {episodes!r} is as long as two blocks of frames")
    return out


def _open(data: DataConfig, path: Path) -> Source:
    return open_source(
        path,
        camera=data.camera,
        conditioning=data.conditioning,
        layout=data.state_kinds or None,
        allow_missing=data.allow_missing,
    )


def _initialise(model: nn.Module, path: Path | None) -> None:
    if path is not None:
        folder = model_folder(path)
        load_weights(model, read_model(folder)[1], folder)


def _keep_tokenizer(run: RunDir, path: Path, tokenizer: AnyTokenizer) -> None:
    """Copy a small tokenizer into the run, so that the run folder stands alone; Cosmos stays where it is."""
    description = {**describe(tokenizer), "fingerprint": fingerprint(path)}
    with new_folder(run.tokenizer) as folder:
        write_model(folder, description, tokenizer.state_dict() if config_is_ours(tokenizer) else {})


def config_is_ours(tokenizer: AnyTokenizer) -> bool:
    """Whether a tokenizer's weights are small and ours to copy."""
    return isinstance(tokenizer.config, FSQVideoConfig)


def _write_unigram(run: RunDir, train: Clips, grid: TokenGrid) -> None:
    """Count the training tokens: the unigram baseline of the evaluation."""
    counts = np.zeros(grid.vocab_size, np.int64)
    for number in range(len(train)):
        tokens = train[number].tokens
        assert tokens is not None
        counts += np.bincount(tokens.flatten().numpy(), minlength=grid.vocab_size)
    np.save(run.path / "unigram.npy", counts)
