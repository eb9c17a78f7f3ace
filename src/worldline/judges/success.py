"""Success, read from pictures: one small frozen network for all tasks, trained on frames of the twin.

It looks at a few frames of an episode, evenly spread from the first to the last, and says with which chance the task
was done by the last one. Physics labelled what it was trained on; where there is no physics (in a world, on a robot) it
is all there is. So its own error on held-out episodes is a part of every statement that is made with it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor, nn

from worldline.checks import Checked, Limit, Share, refuse_unknown
from worldline.files import hash_of, hash_of_file, read_json, write_json
from worldline.judges.inverse_dynamics import Block
from worldline.metrics.bootstrap import Interval, interval, statistics
from worldline.metrics.uncertainty import auroc
from worldline.nn.fit import FitConfig, fitted
from worldline.nn.pictures import blurred, scaled, seen_small
from worldline.nn.weights import load_weights
from worldline.rundir import from_json, load_tensors, new_folder, save_tensors
from worldline.schema import DataError, UsageError

KIND = "success"
BINS = 10
"""Of the calibration error."""
NOTHING = Interval(mean=math.nan, low=math.nan, high=math.nan, num_clips=0, num_episodes=0)
"""Of no clips."""


@dataclass(frozen=True, kw_only=True)
class SuccessConfig(Checked):
    """The network, and how it is trained."""

    tasks: tuple[str, ...]
    """Ids of the tasks that it knows."""
    kind: str = KIND
    side: Annotated[int, Limit(least=16, most=512)] = 64
    """Frames are looked at with this many pixels a side, whatever their size."""
    looks: Annotated[int, Limit(least=2, most=64)] = 6
    """Frames of an episode that it looks at."""
    width: int = 32
    blur: Share = 0.5
    """Share of the training episodes that are blurred, as a world's are."""
    degraded: Share = 0.5
    """Share of the training episodes that are seen through the tokenizer, where they were recorded so."""
    light: Share = 0.08
    """Brightness and contrast of training episodes vary by this share."""
    cut: Share = 0.5
    """Share of the training episodes that are cut at a random frame."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=400, batch_size=32))


@dataclass(frozen=True, kw_only=True, eq=False)
class Attempts:
    """Episodes with what physics says of them, some frames of each."""

    tasks: tuple[str, ...]
    """Ids; `task` holds places among them."""
    task: Int64[np.ndarray, " n"]
    start: Int64[np.ndarray, " n"]
    """Seed of the start of each."""
    times: Int64[np.ndarray, " k"]
    """The frames that are kept, counted from the start, which is 0, to the last of the episode."""
    frames: UInt8[np.ndarray, "n k 3 side side"]
    done: Int64[np.ndarray, " n"]
    """Frame at which the task was done, -1 where it never was."""
    degraded: UInt8[np.ndarray, "n k 3 side side"] | None = None
    """The same frames through a tokenizer: as a world would show them at best."""

    def __len__(self) -> int:
        return len(self.task)

    @property
    def succeeded(self) -> Bool[np.ndarray, " n"]:
        return self.done >= 0


class SuccessNetwork(nn.Module):
    """Frames of an episode, stacked as channels, and the task, to one logit."""

    temperature: Tensor

    def __init__(self, config: SuccessConfig) -> None:
        super().__init__()
        width = config.width
        self.into = nn.Conv2d(3 * config.looks, width, kernel_size=6, stride=4, padding=1)
        self.task = nn.Embedding(len(config.tasks), 2 * width)
        nn.init.zeros_(self.task.weight)
        self.layers = nn.Sequential(
            *(nn.SiLU(), Block(width), nn.Conv2d(width, 2 * width, kernel_size=2, stride=2)),
            *(Block(2 * width), Block(2 * width), nn.GroupNorm(1, 2 * width), nn.SiLU()),
        )
        self.head = nn.Sequential(nn.Linear(4 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, len(config.tasks)))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, frames: Float32[Tensor, "n k 3 h w"], task: Int64[Tensor, " n"]) -> Float32[Tensor, " n"]:
        """Logits of success; frames in -1..1. The frames after the first enter as differences to it."""
        moved = torch.cat([frames[:, :1], frames[:, 1:] - frames[:, :1]], dim=1)
        gain, shift = self.task(task)[:, :, None, None].chunk(2, dim=1)
        x = self.layers(self.into(moved.flatten(1, 2)) * (1 + gain) + shift)
        found = torch.cat([x.amax(dim=(2, 3)), x.mean(dim=(2, 3))], dim=1)
        return self.head(found).gather(1, task[:, None])[:, 0] / self.temperature


class SuccessReader:
    """The frozen judge: chances of success from frames. `of(task)` fixes the task."""

    def __init__(self, config: SuccessConfig, network: SuccessNetwork, identity: str = "") -> None:
        self.config, self.network, self.identity = config, network.eval().requires_grad_(False), identity
        self.label = f"success classifier {identity[:12]}".strip()
        self.looks: int | None = config.looks

    def of(self, task: str) -> "OfTask":
        """`chance(frames, states=None)` of one task. Raises `UsageError` for a task that it does not know."""
        return OfTask(self, task)

    @torch.no_grad()
    def chance(self, frames: UInt8[Tensor, "b t 3 h w"], *, task: str | Sequence[str]) -> Float32[Tensor, " b"]:
        """The chance of each episode that its task is done by its last frame.

        Args:
            frames: from the start of the episode on; any size, two frames at least.
            task: id, of all or of each.

        Raises:
            UsageError: a task that it does not know, or fewer than two frames.
        """
        if frames.shape[1] < 2:
            raise UsageError(f"success is read from two frames at least, a first and a last one, not {frames.shape[1]}")
        ids = [task] * len(frames) if isinstance(task, str) else list(task)
        chosen = frames[:, list(spread_over(frames.shape[1], self.config.looks))]
        small = seen_small(chosen.flatten(0, 1), self.config.side).unflatten(0, chosen.shape[:2])
        return torch.sigmoid(self.network(scaled(small), self._places(ids)))

    def chances(
        self, task: str, frames: UInt8[np.ndarray, "n t h w 3"], states: Any = None
    ) -> Float32[np.ndarray, " n"]:
        """The same of arrays with colours last; states are not read."""
        del states
        seen = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 1, 4, 2, 3)
        return torch.cat([self.chance(part, task=task) for part in seen.split(16)]).numpy()

    def _places(self, ids: Sequence[str]) -> Int64[Tensor, " b"]:
        for one in dict.fromkeys(ids):
            refuse_unknown(one, self.config.tasks, what="task of this success classifier")
        return torch.tensor([self.config.tasks.index(one) for one in ids])


@dataclass(frozen=True)
class OfTask:
    """A success reader of one task, for environments: `chance(frames, states)`."""

    reader: SuccessReader
    task: str

    def __post_init__(self) -> None:
        refuse_unknown(self.task, self.reader.config.tasks, what="task of this success classifier")

    def chance(self, frames: UInt8[Tensor, "b t 3 h w"], states: Any = None) -> Float32[Tensor, " b"]:
        del states
        return self.reader.chance(frames, task=self.task)

    __call__ = chance


def spread_over(length: int, count: int) -> tuple[int, ...]:
    """`count` places from the first to the last of `length`, evenly; places repeat where there are fewer."""
    return tuple(round(i * (length - 1) / (count - 1)) for i in range(count))


# --- training ---


def train_success(attempts: Attempts, config: SuccessConfig, *, choosing: Attempts | None = None) -> SuccessReader:
    """Train on attempts, successes and failures of every task alike often. Deterministic on one machine.

    Args:
        choosing: held-out attempts on which the temperature of the chances is set (Guo et al. 2017).

    Raises:
        UsageError: a task has only successes or only failures.
    """
    for place, task in enumerate(attempts.tasks):
        own = attempts.succeeded[attempts.task == place]
        if own.all() or not own.any():
            raise UsageError(f"success of {task!r} cannot be learned: {own.sum()} of {len(own)} episodes succeed")
    drawn = _Drawn(attempts, config)
    network = fitted(lambda: SuccessNetwork(config), drawn.loss, config.fit)
    assert isinstance(network, SuccessNetwork)
    if choosing is not None:
        network.temperature.fill_(_temperature(SuccessReader(config, network), choosing))
    return SuccessReader(config, network)


class _Drawn:
    """Training episodes, drawn so that successes and failures of every task are alike often."""

    def __init__(self, attempts: Attempts, config: SuccessConfig) -> None:
        self.attempts, self.config = attempts, config
        self.task, self.done = torch.from_numpy(attempts.task), torch.from_numpy(attempts.done)
        self.times = torch.from_numpy(attempts.times)
        sort = 2 * self.task + (self.done >= 0)
        self.weights = 1 / sort.bincount()[sort].double()
        self.seen = [torch.from_numpy(one) for one in (attempts.frames, attempts.degraded) if one is not None]

    def loss(self, network: SuccessNetwork, generator: torch.Generator) -> Tensor:
        config, count = self.config, self.config.fit.batch_size
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        draw, last = torch.rand(3, count, generator=generator), len(self.times) - 1
        # A cut episode ends somewhere in its later two thirds; a success that comes later is none yet.
        end = torch.where(draw[0] < config.cut, last - (draw[1] * (last * 2 / 3)).long(), last)
        places = torch.tensor([spread_over(int(one) + 1, config.looks) for one in end])
        which = (draw[2] < config.degraded).long() if len(self.seen) > 1 else torch.zeros(count, dtype=torch.long)
        parts = [self.seen[int(w)][row, place] for w, row, place in zip(which, rows, places, strict=True)]
        done = (self.done[rows] >= 0) & (self.done[rows] <= self.times[end])
        logits = network(self._varied(torch.stack(parts), generator), self.task[rows])
        return F.binary_cross_entropy_with_logits(logits, done.float())

    def _varied(self, frames: UInt8[Tensor, "n k 3 h w"], generator: torch.Generator) -> Float32[Tensor, "n k 3 h w"]:
        """In the mirror or not, in another light, some blurred; every frame of an episode alike."""
        count, light = len(frames), self.config.light
        flipped = torch.rand(count, 1, 1, 1, 1, generator=generator) < 0.5
        gain, shift = light * (2 * torch.rand(2, count, 1, 1, 1, 1, generator=generator) - 1)
        seen = torch.where(flipped, frames.flip(-1), frames).flatten(1, 2)
        # `blurred` draws one amount for each row, so an episode is one picture of many channels to it.
        return blurred(scaled(seen), self.config.blur, generator).unflatten(1, frames.shape[1:3]) * (1 + gain) + shift


def _temperature(reader: SuccessReader, attempts: Attempts) -> float:
    """What logits are divided by so that chances cost least on held-out episodes, among powers of 1.1."""
    logits = torch.logit(read_all(reader, attempts).double(), eps=1e-6)
    truth = torch.from_numpy(attempts.succeeded).double()
    candidates = [1.1**i for i in range(-10, 21)]
    costs = [F.binary_cross_entropy_with_logits(logits / one, truth).item() for one in candidates]
    return candidates[int(np.argmin(costs))]


# --- its own error ---


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How well success is read from whole held-out episodes; intervals over their starts."""

    episodes: int
    successes: int
    accuracy: Interval
    auroc: Interval
    """NaN where all of the episodes succeeded, or none."""
    calibration: Interval
    """Expected calibration error over ten bins: mean distance of chance and share of successes."""
    optimism: Interval
    """Chance of failures: where it is high, failures are dreamt to be successes. NaN where there were none."""


