"""Where a task's episodes begin and who knows how they end: the twin's physics, or counts of real successes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from worldline.contract import Contract, FramePattern
from worldline.data.clips import evenly
from worldline.evaluation.held_out import DataChoice, held_out
from worldline.forecasting.forecaster import Forecaster, Session, signature
from worldline.forecasting.live import LiveTwin
from worldline.policies.starts import STARTS
from worldline.ranking.actors import Named
from worldline.ranking.conclude import Counted
from worldline.ranking.protocol import Place, Starts, Watch
from worldline.ranking.result import TWIN
from worldline.schema import UsageError, stack
from worldline.twin.scene import LAYOUT
from worldline.twin.tasks import TASKS, Outcome, Start

TWIN_ROWS = 12
"""Episodes of the twin at once: each has a simulation that is kept open."""
REAL_SECONDS = 5.0
"""Length of an episode where there is no task of the twin that says it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A task, as it is ranked."""

    id: str
    label: str
    seconds: float
    starts: Starts
    twin: Place | None = None
    counts: Mapping[str, Counted] | None = None
    """By policy, in place of physics."""


class TwinWatch(Watch):
    """What physics says of episodes in the live twin. An episode that is over stays as it ended."""

    def __init__(self, twin: LiveTwin, starts: Sequence[Start]) -> None:
        self.twin, self.starts = twin, starts
        self.outcomes: list[Outcome] = ["open"] * len(starts)

    def look(self, session: Session) -> Float32[np.ndarray, "n s"]:
        facts = self.twin.facts(session)
        for row, (start, now) in enumerate(zip(self.starts, facts, strict=True)):
            if self.outcomes[row] == "open":
                self.outcomes[row] = start.outcome(now)
        return np.stack([now.state for now in facts])

    @property
    def succeeded(self) -> Bool[np.ndarray, " n"]:
        return np.array([outcome == "succeeded" for outcome in self.outcomes])


def twin_stages(
    tasks: Sequence[str],
    forecaster: Forecaster,
    contract: Contract,
    *,
    count: int,
    context: int,
    seconds: float | None,
) -> list[Stage]:
    """Tasks of the twin, from starts that nothing was trained or chosen on.

    Args:
        context: frames before a start, as many as any place needs.

    Raises:
        UsageError: the world is of another robot, or more starts are asked for than are kept for rankings.
    """
    if contract.state_names != LAYOUT.names:
        raise UsageError(
            "this world is of another robot than the twin, so no physics knows who succeeds in it; give real counts "
            "(--real-counts) and clips to begin with (--data)"
        )
    seeds = STARTS["ranking"][:count]
    if len(seeds) < count:
        raise UsageError(f"{count} starts are asked for, but {len(seeds)} are kept for rankings (--starts)")
    twin = LiveTwin.beside(forecaster, drive="command", lazy=True)
    size = forecaster.image_size or 128
    found = []
    for id in tasks:
        begun = [TASKS[id].start(seed, fps=contract.fps) for seed in seeds]
        named = Named(ids=tuple(f"{id} {seed}" for seed in seeds), seeds=tuple(seeds), told=tuple(begun))
        batch = stack([start.clip(context, size=size) for start in begun])
        stage = Stage(
            id=id,
            label=TASKS[id].label,
            seconds=seconds or TASKS[id].seconds,
            starts=Starts(task=id, named=named, batch=batch),
            twin=_place(twin),
        )
        found.append(stage)
    return found


def _place(twin: LiveTwin) -> Place:
    def watch(starts: Starts, session: Session) -> Watch:
        del session
        return TwinWatch(twin, starts.named.told)

    label = "twin, read from pixels"
    return Place(id=TWIN, label=label, forecaster=twin, identity=signature(twin), watch=watch, rows=TWIN_ROWS)


def real_stages(
    counts: Mapping[str, Mapping[str, Counted]],
    tasks: Sequence[str],
    run: Path,
    contract: Contract,
    choice: DataChoice,
    *,
    count: int,
    context: int,
    seconds: float | None,
) -> list[Stage]:
    """Tasks whose real successes were counted; episodes begin with clips of held-out data.

    Of data whose episodes are of tasks of the counts, each task gets its own; else all tasks begin with the same clips.

    Raises `UsageError` for a task that no line of the counts names, or data that hold no clip.
    """
    found = []
    for id in tasks:
        if id not in counts:
            raise UsageError(f"no line of the counts is of task {id!r}; there are: {', '.join(counts)} (--tasks)")
        starts = _clips(id, counts, run, contract, choice, count=count, context=context)
        found.append(Stage(id=id, label=id, seconds=seconds or REAL_SECONDS, starts=starts, counts=counts[id]))
    return found


def _clips(
    task: str, known: Collection[str], run: Path, contract: Contract, choice: DataChoice, *, count: int, context: int
) -> Starts:
    """Clips of a task to begin with, or any where no episode of the data is of one of the `known` tasks."""
    clips = held_out(run, contract, choice, pattern=FramePattern(window=context))
    of = [episode.task for episode in clips.source.episodes]
    if not {*known}.isdisjoint(of):
        own = np.array([of[episode] == task for episode in clips.windows[:, 0].tolist()], dtype=bool)
        clips = replace(clips, windows=clips.windows[own])
    if len(clips) == 0:
        raise UsageError(f"{clips.source.path}: no episode of task {task!r} holds {context} frames to begin with")
    chosen = [clips[number] for number in evenly(len(clips), count)]
    names = tuple(f"{task} {clip.origin.episode}:{clip.origin.start}" for clip in chosen)
    seeds = tuple(1000 * clip.origin.episode + clip.origin.start for clip in chosen)
    return Starts(task=task, named=Named(ids=names, seeds=seeds), batch=stack(chosen))
