"""Forecasts of chosen clips on disk: made, written in arrays and pictures that other programs read, and read again.

    OUT/forecast.json                        what was forecast and how; written last, so where it is, all is there
    OUT/forecast.unfinished.json             the same, until then
    OUT/NAME.npz                             --format npz: the arrays that `_check` lists
    OUT/NAME/future_K/frame_TTT.png          --format png: future K, frame TTT counted from the first of the context
    OUT/NAME/tokens.npz                      --format png, worlds over tokens: these without frames
    OUT/NAME.mp4                             --format mp4: to be looked at, with the context before it
    OUT/SHA256SUMS                           hashes of all files of samples, as `sha256sum -c` reads them; not of videos
    OUT/meta, data, videos                   --format lerobot-v3.0, lerobot-v2.1: a data set, in place of all else

A sample of the challenge's test set is named as its file, `sample_12`; any other clip by its number, `clip_00012`. The
same call again continues an interrupted forecast. Several ranks share the clips.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int32, UInt8, jaxtyped
from PIL import Image
from torch import Tensor

from worldline import builtin
from worldline.checks import Natural, Seed, as_only
from worldline.contract import FramePattern
from worldline.data.clips import Clips, check_episodes, evenly
from worldline.evaluation.evaluate import frames_ahead
from worldline.evaluation.held_out import DataChoice, held_out, warn_of_strange_states
from worldline.evaluation.receipt import identities_of
from worldline.families.card import describe_model
from worldline.families.config import LoadOptions, SampleOptions
from worldline.families.load import Loaded, folders_of, load_forecaster, members_of, refuse_unfit, world_kind
from worldline.files import atomic, hash_of_file, read_json, read_npz, reading, write_json, write_npz
from worldline.forecasting.forecaster import clip_seeds
from worldline.forecasting.postprocess import mean
from worldline.forecasting.recorded import write_forecasts
from worldline.forecasting.rollout import RollOut
from worldline.formats.lerobot.metadata import INFO
from worldline.formats.lerobot.write import Version
from worldline.formats.video import encode
from worldline.metrics.tokens import TOP
from worldline.progress import say
from worldline.ranks import Ranks
from worldline.rundir import from_json, model_folder, new_folder, to_json
from worldline.schema import DataError, Forecast, UsageError, stack

INDEX, UNFINISHED = "forecast.json", "forecast.unfinished.json"
SUMS = "SHA256SUMS"
PICTURE = "future_{}/frame_{:03d}.png"
WIDEST = 16384
"""Most pixels in a line of a video that x264 encodes."""
AT_ONCE = 4
"""Most clips that one process forecasts at once: with fewer, several processes share the work better."""
Layout = Literal["mp4", "png", "npz", "lerobot-v2.1", "lerobot-v3.0"]
_wrong = partial(DataError, fix="Forecast again.")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One forecast clip, its number among the clips of the data, and its first frame in its episode."""

    name: str
    clip: int
    episode: str
    start: int


