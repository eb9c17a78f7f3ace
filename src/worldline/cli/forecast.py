"""`worldline forecast RUN`: predict what a robot will see, as video."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from worldline import builtin
from worldline.cli.console import Progress, show
from worldline.cli.sample_options import SampleOptions
from worldline.devices import pick_device
from worldline.evaluation.held_out import held_out, spread
from worldline.forecasting.forecaster import shown_context, shown_pace
from worldline.forecasting.load import load_forecaster
from worldline.forecasting.video import write_comparison
from worldline.process.noise import clip_seeds
from worldline.rundir import describe_model, model_folder
from worldline.schema import UsageError

EXAMPLES = """Forecast clips of a data set: context and states in, video out (real | forecast side by side, as mp4).

Examples:
  worldline forecast compression-tiny
  worldline forecast runs/world --clips 3 17 --temperature 1.0 --top-p 0.9 --num-samples 4
  worldline forecast sampling-tiny --num-samples 3 --steps 20
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    run: tyro.conf.Positional[Path]
    """Run folder, model folder, or a built-in name such as compression-tiny."""
    data: Path | None = None
    """Data set to forecast; if not given, the run's own validation data (for built-ins: twin-mini-val)."""
    episodes: str | None = None
    """Python slice over its episodes."""
    clips: tuple[int, ...] = ()
    """Numbers of the clips; four, evenly spread, if none are given."""
    tokenizer: Path | None = None
    checkpoint: str = "latest"
    """Which checkpoint of a run folder: `latest`, `best` (see `--keep-best` of training) or a step."""
    weights: Path | None = None
    """Folder of the pretrained backbone, if it has moved since training (worlds with adapters)."""
    out: Path | None = None
    """Folder for the videos; if not given, `RUN/forecasts` (for built-ins: runs/NAME)."""
    sample: Annotated[SampleOptions, tyro.conf.arg(name="")] = field(default_factory=SampleOptions)
    seed: int = 0
    device: str = "auto"
    """`auto` takes CUDA where there is one."""
    json: bool = False


def parse(arguments: list[str]) -> Job:
    return tyro.cli(Job, prog="worldline forecast", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse, forecast, write one video per clip."""
    job = parse(arguments)
    choice = job.sample.choice()
    clip_seeds(job.seed, ())  # refuses what is no seed
    run = builtin.resolve(job.run)
    job.sample.check(describe_model(model_folder(run, job.checkpoint)))
    loaded = load_forecaster(
        run,
        tokenizer=builtin.resolve(job.tokenizer) if job.tokenizer else None,
        weights=job.weights,
        checkpoint=job.checkpoint,
        choice=choice,
        device=pick_device(job.device),
    )
    forecaster = loaded.forecaster
    split = forecaster.context_frames
    context = shown_context(forecaster)
    shown = [*context, *forecaster.times]
    clips = held_out(
        run,
        loaded.contract,
        window=split + forecaster.horizon_frames,
        data=builtin.data_for(run, job.data),
        episodes=job.episodes,
    )
    out, progress = job.out or builtin.results_of(run) / "forecasts", Progress()
    numbers = job.clips or tuple(spread(len(clips), 4))
    written = []
    for done, number in enumerate(numbers, start=1):
        if not 0 <= number < len(clips):
            raise UsageError(f"there is no clip {number}; the data have clips 0..{len(clips) - 1}")
        clip = clips[number]
        if clip.frames is None:
            raise UsageError(f"{clips.source.path} holds no frames; give the data set that does (--data DIR)")
        forecast = forecaster.forecast(
            clip.frames[None, :split],
            clip.states[None],
            seeds=clip_seeds(job.seed, [clip.origin]),
        )
        path = out / f"clip_{number:05d}.mp4"
        fps = clip.fps / shown_pace(forecaster)
        write_comparison(path, clip.frames[shown], forecast.frames[0], context=len(context), fps=fps)
        written.append(str(path))
        progress("forecasting", done, len(numbers))
    progress.close()
    show({"videos": written}, text="\n".join(written), as_json=job.json)
