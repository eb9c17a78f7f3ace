"""What the benchmarks share: options, repetitions, random batches, and the JSON they print. Knows no figure.

Every script here runs alone and prints one JSON object. Units stand in the keys. A machine that does other work
slows things down by factors, so what matters is measured as a ratio of two things done in turns, and every figure
has its smallest, middle and largest value. `load_average` says how busy the machine was.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from worldline.formats.open import open_source
from worldline.formats.states import ONEX_LAYOUT, StateStats, compute_stats
from worldline.rundir import environment
from worldline.schema import Batch, Origin, TokenGrid
from worldline.worlds.st_transformer import ONEX_GRID, STTransformerConfig


def options(doc: str | None) -> argparse.ArgumentParser:
    """A command line with the script's docstring as help and the option that all scripts have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    choose_sizes(parser)
    return parser


def choose_sizes(parser: argparse.ArgumentParser) -> None:
    """The options for which figures are made; without any, all of which the machine is capable."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--quick", action="store_true", help="smallest sizes, to see that it runs; no CUDA")
    either.add_argument("--cuda", action="store_true", help="only the figures that need a card, for time on a lent one")


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


class Parts:
    """The figures of a script's parts. One that fails says why and the others go on; each is told on stderr as it ends.

    What a part has left on the card is freed after it.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def add(self, name: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Make the figures of a part, with the seconds that it took; `failed` in their place where it did."""
        began = time.perf_counter()
        try:
            figures = call()
        except Exception as error:  # whatever it is, other parts may work
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}".replace(f"{Path(__file__).resolve().parents[1]}/", "")
            figures = {"failed": said.splitlines()[0][:300]}
        free()
        self.found[name] = {**figures, "took_seconds": round(time.perf_counter() - began, 2)}
        print(json.dumps({"part": name, "figures": self.found[name]}), file=sys.stderr, flush=True)
        return self.found[name]

    def leave_out(self, *names: str, why: str) -> None:
        """Name parts that are not made."""
        self.found.setdefault("left_out", {}).update(dict.fromkeys(names, why))

    def finish(self, *, quick: bool, **more: object) -> NoReturn:
        """Publish all; the exit code is 1 where a part failed."""
        publish({**more, **self.found}, quick=quick)
        sys.exit(any(isinstance(part, dict) and "failed" in part for part in self.found.values()))


ONLY_CUDA = "--cuda: needs no card"
NO_CUDA = "there is no CUDA device, or it was not asked for"


def card_wanted(given: argparse.Namespace) -> bool:
    """Whether figures of a card are made. Ends the script where nothing else was asked for and there is none."""
    there = torch.cuda.is_available()
    if given.cuda and not there:
        skip("--cuda: PyTorch finds no CUDA device here", quick=False)
        sys.exit(0)
    return there and not given.quick


def skip(reason: str, *, quick: bool) -> None:
    """Print that there are no figures, and why."""
    publish({"skipped": reason}, quick=quick)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Smallest, middle and largest value, rounded to significant digits."""
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: float(f"{value:.{digits}g}") for name, value in found.items()}


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each call in each of `repeats` rounds. Every round makes every call once; one round warms up.

    Seconds of the processor (`clock=time.process_time`) suffer less from other work on the machine. `warm=False` for
    calls that have been warmed up by others, cheaper than they are.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + warm):
        for name, call in calls.items():
            _finish()
            began = clock()
            call()
            _finish()
            if turn >= warm:
                seconds[name].append(clock() - began)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> dict[str, float]:
    """How many times longer `of` takes than `to`, round by round."""
    return spread([a / b for a, b in zip(seconds[of], seconds[to], strict=True)])


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# --- on a card; on a CPU there is no count of memory, which lets tests run the same code ---


def autocast(device: str) -> AbstractContextManager[object]:
    """As training on a card has it; nothing on a CPU."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device == "cuda" else nullcontext()


def free() -> None:
    """Give back what nobody holds any more: cycles of Python, then the allocator's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


Built = TypeVar("Built")


def built_on(device: str, build: Callable[[], Built]) -> Built:
    """A model whose first weights are drawn where it is used: on one thread of a CPU a large one takes seconds."""
    with torch.device(device):
        return build()


@dataclass(frozen=True)
class Peak:
    """The most of a card's memory at once, with what was there before; in bytes."""

    allocated: int
    """In tensors."""
    reserved: int
    """What the allocator held for them."""


def peak_of(call: Callable[[], object], device: str) -> Peak | None:
    """Run something and look. None on a CPU. Raises `torch.cuda.OutOfMemoryError` where it does not fit."""
    _finish()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    call()
    _finish()
    return Peak(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if device == "cuda" else None


def fits(call: Callable[[], object], device: str) -> tuple[bool, Peak | None]:
    """Whether it ran without memory ending, and its peak. Afterwards nothing of a failed attempt is left."""
    try:
        return True, peak_of(call, device)
    except torch.cuda.OutOfMemoryError:
        pass  # the error holds every frame that it went through, so memory can only be freed after this block
    free()
    return False, None


def beside(peak: Peak | None, counted: int) -> dict[str, float | None]:
    """What a card's allocator counted at most, and what the same step was expected to take."""
    expected = {"counted_gb": round(counted / 1e9, 3)}
    if peak is None:
        return {**expected, "allocated_gb": None, "reserved_gb": None, "allocated_to_counted_ratio": None}
    found = {"allocated_gb": round(peak.allocated / 1e9, 3), "reserved_gb": round(peak.reserved / 1e9, 3)}
    return {**expected, **found, "allocated_to_counted_ratio": round(peak.allocated / counted, 3)}


def matmul_peak(repeats: int, size: int = 8192) -> float:
    """TFLOP/s of a large bfloat16 matrix product on the card: what its fastest repetition reached."""
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    seconds = in_turns({"product": lambda: [a @ b for _ in range(20)]}, repeats=repeats)["product"]
    return 20 * 2 * size**3 / min(seconds) / 1e12


TINY_GRID = TokenGrid(height=8, width=8, vocab_size=4096)
"""Of compression_tiny."""
STATES = ONEX_LAYOUT.names
"""Of the challenge's robot and the twin, whose arms a map draws."""


def random_states(size: int, frames: int, device: torch.device | str = "cpu") -> Tensor:
    """Random states, `b t 25`, each in the range that the built-in data have: so a map has the arms in its picture."""
    known = _built_in_states()
    mean, std, low, high = (
        torch.tensor(of, device=device) for of in (known.mean, known.std, known.minimum, known.maximum)
    )
    return (mean + std * torch.randn(size, frames, len(mean), device=device)).clamp(low, high)


@cache
def _built_in_states() -> StateStats:
    return compute_stats(open_source("twin-mini"))


def random_batch(
    config: STTransformerConfig, size: int, device: torch.device | str = "cpu", grid: TokenGrid = ONEX_GRID
) -> Batch:
    """Random tokens and plausible states of the shape a world is built for; on `meta`, their shapes alone."""
    grids = config.context_grids + config.horizon_grids
    return Batch(
        tokens=torch.randint(grid.vocab_size, (size, grids, grid.height, grid.width), device=device),
        states=random_states(size, grid.frames_of(grids), device),
        fps=30.0,
        origins=tuple(Origin(source="drawn", episode=i, start=0) for i in range(size)),
    )
