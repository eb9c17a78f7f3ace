"""The nouns of worldline, and the dtype, shape and unit of their parts.

One recording (`Episode`), a window of it (`Clip`), clips stacked for a model (`Batch`), and what a model predicts
(`Forecast`). Every source, loader, tokenizer, world and metric speaks in these terms:

| key      | dtype   | shape         | range, unit                                                              |
|----------|---------|---------------|--------------------------------------------------------------------------|
| `frames` | uint8   | `b f 3 h w`   | 0..255, RGB. Float in [-1, 1] exists only behind a tokenizer's door      |
| `tokens` | int64   | `b l h w`     | 0..vocab_size-1; `l` latent frames of a grid `h x w` (int32 on disk)     |
| `latents`| float32 | `b l c h w`   | continuous latents, about zero mean and unit variance per channel       |
| `states` | float32 | `b t s`       | rad, rad/s, m/s or 0..1 as the source has them; never normalised here    |
| `fps`    | float   | scalar        | frames per second of `f`, after any subsampling                          |

A clip holds frames, tokens or latents. Its states are one row per video frame, also when it holds tokens (`TokenGrid`
and `LatentGrid` say how these lie over frames), and when only some of its frames are taken (`f` below `t`, by a
`FramePattern`). `b` is absent from a `Clip`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor


class DataError(Exception):
    """Data on disk are not what they should be. Says which file, what was expected, what was found, what to do.

    `kind` is a short stable id (`missing_files`, `rate`, ...): problems of one kind and remedy are reported as one.
    """

    def __init__(self, path: Path | str, *, expected: str, found: str, fix: str = "", kind: str = "damaged") -> None:
        self.path, self.expected, self.found = Path(path), expected, found
        self.fix, self.kind = fix or _REMEDIES.get(kind, _REMEDIES["damaged"]), kind
        super().__init__(f"{path}: expected {expected}, found {found}. {self.fix}")


_REMEDIES = {
    "damaged": "Fetch it again.",
    "missing_files": "Fetch the rest, or leave them out with --allow-missing (in recipes --data.allow-missing).",
    "metadata": "Correct or restore it.",
    "states": "Repair the recording.",
    "frames": "Download or encode it again.",
}
"""The usual remedy for a kind of problem."""


class UsageError(Exception):
    """The request itself cannot be carried out (unknown name, impossible combination). Says what to do instead."""


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """How latent frames lie over video frames: the stride arithmetic of a tokenizer, written once.

    Video is tokenized in disjoint blocks of `block` frames. Within a block, latent 0 is frame 0 and latent k covers
    frames `8k-7 .. 8k` for a temporal stride of 8 (causal tokenizers: Cosmos DV8x8x8, ours, Wan).
    """

    height: int
    width: int
    vocab_size: int
    block: int = 17
    """Video frames per block; must be 1 + a multiple of `temporal_stride`."""
    temporal_stride: int = 8

    @property
    def latents_per_block(self) -> int:
        return 1 + (self.block - 1) // self.temporal_stride

    @property
    def frames_per_latent(self) -> tuple[int, ...]:
        """Video frames that each latent of a block covers."""
        return (1, *(self.temporal_stride,) * (self.latents_per_block - 1))

    def frames_of(self, num_latents: int) -> int:
        """Video frames covered by `num_latents` latent frames (a whole number of blocks)."""
        return num_latents // self.latents_per_block * self.block

    def grids_of(self, num_frames: int) -> int:
        """Latent frames that cover whole blocks of video frames."""
        return num_frames // self.block * self.latents_per_block


@dataclass(frozen=True, kw_only=True)
class LatentGrid:
    """How continuous latents lie over video frames: 1 + 4k frames become 1 + k latents (Wan's causal VAE).

    Latent 0 is frame 0 and latent k covers frames `4k-3 .. 4k` for a temporal stride of 4.
    """

    channels: int
    height: int
    width: int
    temporal_stride: int = 4

    def latents_of(self, num_frames: int) -> int:
        """Latent frames of a clip. Raises `UsageError` unless `num_frames` is 1 + a multiple of the stride."""
        if num_frames < 1 or (num_frames - 1) % self.temporal_stride:
            raise UsageError(f"{num_frames} frames do not fit this VAE: it takes 1 + k * {self.temporal_stride}")
        return 1 + (num_frames - 1) // self.temporal_stride


StateKind = Literal["angle", "velocity", "binary", "other"]
"""`angle` in rad, `velocity` in m/s or rad/s, `binary` a closure in 0..1, `other` anything else."""


@dataclass(frozen=True, kw_only=True)
class StateLayout:
    """Names and kinds of the entries of a state vector."""

    names: tuple[str, ...]
    kinds: tuple[StateKind, ...]

    @property
    def dim(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One uninterrupted recording: a 1X segment, a LeRobot episode, a run of the twin."""

    index: int
    length: int
    """Video frames."""
    name: str
    """Names the place on disk in messages, for example `shard 3, segment 17`."""
    block_offset: int = 0
    """Position of the episode's first frame in its file's grid of token blocks (0 where there are no tokens)."""
    number: int | None = None
    """Its own number in the data set, where that is not `index` (LeRobot's `episode_index`)."""
    recording: str | None = None
    """Which recording the episode was made from (`splits.recording_of`), where its folder names it."""
    task: str = ""
    """What the robot was told to do, in words, where that is known."""
    provenance: Mapping[str, str | int] = field(default_factory=dict)
    """What an export of worldline says of where the episode comes from (`formats.lerobot.write.Provenance`)."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a clip came from: enough to read it again."""

    source: str
    episode: int
    start: int


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A window of one episode. Never crosses a segment."""

    states: Float32[Tensor, "t s"]
    fps: float
    origin: Origin
    frames: UInt8[Tensor, "f 3 h w"] | None = None
    tokens: Int64[Tensor, "l gh gw"] | None = None
    latents: Float32[Tensor, "l c gh gw"] | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips of one shape, stacked. Everything a model's `loss` may see."""

    states: Float32[Tensor, "b t s"]
    fps: float
    origins: tuple[Origin, ...]
    frames: UInt8[Tensor, "b f 3 h w"] | None = None
    tokens: Int64[Tensor, "b l gh gw"] | None = None
    latents: Float32[Tensor, "b l c gh gw"] | None = None

    def __len__(self) -> int:
        return self.states.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """Move the tensors; origins stay."""
        return replace(self, **{name: one.to(device, non_blocking=True) for name, one in contents_of(self).items()})


def stack(clips: Sequence[Clip]) -> Batch:
    """Stack clips of equal shape and rate. Raises `ValueError` where shapes differ (from `torch.stack`)."""
    return _together(torch.stack, clips, tuple(clip.origin for clip in clips))


def join(parts: Sequence[Batch]) -> Batch:
    """One batch of several, in order; they hold the same."""
    return _together(torch.cat, parts, tuple(origin for part in parts for origin in part.origins))


def _together(how: Callable[..., Tensor], parts: Sequence[Clip | Batch], origins: tuple[Origin, ...]) -> Batch:
    held = [contents_of(part) for part in parts]
    if any(one.keys() != held[0].keys() for one in held):
        raise ValueError("clips of one batch must all hold frames, or all tokens, or all latents")
    tensors = {name: how([one[name] for one in held]) for name in held[0]}
    return Batch(fps=parts[0].fps, origins=origins, **tensors)


def contents_of(part: Clip | Batch) -> dict[str, Tensor]:
    """What a clip or a batch holds, by name."""
    names = ("frames", "tokens", "latents", "states")
    return {name: tensor for name in names if (tensor := getattr(part, name)) is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class Certainty:
    """How sure a world was of each token, by the distributions that its forecast is scored by; all costs in nats."""

    entropy: Float32[Tensor, "b l gh gw"]
    """Of the predicted distribution: the mean cost of the true token, if its chances are right."""
    confidence: Float32[Tensor, "b l gh gw"]
    """Probability of the likeliest token."""
    disagreement: Float32[Tensor, "b l gh gw"] | None = None
    """Of an ensemble: the part of the entropy that its members do not share."""
    cost: Float32[Tensor, "b l gh gw"] | None = None
    """Of the true token, if costs were asked for too; likewise `hit`."""
    hit: Bool[Tensor, "b l gh gw"] | None = None
    """Whether the likeliest token is the true one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """The prediction of a forecaster after a context, with `k` samples for each clip; costs are of sample 0 only."""

    times: tuple[int, ...]
    """Positions of the predicted frames, counted from the first frame of the context; of a session, of its start."""
    frames: UInt8[Tensor, "b k t 3 h w"] | None = None
    """Predicted frames at `times`; None of a world over tokens without a tokenizer."""
    plain_frames: UInt8[Tensor, "b k t 3 h w"] | None = None
    """The decoded `tokens`, if asked for and if `frames` show something else."""
    tokens: Int64[Tensor, "b k l gh gw"] | None = None
    """The predicted token grids of a world over tokens."""
    costs: Mapping[str, Float32[Tensor, "b l"]] = field(default_factory=dict)
    """By metric id: the cost of the true tokens of each grid, given the predicted grids before it."""
    teacher_forced_costs: Mapping[str, Float32[Tensor, "b l"]] = field(default_factory=dict)
    """The same given the true grids before: an optimistic bound."""
    certainty: Certainty | None = None
    """How sure a world over tokens was, if asked for."""
    top_ids: Int64[Tensor, "b l gh gw n"] | None = None
    """The most probable tokens of each position, most probable first, given the predicted grids before it."""
    top_log_probs: Float32[Tensor, "b l gh gw n"] | None = None
    """Their log-probabilities in nats, at temperature 1 over the whole vocabulary."""
    later: Callable[[], UInt8[Tensor, "b k t 3 h w"]] | None = None
    """Makes the frames when they are read (`video`), where a forecaster left them out (`Forecaster.lazy`)."""

    @property
    def video(self) -> UInt8[Tensor, "b k t 3 h w"]:
        """Its frames. Raises `UsageError` where there are none."""
        if self.frames is not None:
            return self.frames
        if self.later is None:
            raise UsageError("this forecast has tokens and no frames; load the world with its tokenizer")
        return self.later()

    @property
    def spread(self) -> Float32[Tensor, "b t h w"]:
        """Standard deviation of the samples at each pixel, in grey levels of 0..255. Raises `UsageError` without two.

        The root of the unbiased variance (divisor k - 1) averaged over colour: where samples and truth come from one
        distribution, the squared error of the mean of k samples is (1 + 1/k) spread^2 on average.
        """
        if self.video.shape[1] < 2:
            raise UsageError("one sample has no spread; draw at least two (--num-samples 2)")
        variances = [self.video[:, :, i].float().var(dim=1).mean(dim=1) for i in range(len(self.times))]
        return torch.stack(variances, dim=1).sqrt()
