"""`Clips`: a data set as a sequence of clips of one shape, and the configuration that builds one.

It handles windows, image size and augmentation, but no batches or models. A window never leaves its episode; windows
of tokens also lie on the block grid of their file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int64

from worldline.checks import Checked, Limit, Natural
from worldline.contract import FramePattern
from worldline.data.augment import AugmentConfig, augment_frames
from worldline.data.cache import cached_frames
from worldline.data.splits import Recordings, recordings
from worldline.formats.open import OpenOptions, Roots, choose_episodes
from worldline.formats.source import Source, some_lengths, with_way_out
from worldline.formats.video import resize
from worldline.ranks import Ranks
from worldline.schema import Batch, Clip, DataError, UsageError, stack

Split = Literal["train", "val"]
Side = Annotated[int, Limit(least=1, most=16384)]
"""Of a frame; codecs take no larger ones."""
Windows = Int64[np.ndarray, "n 2"]
"""In order, the place of each one's episode in the source, and its first frame within that."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(OpenOptions, Checked):
    """Training and validation data."""

    path: Roots
    """Data set folder: 1X v2.0 (tokens or raw) or LeRobot (v2.x, v3.0). Several of one layout are read as one."""
    train_episodes: str = ":"
    """Python slices and numbers of episodes, for example `:-10` or `:40,45,50:60`."""
    val_path: Roots | None = None
    """Validation data; None takes `val_episodes` of `path`."""
    val_episodes: str = ":"
    exclude_episodes: tuple[Natural, ...] = ()
    """Episodes of `path` to leave out, by the data set's own numbers; the places of all others stay the same."""
    image_size: Side | None = None
    """Square size in px; None keeps the stored size."""
    pattern: FramePattern = field(default_factory=FramePattern)
    window_stride: int = 34
    """Frames between the starts of successive windows."""
    cache: Path | None = None
    """Folder for decoded frames and tokens; frames need `image_size`."""
    cache_size: Side | None = None
    """Square size of cached frames, if augmentation shall crop from frames larger than `image_size`."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Applied to training clips only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_size is not None and self.cache_size < (self.image_size or 0):
            raise UsageError(
                f"cache_size {self.cache_size} is smaller than image_size {self.image_size}: cached frames are cut and "
                "scaled down to the image size, never up (--data.cache-size)"
            )
        if self.path == () or self.val_path == ():
            raise UsageError("no data set is given (--data.path)")


def source_windows(source: Source, *, window: int, stride: int, episodes: Sequence[int] | None = None) -> Windows:
    """Windows over a source, or over some of its episodes. Reads nothing.

    Token sources: `window` and `stride` are multiples of the block, 34 and 34 for disjoint pairs of blocks, 34 and 17
    for overlapping ones; blocks that straddle a boundary are not used. On 1X shard 0 this gives 3,076 disjoint pairs
    (the report counts about 306,000 over 100 shards). Test samples give one window each, from frame 0. Raises
    `UsageError` for tokens and a window or stride off their block grid.
    """
    chosen = np.array(range(len(source.episodes)) if episodes is None else episodes, np.int64)
    lengths, first = np.array([source.episodes[i].length for i in chosen], np.int64), np.zeros_like(chosen)
    if source.context_only:
        stride = int(lengths.max(initial=1))
    elif source.grid is not None:
        block = source.grid.block
        if window % block or stride % block:
            raise UsageError(
                f"{source.path}: window {window} and stride {stride} must be multiples of the {block}-frame block"
            )
        first = -np.array([source.episodes[i].block_offset for i in chosen], np.int64) % block
    room = lengths - first - window
    counts = np.where(room >= 0, room // stride + 1, 0)
    row = np.repeat(np.arange(len(chosen)), counts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([chosen[row], first[row] + number * stride], axis=1)


def some_windows(
    source: Source, episodes: Sequence[int], *, window: int, stride: int, what: str = "episodes"
) -> Windows:
    """`source_windows` of some episodes.

    Raises `UsageError` where there is none, and says how long `what` are, and for windows of latents that were not
    encoded: one may be met hours later.
    """
    index = source_windows(source, window=window, stride=stride, episodes=episodes)
    if source.pattern is not None and (window != source.pattern.window or (index[:, 1] % source.stride).any()):
        raise UsageError(
            f"{source.path} holds windows of {source.pattern.window} frames at multiples of {source.stride}, not of "
            f"{window} every {stride}; give a multiple (--window-stride, in recipes --data.window-stride), or encode "
            "the data again for those"
        )
    if len(index) == 0:
        lengths = [source.episodes[i].length for i in episodes]
        raise UsageError(
            f"{source.path}: no window of {window} frames in the {len(lengths)} {what}, which have "
            f"{some_lengths(lengths)} frames; choose longer episodes or a shorter window"
        )
    return index


@dataclass(frozen=True, eq=False)
class Clips(Sequence[Clip]):
    """Windows of a source as clips.

    `clips[i]` is plain; `clips[i, seed]` is augmented, a pure function of `seed`. A pattern selects frames only; the
    states of all frames of the window stay, because a model may need those in between.
    """

    source: Source
    windows: Windows
    pattern: FramePattern
    image_size: int | None = None
    augment: AugmentConfig | None = None

    def __post_init__(self) -> None:
        if self.source.grid is not None and not self.pattern.is_consecutive:
            raise UsageError(f"{self.source.path}: tokens cannot be subsampled in time; use consecutive frames")
        if self.source.image_size is None and self.augment is not None:
            raise UsageError(f"{self.source.path}: only frames can be augmented, this is {self.source.kind}")

    def __len__(self) -> int:
        return len(self.windows)

    def batches(self, numbers: Sequence[int], at_once: int) -> Iterator[Batch]:
        """Some of them, in order, so many at a time."""
        for first in range(0, len(numbers), at_once):
            yield stack([self[number] for number in numbers[first : first + at_once]])

    def __getitem__(self, key: int | tuple[int, int]) -> Clip:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read clip `key`, or clip `key[0]` augmented with seed `key[1]`. Raises what `Source.read` raises."""
        number, seed = key if isinstance(key, tuple) else (key, None)
        episode, start = self.windows[number].tolist()
        clip = self.source.read(episode, start, start + self.pattern.window)
        frames, fps = clip.frames, clip.fps / self.pattern.stride
        if frames is None:
            return replace(clip, fps=fps)
        if not self.pattern.is_consecutive:
            if len(frames) < self.pattern.window:
                raise UsageError(
                    f"{self.source.path} holds {len(frames)} frames of a sample, not the {self.pattern.window} needed "
                    "here: test samples can be forecast, not learned from or judged"
                )
            frames = frames[torch.tensor(self.pattern.frames)]
        if self.augment is not None and seed is not None:
            size = self.image_size or min(frames.shape[-2:])
            frames = augment_frames(frames, self.augment, size=size, seed=seed)
        elif self.image_size is not None:
            frames = resize(frames, self.image_size)
        return replace(clip, frames=frames, fps=fps)

    def sized(self, image_size: int | None) -> "Clips":
        """The same clips with frames of another size; None leaves them as they are."""
        return replace(self, image_size=image_size or self.image_size)


