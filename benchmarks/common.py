"""What the benchmarks share: options, repetitions, random batches, and the JSON they print. Knows no figure.

Every script here runs alone and prints one JSON object. Units stand in the keys. A machine that does other work
slows things down by factors, so what matters is measured as a ratio of two things done in turns, and every figure
has its smallest, middle and largest value. `load_average` says how busy the machine was.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from worldline.rundir import environment
from worldline.schema import Batch, Origin, TokenGrid
from worldline.worlds.st_transformer import ONEX_GRID, STTransformerConfig


def options(doc: str | None) -> argparse.ArgumentParser:
    """A command line with the script's docstring as help and the option that all scripts have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs; no CUDA")
    return parser


def publish(figures: Mapping[str, object], *, quick: bool) -> None:
    """Print the figures with what they were measured on, as one JSON object."""
    head = {
        "benchmark": Path(sys.argv[0]).stem,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "environment": environment(),
    }
    print(json.dumps({**head, **figures}, indent=2))


def skip(reason: str, *, quick: bool) -> None:
    """Print that there are no figures, and why."""
    publish({"skipped": reason}, quick=quick)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Smallest, middle and largest value, rounded to significant digits."""
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: float(f"{value:.{digits}g}") for name, value in found.items()}


def in_turns(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call in each of `repeats` rounds. Every round makes every call once; one round warms up.

    Seconds of the processor (`clock=time.process_time`) suffer less from other work on the machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            _finish()
            began = clock()
            call()
            _finish()
            if turn:
                seconds[name].append(clock() - began)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> dict[str, float]:
    """How many times longer `of` takes than `to`, round by round."""
    return spread([a / b for a, b in zip(seconds[of], seconds[to], strict=True)])


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


TINY_GRID = TokenGrid(height=8, width=8, vocab_size=4096)
"""Of compression_tiny."""


def random_batch(
    config: STTransformerConfig, size: int, device: torch.device | str = "cpu", grid: TokenGrid = ONEX_GRID
) -> Batch:
    """Random tokens and states of the shape a world is built for; on `meta`, their shapes alone."""
    grids = config.context_grids + config.horizon_grids
    return Batch(
        tokens=torch.randint(grid.vocab_size, (size, grids, grid.height, grid.width), device=device),
        states=torch.randn(size, grid.frames_of(grids), 25, device=device),
        fps=30.0,
        origins=tuple(Origin(source="drawn", episode=i, start=0) for i in range(size)),
    )
