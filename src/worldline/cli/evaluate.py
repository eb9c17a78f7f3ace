"""`worldline evaluate RUN`: judge a run on held-out data against the baselines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from worldline import builtin
from worldline.cli.console import Progress, show
from worldline.devices import pick_device
from worldline.evaluation.compression import Protocol, evaluate_compression
from worldline.evaluation.held_out import held_out
from worldline.evaluation.result import Evaluation
from worldline.evaluation.tokenizer import evaluate_tokenizer
from worldline.forecasting.forecaster import load_forecaster
from worldline.process.categorical import Sampling
from worldline.report.text import text_table
from worldline.rundir import RunDir, model_folder, read_model, to_json
from worldline.schema import UsageError
from worldline.tokenizers.load import load_tokenizer

EXAMPLES = """Judge a run on the held-out data its config.json names, or on other data.

A world is judged by the compression protocol: three token grids of context, all states, three grids predicted from
the model's own predictions. A tokenizer is judged by what survives its round trip. Writes evaluation/metrics.json.

Examples:
  worldline evaluate runs/world --blind runs/world_blind
  worldline evaluate compression-tiny --blind compression-tiny-blind
  worldline evaluate runs/tokenizer --num-clips 256 --json
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    run: tyro.conf.Positional[Path]
    """Run folder, model folder, or a built-in name such as compression-tiny."""
    data: Path | None = None
    """Data set to judge on; if not given, the run's own validation data (for built-ins: twin-mini-val)."""
    episodes: str | None = None
    """Python slice over its episodes."""
    blind: Path | None = None
    """A world trained without states on the same tokens, as a baseline."""
    tokenizer: Path | None = None
    """Where the tokenizer lies, if not in the run folder."""
    out: Path | None = None
    """Folder for metrics.json and forecasts.npz; if not given, `RUN/evaluation` (for built-ins: runs/NAME)."""
    num_clips: int | None = 128
    batch_size: int = 8
    temperature: float = 0.0
    """0 is greedy decoding, the report's choice."""
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    device: str = "auto"
    """`auto` takes CUDA where there is one."""
    json: bool = False


def main(arguments: list[str]) -> None:
    """Parse, evaluate, print the table."""
    job = tyro.cli(Job, prog="worldline evaluate", description=EXAMPLES, args=arguments)
    run = builtin.resolve(job.run)
    description = read_model(model_folder(run))[0]
    out = job.out or RunDir(builtin.results_of(run)).evaluation
    progress = Progress()
    if description["config"]["kind"] == "st-transformer":
        evaluation = _world(job, run, out, progress)
    else:
        evaluation = _tokenizer(job, run, out, description, progress)
    progress.close()
    show(
        to_json(Evaluation, evaluation),
        text=f"{text_table(evaluation)}\n\n{out / 'metrics.json'}",
        as_json=job.json,
    )


def _world(job: Job, run: Path, out: Path, progress: Progress) -> Evaluation:
    sampling = Sampling(temperature=job.temperature, top_k=job.top_k, top_p=job.top_p)
    tokenizer = builtin.resolve(job.tokenizer) if job.tokenizer else None
    device = pick_device(job.device)
    loaded = load_forecaster(run, tokenizer=tokenizer, sampling=sampling, device=device)
    forecaster = loaded.forecaster
    clips = held_out(
        run,
        loaded.contract,
        window=forecaster.context_frames + forecaster.horizon_frames,
        data=builtin.data_for(run, job.data),
        episodes=job.episodes,
    )
    blind = (
        load_forecaster(builtin.resolve(job.blind), tokenizer=tokenizer, sampling=sampling, device=device)
        if job.blind
        else None
    )
    counts = run / "unigram.npy"
    return evaluate_compression(
        loaded,
        clips,
        protocol=Protocol(num_clips=job.num_clips, batch_size=job.batch_size, seed=job.seed),
        out=out,
        blind=blind,
        unigram=np.load(counts) if counts.exists() else None,
        progress=progress.named("forecasting held-out clips"),
    )


def _tokenizer(job: Job, run: Path, out: Path, description: dict[str, Any], progress: Progress) -> Evaluation:
    contract = description.get("contract")
    if contract is None:
        raise UsageError(f"{run} does not say what data it was trained on; give the tokenizer's own run folder")
    tokenizer = load_tokenizer(run)
    clips = held_out(
        run,
        contract,
        window=contract["token_grid"]["block"],
        data=builtin.data_for(run, job.data),
        episodes=job.episodes,
    )
    return evaluate_tokenizer(
        tokenizer,
        clips,
        run=run,
        num_clips=job.num_clips,
        batch_size=job.batch_size,
        out=out,
        progress=progress.named("round trips"),
    )
