"""Memory does not grow with the length of an episode, whatever is made of it, and pieces are the same as the whole."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import TWO_JOINTS, noise_frames
from tolerances import assert_pixels_agree

from worldline.data.augment import AugmentConfig, augment_frames
from worldline.data.cache import frame_runs
from worldline.files import npy_rows
from worldline.formats.onex.write import finish_shards, write_raw_shard

LENGTHS = (450, 3000)
"""Frames of a first episode, long enough to fill every buffer, and of one whose 64x64 frames are 37 MB."""


def _write(root: Path) -> None:
    for shard, length in enumerate(LENGTHS):
        picture = np.random.default_rng(shard).integers(0, 256, (64, 64, 3), np.uint8)
        write_raw_shard(
            root,
            shard,
            frames=(np.roll(picture, i, axis=1) for i in range(length)),
            states=np.zeros((length, 2), np.float32),
            segments=np.zeros(length, np.int32),
            fps=30.0,
        )
    finish_shards(root, num_shards=2, num_images=sum(LENGTHS), fps=30.0, layout=TWO_JOINTS, provenance={})


WORK = """
import json, resource, sys
from pathlib import Path
from builders import Means, small_tokenizer
from worldline.data.augment import AugmentConfig
from worldline.data.cache import cached_frames
from worldline.encoding.encode import convert
from worldline.formats.open import open_source
from worldline.contract import FramePattern
from worldline.encoding.encode import encode
from worldline.encoding.encode import tokenize

folder = Path(sys.argv[1])
source = open_source(folder / "raw")

def tokens(e, out, **how):
    tokenize(source, small_tokenizer(), out, fingerprint="-", episodes=[e], **how)

VERBS = {
    "tokens": lambda e, out: tokens(e, out, size=16, start_offsets=3),
    "augmented": lambda e, out: tokens(e, out, size=16, start_offsets=3, augment=AugmentConfig(brightness=0.2)),
    "latents": lambda e, out: encode(source, Means(), out, fingerprint="-", episodes=[e],
                                     pattern=FramePattern.report_77(), window_stride=8),
    "frames": lambda e, out: cached_frames(source, size=32, folder=out, episodes=[e]),
}
grown = {}
for name, verb in VERBS.items():
    peaks = []
    for episode in (0, 1):
        verb(episode, folder / f"{name}{episode}")
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    grown[name] = peaks[1] - peaks[0]
print(json.dumps(grown))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_an_episode(tmp_path: Path) -> None:
    _write(tmp_path / "raw")
    command = [sys.executable, "-c", WORK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    whole = LENGTHS[1] * 3 * 64 * 64
    assert {name: size for name, size in grown.items() if size > whole / 2} == {}


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_spans_are_cut_from_frames_that_go_by_once(chunk: int) -> None:
    frames = noise_frames(1, 60, 3, 2, 2)[0]
    spans = [(0, 5), (0, 9), (4, 8), (9, 9), (20, 41), (58, 60)]
    found = frame_runs(iter(frames.split(chunk)), spans)
    assert all(torch.equal(a, frames[i:j]) for a, (i, j) in zip(found, spans, strict=True))


def test_an_augmented_clip_in_pieces_is_the_clip() -> None:
    frames, config = noise_frames(1, 40, 3, 24, 24)[0], AugmentConfig(crop_scale=(0.5, 0.9), contrast=0.9, flip=0.5)
    whole = augment_frames(frames, config, size=16, seed=3)
    parts = [augment_frames(part, config, size=16, seed=3, first=frames[0]) for part in frames.split(17)]
    assert_pixels_agree(torch.cat(parts), whole)
    assert not torch.equal(augment_frames(frames[17:], config, size=16, seed=3), whole[17:])


@pytest.mark.parametrize("shape", [(7, 2, 3), (0, 4)])
def test_an_array_in_pieces_is_the_file_of_the_whole(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    np.save(tmp_path / "whole.npy", array)
    with npy_rows(tmp_path / "parts.npy", "float16", shape) as append:
        for part in np.array_split(array, 3):
            append(part)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
