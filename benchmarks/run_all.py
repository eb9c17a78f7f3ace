"""Run the whole suite, one process after the other, and write one JSON file named after machine and date.

    python benchmarks/run_all.py [--quick] [--out benchmarks/results] [--only NAME ...]

Tiny sizes run everywhere on one thread; with CUDA each benchmark also runs the report's sizes. A benchmark that
cannot run is in the file with the reason, and one that failed makes the exit code 1.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from worldline.files import write_json
from worldline.rundir import environment

SUITE = (
    "loss_memory",
    "training_step",
    "generation",
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


def run(name: str, *, quick: bool) -> dict[str, object]:
    """The figures of one benchmark, or `failed` with what it said last."""
    command = [sys.executable, str(Path(__file__).parent / f"{name}.py"), *(["--quick"] if quick else [])]
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=threads | os.environ)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:], "exit_code": done.returncode}
    return json.loads(done.stdout)


def file_name(machine: dict[str, str], now: datetime) -> str:
    """For example `nvidia-h200-2026-11-22.json`; the processor's name where there is no accelerator."""
    name = machine["device"] if machine["device"] != "cpu" else machine["cpu"]
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{now:%Y-%m-%d}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs; no CUDA")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", nargs="+", choices=SUITE, default=SUITE)
    arguments = parser.parse_args()
    machine, now, results = environment(), datetime.now(UTC), {}
    for name in arguments.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = run(name, quick=arguments.quick)
    path = arguments.out / file_name(machine, now)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"when": now.isoformat(timespec="seconds"), "quick": arguments.quick, "cuda": torch.cuda.is_available()}
    write_json(path, {**head, "environment": machine, "results": results})
    print(json.dumps({"file": str(path), "failed": [name for name in results if "failed" in results[name]]}))
    sys.exit(any("failed" in result for result in results.values()))


if __name__ == "__main__":
    main()
