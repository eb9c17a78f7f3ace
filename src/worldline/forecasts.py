"""Forecasts of chosen clips of a data set, written to disk: what `worldline forecast` and `worldline.forecast` do.

The same call again continues an interrupted forecast. Several ranks share the clips.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from worldline import builtin
from worldline.checks import Natural, Seed
from worldline.data.clips import Clips
from worldline.evaluation.held_out import DataChoice, evenly, held_out, warn_of_strange_states
from worldline.evaluation.parts import made_from
from worldline.families.card import describe_model
from worldline.families.config import LoadOptions
from worldline.families.load import Loaded, check_options, load_forecaster, refuse_unfit
from worldline.forecasting.saved import Index, Layout, Sample, begin_index, finish_index, save_mp4, save_npz, save_png
from worldline.formats.faults import check_episodes
from worldline.process.noise import clip_seeds
from worldline.progress import Progress, say
from worldline.ranks import Ranks
from worldline.rundir import model_folder
from worldline.schema import Batch, UsageError, stack

AT_ONCE = 4
"""Most clips that one process forecasts at once: with fewer, several processes share the work better."""


@dataclass(frozen=True, kw_only=True)
class ForecastOptions(DataChoice, LoadOptions):
    """Which clips are forecast, from which data, and how they are written."""

    clips: tuple[Natural, ...] = ()
    """Numbers of the clips to forecast."""
    num_clips: int | Literal["all"] | None = None
    """So many clips, at even distances; if neither is given, all samples of a test set, or four clips of other data."""
    out: Path | None = None
    """Folder for the forecasts; if not given, `RUN/forecasts` (for built-ins: runs/NAME)."""
    format: Layout = "mp4"
    """`mp4` shows context and futures, beside the real clip where it is known; `png` contains only the predicted
    frames, lossless; `npz` contains these and, for worlds over tokens, tokens and their 500 best log-probabilities."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clips and self.num_clips is not None:
            raise UsageError("--clips names the clips, so --num-clips would change nothing; give one of them")
        if isinstance(self.num_clips, int) and self.num_clips < 1:
            raise UsageError(f"{self.num_clips} clips are none to forecast; give --num-clips 1 or more, or all")


def forecast(run: str | Path, options: ForecastOptions, *, ranks: Ranks | None = None) -> list[Path]:
    """Forecast clips of a data set and write each as a video, pictures or arrays; give the paths.

    Raises:
        UsageError: the run holds no world, an option would change nothing, or the data do not fit the world.
        DataError: data or checkpoint are not what they should be.
    """
    if ranks is None:
        with Ranks.start(options.device) as ranks:
            return forecast(run, options, ranks=ranks)
    run = builtin.resolve(run)
    out = options.out or builtin.results_of(run) / "forecasts"
    with ranks.first():  # what is refused is refused once, and before any weights are read
        clips, numbers = _chosen(run, options)
    with ranks.owning(out):
        loaded = load_forecaster(run, options, device=ranks.device(options.device))
        clips = clips.sized(loaded.forecaster.image_size)
        suffix = "" if options.format == "png" else f".{options.format}"  # pictures have a folder
        files = {number: out / (_name(clips, number) + suffix) for number in numbers}
        there: set[Path] = set()
        if ranks.writes:
            there = begin_index(out, _index(run, options, clips, numbers, loaded, ranks), list(files.values()))
            if there:
                say(f"{out}: {len(there)} of {len(files)} forecasts were there already")
        _make(options, loaded, clips, files, ranks.agreed(there), ranks)
        if ranks.writes:
            finish_index(out)
    return list(files.values())


def _chosen(run: Path, options: ForecastOptions) -> tuple[Clips, list[int]]:
    """The clips of the data, and which of them are to be forecast."""
    model = model_folder(run, options.checkpoint)
    card = describe_model(model)
    check_options(card, model, options, weights=options.weights)
    clips = held_out(run, card.promise, options)
    refuse_unfit(
        clips.source,
        card,
        run,
        tokenizer=options.tokenizer is not None,
        shown=options.format != "npz",
        allow_different=options.allow_different,
    )
    if options.clips and max(options.clips) >= len(clips):
        raise UsageError(f"there is no clip {max(options.clips)}; the data have clips 0..{len(clips) - 1}")
    wanted = options.num_clips or ("all" if clips.source.context_only else 4)
    numbers = list(dict.fromkeys(options.clips)) or evenly(len(clips), None if wanted == "all" else wanted)
    episodes = sorted({int(clips.windows.episode[number]) for number in numbers})
    check_episodes(clips.source, episodes, size=clips.image_size)
    warn_of_strange_states(clips.source, episodes, model)
    return clips, numbers


def _make(
    options: ForecastOptions, loaded: Loaded, clips: Clips, files: dict[int, Path], there: set[Path], ranks: Ranks
) -> None:
    """Forecast what is not there, a few clips at a time."""
    numbers, forecaster = list(files), loaded.forecaster
    size = max(1, min(AT_ONCE, forecaster.rows_at_once // options.num_samples))
    parts = [numbers[i : i + size] for i in range(0, len(numbers), size)]

    def make(part: int) -> None:
        _save(options, loaded, stack([clips[number] for number in parts[part]]), [files[i] for i in parts[part]])

    done = {i for i, part in enumerate(parts) if there.issuperset(files[number] for number in part)}
    with Progress() as progress:
        ranks.made(range(len(parts)), make, done=done.__contains__, progress=progress.named("forecasting"))


def _save(options: ForecastOptions, loaded: Loaded, batch: Batch, paths: list[Path]) -> None:
    """Forecast clips from their context and states, and write one file or folder for each. No future is read."""
    forecaster, seeds = loaded.forecaster, clip_seeds(options.seed, batch.origins)
    made = forecaster.forecast_clips(batch, seeds=seeds, extra=() if options.format == "mp4" else ("top",))
    save = save_npz if options.format == "npz" else save_png
    if options.format == "mp4":
        fps = loaded.contract.fps / forecaster.pace
        save = partial(save_mp4, shown=forecaster.shown(batch), fps=fps)
    for i, path in enumerate(paths):
        save(path, made, i)


def _index(
    run: Path, options: ForecastOptions, clips: Clips, numbers: list[int], loaded: Loaded, ranks: Ranks
) -> Index:
    places = [(int(clips.windows.episode[number]), int(clips.windows.start[number])) for number in numbers]
    episodes, model = clips.source.episodes, model_folder(run, options.checkpoint)
    return Index(
        layout=options.format,
        run=run.resolve().name,
        checkpoint=model.name,
        data=clips.source.path.resolve().name,
        fps=clips.source.fps,
        times=loaded.forecaster.times,
        num_samples=options.num_samples,
        seed=options.seed,
        settings=loaded.settings,
        samples=tuple(
            Sample(name=_name(clips, number), clip=number, episode=episodes[episode].name, start=start)
            for number, (episode, start) in zip(numbers, places, strict=True)
        ),
        made_from=made_from(
            clips,
            {model: loaded.tokenizer},
            weights=options.weights,
            device=ranks.device(options.device),
            sample=options.sampling(),
            seed=options.seed,
            numbers=numbers,
        ),
    )


def _name(clips: Clips, number: int) -> str:
    """The name of a clip's files: of a sample of one test set that of its own file, `sample_12`."""
    own = clips.source.episodes[int(clips.windows.episode[number])].name
    if clips.source.context_only and own.startswith("sample "):  # of several sets joined, it names the set first
        return own.replace(" ", "_")
    return f"clip_{number:05d}"
