"""Episodes of the twin -> a data set in the 1X raw layout, one episode per shard, with the physics beside it.

The same config gives the same bytes for any number of workers: an episode's random numbers depend on seed and index.
Instead of play it writes, if asked, episodes of tasks, or touches with their near misses (a shard holds all futures of
one start): see `Content`.
"""

import json
import math
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from numpy.random import Generator

from worldline.checks import Checked, Limit, Seed, Share, refuse
from worldline.files import read_json, read_npz, write_npz
from worldline.formats.onex.write import finish_shards, shard_done, write_raw_shard
from worldline.formats.source import Source
from worldline.owner import Claim, owned
from worldline.progress import watched
from worldline.schema import UsageError
from worldline.twin.behaviour import Behaviour
from worldline.twin.counterfactuals import TouchOrMiss, touch_or_miss
from worldline.twin.scene import LAYOUT, RECORD, Framing, Scene, random_scene
from worldline.twin.simulation import STEPS_PER_SECOND, Simulation, load_mujoco
from worldline.twin.tasks import (
    KEPT,
    LEAD_IN,
    TASKS,
    WAYS,
    Label,
    Outcome,
    Start,
    TaskId,
    aim_error,
    attempt,
    label_file,
    solve,
    write_label,
)
from worldline.twin.trial import Trial

REVISION = 4
"""Of scenes and behaviours: raise it whenever the same seed gives another episode."""
TASK_CONTEXT = 17
"""Frames of an episode of a task up to its start: as many as the longest usual context."""
AIMS = 30
"""Aim errors that are drawn for one episode of a task, at most."""
PAIR_CONTEXT = 17
"""Frames that a touch shares with its near misses."""
SCENES = 40
"""Rooms that are drawn for one touch with near misses, at most; four of five have one."""


@dataclass(frozen=True, kw_only=True)
class TwinConfig(Checked):
    """The data set to generate. The same config gives the same data set on the same machine."""

    episodes: int
    seed: Seed = 0
    size: Annotated[int, Limit(least=2, most=512)] = 64
    """Width and height of the pictures in pixels: even, at most 512."""
    frames: int = 120
    """Per episode."""
    fps: Annotated[int, Limit(least=1, most=STEPS_PER_SECOND)] = 30
    """Frames, states and commands per second: a divisor of 240."""
    snapshot_every: int = 10
    """Frames between saved physics states."""
    view: Framing = "room"
    """What the camera shows: the whole room, or the table alone, nearer, with fewer and larger objects."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 2:
            refuse(self, "size", "even, for the video codec")
        if STEPS_PER_SECOND % self.fps:
            refuse(self, "fps", f"a divisor of {STEPS_PER_SECOND}, the steps of the physics per second")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode: what was seen, measured and commanded, and the physics to resume it from."""

    scene: Scene
    frames: UInt8[np.ndarray, "f h w 3"]
    states: Float32[np.ndarray, "f 25"]
    commands: Float32[np.ndarray, "f 25"]
    """Command `i` leads from frame `i` to frame `i + 1`."""
    objects: Float32[np.ndarray, "f n 3"]
    """Positions of the movable objects in the world, in m."""
    snapshots: Float64[np.ndarray, "k p"]
    """Physics at frames `0, every, 2 * every, ...`; see `Simulation.restore`."""


class Content(ABC):
    """What the shards of a data set hold."""

    name: ClassVar[str]
    """For the progress bar."""

    def check(self, config: TwinConfig) -> None:
        """Raise `UsageError` where it cannot be made with this config."""
        del config

    def record(self) -> dict[str, object]:
        """What it adds to the data set's config."""
        return {}

    @abstractmethod
    def beside(self, root: Path, shard: int) -> Path:
        """A file that is written beside a shard, before it."""

    @abstractmethod
    def write(self, root: Path, config: TwinConfig, shard: int) -> None:
        """Make and write one shard, and what lies beside it."""