def evenly(num_clips: int, wanted: int | None) -> list[int]:
    """Numbers of clips at even distances; all of them where `wanted` is None or too many."""
    count = num_clips if wanted is None else min(wanted, num_clips)
    return np.linspace(0, num_clips - 1, count).round().astype(int).tolist()


def open_split(config: DataConfig, split: Split) -> tuple[Source, Sequence[int]]:
    """The data set behind the training or validation clips, and which of its episodes are taken."""
    text, elsewhere = (config.train_episodes, None) if split == "train" else (config.val_episodes, config.val_path)
    source = config.open(elsewhere or config.path)
    return source, choose_episodes(source, text, exclude=() if elsewhere else config.exclude_episodes)


def check_episodes(
    source: Source, episodes: Sequence[int], *, size: int | None = None, of_val_path: bool = False
) -> None:
    """Check the chosen episodes before costly work, except their pixels: rows, states, videos, rates and sizes.

    Frames must be of one size unless they are scaled to `size`. Raises `DataError` for the first fault, and says how to
    go on without that episode.
    """
    for episode in episodes:
        with with_way_out(source, episode, of_val_path=of_val_path):
            found = source.check(episode)
        if size is None:
            check_size(source, episode, found)


def check_size(source: Source, episode: int, found: tuple[int, int] | None) -> None:
    """Raise `DataError` unless frames are of the size of the others."""
    size = source.image_size
    if found is not None and size is not None and found != size:
        path, expected = source.footage(episode)[0], f"frames of {size[0]}x{size[1]}, as other episodes have"
        fix = "Give a size: every frame is then cropped and scaled to one square."
        raise DataError(path, expected=expected, found=f"{found[0]}x{found[1]}", fix=fix, kind="image_size")


