"""`worldline forecast RUN`: predict what a robot will see, as video, pictures or arrays."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from worldline import builtin
from worldline.cli.console import Progress, say, show
from worldline.data.clips import Clips
from worldline.evaluation.held_out import AS_TRAINED, DataChanges, held_out, spread, warn_of_strange_states
from worldline.evaluation.parts import made_from
from worldline.families.load import Loaded, check_world, has_tokenizer, load_forecaster, refuse_unfit, window_of
from worldline.families.sample import SampleOptions
from worldline.forecasting.forecaster import shown_pace
from worldline.forecasting.predictions import Prediction, beside, predict
from worldline.forecasting.saved import Index, Layout, Sample, begin_index, finish_index, save_npz, save_png
from worldline.forecasting.video import write_comparison
from worldline.formats.faults import check_episodes
from worldline.identity import Part
from worldline.process.noise import clip_seeds
from worldline.ranks import Ranks
from worldline.rundir import describe_model, model_folder
from worldline.schema import Clip, UsageError

EXAMPLES = """Forecast clips of a data set: context and states in; video, pictures or arrays out.

A true future is not needed: samples of the challenge's test sets, and data of tokens alone, can be forecast.

Examples:
  worldline forecast compression-tiny
  worldline forecast runs/world --clips 3 17 --temperature 1.0 --top-p 0.9 --num-samples 4
  worldline forecast sampling-tiny --num-samples 3 --steps 20
  worldline forecast runs/revontuli --data test_v2.0 --format npz
  worldline forecast runs/sampling --data test_v2.0_raw --format png --num-samples 20
"""
AT_ONCE = 4
"""Clips that one process forecasts at once at most, where their rows allow more: the fewer, the better they share."""


@dataclass(frozen=True, kw_only=True)
class Job:
    run: tyro.conf.Positional[Path]
    """Run folder, model folder, or a built-in name such as compression-tiny."""
    data: Path | tuple[Path, ...] | None = None
    """Data set to forecast, or several of one layout; if not given, the run's own validation data (for built-ins:
    twin-mini-val)."""
    episodes: str | None = None
    """Python slices and numbers of its episodes, for example `:-10` or `:40,45,50:60`."""
    changes: Annotated[DataChanges, tyro.conf.arg(name="")] = AS_TRAINED
    clips: tuple[int, ...] = ()
    """Numbers of the clips to forecast."""
    num_clips: int | Literal["all"] | None = None
    """So many clips, evenly spread; if neither is given, all samples of a test set, and four clips of other data."""
    tokenizer: Path | None = None
    """Where the tokenizer lies, if not in the run folder."""
    allow_different: tuple[Part, ...] = ()
    """What may be another one, on purpose, than the world was trained with: `tokenizer`."""
    checkpoint: str = "latest"
    """Which checkpoint of a run folder: `latest`, `best` (see `--keep-best` of training) or a step."""
    weights: Path | None = None
    """Folder of the pretrained backbone, if it has moved since training (worlds with adapters)."""
    out: Path | None = None
    """Folder for the forecasts; if not given, `RUN/forecasts` (for built-ins: runs/NAME)."""
    format: Layout = "mp4"
    """`mp4` shows context and futures, beside the real clip where it is known; `png` holds the predicted frames alone,
    without loss; `npz` these and, of worlds over tokens, the tokens with their 500 best log-probabilities."""
    sample: Annotated[SampleOptions, tyro.conf.arg(name="")] = field(default_factory=SampleOptions)
    seed: int = 0
    device: str = "auto"
    """`auto` takes CUDA where there is one; under torchrun each process its own."""
    json: bool = False

    def check(self) -> None:
        """Refuse values that cannot be used, before anything is read. Raises `UsageError`."""
        clip_seeds(self.seed, ())
        if self.clips and self.num_clips is not None:
            raise UsageError("--clips names the clips, so --num-clips would change nothing; give one of them")
        if self.clips and min(self.clips) < 0:
            raise UsageError(f"there is no clip {min(self.clips)}; clips are counted from 0")
        if isinstance(self.num_clips, int) and self.num_clips < 1:
            raise UsageError(f"{self.num_clips} clips are none to forecast; give --num-clips 1 or more, or all")


def parse(arguments: list[str]) -> Job:
    return tyro.cli(Job, prog="worldline forecast", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse, forecast, write one file or folder per clip."""
    job = parse(arguments)
    job.check()
    with Ranks.start(job.device) as ranks:
        written = carry_out(job, ranks)
    if ranks.writes:
        show({"out": str(_out(job)), "files": written}, text="\n".join(written), as_json=job.json)


def carry_out(job: Job, ranks: Ranks) -> list[str]:
    """Forecast the clips asked for, each on one of the ranks; give what was written, in their order."""
    run, out = builtin.resolve(job.run), _out(job)
    with ranks.first():  # what is refused is refused once, and before any weights are read
        clips, numbers = _chosen(job, run)
    with ranks.owning(out):
        return _forecast(job, run, out, clips, numbers, ranks)


def _out(job: Job) -> Path:
    return job.out or builtin.results_of(builtin.resolve(job.run)) / "forecasts"


