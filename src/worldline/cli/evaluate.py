"""`worldline evaluate RUN`: evaluate a run on held-out data, beside the baselines."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from worldline.cli.console import options_of, show
from worldline.evaluation.evaluate import EvaluateOptions, evaluate, out_of
from worldline.evaluation.result import Evaluation
from worldline.ranks import Ranks
from worldline.report.text import text_table
from worldline.rundir import to_json

EXAMPLES = """Evaluate a run on its held-out data (named in its config.json), or on other data.

Worlds over tokens use the compression protocol: three token grids of context, all states, three grids predicted from
the model's own predictions. Worlds over latents use the sampling protocol: 17 frames and 77 states in, the frame two
seconds ahead out. Tokenizers are evaluated by their reconstructions. Writes evaluation/metrics.json. Under torchrun
the processes share the clips. The same command again continues an interrupted evaluation.

Examples:
  worldline evaluate runs/world --unconditional runs/world_unconditional
  worldline evaluate compression-tiny
  worldline evaluate sampling-tiny --num-samples 20 --window-stride 8
  worldline evaluate runs/sampling --protocol sampling --num-samples 20 --steps 100 --guidance 1.5
  worldline evaluate runs/tokenizer --num-clips 256 --json
  worldline evaluate runs/world --on training-data
  torchrun --nproc-per-node 8 --no-python worldline evaluate runs/sampling --num-clips None --num-samples 20
"""


@dataclass(frozen=True, kw_only=True)
class Job(EvaluateOptions):
    run: tyro.conf.Positional[Path]
    """Run folder, model folder, or a built-in name such as compression-tiny."""
    json: bool = False


def parse(arguments: list[str]) -> Job:
    with options_of():
        return tyro.cli(Job, prog="worldline evaluate", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse, evaluate, print the table."""
    job = parse(arguments)
    with Ranks.start(job.device) as ranks:
        evaluation = evaluate(job.run, job, ranks=ranks)
    table = f"{text_table(evaluation)}\n\n{out_of(job.run, job) / 'metrics.json'}"
    show(to_json(Evaluation, evaluation), text=table, as_json=job.json)
