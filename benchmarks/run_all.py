"""Run the whole suite, one process after the other, and write one JSON file named after machine and date.

    python benchmarks/run_all.py [--quick | --cuda] [--out benchmarks/results] [--only NAME ...] [--minutes 30]

Tiny sizes run everywhere on one thread; with CUDA each benchmark also runs the report's sizes, and with `--cuda` these
alone. A benchmark that cannot run is in the file with the reason; one that failed, in whole or in a part, or that took
longer than its limit makes the exit code 1, and what it had found by then is kept. The file is written anew after every
benchmark, so that a run that is cut off leaves what was done.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from common import choose_sizes

from worldline.files import write_json
from worldline.rundir import environment

SUITE = (
    "loss_memory",
    "training_step",
    "generation",
    "driven_world",
    "sampling_world",
    "data_loading",
    "twin_rendering",
    "tasks",
    "audit",
    "environments",
    "driven_latents",
    "viewer",
    "threads",
)
ON_CUDA = {"driven_world": 90, "sampling_world": 180, "training_step": 90, "loss_memory": 90, "generation": 60}
"""Those with figures that need a card, in the order in which they run there, and the seconds that each may take."""
Result = dict[str, Any]


def run(name: str, *, size: str | None, limit: float) -> Result:
    """The figures of one benchmark; `failed` with what it said last, and its finished parts, where it has none.

    Args:
        size: an option of `common.choose_sizes`.
        limit: seconds after which it is ended, with all that it has started.
    """
    command = [sys.executable, str(Path(__file__).parent / f"{name}.py"), *([size] if size else [])]
    threads, began = {"OMP_NUM_THREADS": "1"}, time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=threads | os.environ, start_new_session=True, **pipes) as process:
        try:
            out, said = process.communicate(timeout=limit)
            late = []
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, said = process.communicate()
            late = [f"it took more than {limit:g} s"]
    took = {"wall_seconds": round(time.perf_counter() - began, 1)}
    try:
        return json.loads(out) | took
    except json.JSONDecodeError:
        last = [line for line in said.splitlines() if line.strip() and not line.startswith(PART)][-1:]
        return parts_of(said) | took | {"failed": late or last, "exit_code": process.returncode}


PART = '{"part": '


def parts_of(said: str) -> Result:
    """The parts that a script had told on stderr (`common.Parts`)."""
    told = [json.loads(line) for line in said.splitlines() if line.startswith(PART) and line.endswith("}")]
    return {one["part"]: one["figures"] for one in told}


def failures(name: str, result: Result) -> list[str]:
    """A benchmark that failed, or the parts of it that did."""
    inside = [
        f"{name}: {part}" for part, figures in result.items() if isinstance(figures, dict) and "failed" in figures
    ]
    return [name] if "failed" in result else inside


def file_name(machine: dict[str, str], now: datetime) -> str:
    """For example `nvidia-h200-2026-11-22.json`; the processor's name where there is no accelerator."""
    name = machine["device"] if machine["device"] != "cpu" else machine["cpu"]
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{now:%Y-%m-%d}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choose_sizes(parser)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="+", choices=SUITE, default=None)
    parser.add_argument("--minutes", type=float, default=30.0, help="that each may take; with --cuda less, by its name")
    parser.add_argument("--commit", default=None, help="of the source, where there is no git to ask")
    given = parser.parse_args()
    if given.cuda and not torch.cuda.is_available():
        parser.error("--cuda: PyTorch finds no CUDA device here")
    size = "--quick" if given.quick else "--cuda" if given.cuda else None
    machine, now = environment() | ({"commit": given.commit} if given.commit else {}), datetime.now(UTC)
    path = given.out / file_name(machine, now)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"when": now.isoformat(timespec="seconds"), "quick": given.quick, "cuda": torch.cuda.is_available()}
    wanted, results, failed = given.only or (ON_CUDA if given.cuda else SUITE), dict[str, Result](), list[str]()
    without = {name: "not asked for" if given.only else "--cuda: needs no card" for name in SUITE if name not in wanted}
    for name in wanted:
        print(f"{name} ...", file=sys.stderr, flush=True)
        limit = min(60 * given.minutes, ON_CUDA.get(name, 60) if given.cuda else 60 * given.minutes)
        results[name] = run(name, size=size, limit=limit)
        print(f"{name}: {results[name]['wall_seconds']} s", file=sys.stderr, flush=True)
        failed += failures(name, results[name])
        write_json(path, {**head, "environment": machine, "left_out": without, "results": results})
    print(json.dumps({"file": str(path), "failed": failed}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