def _chosen(job: Job, run: Path) -> tuple[Clips, list[int]]:
    """The clips of the data, and which of them are to be forecast."""
    model = model_folder(run, job.checkpoint)
    description = describe_model(model)
    check_world(description, model)
    job.sample.check(description)
    if job.weights and not description["config"].get("lora"):
        raise UsageError("--weights would change nothing: this world holds all of its weights")
    clips = held_out(
        run,
        description["contract"],
        window=window_of(description),
        data=builtin.data_for(run, job.data),
        episodes=job.episodes,
        changes=job.changes,
    )
    beside_it = job.tokenizer is not None or has_tokenizer(run, description)
    refuse_unfit(
        clips.source,
        description,
        tokenizer=beside_it,
        pictures=job.format != "npz",
        allow_different=job.allow_different,
    )
    if job.clips and max(job.clips) >= len(clips):
        raise UsageError(f"there is no clip {max(job.clips)}; the data have clips 0..{len(clips) - 1}")
    usual = "all" if clips.source.kind == "1x-test" else 4
    wanted = job.num_clips or usual
    numbers = list(dict.fromkeys(job.clips)) or spread(len(clips), None if wanted == "all" else wanted)
    episodes = sorted({int(clips.windows.episode[number]) for number in numbers})
    check_episodes(clips.source, episodes, size=clips.image_size)
    warn_of_strange_states(clips.source, episodes, model)
    return clips, numbers


def _forecast(job: Job, run: Path, out: Path, clips: Clips, numbers: list[int], ranks: Ranks) -> list[str]:
    loaded = load_forecaster(
        run,
        tokenizer=builtin.resolve(job.tokenizer) if job.tokenizer else None,
        weights=job.weights,
        checkpoint=job.checkpoint,
        allow_different=job.allow_different,
        sample=job.sample,
        device=ranks.device(job.device),
    )
    forecaster, progress = loaded.forecaster, Progress()
    clips = clips.sized(forecaster.image_size)
    files = {number: out / _file(job, clips, number) for number in numbers}
    there: set[Path] = set()
    if ranks.writes:
        there = begin_index(out, _index(job, run, clips, numbers, loaded, ranks), list(files.values()))
        if there:
            say(f"{out}: {len(there)} of {len(files)} forecasts were there already")
    there = ranks.agreed(there)
    size = max(1, min(AT_ONCE, forecaster.rows_at_once // job.sample.num_samples))
    parts = [numbers[i : i + size] for i in range(0, len(numbers), size)]

    def make(part: int) -> None:
        batch = [clips[number] for number in parts[part]]
        for number, clip, made in zip(parts[part], batch, predict(forecaster, batch, seed=job.seed), strict=True):
            _save(job, files[number], loaded, clip, made)

    done = {i for i, part in enumerate(parts) if there.issuperset(files[number] for number in part)}
    ranks.made(range(len(parts)), make, done=done.__contains__, progress=progress.named("forecasting"))
    progress.close()
    if ranks.writes:
        finish_index(out)
    return [str(files[number]) for number in numbers]


def _file(job: Job, clips: Clips, number: int) -> str:
    """The file of a clip's forecast, or its folder of pictures."""
    return _name(clips, number) + ("" if job.format == "png" else f".{job.format}")


def _save(job: Job, path: Path, loaded: Loaded, clip: Clip, made: Prediction) -> None:
    forecaster = loaded.forecaster
    match job.format:
        case "npz":
            save_npz(path, made, times=forecaster.times)
        case "png":
            save_png(path, made, times=forecaster.times)
        case "mp4":
            assert made.frames is not None, "asked for in advance"
            seen, real = beside(forecaster, clip)
            fps = loaded.contract["fps"] / shown_pace(forecaster)
            write_comparison(path, seen, made.frames, real=real, fps=fps)


def _index(job: Job, run: Path, clips: Clips, numbers: list[int], loaded: Loaded, ranks: Ranks) -> Index:
    places = [(int(clips.windows.episode[number]), int(clips.windows.start[number])) for number in numbers]
    episodes, model = clips.source.episodes, model_folder(run, job.checkpoint)
    return Index(
        layout=job.format,
        run=run.resolve().name,
        checkpoint=model.name,
        data=clips.source.path.resolve().name,
        fps=clips.source.fps,
        times=loaded.forecaster.times,
        num_samples=job.sample.num_samples,
        seed=job.seed,
        settings=job.sample.settings(loaded.forecaster),
        samples=tuple(
            Sample(name=_name(clips, number), clip=number, episode=episodes[episode].name, start=start)
            for number, (episode, start) in zip(numbers, places, strict=True)
        ),
        made_from=made_from(
            clips,
            {model: loaded.tokenizer},
            weights=job.weights,
            device=ranks.device(job.device),
            sample=asdict(job.sample),
            seed=job.seed,
            numbers=numbers,
        ),
    )


def _name(clips: Clips, number: int) -> str:
    """The name of a clip's files: of a sample of one test set that of its own file, `sample_12`."""
    own = clips.source.episodes[int(clips.windows.episode[number])].name
    if clips.source.kind == "1x-test" and own.startswith("sample "):  # of several sets joined, it names the set first
        return own.replace(" ", "_")
    return f"clip_{number:05d}"
