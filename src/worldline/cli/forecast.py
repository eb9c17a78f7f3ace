"""`worldline forecast RUN`: predict what a robot will see, as video, pictures or arrays."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from worldline.cli.console import options_of, show
from worldline.forecasts import ForecastOptions, write_forecasts
from worldline.ranks import Ranks

EXAMPLES = """Forecast clips of a data set: context and states in; video, pictures or arrays out.

It needs no true future, so it works on the challenge's test samples and on data of tokens alone.

Examples:
  worldline forecast compression-tiny
  worldline forecast runs/world --clips 3 17 --temperature 1.0 --top-p 0.9 --num-samples 4
  worldline forecast sampling-tiny --num-samples 3 --steps 20
  worldline forecast runs/revontuli --data test_v2.0 --format npz
  worldline forecast runs/sampling --data test_v2.0_raw --format png --num-samples 20
"""


@dataclass(frozen=True, kw_only=True)
class Job(ForecastOptions):
    run: tyro.conf.Positional[Path]
    """Run folder, model folder, or a built-in name such as compression-tiny."""
    json: bool = False


def parse(arguments: list[str]) -> Job:
    with options_of():
        return tyro.cli(Job, prog="worldline forecast", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse, forecast, say what was written: one file or folder per clip."""
    job = parse(arguments)
    with Ranks.start(job.device) as ranks:
        written = [str(path) for path in write_forecasts(job.run, job, ranks=ranks)]
    show({"out": str(Path(written[0]).parent), "files": written}, text="\n".join(written), as_json=job.json)
