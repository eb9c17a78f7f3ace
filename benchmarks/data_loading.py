"""How fast clips come off the disk: decoded 256x256 video, cached frames, pre-tokenized samples. Prints JSON.

    python benchmarks/data_loading.py [--quick] [--data FOLDER] [--workers 0] [--seconds 5]

Without `--data` a moving pattern is written to a temporary folder, so the numbers need no download.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import in_turns, options, publish, spread

from worldline.contract import FramePattern
from worldline.data.clips import Clips, DataConfig, open_clips, source_windows
from worldline.data.loader import PREFETCH, Loader, clip_bytes, clips_in_part
from worldline.formats.onex.write import finish_shards, token_shard, write_raw_shard
from worldline.formats.open import open_source
from worldline.formats.source import Source
from worldline.formats.states import ONEX_LAYOUT
from worldline.schema import Episode, TokenGrid

COSMOS = TokenGrid(height=32, width=32, vocab_size=64_000)
BATCH = 8
REPEATS = 5


def write_video(root: Path, frames: int, size: int) -> Path:
    """Write one shard of a moving pattern with grain, so that it does not compress unrealistically well."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (size, size, 3)).astype(np.float32)
    for _ in range(6):
        picture = (picture + np.roll(picture, 1, 0) + np.roll(picture, 1, 1)) / 3
    film = np.stack([np.roll(picture, (i, 2 * i), (0, 1)) for i in range(frames)])
    film = np.clip(film + rng.normal(0, 2, film.shape), 0, 255).astype(np.uint8)
    states = rng.normal(size=(frames, ONEX_LAYOUT.dim)).astype(np.float32)
    write_raw_shard(root, 0, frames=film, states=states, segments=np.zeros(frames, np.int32), fps=30.0)
    finish_shards(root, num_shards=1, num_images=frames, fps=30.0, layout=ONEX_LAYOUT, provenance={})
    return root


def write_tokens(root: Path, frames: int) -> Path:
    """Write one shard of random tokens on the challenge's grid, in segments of a few seconds."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, COSMOS.vocab_size, (frames // 17, 3, 32, 32), np.int32)
    states = rng.normal(size=(frames, ONEX_LAYOUT.dim)).astype(np.float32)
    segments = np.sort(rng.integers(0, frames // 216, frames)).astype(np.int32)
    with token_shard(root, 0, states=states, segments=segments) as put:
        put(0, tokens)
    finish_shards(root, num_shards=1, num_images=frames, fps=30.0, layout=ONEX_LAYOUT, grid=COSMOS, provenance={})
    return root


def a_shard() -> Source:
    """The episodes of one shard of 1X: 521 segments of random lengths. Nothing of it lies on disk."""
    firsts = np.sort(np.random.default_rng(0).choice(112_542, 521, replace=False))
    lengths = np.diff(firsts, append=112_542)
    episodes = tuple(
        Episode(index=i, length=length, name=f"segment {i}", block_offset=first % 17)
        for i, (first, length) in enumerate(zip(firsts.tolist(), lengths.tolist(), strict=True))
    )
    return Source(kind="1x-tokens", path=Path(), fps=30.0, layout=ONEX_LAYOUT, episodes=episodes, grid=COSMOS)


def clips_per_second(clips: Clips, workers: int, seconds: float) -> dict[str, float]:
    """Read random batches for about `seconds`, in parts, after the first one, which pays for starting up."""
    batches = Loader(clips, BATCH, seed=0, num_workers=workers).iterate(0, 1_000_000)
    next(batches)
    rates = []
    for _ in range(REPEATS):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / REPEATS:
            count += len(next(batches))
        rates.append(count / (time.perf_counter() - began))
    del batches
    return spread(rates)


def read_ahead(clips: Clips, workers: int) -> float:
    """How much the workers hold ahead of training, in MB."""
    size = clip_bytes(clips[0])
    return round(PREFETCH * workers * clips_in_part(size, BATCH, workers) * size / 1e6, 1) if workers else 0.0


def milliseconds(call: Callable[[], object]) -> dict[str, float]:
    """How long a few calls take."""
    return spread([1000 * seconds for seconds in in_turns({"call": call}, repeats=REPEATS)["call"]])


def measure(folder: Path, data: Path | None, *, frames: int, workers: int, seconds: float) -> dict[str, object]:
    """All numbers; `frames` are written where there is no `data`."""
    video = data or write_video(folder / "raw", frames, 256)
    config = DataConfig(
        path=video, pattern=FramePattern(window=34), window_stride=8, image_size=256, train_episodes=":4"
    )
    cached = DataConfig(**{**config.__dict__, "cache": folder / "cache"})
    tokens = write_tokens(folder / "tokens", 34_000)
    samples = open_clips(DataConfig(path=tokens), "train")
    shard = a_shard()
    raw = replace(shard, grid=None)
    return {
        "workers": workers,
        "torch_threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)),
        "video": "synthetic" if data is None else data.name,
        "clip": "34 frames of 256x256",
        "decoded_clips_per_second": clips_per_second(open_clips(config, "train"), workers, seconds),
        "cached_clips_per_second": clips_per_second(open_clips(cached, "train"), workers, seconds),
        "token_samples_per_second": clips_per_second(samples, workers, seconds),
        "open_token_shard_ms": milliseconds(lambda: open_source(tokens)),
        "index_token_pairs_of_a_1x_shard_ms": milliseconds(lambda: source_windows(shard, window=34, stride=34)),
        "index_77_windows_of_a_1x_shard_ms": milliseconds(lambda: source_windows(raw, window=77, stride=8)),
        "read_ahead_mb": read_ahead(open_clips(config, "train"), workers),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, default=None, help="a folder of 1X raw or LeRobot video")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    frames, seconds = (80, 0.1) if arguments.quick else (600, arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.data, frames=frames, workers=arguments.workers, seconds=seconds)
    publish(figures, quick=arguments.quick)


if __name__ == "__main__":
    main()
