"""Number of PyTorch's threads and how they wait for each other: chosen when worldline is imported.

OpenMP reads its settings when PyTorch loads it, so `import worldline` comes before `import torch`. By default a
waiting thread spins for milliseconds; beside another busy process it takes the core from the thread that it waits for,
and a training step takes ten times as long. Here a thread spins a thousand turns (about ten microseconds, enough
between two loops on an idle machine) and then sleeps. Settings of the user stay. Loads only the standard library.
"""

import math
import os
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""GNU's OpenMP, which PyTorch's wheels bring, sleeps after so many turns; others sleep at once."""
CHOSEN = "WORLDLINE_NUM_THREADS"
"""Our own choices for this process, not the user's: processes that it starts choose again."""
_VERSION_1, _VERSION_2 = ("cpu.cfs_quota_us", "cpu.cfs_period_us"), ("cpu.max",)
"""Files of a control group that hold the time it may run, and in how much."""


def choose(environment: MutableMapping[str, str] | None = None) -> None:
    """Set what OpenMP reads, for this process and those it starts.

    Where PyTorch is loaded already, only the number of threads is brought down to what this process may use.
    """
    environment = os.environ if environment is None else environment
    if not any(name in environment for name in WAITING):
        environment.update(WAITING)
    given = environment.get("OMP_NUM_THREADS")
    if given != environment.get(CHOSEN) or "MKL_NUM_THREADS" in environment:
        return
    threads = number(ranks=int(environment.get("LOCAL_WORLD_SIZE") or 1))
    environment["OMP_NUM_THREADS"] = environment[CHOSEN] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(min(threads, torch.get_num_threads()))


def number(*, ranks: int = 1) -> int:
    """Threads for each of the ranks on this machine: cores this process may run on, within its container's quota."""
    cores, quota = allowed_cores(), cpu_quota()
    return max(1, (cores if quota is None else min(cores, math.ceil(quota))) // ranks)


def allowed_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores, not hardware threads, among the processors this process may run on."""
    if not hasattr(os, "sched_getaffinity"):  # macOS and Windows
        return os.cpu_count() or 1
    files = [topology / f"cpu{cpu}/topology/thread_siblings_list" for cpu in os.sched_getaffinity(0)]
    return len({_read(file) or str(file) for file in files})


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processors' worth of time that control groups grant, the least of all groups around; None without a limit."""
    quotas = []
    for line in _read(membership).splitlines():
        _, controllers, group = line.split(":", 2)
        places = {root: _VERSION_2, root / "unified": _VERSION_2}  # alone, or beside version 1
        if controllers:
            places = {root / name: _VERSION_1 for name in (controllers, "cpu") if "cpu" in controllers.split(",")}
        for place, files in places.items():
            inner = place / group.lstrip("/")  # in a container it may be the host's name: then the root counts
            for folder in (inner, *inner.parents[: len(inner.parts) - len(place.parts)]):
                # Without a limit, version 2 says `max` and version 1 says -1.
                if granted := re.fullmatch(r"([1-9]\d*) ([1-9]\d*)", " ".join(_read(folder / file) for file in files)):
                    quotas.append(int(granted[1]) / int(granted[2]))
    return min(quotas, default=None)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
