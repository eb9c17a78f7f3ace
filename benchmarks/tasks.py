"""How often the tasks' own motions succeed, by how far and in which way they miss their aim. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/tasks.py [--quick] [--starts 40] [--fps 15]

`solved` is the share of starts that end in success after so many metres of aim error; each start misses in one of
four ways (short, over, left, right), in turn, so every way has a quarter of the starts. `ways` has the same for each
way, `failed` the share that hits the obstacle, `late` the share that succeeds after so many seconds of waiting.
`start_seconds` is the processor time of one start.
"""

import time
from collections import Counter

import numpy as np
from common import options, publish, skip, spread

from worldline.schema import UsageError
from worldline.twin.simulation import load_mujoco
from worldline.twin.tasks import TASKS, WAYS, Task, aim_error, attempt, solve

MISSES = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3)
WAITS = (0.5, 1.0, 1.5, 2.0)
"""In s."""


def main() -> None:
    """Try every task and print the shares."""
    parser = options(__doc__)
    for name, default in (("starts", 40), ("fps", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    try:
        load_mujoco()
    except UsageError as reason:
        skip(str(reason), quick=arguments.quick)
        return
    starts, misses, waits = (1, (0.0,), (1.0,)) if arguments.quick else (arguments.starts, MISSES, WAITS)
    found = {name: measure(task, starts, misses, waits, arguments.fps) for name, task in TASKS.items()}
    publish({"starts": starts, "misses_m": misses, "waits_s": waits, **found}, quick=arguments.quick)


def measure(
    task: Task, starts: int, misses: tuple[float, ...], waits: tuple[float, ...], fps: int
) -> dict[str, object]:
    """The shares of one task."""
    seconds, drawn = [], []
    for seed in range(starts):
        began = time.process_time()
        drawn.append(task.start(seed, fps=fps))
        seconds.append(time.process_time() - began)
    ended = np.empty((len(misses), starts), dtype="<U9")
    for row, size in enumerate(misses):
        for seed, start in enumerate(drawn):
            miss = aim_error(start, WAYS[seed % len(WAYS)], size)
            ended[row, seed] = attempt(start, solve(start, miss=miss))[0]
    late = [np.mean([attempt(one, solve(one, late=wait))[0] == "succeeded" for one in drawn]) for wait in waits]
    ways = {way: (ended[:, i :: len(WAYS)] == "succeeded").mean(axis=1) for i, way in enumerate(WAYS) if i < starts}
    return {
        "solved": (ended == "succeeded").mean(axis=1).round(3).tolist(),
        "failed": (ended == "failed").mean(axis=1).round(3).tolist(),
        "late": np.round(late, 3).tolist(),
        "ways": {way: shares.round(2).tolist() for way, shares in ways.items()},
        "start_seconds": spread(seconds),
        "outcomes": dict(Counter(ended.ravel().tolist())),
    }


if __name__ == "__main__":
    main()
