"""Number of PyTorch's threads and how they wait for each other: chosen when worldline is imported.

OpenMP reads its settings when PyTorch loads it, so `import worldline` comes before `import torch`, or the shell sets
them. By default a waiting thread spins for milliseconds. On a machine with another busy process it takes the core
from the thread that it waits for, and a training step takes ten times as long. Here a thread spins a thousand turns
(about ten microseconds, enough between two loops on an idle machine) and then sleeps.

Settings of the user stay. This file loads only the standard library.
"""

import math
import os
import sys
from collections.abc import Iterable, MutableMapping
from pathlib import Path

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""GNU's OpenMP, which PyTorch's wheels bring, sleeps after so many turns; others sleep at once."""
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
CHOSEN = "WORLDLINE_NUM_THREADS"
"""Our own choices for this process, not the user's: processes that it starts choose again."""


def choose(environment: MutableMapping[str, str] | None = None) -> None:
    """Set what OpenMP reads, for this process and those it starts.

    Where PyTorch is loaded already it is too late for how threads wait; then their number alone is brought down to
    what this process may use.
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
    cores = allowed_cores()
    quota = cpu_quota()
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
    for line in (_read(membership) or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2, alone or beside version 1
            for folder in _around([root, root / "unified"], group):
                quotas.append(_share(*(_read(folder / "cpu.max") or "max").split()))
        elif "cpu" in controllers.split(","):
            for folder in _around([root / controllers, root / "cpu"], group):
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quotas.append(_share(*(_read(folder / name) or "max" for name in names)))
    return min((quota for quota in quotas if quota is not None), default=None)


def _around(roots: Iterable[Path], group: str) -> Iterable[Path]:
    """The group's folder and those around it. In a container the name may be the host's: then the root counts."""
    for root in roots:
        inner = root / group.lstrip("/")
        yield inner
        yield from (folder for folder in inner.parents if folder.is_relative_to(root))


def _share(quota: str, period: str = "100000") -> float | None:
    """Version 2 says `max` where there is no limit, version 1 says -1."""
    try:
        microseconds, of = int(quota), int(period)
    except ValueError:
        return None
    return microseconds / of if microseconds > 0 and of > 0 else None


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
