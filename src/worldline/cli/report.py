"""`worldline report RUN...`: one self-contained HTML page about one or several runs."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from worldline.cli.console import show
from worldline.report.write import write_report
from worldline.schema import UsageError

EXAMPLES = """Write one HTML page about one or several runs. Reads run folders only; needs no GPU.

Examples:
  worldline report runs/world
  worldline report runs/world runs/world_unconditional --out compare.html
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None
    """File or folder; `report.html` in the first run folder if not given."""
    json: bool = False


def parse(arguments: list[str]) -> Job:
    return tyro.cli(Job, prog="worldline report", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse and write the page."""
    job = parse(arguments)
    if not job.runs:
        raise UsageError("there is nothing to report on; give a run folder, or several (worldline report RUN)")
    path = write_report(job.runs, job.out or job.runs[0])
    show({"report": str(path), "bytes": path.stat().st_size}, text=str(path), as_json=job.json)