@dataclass(frozen=True)
class Play(Content):
    """Episodes of the robot's own behaviour; `physics/physics_{r}.npz` has their physics."""

    name: ClassVar[str] = "simulating episodes"

    def beside(self, root: Path, shard: int) -> Path:
        return _physics(root, shard)

    def write(self, root: Path, config: TwinConfig, shard: int) -> None:
        _write_episode(root, config, shard, record_episode(config, shard))


@dataclass(frozen=True)
class Pairs(Content):
    """Starts, each with a touch and its near misses (`touch_or_miss`), as episodes that share `PAIR_CONTEXT` frames.

    `pairs/pair_{r}.npz` says what physics says.
    """

    name: ClassVar[str] = "simulating pairs"

    def check(self, config: TwinConfig) -> None:
        if config.frames < PAIR_CONTEXT + 10:
            raise UsageError(f"a pair has at least {PAIR_CONTEXT + 10} frames, {PAIR_CONTEXT} of them before it parts")

    def record(self) -> dict[str, object]:
        return {"pairs": True}

    def beside(self, root: Path, shard: int) -> Path:
        return _pair(root, shard)

    def write(self, root: Path, config: TwinConfig, shard: int) -> None:
        _write_pair(root, config, shard)


@dataclass(frozen=True, kw_only=True)
class TaskEpisodes(Content, Checked):
    """Episodes of tasks in turn, some of which fail, each after `TASK_CONTEXT` frames up to its start.

    They end when the task's time is over, or after the config's `frames`. `physics/physics_{r}.npz` has their physics,
    and `tasks/task_{r}.npz` says how each was made and what physics says (`tasks.labels`).
    """

    name: ClassVar[str] = "simulating tasks"
    tasks: tuple[TaskId, ...]
    failures: Share = 0.5
    """Share of the episodes of each task that fail."""
    miss: float = 0.25
    """Largest aim error in m; one is drawn until the episode ends as it shall."""

    def check(self, config: TwinConfig) -> None:
        if config.view != "table":
            raise UsageError("tasks are set at the table; give --view table")
        if not self.tasks:
            raise UsageError(f"which tasks? There are: {', '.join(TASKS)}")
        if config.frames <= TASK_CONTEXT:
            raise UsageError(f"an episode of a task has more than {TASK_CONTEXT} frames; {TASK_CONTEXT} are before it")
        if round(LEAD_IN * config.fps) < TASK_CONTEXT - 1:
            least = math.ceil((TASK_CONTEXT - 1) / LEAD_IN)
            raise UsageError(
                f"{TASK_CONTEXT} frames are before a task, in {LEAD_IN:g} seconds: give --fps {least} or more"
            )

    def record(self) -> dict[str, object]:
        return {"tasks": list(self.tasks), "failures": self.failures, "miss": self.miss}

    def beside(self, root: Path, shard: int) -> Path:
        return label_file(root, shard)

    def write(self, root: Path, config: TwinConfig, shard: int) -> None:
        recording, label = record_task(config, self, shard)
        write_label(root, shard, label)
        _write_episode(root, config, shard, recording)


