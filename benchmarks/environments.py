"""How many steps of environments a second runs, one and many at once, with pictures and without. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/environments.py [--quick] [--world NAME ...] [--repeats 5] [--device cpu]

For each world and the live twin: N environments step together with random actions (`DreamVectorEnv`). `looking` reads
every picture, `blind` reads none, so nothing is decoded or drawn. `many_to_one_cost_ratio` is the time of a step of N
divided by that of one: far less than N where a world is asked once for all. Frames are those of the video: a step is
as many as the world's chunk has. Seconds are those of the processor, of one thread; with `--device cuda`, of the clock.
"""

import argparse
import time
from collections.abc import Callable

from common import in_turns, options, publish, ratio, spread

from worldline import builtin
from worldline.envs import DreamVectorEnv
from worldline.envs.made import dream_vector, twin_vector
from worldline.schema import UsageError

WORLDS = ("compression-tiny", "driven-tiny")
COUNTS = (1, 4, 16)
TWIN = "live twin, touch"


def stepping(env: DreamVectorEnv, *, looks: bool) -> Callable[[], object]:
    """A call that makes one step everywhere, with new actions, and begins anew what has ended."""
    env.reset(seed=0)
    env.action_space.seed(0)

    def step() -> object:
        seen = env.step(env.action_space.sample())[0]
        return seen["frame"] if looks else seen["state"]

    return step


def measured(
    make: Callable[[int], DreamVectorEnv], counts: tuple[int, ...], repeats: int, *, device: str = "cpu"
) -> dict[str, object]:
    """Steps per second of each number of environments, both ways, in turns."""
    envs, calls = [], {}
    for count in counts:
        for name, looks in (("blind", False), ("looking", True)):
            envs.append(make(count))
            calls[f"{name}_{count}"] = stepping(envs[-1], looks=looks)
    clock, of = (time.process_time, "core_second") if device == "cpu" else (time.perf_counter, "second")
    seconds = in_turns(calls, repeats=repeats, clock=clock)
    frames = envs[0].core.motion.frames
    figures: dict[str, object] = {"frames_per_step": frames}
    for index, (name, times) in enumerate(seconds.items()):
        figures[f"{name}_steps_per_{of}"] = spread([envs[index].num_envs / one for one in times])
    for name in ("blind", "looking"):
        for count in counts[1:]:
            figures[f"{name}_{count}_to_one_cost_ratio"] = ratio(seconds, f"{name}_{count}", f"{name}_{counts[0]}")
    for env in envs:
        env.close()
    return figures


def twin_figures(counts: tuple[int, ...], repeats: int, size: int) -> dict[str, object]:
    """The same of the live twin; why not, where it cannot run here."""
    seeds = range(2)
    try:
        return measured(lambda count: twin_vector(count, "touch", size=size, seeds=seeds), counts, repeats)
    except UsageError as reason:
        return {"skipped": str(reason)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--world", nargs="+", default=[name for name in WORLDS if name in builtin.NAMES])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="of the worlds; the twin needs none")
    given: argparse.Namespace = parser.parse_args()
    counts, repeats, size = (COUNTS, given.repeats, 128) if not given.quick else ((1, 2), 1, 16)
    worlds = given.world[:1] if given.quick else given.world
    device, load = given.device, {"device": given.device}
    found = {
        name: measured(lambda count, name=name: dream_vector(count, name, load=load), counts, repeats, device=device)
        for name in worlds
    }
    publish({**found, TWIN: twin_figures(counts, repeats, size)}, quick=given.quick)


if __name__ == "__main__":
    main()
