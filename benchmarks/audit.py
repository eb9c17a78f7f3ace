"""What the evidence of an evaluation costs per clip: its rows alone, with conditions, with each study. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/audit.py [--quick] [--clips 12] [--repeats 3] [--runs RUN ...]

Every evaluation is run in turns, on the built-in validation set of the twin if no run names its own data. `rows` has
neither conditions nor studies, `conditions` has shuffled and frozen states as rows, each study is added to these alone
(the audit brings further conditions), and `all` is what `worldline evaluate` does. `default_seconds` is that command as
a user types it, once, by the clock: for the built-in worlds below two minutes on two cores without other work.
"""

import tempfile
import time
from pathlib import Path

from common import in_turns, options, publish, spread

from worldline.evaluation.evaluate import EvaluateOptions, evaluate
from worldline.evaluation.study import studies_of

BUILT_IN = [Path("compression-tiny"), Path("sampling-tiny")]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", nargs="*", type=Path, default=BUILT_IN)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    runs, clips, repeats = arguments.runs, arguments.clips, arguments.repeats
    if arguments.quick:
        runs, clips, repeats = runs[:1], 1, 1
    publish({run.name: of_run(run, clips, repeats, quick=arguments.quick) for run in runs}, quick=arguments.quick)


def of_run(run: Path, clips: int, repeats: int, *, quick: bool) -> dict[str, object]:
    """Seconds of the processor per clip of each part, and seconds of the whole command."""
    names = [one.id for one in studies_of("compression")][: 1 if quick else None]
    parts: dict[str, tuple[tuple[str, ...], int | None]] = {"rows": ((), 0)}
    if not quick:
        parts |= {"conditions": ((), None), **{name: ((name,), None) for name in names}}
    with tempfile.TemporaryDirectory() as folder:

        def part(studies: tuple[str, ...], samples: int | None) -> None:
            amount = {"num_clips": clips, "studies": studies, "condition_samples": samples}
            evaluate(run, EvaluateOptions(**amount, out=Path(folder), device="cpu"))

        calls = {name: (lambda what=what: part(*what)) for name, what in (parts | {"all": ((*names,), None)}).items()}
        seconds = in_turns(calls, repeats=repeats, clock=time.process_time, warm=not quick)
        found: dict[str, object] = {"clips": clips}
        found["cpu_seconds_per_clip"] = {name: spread([s / clips for s in took]) for name, took in seconds.items()}
        found["all_to_rows_ratio"] = spread([a / b for a, b in zip(seconds["all"], seconds["rows"], strict=True)])
        if not quick:
            began = time.perf_counter()
            evaluate(run, EvaluateOptions(out=Path(folder), device="cpu"))
            found["default_seconds"] = round(time.perf_counter() - began, 1)
    return found


if __name__ == "__main__":
    main()