def generate(out: Path, config: TwinConfig, *, workers: int = 1, content: Content | None = None) -> None:
    """Write a data set of the twin in the 1X raw layout; finished episodes of the same config in `out` are kept.

    Args:
        workers: processes; with several, a calling script needs `if __name__ == "__main__":`.
        content: what the `config.episodes` shards hold: `Play` if not given, `Pairs` or `TaskEpisodes`.

    Raises:
        UsageError: the folder holds something else or is in use, MuJoCo or OpenGL is missing, or the content cannot be
            made with this config.
    """
    content = Play() if content is None else content
    content.check(config)
    framing = config.view if config.view != "room" else None
    record: dict[str, object] = {
        **asdict(config),
        "view": framing,
        "revision": REVISION,
        "mujoco": load_mujoco().__version__,
    }
    # None for the usual view, and for what it does not hold: as in records that do not know of them.
    key = {**record, "pairs": None, "tasks": None} | content.record()
    with owned(out, claim=Claim(file=RECORD, key=key, what="data of the twin")):
        content.beside(out, 0).parent.mkdir(exist_ok=True)
        todo = [i for i in range(config.episodes) if not (shard_done(out, i) and content.beside(out, i).exists())]
        for _ in watched(_written(partial(content.write, out, config), todo, workers), content.name, total=len(todo)):
            pass
        markers = [read_json(out / f"metadata/metadata_{i}.json") for i in range(config.episodes)]
        count = sum(marker["shard_num_frames"] for marker in markers)
        made: dict[str, object] = {"generator": "worldline twin", **record, **content.record()}
        shape: dict[str, Any] = {"num_shards": config.episodes, "num_images": count}
        finish_shards(out, **shape, fps=float(config.fps), layout=LAYOUT, provenance=made)


def record_episode(config: TwinConfig, episode: int) -> Recording:
    """Run one episode of a config and return it without writing anything."""
    scene = random_scene(np.random.default_rng([config.seed, episode, 0]), config.view)
    with Simulation(scene, size=config.size, fps=float(config.fps)) as simulation:
        behaviour = Behaviour(simulation, np.random.default_rng([config.seed, episode, 1]))
        simulation.reset(behaviour.first())
        return _recorded(config, simulation, lambda _: behaviour.command(), simulation.step)


def record_task(config: TwinConfig, content: TaskEpisodes, episode: int) -> tuple[Recording, Label]:
    """Run one episode of a task, and say what physics says of it; nothing is written.

    Raises `UsageError` where a task has no room for a start, which the seed decides.
    """
    rng, own = np.random.default_rng([config.seed, episode, 3]), episode // len(content.tasks)
    fails = int((own + 1) * content.failures) > int(own * content.failures)
    task = TASKS[content.tasks[episode % len(content.tasks)]]
    start = task.start(_unkept(int(rng.integers(2**32))), fps=float(config.fps))
    before = start.lead_in[len(start.lead_in) - (TASK_CONTEXT - 1) :]
    frames = min(config.frames, TASK_CONTEXT + start.frames)
    commands, how = _aimed(start, rng, frames - TASK_CONTEXT, fails=fails, miss=content.miss)
    commands, begin = np.concatenate([before, commands, commands[-1:]]), TASK_CONTEXT - 1
    ended: list[tuple[Outcome, int]] = []
    with Simulation(start.scene, size=config.size, fps=start.fps) as simulation:
        simulation.restore(start.before)
        for command in start.lead_in[: len(start.lead_in) - len(before)]:
            simulation.step(command)
        trial = Trial(simulation)

        def step(command: Float32[np.ndarray, "25"]) -> None:
            (simulation if len(done) < begin else trial).step(command)
            done.append(command)
            if len(done) > begin and not ended and (outcome := start.outcome(trial.facts())) != "open":
                ended.append((outcome, len(done)))

        done: list[np.ndarray] = []
        recording = _recorded(replace(config, frames=frames), simulation, commands.__getitem__, step)
    outcome, frame = ended[0] if ended and ended[0][1] < frames else ("open", -1)
    return recording, Label(task=task.id, seed=start.seed, begin=begin, outcome=outcome, frame=frame, **how)


def _unkept(seed: int) -> int:
    """A drawn seed of a start, moved beyond all others where it is one of those that policies are ranked on."""
    return seed if seed >= KEPT else 2**32 + seed


def _aimed(
    start: Start, rng: Generator, frames: int, *, fails: bool, miss: float
) -> tuple[Float32[np.ndarray, "n 25"], dict[str, Any]]:
    """Commands whose aim error is drawn until physics says that they fail or succeed, as asked; and how they are made.

    Where none of `AIMS` does, the last is taken as it is.
    """
    commands, how = np.empty((0, 25), np.float32), dict[str, Any]()
    for _ in range(AIMS):
        way, size, pace = WAYS[rng.integers(len(WAYS))], miss * rng.random(), rng.uniform(0.85, 1.2)
        how = {"miss": aim_error(start, way, size), "pace": float(pace)}
        commands = solve(start, frames=frames, **how)
        if (attempt(start, commands)[0] == "succeeded") != fails:
            break
    return commands, how


