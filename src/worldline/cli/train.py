"""`worldline train RECIPE`: train a model into a run folder."""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from worldline.cli.console import options_of, show
from worldline.cli.recipe_options import Recipe, parse_recipe
from worldline.families.config import TrainConfig
from worldline.launch import ResumeOptions, go_on, new_run, start
from worldline.progress import say
from worldline.recipes.all import RECIPES, refuse_idle
from worldline.rundir import to_json
from worldline.training.loop import TrainResult

EXAMPLES = """Train a model by a recipe; its options override it. A notebook can change every field (`worldline.train`).

Examples:
  worldline train tokenizer_tiny --out runs/tokenizer
  worldline train compression_tiny --tokenizer runs/tokenizer --out runs/world
  worldline train compression_tiny --data.path MY_ROBOT --data.val-path None --data.train-episodes :-10 \\
      --data.val-episodes -10: --tokenizer runs/tokenizer
  worldline train --resume runs/world
  worldline train --resume runs/world --steps 9000 --data.path NEW_PLACE
  torchrun --nproc-per-node 8 --no-python worldline train compression_revontuli --data.path train_v2.0 \\
      --data.val-path val_v2.0
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run."""

    config: Recipe
    out: Path | None = None
    """Run folder; a new one below `runs/` if not given."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Resume(ResumeOptions):
    """A run to resume. It needs no recipe, because the run folder contains the complete configuration."""

    run: tyro.conf.Positional[Path]
    json: bool = False


def parse(arguments: list[str]) -> Job | Resume:
    if arguments[:1] == ["--resume"]:
        return tyro.cli(Resume, prog="worldline train --resume", args=arguments[1:])
    name, job = parse_recipe(Job, "train", EXAMPLES, arguments)
    refuse_idle(job.config, RECIPES[name]())
    return replace(job, out=job.out or new_run(name))


def main(arguments: list[str]) -> None:
    """Parse and train."""
    job = parse(arguments)
    if isinstance(job, Resume):
        with options_of(TrainConfig):
            result = go_on(job.run, job)
    else:
        assert job.out is not None, "parse names a folder"
        result = start(job.config, job.out)
    _show(result, as_json=job.json)


def _show(result: TrainResult, *, as_json: bool) -> None:
    if result.left_out:
        say(f"{len(result.left_out)} listed episodes were left out, for example: {result.left_out[0]}")
    if result.stopped:
        say(f"stopped by SIGTERM, with a checkpoint; to go on: worldline train --resume {result.run}")
    lines = [f"{result.run}: step {result.step} of {result.total_steps} after {result.seconds:.0f} s"]
    lines += [f"  {name:24} {value:.5g}" for name, value in result.figures.items()]
    done = to_json(TrainResult, result) | {"left_out": len(result.left_out)}
    show(done, text="\n".join(lines), as_json=as_json)
