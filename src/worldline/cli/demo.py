"""`worldline demo`: from the built-in data and checkpoints to a report, in minutes."""

import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from worldline.cli.console import options_of, show
from worldline.demo import DemoOptions, run_demo
from worldline.report.text import text_table

EXAMPLES = """Evaluate the built-in worlds of both tracks, train a new one for a few minutes, write a report.

Needs no GPU and no network.

Examples:
  worldline demo
  worldline demo --out /tmp/demo --steps 100
"""


@dataclass(frozen=True, kw_only=True)
class Job(DemoOptions):
    out: Path = Path("runs/demo")
    """Folder for run folders and report.html; an earlier demo there is replaced."""
    json: bool = False


def parse(arguments: list[str]) -> Job:
    with options_of():
        return tyro.cli(Job, prog="worldline demo", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse, run, print the tables and the path of the report."""
    job, began = parse(arguments), time.monotonic()
    report, found = run_demo(job.out, job)
    seconds = time.monotonic() - began
    tables = [f"{title}:\n{text_table(evaluation)}\n" for title, evaluation in found.items()]
    text = "\n".join([*tables, f"Report: {report.resolve()} ({seconds:.0f} s in all)"])
    show({"report": str(report), "seconds": round(seconds, 1)}, text=text, as_json=job.json)