def _recorded(
    config: TwinConfig,
    simulation: Simulation,
    command_at: Callable[[int], Float32[np.ndarray, "25"]],
    step: Callable[[Float32[np.ndarray, "25"]], None],
) -> Recording:
    """What is seen and measured from now on, while the robot is commanded."""
    seen, snapshots = [], []
    for i in range(config.frames):
        frame, state = simulation.observe()
        if i % config.snapshot_every == 0:
            snapshots.append(simulation.snapshot())
        command = command_at(i)
        seen.append((frame, state, command, simulation.objects().astype(np.float32)))
        step(command)
    names = ("frames", "states", "commands", "objects")
    columns = {name: np.stack(part) for name, part in zip(names, zip(*seen, strict=True), strict=True)}
    return Recording(scene=simulation.scene, snapshots=np.stack(snapshots), **columns)


def record_pair(config: TwinConfig, start: int) -> tuple[TouchOrMiss, Scene]:
    """A touch and its near misses, of a room in which the robot has acted for a while; nothing is written.

    Rooms in which none is found are left. Raises `UsageError` where there is none in `SCENES` rooms.
    """
    sizes = {"context": PAIR_CONTEXT, "horizon": config.frames - PAIR_CONTEXT}
    for room in range(SCENES):
        rng = np.random.default_rng([config.seed, start, 2, room])
        scene = random_scene(rng, config.view)
        with Simulation(scene, size=config.size, fps=float(config.fps)) as simulation:
            behaviour = Behaviour(simulation, rng)
            command = behaviour.first()
            simulation.reset(command)
            for _ in range(int(rng.integers(2 * config.fps))):
                command = behaviour.command()
                simulation.step(command)
            pair = touch_or_miss(simulation, command, rng, shown=range(sizes["horizon"]), **sizes)
        if pair is not None:
            return pair, scene
    raise UsageError(f"no touch with a near miss was found in {SCENES} rooms; give more --frames or another --seed")