@dataclass(frozen=True, kw_only=True)
class Index:
    """The content of `forecast.json`."""

    layout: Layout
    run: str
    checkpoint: str
    data: str
    fps: float
    """Video frames per second; `times` count these frames."""
    times: tuple[int, ...]
    num_samples: int
    """Futures of each sample in its files."""
    seed: int
    settings: dict[str, str | int | float | bool]
    samples: tuple[Sample, ...]
    mean_of: int = 0
    """Samples whose mean is the one future that is written; 0 where they are written themselves."""
    vocabulary: int | None = None
    """Number of tokens there are; None where files hold none: of a world without tokens, or that is driven."""
    content: str = ""
    """Hash of the data of these samples (`content_of`), so that a test set is recognised at another place."""
    made_from: str = ""
    """Hash of all that decides what the files hold; empty where that is not known."""
    format: Literal[1] = 1


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
    frames, lossless; `npz` contains these and, for worlds over tokens that are not driven, tokens and their 500 best
    log-probabilities.
    `lerobot-v3.0` and `lerobot-v2.1` make a LeRobot data set: every future is an episode, after its context."""
    mean: bool = False
    """Worlds over latents: write the mean of the samples, pixel by pixel, in their place: the best guess under PSNR."""
    horizon: str | int | None = None
    """LeRobot: how far ahead, in frames or seconds, for example `300` or `10s`; one window if not given."""
    append: bool = False
    """LeRobot: add to the data set in --out, which worldline wrote, the episodes that are not there yet."""
    task: str | None = None
    """LeRobot: what the robot is told to do, in words; if not given, what the data say, or `unknown`."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean and self.num_samples < 2:
            raise UsageError("one sample is its own mean, so --mean would change nothing; give --num-samples 2 or more")
        if self.clips and self.num_clips is not None:
            raise UsageError("--clips names the clips, so --num-clips would change nothing; give one of them")
        if isinstance(self.num_clips, int) and self.num_clips < 1:
            raise UsageError(f"{self.num_clips} clips are none to forecast; give --num-clips 1 or more, or all")
        only = {"--horizon": self.horizon is not None, "--append": self.append, "--task": self.task is not None}
        if not self.version and (idle := [name for name, given in only.items() if given]):
            raise UsageError(f"{' and '.join(idle)} would change nothing here; give --format lerobot-v3.0 too")
        if self.horizon is not None:
            frames_ahead(self.horizon, fps=1000.0)

    @property
    def version(self) -> Version | None:
        """Of LeRobot, if that is the layout."""
        known: dict[Layout, Version] = {"lerobot-v2.1": "v2.1", "lerobot-v3.0": "v3.0"}
        return known.get(self.format)


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
    if options.version is not None:
        return [_as_lerobot(run, options, options.version, ranks)]
    out = options.out or builtin.results_of(run) / "forecasts"
    with ranks.first():  # what is refused is refused once, and before any weights are read
        clips, samples = _chosen(run, options)
    with ranks.owning(out):
        loaded = load_forecaster(run, options, device=ranks.device(options.device))
        clips = clips.sized(loaded.forecaster.image_size)
        suffix = "" if options.format == "png" else f".{options.format}"  # pictures have a folder
        files = {sample.clip: out / (sample.name + suffix) for sample in samples}
        index = _index(run, options, clips, samples, loaded, ranks)
        there = ranks.agreed(_begun(out, index, list(files.values())) if ranks.writes else None)
        _make(options, loaded, clips, files, there, ranks)
        if ranks.writes:
            if options.format != "mp4":
                _write_sums(out, list(files.values()))
            os.replace(out / UNFINISHED, out / INDEX)
    return list(files.values())


def _as_lerobot(run: Path, options: ForecastOptions, version: Version, ranks: Ranks) -> Path:
    """Write forecasts, of one window or of a horizon, as a LeRobot data set; give its folder."""
    out, pattern = options.out or builtin.results_of(run) / options.format, None
    with ranks.first():  # what is refused is refused once, and before any weights are read
        clips, samples = _chosen(run, options)
    loaded = load_forecaster(run, options, device=ranks.device(options.device))
    forecaster = loaded.whole
    if options.horizon is not None:
        forecaster = RollOut.of(loaded.forecaster, frames_ahead(options.horizon, fps=loaded.contract.fps))
        pattern = FramePattern(window=forecaster.context_frames + forecaster.lookahead_frames)
        clips, samples = _chosen(run, options, pattern)
    how: dict[str, Any] = {
        "seed": options.seed,
        "run": run.resolve().name,
        "task": options.task,
        "mean_only": options.mean,
    }
    how |= {"version": version, "append": options.append, "ranks": ranks}
    numbers = [sample.clip for sample in samples]
    made = write_forecasts(out, forecaster, clips.sized(forecaster.image_size), numbers, **how)
    say(f"{out}: {made.episodes} episodes, {made.reused} of them there already; video {made.psnr:.1f} dB PSNR")
    return out


def _chosen(run: Path, options: ForecastOptions, pattern: FramePattern | None = None) -> tuple[Clips, list[Sample]]:
    model = model_folder(run, options.checkpoint)
    card = describe_model(model)
    kind = world_kind(card, model)
    kind.check_options(card, options)
    if options.mean and kind.over == "tokens":
        raise UsageError(
            "--mean averages frames, and a world over tokens is asked for tokens, too; --mixture averages their "
            "distributions"
        )
    members_of(run, card, options)
    clips = held_out(run, card.promise, options, pattern=pattern)
    refuse_unfit(clips.source, card, run, options, shown=options.format != "npz")
    if max(options.clips, default=-1) >= len(clips):
        raise UsageError(f"there is no clip {max(options.clips)}; the data have clips 0..{len(clips) - 1}")
    wanted = options.num_clips or ("all" if clips.source.context_only else 4)
    numbers = list(dict.fromkeys(options.clips)) or evenly(len(clips), None if wanted == "all" else wanted)
    episodes = sorted(set(clips.windows[numbers, 0].tolist()))
    check_episodes(clips.source, episodes, size=clips.image_size)
    warn_of_strange_states(clips.source, episodes, model)
    samples = []
    for number in numbers:
        place, start = clips.windows[number].tolist()
        episode, name = clips.source.episodes[place], f"clip_{number:05d}"
        if clips.source.context_only and episode.name.startswith("sample "):  # of several sets joined, it differs
            name = named(episode.name)
        samples.append(Sample(name=name, clip=number, episode=episode.name, start=start))
    return clips, samples


