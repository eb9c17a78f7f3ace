"""How long a training step takes with OpenMP's own settings and with worldline's, idle and beside busy processes.

    python benchmarks/threads.py [--quick] [--repeats 7] [--busy 1] [--realtime]

The step is that of `compression_tiny`. Each way of waiting has a process of its own, since OpenMP reads its settings
when PyTorch is loaded; the processes make their steps in turns, while the others sleep. `openmp` is what PyTorch does
by itself, `worldline` what `worldline.threads` chooses, `one_thread` what a careful user would set by hand. "Idle" is
as idle as the machine is otherwise: see `load_average`. With `--realtime` (root, Linux) the idle steps run at real-time
priority, before all other work, as if there were none; the busy ones stand beside that work and the busy processes.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from common import in_turns, options, publish, ratio, spread

from worldline.threads import WAITING

STEP = """
import sys
sys.path[:0] = {path}
{first}
import torch
from common import STATES, TINY_GRID, random_batch
from training_step import stepper
from worldline.recipes import compression_tiny

recipe = compression_tiny()
world = recipe.model.build(TINY_GRID, state_names=STATES)
step = stepper(world, recipe, random_batch(recipe.model, {clips}, grid=TINY_GRID))
for _ in sys.stdin:
    step()
    print(torch.get_num_threads(), flush=True)
"""
WAYS = {
    "openmp": ("import torch", {}),
    "worldline": ("import worldline", {}),
    "one_thread": ("import torch", {"OMP_NUM_THREADS": "1"}),
}
"""By name: what is imported first, and what the environment says."""


class Stepper:
    """A process that makes one step when called."""

    def __init__(self, first: str, settings: dict[str, str], clips: int) -> None:
        given = {name: value for name, value in os.environ.items() if name not in (*WAITING, "OMP_NUM_THREADS")}
        code = STEP.format(path=[os.path.dirname(__file__)], first=first, clips=clips)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env=given | settings, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.threads = 0

    def __call__(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        self.threads = int(self.process.stdout.readline())


@contextmanager
def realtime(ways: dict[str, Stepper]) -> Iterator[None]:
    """Inside, nothing else takes a core from the threads of the steps. They have all begun: each has made one step."""
    for way in ways.values():
        way()
    tasks = [int(task.name) for way in ways.values() for task in Path(f"/proc/{way.process.pid}/task").iterdir()]
    for task in tasks:
        os.sched_setscheduler(task, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        for task in tasks:
            os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute, each on one core."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--busy", type=int, default=1, help="busy processes beside the step")
    parser.add_argument("--realtime", action="store_true", help="idle steps before all other work (root, Linux)")
    arguments = parser.parse_args()
    repeats, clips = (1, 1) if arguments.quick else (arguments.repeats, 4)
    names = ("openmp", "worldline") if arguments.quick else WAYS
    ways = {name: Stepper(*WAYS[name], clips) for name in names}
    figures: dict[str, object] = {
        "busy_processes": arguments.busy,
        "idle_at_realtime_priority": arguments.realtime,
        "batch": clips,
    }
    try:
        for condition, count in (("idle", 0), ("busy", arguments.busy)):
            with busy(count), realtime(ways) if arguments.realtime and not count else nullcontext():
                seconds = in_turns(ways, repeats=repeats, warm=not arguments.quick or not count)
            figures[condition] = {
                "seconds_per_step": {name: spread(found) for name, found in seconds.items()},
                "worldline_to_openmp_ratio": ratio(seconds, "worldline", "openmp"),
                "openmp_to_worldline_ratio": ratio(seconds, "openmp", "worldline"),
            }
    finally:
        for way in ways.values():
            way.process.kill()
            way.process.wait()
    publish({"threads": {name: way.threads for name, way in ways.items()}, **figures}, quick=arguments.quick)


if __name__ == "__main__":
    main()