def resume(
    root: Path, episode: int, frame: int, *, size: int | None = None
) -> tuple[Simulation, Float32[np.ndarray, "f 25"]]:
    """Reopen a recorded episode at one of its frames, as it was; also return the commands that followed.

    Pictures are of `size` pixels, or as large as they were recorded.

    Stepping the simulation by those commands repeats the recording, bit for bit on the machine that made it; by others,
    it shows what would have happened. Close it after use. Raises `DataError` where there is no such episode or it is
    damaged, and `UsageError` where it has no such frame.
    """
    path = _physics(root, episode)
    saved = read_npz(path, what="saved physics", fix="Generate the data set again.")
    commands, every, stored = saved["commands"], int(saved["every"]), json.loads(str(saved["scene"]))
    if not 0 <= frame < len(commands):
        raise UsageError(f"{path} has frames 0..{len(commands) - 1}, not {frame}")
    record = read_json(root / RECORD)
    scene = Scene(**stored | {"objects": tuple(stored["objects"])})
    simulation = Simulation(scene, size=size or record["size"], fps=float(record["fps"]))
    simulation.restore(saved["snapshots"][frame // every])
    for command in commands[frame // every * every : frame]:
        simulation.step(command)
    return simulation, commands[frame:]


def physics_of(source: Source, episode: int) -> tuple[Path, int]:
    """The data set of the twin that an episode of a source was read from, and its number there, for `resume`.

    Raises `UsageError` where its physics were not saved beside it: it is no episode of the twin, or was converted.
    """
    if source.kind != "1x-raw" or source.layout.names != LAYOUT.names:
        raise UsageError(f"{source.path} is no data set of the twin, and holds no saved physics (worldline data twin)")
    footage, first = source.footage(episode)
    root, number = footage.parents[1], footage.stem.rpartition("_")[-1]
    if first or not number.isdecimal() or not (root / RECORD).exists() or not _physics(root, int(number)).exists():
        raise UsageError(f"{root} holds no saved physics of the twin (worldline data twin)")
    return root, int(number)


class View(NamedTuple):
    """What the pixels of a recorded frame show, drawn again."""

    regions: UInt8[np.ndarray, "h w"]
    """`Simulation.regions`."""
    empty: UInt8[np.ndarray, "h w 3"]
    """The frame without the objects that can be moved."""
    frame: UInt8[np.ndarray, "h w 3"] | None = None
    """The frame itself, of those that are asked for."""


def look(
    root: Path, episode: int, frames: Collection[int], *, whole: Collection[int] = (), size: int | None = None
) -> dict[int, View]:
    """Draw some frames of a recorded episode again, some of them `whole`; one run of the physics serves them all.

    Raises what `resume` raises.
    """
    wanted, seen = sorted(set(frames)), {}
    simulation, commands = resume(root, episode, wanted[0], size=size)
    with simulation:
        for frame in range(wanted[0], wanted[-1] + 1):
            if frame in wanted:
                picture = simulation.frame() if frame in whole else None
                seen[frame] = View(simulation.regions(), simulation.frame(objects=False), picture)
            if frame < wanted[-1]:
                simulation.step(commands[frame - wanted[0]])
    return seen


def _written(write: Callable[[int], None], episodes: list[int], workers: int) -> Iterator[None]:
    """Write episodes, here or in processes of their own, and yield once for each that is done."""
    if workers <= 1 or len(episodes) <= 1:
        yield from map(write, episodes)
        return
    # Of Mesa's software renderer one thread each: the workers are the parallelism.
    threads = ("LP_NUM_THREADS", os.environ.get("LP_NUM_THREADS", "1"))
    spawned = {"mp_context": multiprocessing.get_context("spawn"), "initializer": os.putenv, "initargs": threads}
    with ProcessPoolExecutor(min(workers, len(episodes)), **spawned) as pool:
        yield from pool.map(write, episodes)


def _write_episode(out: Path, config: TwinConfig, episode: int, recording: Recording) -> None:
    physics = {name: getattr(recording, name) for name in ("commands", "objects", "snapshots")}
    scene = json.dumps(asdict(recording.scene))
    _physics(out, episode).parent.mkdir(exist_ok=True)
    write_npz(_physics(out, episode), {"scene": scene, **physics, "every": config.snapshot_every})
    seen, segments = {"frames": recording.frames, "states": recording.states}, np.zeros(len(recording.frames), np.int32)
    write_raw_shard(out, episode, **seen, segments=segments, fps=float(config.fps))


def _write_pair(out: Path, config: TwinConfig, start: int) -> None:
    pair, scene = record_pair(config, start)
    futures = (pair.touch, *pair.misses)
    names = ("kind", "severity", "succeeded", "touched", "moved", "tilted", "commands")
    said = {name: np.stack([np.asarray(getattr(future, name)) for future in futures]) for name in names}
    write_npz(_pair(out, start), {"scene": json.dumps(asdict(scene)), "snapshot": pair.snapshot, **said})
    seen = {
        "frames": np.concatenate([part for future in futures for part in (pair.frames, future.frames)]),
        "states": np.concatenate([part for future in futures for part in (pair.states, future.states)]),
    }
    segments = np.repeat(np.arange(len(futures), dtype=np.int32), config.frames)
    write_raw_shard(out, start, **seen, segments=segments, fps=float(config.fps))


def _pair(root: Path, start: int) -> Path:
    return root / f"pairs/pair_{start}.npz"


def _physics(root: Path, episode: int) -> Path:
    return root / f"physics/physics_{episode}.npz"