def named(sample: str) -> str:
    """The name of the files of a sample of a test set."""
    return sample.replace(" ", "_")


def _make(
    options: ForecastOptions, loaded: Loaded, clips: Clips, files: dict[int, Path], there: set[Path], ranks: Ranks
) -> None:
    """Forecast what is not there, a few clips at a time, from their context and states: no future is read."""
    numbers, forecaster = list(files), loaded.whole
    size = max(1, min(AT_ONCE, forecaster.rows_at_once // options.num_samples))
    parts = [numbers[i : i + size] for i in range(0, len(numbers), size)]

    def make(part: int) -> None:
        batch = stack([clips[number] for number in parts[part]])
        extra = () if options.format == "mp4" else ("top",)
        made = forecaster.forecast_clips(batch, seeds=clip_seeds(options.seed, batch.origins), extra=extra)
        made = replace(made, frames=mean(made.video)[:, None]) if options.mean else made
        shown = forecaster.shown(batch) if options.format == "mp4" else None
        for clip, number in enumerate(parts[part]):
            if shown is not None:
                _save_mp4(files[number], made.video[clip], clip, shown, fps=loaded.contract.fps / forecaster.pace)
            elif options.format == "png":
                _save_png(files[number], made, clip)
            else:
                write_npz(files[number], _arrays(made, clip))

    def done(part: int) -> bool:
        return there.issuperset(files[number] for number in parts[part])

    ranks.made(range(len(parts)), make, done=done, what="forecasting")


def _index(
    run: Path, options: ForecastOptions, clips: Clips, samples: list[Sample], loaded: Loaded, ranks: Ranks
) -> Index:
    model = model_folder(run, options.checkpoint)
    device, numbers = ranks.device(options.device), [sample.clip for sample in samples]
    whole = loaded.whole
    drawn = {"sample": vars(as_only(SampleOptions, options)), "seed": options.seed, "mean": options.mean}
    models = {name: (folder, loaded.tokenizer) for name, folder in folders_of(run, options).items()}
    made = identities_of(clips, models, options=drawn | {"numbers": numbers}, weights=options.weights, device=device)
    return Index(
        layout=options.format,
        run=run.resolve().name,
        checkpoint=model.name,
        data=clips.source.name,
        fps=clips.source.fps,
        times=whole.times,
        num_samples=1 if options.mean else options.num_samples,
        mean_of=options.num_samples if options.mean else 0,
        vocabulary=whole.token_grid.vocab_size if whole.token_grid and "top" in whole.extras else None,
        content=made.data.content,
        seed=options.seed,
        settings=loaded.settings,
        samples=tuple(samples),
        made_from=made.key,
    )


def _begun(folder: Path, index: Index, files: Sequence[Path]) -> set[Path]:
    """Say what is going to be forecast; give those of its files that are there already. Others of their names go."""
    said, names, known = to_json(Index, index), {f".{path.name}" for path in files}, False
    left = (path for path in folder.glob(".*.*") if path.suffix in (".tmp", ".old"))
    gone = [path for path in left if path.name.rsplit(".", 2)[0] in names]  # a killed writer's `.NAME.PID.tmp`
    for path in (folder / INDEX, folder / UNFINISHED):
        with suppress(DataError):  # absent, or damaged: what it said is not known
            known |= read_json(path) == said
    if not known:
        gone = [folder / INDEX, folder / UNFINISHED, folder / SUMS, *gone, *files]  # first what says that all is sound
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_json(folder / UNFINISHED, said)
    (folder / INDEX).unlink(missing_ok=True)
    if there := {path for path in files if path.exists()}:
        say(f"{folder}: {len(there)} of {len(files)} forecasts were there already")
    return there


# --- files of one clip ---


def _arrays(forecast: Forecast, clip: int) -> dict[str, np.ndarray]:
    of_tokens = () if forecast.top_ids is None else ("tokens", "top_ids", "top_log_probs")  # all of them, or none
    made = {name: getattr(forecast, name) for name in ("frames", *of_tokens)}
    found = {name: x[clip].numpy() for name, x in made.items() if x is not None}
    found = {name: x.astype(np.int32) if x.dtype == np.int64 else x for name, x in found.items()}
    if "frames" in found:
        found["frames"] = np.ascontiguousarray(found["frames"].transpose(0, 1, 3, 4, 2))
        found["times"] = np.array(forecast.times, np.int32)
    return found


def _save_png(folder: Path, forecast: Forecast, clip: int) -> None:
    """Write the frames of one clip's forecast as pictures, and its tokens, if it has any, beside them."""
    arrays = _arrays(forecast, clip)
    times = arrays.pop("times").tolist()
    with new_folder(folder) as temporary:
        for number, future in enumerate(arrays.pop("frames")):
            (temporary / f"future_{number}").mkdir()
            for time, frame in zip(times, future, strict=True):
                Image.fromarray(frame).save(temporary / PICTURE.format(number, time))
        if arrays:
            write_npz(temporary / "tokens.npz", arrays)


def _save_mp4(path: Path, futures: Tensor, clip: int, shown: tuple[Tensor, Tensor | None], *, fps: float) -> None:
    """Write one H.264 video: real | future 1 | ... | future k, small frames enlarged; in several lines, the last filled
    up with black, where one is too wide. Before the futures comes the context, darkened. `shown` is what
    `Forecaster.shown` says of all clips: context, and real frames if known.
    """
    seen, real = shown
    panels = [] if real is None else [torch.cat([seen[clip], real[clip]])]
    panels += [torch.cat([seen[clip] // 2, future]) for future in futures]
    height, width = futures.shape[-2:]
    # Enough to look at, and an even size, which H.264 needs.
    scale = 4 if height <= 128 else 2 if height <= 256 or height % 2 or width % 2 else 1
    count = max(1, WIDEST // (scale * width))
    lines = [panels[first : first + count] for first in range(0, len(panels), count)]
    lines[-1] += [torch.zeros_like(panels[0])] * (len(lines[0]) - len(lines[-1]))
    whole = torch.cat([torch.cat(line, dim=-1) for line in lines], dim=-2).permute(0, 2, 3, 1)
    encode(path, whole.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2).numpy(), fps=fps)


def files_of(place: Path) -> list[Path]:
    """The files of one sample, which are one file, or all in a folder."""
    return sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]


def _write_sums(folder: Path, places: Sequence[Path]) -> None:
    """Hash what is on disk now: what is copied elsewhere can be checked without worldline (`sha256sum -c`)."""
    lines = [f"{hash_of_file(path)}  {path.relative_to(folder)}\n" for place in places for path in files_of(place)]
    with atomic(folder / SUMS) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def read_forecasts(folder: Path) -> dict[str, Forecast]:
    """Read every sample a forecast wrote, each as a batch of one (of a whole test set: `read_index`, `read_sample`).

    Raises:
        DataError: a file is missing, damaged or of another shape, type or range; names it.
        UsageError: the forecast was written as videos, or as a data set of episodes.
    """
    index = read_index(folder)
    return {sample.name: read_sample(folder, sample, index) for sample in index.samples}


def read_index(folder: Path) -> Index:
    """What a folder of forecasts says of itself. Raises as `read_forecasts`."""
    if not (folder / INDEX).exists() and (folder / INFO).exists():
        raise UsageError(f"{folder} holds a LeRobot data set; read its episodes with worldline.open_data")
    index: Index = from_json(Index, read_json(folder / INDEX), folder / INDEX)
    if index.layout == "mp4":
        raise UsageError(f"{folder} holds videos to be looked at; forecast with --format npz or png to read frames")
    return index


def read_sample(folder: Path, sample: Sample, index: Index) -> Forecast:
    """One sample, as a batch of one: so many need no more memory than one. Raises as `read_forecasts`."""
    stem = folder / sample.name
    path = stem.with_name(f"{stem.name}.npz") if index.layout == "npz" else stem / "tokens.npz"
    there = index.layout == "npz" or path.exists()
    arrays = read_npz(path, what="arrays as numpy saves them", fix="Forecast again.") if there else {}
    if index.layout == "png":
        futures = [[_picture(stem / PICTURE.format(k, time)) for time in index.times] for k in range(index.num_samples)]
        if len(sizes := {frame.shape for future in futures for frame in future}) > 1:
            raise _wrong(stem, expected="pictures of one size", found=f"{sorted(sizes)}")
        arrays["frames"] = np.stack(futures)
    _check(path, arrays, index)
    found = {name: torch.from_numpy(array)[None] for name, array in arrays.items() if name != "times"}
    if "frames" in found:
        found["frames"] = found["frames"].permute(0, 1, 2, 5, 3, 4)
    found |= {name: found[name].long() for name in ("tokens", "top_ids") if name in found}
    return Forecast(times=index.times, **found)  # pyright: ignore[reportArgumentType] - no costs among them


def _check(path: Path, arrays: dict[str, np.ndarray], index: Index) -> None:
    """Refuse arrays of other types, shapes or ranges than the layout promises. Raises `DataError`."""
    futures, frames = index.num_samples, len(index.times)
    layout: dict[str, Any] = {
        "frames": UInt8[np.ndarray, f"{futures} {frames} y x 3"],  # RGB
        "times": Int32[np.ndarray, f"{frames}"],  # their positions, counted from the first frame of the context
        "tokens": Int32[np.ndarray, f"{futures} l h w"],  # l token grids
        "top_ids": Int32[np.ndarray, "l h w n"],  # of future 0: the n (500) likeliest tokens of each place, best first
        "top_log_probs": Float32[np.ndarray, "l h w n"],  # in nats, at temperature 1 over the whole vocabulary
    }
    of_tokens = {"tokens", "top_ids", "top_log_probs"}
    of_a_world = (set(), of_tokens) if index.vocabulary is None else (of_tokens,)
    if not arrays or arrays.keys() - layout.keys() or arrays.keys() & of_tokens not in of_a_world:
        raise _wrong(path, expected="frames, or tokens with the likeliest ones, or both", found=f"{sorted(arrays)}")
    with jaxtyped("context"):  # axes of one name are of one length
        for name, array in arrays.items():
            if not isinstance(array, layout[name]):
                found = f"{array.dtype} {[*array.shape]}"
                raise _wrong(path, expected=f"{name} of {layout[name].__name__}", found=found)
    if "times" in arrays and arrays["times"].tolist() != list(index.times):
        raise _wrong(path, expected=f"frames at {index.times}", found=f"{arrays['times']}")
    if of_tokens <= arrays.keys():
        _check_tokens(path, arrays["tokens"], arrays["top_ids"], arrays["top_log_probs"], index.vocabulary)


def _check_tokens(path: Path, tokens: np.ndarray, ids: np.ndarray, chances: np.ndarray, vocabulary: int | None) -> None:
    """Refuse ids that are no tokens, or given twice, and numbers that are no log-probabilities. Raises `DataError`."""
    shares = np.exp(chances.astype(np.float64)).sum(axis=-1)
    if not np.isfinite(chances).all() or chances.max() > 0 or (np.diff(chances) > 0).any() or shares.max() > 1.001:
        found = f"{chances.min()} .. {chances.max()}, sums up to {shares.max():.4f}"
        raise _wrong(path, expected="log-probabilities of at most 0, likeliest first, of at most 1 in all", found=found)
    lowest, highest = int(min(tokens.min(), ids.min())), int(max(tokens.max(), ids.max()))
    if lowest < 0 or (vocabulary is not None and highest >= vocabulary):
        raise _wrong(path, expected=f"tokens from 0 to below {vocabulary}", found=f"{lowest} .. {highest}")
    if (np.diff(np.sort(ids, axis=-1)) == 0).any():
        raise _wrong(path, expected="every token once among the likeliest of a place", found="one twice")
    if vocabulary is not None:
        if ids.shape[-1] != min(TOP, vocabulary):
            raise _wrong(path, expected=f"the {min(TOP, vocabulary)} likeliest tokens", found=f"{ids.shape[-1]}")
        if ids.shape[-1] == vocabulary and shares.min() < 0.999:
            found = f"{shares.min():.4f}"
            raise _wrong(path, expected="probabilities of all tokens that sum to 1", found=found)


def _picture(path: Path) -> np.ndarray:
    with reading(path, SyntaxError, expected="a picture", fix="Forecast again."):  # as Pillow says that it is damaged
        return np.array(Image.open(path).convert("RGB"))