def read_all(reader: SuccessReader, attempts: Attempts, *, degraded: bool = False) -> Float32[Tensor, " n"]:
    """The chances of whole attempts, also of their degraded frames."""
    frames = attempts.degraded if degraded else attempts.frames
    if frames is None:
        raise UsageError("these attempts were not seen through a tokenizer")
    ids = [attempts.tasks[place] for place in attempts.task]
    parts = range(0, len(attempts), 32)
    read = [reader.chance(torch.from_numpy(frames[i : i + 32]), task=ids[i : i + 32]) for i in parts]
    return torch.cat(read)


def errors_of(chances: Float32[Tensor, " n"], truth: Bool[np.ndarray, " n"], starts: Int64[np.ndarray, " n"]) -> Errors:
    """The errors of chances against what physics says."""
    found, true, clusters = chances.double().numpy(), truth.astype(float), torch.from_numpy(starts)
    bins = np.minimum((found * BINS).astype(int), BINS - 1)

    def calibration(weights: np.ndarray) -> np.ndarray:
        off = weights * (found - true)
        gaps = np.stack([abs(off[:, bins == one].sum(axis=1)) for one in range(BINS)])
        return (gaps.sum(axis=0) / weights.sum(axis=1))[:, None]

    return Errors(
        episodes=len(truth),
        successes=int(truth.sum()),
        accuracy=interval(torch.from_numpy(((found >= 0.5) == truth).astype(float)), clusters),
        auroc=statistics(lambda weights: auroc(weights, found, truth)[:, None], clusters)[0],
        calibration=statistics(calibration, clusters)[0],
        optimism=NOTHING if truth.all() else interval(torch.from_numpy(found[~truth]), clusters[~truth]),
    )


