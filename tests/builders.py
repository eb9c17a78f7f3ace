"""Small models and data shared by tests. Every weight is drawn, so that no path is switched off by a zero."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from worldline.contract import Contract
from worldline.families.card import ModelCard
from worldline.formats.onex.write import finish_shards, token_shard, write_raw_shard
from worldline.judges.inverse_dynamics import InverseDynamicsConfig
from worldline.ranks import Ranks
from worldline.rundir import write_model
from worldline.schema import Batch, LatentGrid, Origin, StateLayout, TokenGrid
from worldline.tokenizers.fsq_video import FSQVideoConfig, FSQVideoTokenizer
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig

SMALL_TOKENIZER = FSQVideoConfig(
    levels=(8, 5, 5), widths=(8, 16), blocks=(1, 1), kernel=3, encoder_kernels=(3, 3), past=2
)
"""17 frames of 16x16 -> 3 grids of 2x2, 200 tokens."""
SMALL_WORLD = STTransformerConfig(
    width=16,
    heads=2,
    layers=2,
    mlp_ratio=2,
    state_hidden=8,
    dropout=0.0,
)
TWO_JOINTS = StateLayout(names=("elbow", "gripper"), kinds=("angle", "binary"))
TOKEN_GRID = TokenGrid(height=2, width=2, vocab_size=11)
GRID_200 = replace(TOKEN_GRID, vocab_size=200)
"""Of `SMALL_TOKENIZER`."""


def randomise(model: nn.Module, seed: int = 0, std: float = 0.3) -> None:
    """Draw every parameter anew: fresh models are identities and zeros in many places, which hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def small_tokenizer(config: FSQVideoConfig = SMALL_TOKENIZER, seed: int = 0) -> FSQVideoTokenizer:
    tokenizer = config.build()
    randomise(tokenizer, seed)
    return tokenizer.eval()


class Means:
    """A `Tokenizer` of latents without weights: the mean of every 8x8 square of every fourth frame."""

    spatial_stride = 8
    sees = False

    def grid(self, height: int, width: int) -> LatentGrid:
        return LatentGrid(channels=3, height=height // 8, width=width // 8)

    def encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Float32[Tensor, "b l c gh gw"]:
        return frames[:, ::4].float().unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).mean(dim=(-1, -3)) / 128 - 1

    def decode(self, latents: Float32[Tensor, "b l c gh gw"]) -> UInt8[Tensor, "b t 3 h w"]:
        raise NotImplementedError


def small_world(
    config: STTransformerConfig = SMALL_WORLD, seed: int = 0, grid: TokenGrid = TOKEN_GRID
) -> STTransformer:
    world = config.build(grid, 2)
    randomise(world, seed)
    return world.eval()


def small_reader(folder: Path, seed: int = 0) -> Path:
    """A model folder of inverse dynamics for frames of squares, which reads numbers that mean nothing."""
    model = InverseDynamicsConfig(widths=(8,), blocks=(1,), places=4, hidden=8).build(2)
    randomise(model, seed)
    model.r2.fill_(1.0)
    names, kinds = TWO_JOINTS.names, TWO_JOINTS.kinds
    contract = Contract(
        fps=30.0, state_names=names, state_kinds=kinds, source_kind="1x-raw", pattern=model.config.pattern
    )
    folder.mkdir(parents=True)
    write_model(folder, ModelCard(config=model.config, contract=contract).to_json(), model.state_dict())
    return folder


def noise_frames(*shape: int, seed: int = 0) -> Tensor:
    """Random uint8 frames `b t 3 h w`."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def token_batch(
    config: STTransformerConfig = SMALL_WORLD,
    size: int = 2,
    rows: int = 34,
    seed: int = 0,
    grid: TokenGrid = TOKEN_GRID,
) -> Batch:
    """Random tokens and states of the shape a small world is built for."""
    generator = torch.Generator().manual_seed(seed)
    grids = config.context_grids + config.horizon_grids
    return Batch(
        tokens=torch.randint(grid.vocab_size, (size, grids, grid.height, grid.width), generator=generator),
        states=torch.randn(size, rows, 2, generator=generator),
        fps=30.0,
        origins=tuple(Origin(source="drawn", episode=i, start=0) for i in range(size)),
    )


def moving_square(count: int, size: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bright square whose place the two states give: frames `f h w 3` uint8, states `f 2` in 0..1."""
    rng = np.random.default_rng(seed)
    turns = np.cumsum(rng.uniform(-0.4, 0.4, (count, 2)), axis=0)
    states = (0.5 + 0.5 * np.sin(turns + rng.uniform(0, 6, 2))).astype(np.float32)
    frames = np.full((count, size, size, 3), 40, np.uint8)
    for frame, (x, y) in zip(frames, (states * (size - 6)).round().astype(int), strict=True):
        frame[y : y + 6, x : x + 6] = (220, 180, 90)
    return frames, states


def write_squares(root: Path, episodes: int, length: int = 51, size: int = 16, first: int = 0) -> Path:
    """A 1X raw folder of moving squares, one segment per episode."""
    for shard in range(episodes):
        frames, states = moving_square(length, size, seed=first + shard)
        segments = np.zeros(length, np.int32)
        write_raw_shard(root, shard, frames=frames, states=states, segments=segments, fps=30.0)
    finish_shards(root, num_shards=episodes, num_images=episodes * length, fps=30.0, layout=TWO_JOINTS, provenance={})
    return root


def write_followed_tokens(root: Path, episodes: int, blocks: int = 4, seed: int = 0, words: int = 8) -> Path:
    """A token folder in which the states say every token: all of grid l are `floor(words * elbow)` of its frames.

    The elbow is drawn anew for every grid, so nothing but the states tells what comes next.
    """
    rng = np.random.default_rng(seed)
    grid = TokenGrid(height=2, width=2, vocab_size=words)
    for shard in range(episodes):
        word = rng.integers(words, size=(blocks, grid.latents_per_block))
        elbow = np.concatenate([np.repeat(row, [1, 8, 8]) for row in word])
        tokens = np.broadcast_to(word[..., None, None], (*word.shape, 2, 2)).astype(np.int32)
        states = np.stack([(elbow + 0.5) / words, np.zeros(len(elbow))], axis=1).astype(np.float32)
        segments = np.zeros(len(elbow), np.int32)
        with token_shard(root, shard, states=states, segments=segments) as put:
            put(0, tokens)
    finish_shards(
        root,
        num_shards=episodes,
        num_images=episodes * blocks * grid.block,
        fps=30.0,
        layout=TWO_JOINTS,
        grid=grid,
        provenance={},
    )
    return root


@dataclass(frozen=True)
class StoppedAfter(Ranks):
    """A process that is interrupted when it has made a number of things."""

    number: int = 1

    def made(self, items: Sequence[int], make: Callable[[int], None], **how: Any) -> int:
        super().made(items[: self.number], make, **how)
        raise KeyboardInterrupt


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """What an npz file holds; it is closed again."""
    with np.load(path) as opened:
        return dict(opened)