def check_held_out(config: DataConfig, *, trained_on: Recordings | None = None) -> Recordings:
    """Refuse to validate on a recording that is trained on; give all that are. Decodes nothing.

    What the weights that training starts from were `trained_on` counts, too. Raises `UsageError` where a validation
    episode is also trained on, at whatever path, or the validation data are not like those trained on, and `DataError`
    where states or videos of chosen episodes are not what they should be.
    """
    (source, episodes), (held_out, chosen) = splits = [open_split(config, split) for split in get_args(Split)]
    # What is too short for a clip is said elsewhere, first.
    for (data, numbers), of_val_path in zip(splits, (False, config.val_path is not None), strict=True):
        long = [i for i in numbers if data.episodes[i].length >= config.pattern.window]
        check_episodes(data, long, size=config.image_size, of_val_path=of_val_path)
    trained_on = recordings(source, episodes, also=trained_on)
    if shared := trained_on.among(held_out, chosen):
        names = ", ".join(episode.name for episode in shared[:4]) + (", ..." if len(shared) > 4 else "")
        raise UsageError(
            f"{held_out.path}: {len(shared)} of {len(chosen)} validation episodes are also trained on ({names}), "
            "here or in a copy, or are listed twice; nothing would be held out. Give splits that share none, for "
            "example --data.train-episodes :-10 --data.val-episodes -10:, or other validation data (--data.val-path)"
        )
    sized = ("picture size",) if config.image_size is None else ()
    for what in ("content", "state names", "frames per second", "tokens", "latents", "frames of a window", *sized):
        if source.alike[what] != held_out.alike[what]:
            raise UsageError(
                f"what is trained on {source.path} cannot be validated on {held_out.path}, they differ in {what}: "
                f"{source.alike[what]} and {held_out.alike[what]}. Give validation data like the training data "
                "(--data.val-path), or episodes of the same (--data.val-path None --data.train-episodes :-10 "
                "--data.val-episodes -10:)"
            )
    return trained_on


def open_windows(config: DataConfig, split: Split) -> tuple[Source, Sequence[int], Windows]:
    """What `open_split` gives, and the windows in it. Decodes nothing. Raises `UsageError` where there is none."""
    source, episodes = open_split(config, split)
    window, stride, what = config.pattern.window, config.window_stride, f"{split} episodes"
    return source, episodes, some_windows(source, episodes, window=window, stride=stride, what=what)


def open_clips(config: DataConfig, split: Split, *, ranks: Ranks | None = None) -> Clips:
    """Open the training or validation clips of a configuration.

    Where there is a cache to fill, `ranks` share it, and each must call this. Raises what `open_windows` raises, and
    `UsageError` for a cache of frames without a size.
    """
    source, episodes, index = open_windows(config, split)
    check_episodes(source, episodes, size=config.image_size)
    if config.cache is not None and source.image_size is not None:
        if config.image_size is None:
            raise UsageError("a cache of decoded frames needs image_size")
        size, cache = config.cache_size or config.image_size, config.cache
        source = cached_frames(source, size=size, folder=cache, episodes=episodes, ranks=ranks)
    pattern = FramePattern(window=config.pattern.window) if source.pattern else config.pattern
    augment = config.augment if split == "train" and config.augment.changes else None
    return Clips(source, index, pattern, config.image_size, augment)