# --- on disk ---


def save_success(folder: Path, reader: SuccessReader, made: dict[str, Any]) -> SuccessReader:
    """Write `config.json` and `model.safetensors`, atomically; the reader with its identity.

    `made` says how and from what it was made, and what its errors are.
    """
    with new_folder(folder) as temporary:
        save_tensors(temporary / "model.safetensors", reader.network.state_dict())
        write_json(temporary / "config.json", {"config": asdict(reader.config), "made": made})
    return load_success(folder)


def load_success(folder: str | Path) -> SuccessReader:
    """The classifier in a folder, on the CPU. Its identity is a hash of its weights and of how it looks.

    Raises `DataError` where files are missing or damaged, and `UsageError` where the folder holds something else.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of a success classifier; make one with `worldline policies OUT`")
    path = folder / "config.json"
    content = read_json(path).get("config")
    if not isinstance(content, dict) or content.get("kind") != KIND:
        found = content.get("kind") if isinstance(content, dict) else type(content).__name__
        raise DataError(path, expected="the configuration of a success classifier", found=repr(found), kind="metadata")
    config = from_json(SuccessConfig, content, path)
    network = SuccessNetwork(config)
    load_weights(network, load_tensors(folder / "model.safetensors"), folder)
    identity = hash_of([hash_of_file(folder / "model.safetensors"), content])
    return SuccessReader(config, network, identity)
