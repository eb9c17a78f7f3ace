"""`worldline demo`: from the built-in data and checkpoints to a report, in minutes."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro

from worldline.cli.console import options_of, show
from worldline.demo import DemoConfig, run_demo
from worldline.progress import Progress
from worldline.report.text import text_table

EXAMPLES = """Evaluate the built-in worlds of both tracks, train a new one for a few minutes, write a report.

Needs no GPU and no network.

Examples:
  worldline demo
  worldline demo --out /tmp/demo --config.steps 100
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    out: Path = Path("runs/demo")
    """Folder for run folders and report.html; an earlier demo there is replaced."""
    config: DemoConfig = field(default_factory=DemoConfig)
    json: bool = False


def parse(arguments: list[str]) -> Job:
    with options_of(DemoConfig, "--config."):
        return tyro.cli(Job, prog="worldline demo", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse, run, print the tables and the path of the report."""
    job = parse(arguments)
    progress = Progress()
    done = run_demo(job.out, job.config, progress)
    progress.close()
    text = "\n".join(
        [
            "The built-in world over tokens (compression track):",
            text_table(done.builtin),
            "",
            "The built-in world over latents (sampling track), two seconds ahead:",
            text_table(done.sampling),
            "",
            "The same world, trained just now for minutes:",
            text_table(done.fresh),
            "",
            f"Report: {done.report.resolve()} ({done.seconds:.0f} s in all)",
        ]
    )
    show(
        {"report": str(done.report), "seconds": round(done.seconds, 1), **asdict(job.config)},
        text=text,
        as_json=job.json,
    )
