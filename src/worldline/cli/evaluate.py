"""`worldline evaluate RUN`: judge a run on held-out data against the baselines."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from worldline import builtin
from worldline.cli.console import Progress, show
from worldline.cli.sample_options import SampleOptions
from worldline.data.windows import FramePattern
from worldline.devices import pick_device
from worldline.evaluation.compression import Protocol, TokenCounts, evaluate_compression
from worldline.evaluation.held_out import held_out
from worldline.evaluation.result import Evaluation
from worldline.evaluation.sampling import SamplingProtocol, evaluate_sampling
from worldline.evaluation.tokenizer import evaluate_tokenizer
from worldline.forecasting.load import Loaded, load_forecaster
from worldline.forecasting.tokens import TokenForecaster
from worldline.owner import owned
from worldline.report.text import text_table
from worldline.rundir import RunDir, describe_model, from_json, model_folder, to_json
from worldline.schema import UsageError
from worldline.tokenizers.load import load_tokenizer, load_vae

EXAMPLES = """Judge a run on the held-out data its config.json names, or on other data.

A world over tokens is judged by the compression protocol: three token grids of context, all states, three grids
predicted from the model's own predictions. A world over latents is judged by the sampling protocol: 17 frames and 77
states in, the frame two seconds ahead out. A tokenizer is judged by what survives its round trip. Writes
evaluation/metrics.json.

Examples:
  worldline evaluate runs/world --blind runs/world_blind
  worldline evaluate compression-tiny
  worldline evaluate sampling-tiny --num-samples 20 --window-stride 8
  worldline evaluate runs/sampling --protocol sampling --num-samples 20 --steps 100 --guidance 1.5
  worldline evaluate runs/tokenizer --num-clips 256 --json
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    run: tyro.conf.Positional[Path]
    """Run folder, model folder, or a built-in name such as compression-tiny."""
    protocol: Literal["auto", "compression", "sampling"] = "auto"
    """`auto` takes the one of the world's track; `sampling` judges any world by its pictures alone."""
    data: Path | None = None
    """Data set to judge on; if not given, the run's own validation data (for built-ins: twin-mini-val)."""
    episodes: str | None = None
    """Python slice over its episodes."""
    blind: Path | None = None
    """A world trained without states on the same tokens, as a baseline."""
    tokenizer: Path | None = None
    """Where the tokenizer lies, if not in the run folder."""
    checkpoint: str = "latest"
    """Which checkpoint of a run folder: `latest`, `best` (see `--keep-best` of training) or a step."""
    weights: Path | None = None
    """Folder of the pretrained backbone, if it has moved since training (worlds with adapters)."""
    out: Path | None = None
    """Folder for metrics.json and forecasts.npz; if not given, `RUN/evaluation` (for built-ins: runs/NAME)."""
    num_clips: int | None = 128
    batch_size: int = 8
    window_stride: int | None = None
    """Frames between the starts of clips; disjoint clips if not given."""
    means: tuple[int, ...] | None = None
    """Sampling protocol: sizes of smaller ensembles that are scored beside the whole one; 5, if more are drawn."""
    sample: Annotated[SampleOptions, tyro.conf.arg(name="")] = field(default_factory=SampleOptions)
    seed: int = 0
    device: str = "auto"
    """`auto` takes CUDA where there is one."""
    json: bool = False


def parse(arguments: list[str]) -> Job:
    return tyro.cli(Job, prog="worldline evaluate", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse, evaluate, print the table."""
    job = parse(arguments)
    job.sample.choice()  # values that make no sense are refused before anything is read
    run = builtin.resolve(job.run)
    model = model_folder(run, job.checkpoint)
    description = describe_model(model)
    out = job.out or RunDir(builtin.results_of(run)).evaluation
    progress = Progress()
    with owned(out):
        if description["config"]["kind"] in ("st-transformer", "wan"):
            evaluation = _world(job, run, out, progress)
        else:
            evaluation = _tokenizer(job, run, model, out, description, progress)
    progress.close()
    show(
        to_json(Evaluation, evaluation),
        text=f"{text_table(evaluation)}\n\n{out / 'metrics.json'}",
        as_json=job.json,
    )


def _world(job: Job, run: Path, out: Path, progress: Progress) -> Evaluation:
    job.sample.check(describe_model(model_folder(run, job.checkpoint)))
    loaded = _load(job, run, job.checkpoint)
    forecaster = loaded.forecaster
    clips = held_out(
        run,
        loaded.contract,
        window=forecaster.context_frames + forecaster.horizon_frames,
        stride=job.window_stride,
        data=builtin.data_for(run, job.data),
        episodes=job.episodes,
    )
    blind = _load(job, builtin.resolve(job.blind)) if job.blind else None
    watch = progress.named("forecasting held-out clips")
    if isinstance(forecaster, TokenForecaster) and job.protocol != "sampling":
        return evaluate_compression(
            loaded,
            clips,
            protocol=Protocol(num_clips=job.num_clips, batch_size=job.batch_size, seed=job.seed),
            out=out,
            blind=blind,
            counts=TokenCounts.of(run),
            progress=watch,
        )
    if job.protocol == "compression":
        raise UsageError(f"{run} holds a world over latents: it has no tokens to be scored (--protocol sampling)")
    return evaluate_sampling(
        forecaster,
        clips,
        protocol=SamplingProtocol(num_clips=job.num_clips, batch_size=job.batch_size, seed=job.seed, means=job.means),
        run=run,
        out=out,
        settings=job.sample.settings(forecaster),
        tokenizer=loaded.identity,
        blind=blind.forecaster if blind else None,
        progress=watch,
    )


def _load(job: Job, run: Path, checkpoint: str = "latest") -> Loaded:
    return load_forecaster(
        run,
        tokenizer=builtin.resolve(job.tokenizer) if job.tokenizer else None,
        weights=job.weights,
        checkpoint=checkpoint,
        choice=job.sample.choice(),
        device=pick_device(job.device),
    )


def _tokenizer(
    job: Job, run: Path, model: Path, out: Path, description: dict[str, Any], progress: Progress
) -> Evaluation:
    contract = description.get("contract")
    if contract is None:
        raise UsageError(f"{run} does not say what data it was trained on; give the tokenizer's own run folder")
    is_vae = description["config"]["kind"] == "wan-vae"
    if is_vae:
        pattern = from_json(FramePattern, contract["pattern"], run)
    else:
        pattern = FramePattern.consecutive(contract["token_grid"]["block"])
    clips = held_out(
        run,
        contract,
        window=pattern.window,
        stride=job.window_stride,
        pattern=pattern,
        data=builtin.data_for(run, job.data),
        episodes=job.episodes,
    )
    return evaluate_tokenizer(
        load_vae(model) if is_vae else load_tokenizer(model),
        clips,
        run=run,
        num_clips=job.num_clips,
        batch_size=job.batch_size,
        out=out,
        progress=progress.named("round trips"),
    )
