"""Episodes of the twin -> a data set in the 1X raw layout, one episode per shard, with the physics beside it.

The same config gives the same bytes for any number of workers: an episode's random numbers depend on seed and index.
Instead of episodes it writes, if asked, touches with their near misses: then a shard holds all futures of one start.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from worldline.checks import Checked, Limit, Seed, refuse
from worldline.files import read_json, read_npz, write_npz
from worldline.formats.onex.write import finish_shards, shard_done, write_raw_shard
from worldline.formats.source import Source
from worldline.owner import Claim, owned
from worldline.progress import watched
from worldline.schema import UsageError
from worldline.twin.behaviour import Behaviour
from worldline.twin.counterfactuals import TouchOrMiss, touch_or_miss
from worldline.twin.scene import LAYOUT, Framing, Scene, random_scene
from worldline.twin.simulation import Simulation, load_mujoco

REVISION = 4
"""Of scenes and behaviours: raise it whenever the same seed gives another episode."""
RECORD = "twin.json"
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
    fps: Annotated[int, Limit(least=1, most=240)] = 30
    """Frames, states and commands per second: a divisor of 240."""
    snapshot_every: int = 10
    """Frames between saved physics states."""
    view: Framing = "room"
    """What the camera shows: the whole room, or the table alone, nearer, with fewer and larger objects."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 2:
            refuse(self, "size", "even, for the video codec")
        if 240 % self.fps:
            refuse(self, "fps", "a divisor of 240, the steps of the physics per second")


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


def generate(out: Path, config: TwinConfig, *, workers: int = 1, pairs: bool = False) -> None:
    """Write a data set of the twin in the 1X raw layout; finished episodes of the same config in `out` are kept.

    Args:
        workers: processes; with several, a calling script needs `if __name__ == "__main__":`.
        pairs: write `config.episodes` starts, each with a touch and its near misses (`touch_or_miss`), as episodes of
            `config.frames` frames that share their first `PAIR_CONTEXT`; `pairs/pair_{r}.npz` says what physics says.

    Raises:
        UsageError: the folder holds something else or is in use, MuJoCo or OpenGL is missing, or pairs are too short.
    """
    if pairs and config.frames < PAIR_CONTEXT + 10:
        raise UsageError(f"a pair has at least {PAIR_CONTEXT + 10} frames, {PAIR_CONTEXT} of them before it parts")
    framing = config.view if config.view != "room" else None
    record: dict[str, object] = {
        **asdict(config),
        "view": framing,
        "revision": REVISION,
        "mujoco": load_mujoco().__version__,
    }
    beside, write = (_pair, _write_pair) if pairs else (_physics, _write_episode)
    # None for the usual view, and where there are no pairs: as in records that do not know of them.
    with owned(out, claim=Claim(file=RECORD, key={**record, "pairs": pairs or None}, what="data of the twin")):
        beside(out, 0).parent.mkdir(exist_ok=True)
        todo = [i for i in range(config.episodes) if not (shard_done(out, i) and beside(out, i).exists())]
        written = _written(partial(write, out, config), todo, workers)
        for _ in watched(written, "simulating pairs" if pairs else "simulating episodes", total=len(todo)):
            pass
        markers = [read_json(out / f"metadata/metadata_{i}.json") for i in range(config.episodes)]
        count = sum(marker["shard_num_frames"] for marker in markers)
        made: dict[str, object] = {"generator": "worldline twin", **record}
        if pairs:
            made["pairs"] = True
        shape: dict[str, Any] = {"num_shards": config.episodes, "num_images": count}
        finish_shards(out, **shape, fps=float(config.fps), layout=LAYOUT, provenance=made)


def record_episode(config: TwinConfig, episode: int) -> Recording:
    """Run one episode of a config and return it without writing anything."""
    scene = random_scene(np.random.default_rng([config.seed, episode, 0]), config.view)
    seen, snapshots = [], []
    with Simulation(scene, size=config.size, fps=float(config.fps)) as simulation:
        behaviour = Behaviour(simulation, np.random.default_rng([config.seed, episode, 1]))
        simulation.reset(behaviour.first())
        for i in range(config.frames):
            frame, state = simulation.observe()
            if i % config.snapshot_every == 0:
                snapshots.append(simulation.snapshot())
            command = behaviour.command()
            seen.append((frame, state, command, simulation.objects().astype(np.float32)))
            simulation.step(command)
    names = ("frames", "states", "commands", "objects")
    columns = {name: np.stack(part) for name, part in zip(names, zip(*seen, strict=True), strict=True)}
    return Recording(scene=scene, snapshots=np.stack(snapshots), **columns)


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


def _write_episode(out: Path, config: TwinConfig, episode: int) -> None:
    recording = record_episode(config, episode)
    physics = {name: getattr(recording, name) for name in ("commands", "objects", "snapshots")}
    scene = json.dumps(asdict(recording.scene))
    write_npz(_physics(out, episode), {"scene": scene, **physics, "every": config.snapshot_every})
    seen, segments = {"frames": recording.frames, "states": recording.states}, np.zeros(config.frames, np.int32)
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
