"""Does the forecast change as physics does? Other commands from the same start, executed in the twin.

Two questions, both of true counterfactuals: where the arms move otherwise, is the difference between two forecasts the
difference between the two truths? And can one tell from a forecast that a command pushes an object, and that another,
which just misses it, does not? World models tend to show success either way: the released ones that were audited show
it for 79 % of failing commands, with an AUROC of 0.495 (arXiv 2610.09134).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from worldline.evaluation.result import Column, Finding, Line, Table
from worldline.evaluation.rows import Scene
from worldline.evaluation.studies.regions import LARGEST, alike
from worldline.evaluation.study import Found, Study, only_few, study
from worldline.forecasting import postprocess
from worldline.metrics.bootstrap import Interval, statistics
from worldline.metrics.table import NotComputed
from worldline.metrics.uncertainty import auroc
from worldline.schema import Batch, UsageError
from worldline.twin.counterfactuals import Future, TouchOrMiss, execute, object_pixels, other_arms, touch_or_miss
from worldline.twin.generate import physics_of, resume
from worldline.twin.scene import LAYOUT
from worldline.twin.simulation import can_draw

MISSES = 2
"""Near misses for each start, at most."""
TELLS, WRONG = 0.9, 0.2
"""A world tells touches from misses apart with at least that AUROC, and at most that share of misses that look like
success and of touches that look like a miss, if the interval of its AUROC lies above 0.5; in part, if only that."""
LEGIBLE = 0.8
"""AUROC of the reconstructed truth below which nothing is said of the world: the tokenizer does not show the object."""
LONGEST = 3.0
"""Seconds of the longest horizon of which it is measured: what follows a touch is over by then, and it costs little."""
STILL = 1.0
"""Mean squared difference, in grey levels, below which two truths are taken for the same."""
_DIFFERENCES = ("share", "cosine", "energy")
_JUDGED = ("forecast", "reconstruction", "truth")


@study
class Counterfactuals(Study):
    """The audit that only a simulator allows: what would have happened, and whether the forecast knows it."""

    id: ClassVar[str] = "counterfactuals"
    title: ClassVar[str] = "Does it know what would have happened?"

    def measure(self, scene: Scene) -> Mapping[str, Float[Tensor, "b ..."]]:
        _refuse(scene)
        width = {"touch": (), "miss": (MISSES,), "severity": (MISSES,)}
        names = {f"{of}/{name}": () for of in _JUDGED[:2] for name in _DIFFERENCES}
        names |= {f"{of}/{name}": width[name] for of in _JUDGED for name in ("touch", "miss")}
        found = {name: torch.full((len(scene.few), *shape), torch.nan) for name, shape in names.items()}
        found["severity"] = torch.full((len(scene.few), MISSES), torch.nan)
        for row, place in enumerate(scene.few):
            for name, value in _of_clip(scene, place).items():
                found[name][row] = value
        return only_few(scene, found)

    def conclude(self, found: Found) -> Finding:
        share, ceiling = (found.interval(found.measured[f"{of}/share"]) for of in _JUDGED[:2])
        told = {of: _told(found, of) for of in _JUDGED}
        if share is None and told["forecast"] is None:
            raise NotComputed("no clip could be repeated with other commands here")
        verdict, sentence = verdict_of(told["forecast"], told["reconstruction"])
        if share is not None:
            best = "" if ceiling is None else f" (the reconstruction {100 * ceiling.mean:.0f} %)"
            sentence += (
                f" Where only the arms are commanded otherwise, the forecast explains {100 * share.mean:.0f} % of how "
                f"the picture differs{best}."
            )
        return Finding(
            id=self.id,
            title=self.title,
            verdict=verdict,
            sentence=sentence,
            tables=tuple(_tables(found, told)),
            notes=_NOTES,
        )


# --- pure functions ---


def differences(
    made: tuple[UInt8[Tensor, "f 3 h w"], UInt8[Tensor, "f 3 h w"]],
    true: tuple[UInt8[Tensor, "f 3 h w"], UInt8[Tensor, "f 3 h w"]],
) -> dict[str, float]:
    """How the difference `M` between two forecasts is that between the two truths, `D`, over all frames and pixels.

    `share`, explained: `1 - |M - D|^2 / |D|^2`, 1 where they are equal, 0 of a world that ignores its states (`M` is
    0), negative where the forecast differs in the wrong way. `cosine` of `M` and `D`: whether the right things change.
    `energy`, `|M|^2 / |D|^2`: whether they change enough. NaN where the truths are the same (`STILL`).
    """
    of_made, of_truth = ((one.double() - other.double()).flatten() for one, other in (made, true))
    energy, own = of_truth.square().sum().item(), of_made.square().sum().item()
    if energy < STILL * len(of_truth):
        return dict.fromkeys(_DIFFERENCES, np.nan)
    product = (of_made @ of_truth).item()
    cosine = product / (energy * own) ** 0.5 if own > 0 else np.nan
    return {"share": (2 * product - own) / energy, "cosine": cosine, "energy": own / energy}


def looks_like(
    frames: UInt8[Tensor, "f 3 h w"],
    success: UInt8[Tensor, "f 3 h w"],
    failure: UInt8[Tensor, "f 3 h w"],
    where: Bool[Tensor, "f h w"],
) -> float:
    """Whether frames look like the success (above 0) or like the failure (below 0), in some pixels of each frame.

    `(|frames - failure|^2 - |frames - success|^2) / |success - failure|^2`: 1 of the true success and -1 of the true
    failure, 0 half way. NaN where both are the same in these pixels.
    """
    mask = where[:, None].expand_as(frames)
    shown, good, bad = (one[mask].double() for one in (frames, success, failure))
    apart = (good - bad).square().sum()
    if apart == 0:
        return np.nan
    return (((shown - bad).square().sum() - (shown - good).square().sum()) / apart).item()


# --- measuring ---


def _refuse(scene: Scene) -> None:
    """Raise `NotComputed` where the data as a whole do not allow it, so that it is the same for every batch."""
    clips, truth = scene.clips, scene.truth
    if scene.condition_samples == 0:
        raise NotComputed("switched off (--condition-samples 0)")
    if truth is None or clips.source.layout.names != LAYOUT.names:
        raise NotComputed("only data of the twin, with frames, can be repeated with other commands")
    if truth.shape[-1] != truth.shape[-2] or truth.shape[-1] > LARGEST:
        raise NotComputed(f"the twin draws squares of at most {LARGEST} pixels")
    if scene.forecaster.horizon_frames > LONGEST * clips.source.fps:
        raise NotComputed(f"measured of horizons of at most {LONGEST:g} s: evaluate without --horizon")
    try:
        physics_of(clips.source, int(clips.windows[0, 0]))
    except UsageError as reason:
        raise NotComputed(str(reason)) from reason
    if not can_draw():
        raise NotComputed("MuJoCo cannot draw here: pip install worldline[twin], and see docs/twin.md")


def _of_clip(scene: Scene, place: int) -> dict[str, float | Tensor]:
    """Everything that is measured from one clip."""
    origin, truth = scene.batch.origins[place], scene.truth
    assert truth is not None, "refused before"
    try:
        root, episode = physics_of(scene.clips.source, origin.episode)
    except UsageError:
        return {}
    context, times, found = scene.forecaster.context_frames, scene.forecaster.times, {}
    rng = np.random.default_rng([scene.seeds[place], 1])
    simulation, commands = resume(root, episode, origin.start, size=truth.shape[-1])
    with simulation:
        begin = simulation.snapshot()
        for command in commands[: context - 1]:
            simulation.step(command)
        now, ahead = simulation.snapshot(), commands[context - 1 : scene.batch.states.shape[1] - 1]
        other = other_arms(simulation, ahead, rng)
        shown = [time - context for time in times]
        recorded, otherwise = (execute(simulation, now, each, shown=shown, segmented=False) for each in (ahead, other))
        if alike(recorded.frames, truth[place]):
            found |= _of_arms(scene, place, recorded, otherwise)
        simulation.restore(begin)
        sizes = {"context": context, "horizon": len(ahead), "most": MISSES}
        pair = touch_or_miss(simulation, commands[0], rng, shown=shown, **sizes)
    return found if pair is None else found | _of_touch(scene, place, pair)


def _of_arms(scene: Scene, place: int, recorded: Future, otherwise: Future) -> dict[str, float | Tensor]:
    """The difference that other moves of the arms make to the forecast, to the reconstruction and to the truth."""
    seen, states, context = scene.batch.frames, scene.batch.states[place].numpy(), scene.forecaster.context_frames
    assert seen is not None, "refused before"
    futures = [replace(recorded, states=states[context:]), otherwise]
    made = _made(scene, place, seen[place, :context], states[:context], futures)
    true = (_tensor(recorded.frames), _tensor(otherwise.frames))
    found = dict(zip(_JUDGED, (differences((a, b), true) for a, b in made), strict=False))
    return {f"{of}/{name}": value for of, values in found.items() for name, value in values.items()}


def _of_touch(scene: Scene, place: int, pair: TouchOrMiss) -> dict[str, float | Tensor]:
    """What the forecasts of a touch and of its misses look like; so for their reconstructions, and the truth."""
    futures = [pair.touch, *pair.misses]
    true = torch.stack([_tensor(future.frames) for future in futures])
    where = [torch.from_numpy(object_pixels(pair.touch.regions, miss.regions)) for miss in pair.misses]
    severity = torch.full((MISSES,), torch.nan)
    severity[: len(where)] = torch.tensor([miss.severity for miss in pair.misses])
    found: dict[str, float | Tensor] = {"severity": severity}
    for of, videos in zip(
        _JUDGED, (*_made(scene, place, _tensor(pair.frames), pair.states, futures), true), strict=True
    ):
        touches, misses = torch.full((2, MISSES), torch.nan)
        for i, pixels in enumerate(where):
            touches[i], misses[i] = (looks_like(videos[k], true[0], true[i + 1], pixels) for k in (0, i + 1))
        found |= {f"{of}/touch": touches.nanmean(), f"{of}/miss": misses}
    return found


def _made(
    scene: Scene,
    place: int,
    before: UInt8[Tensor, "c 3 h w"],
    past: Float32[np.ndarray, "c s"],
    futures: Sequence[Future],
) -> tuple[UInt8[Tensor, "b f 3 h w"], UInt8[Tensor, "b f 3 h w"]]:
    """Forecasts of several futures of one context, given their states and the same noise; and their reconstructions."""
    forecaster, count = replace(scene.forecaster, num_samples=scene.condition_samples), len(futures)
    positions, times = torch.arange(len(before), scene.batch.states.shape[1]), torch.tensor(forecaster.times)
    # A frame that is not forecast is not read; the one before it stands in its place.
    latest = ((positions[:, None] >= times).sum(dim=1) - 1).clamp_min(0)
    batch = Batch(
        frames=torch.stack([torch.cat([before, _tensor(one.frames)[latest]]) for one in futures]),
        states=torch.stack([torch.from_numpy(np.concatenate([past, one.states])) for one in futures]),
        fps=scene.batch.fps,
        origins=(scene.batch.origins[place],) * count,
    )
    made = forecaster.forecast_clips(batch, seeds=(scene.seeds[place],) * count)
    return postprocess.mean(made.video), forecaster.reconstruct(batch).video[:, 0]


def _tensor(frames: UInt8[np.ndarray, "f h w 3"]) -> UInt8[Tensor, "f 3 h w"]:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


# --- concluding ---

_NOTES = (
    "The commands of the arms alone differ, from the last frame seen on; the world is given the states that physics "
    "measured, and the same noise. A world that ignores its states explains 0 %.",
    "A touch pushes or topples an object, as physics says; a near miss leaves every object alone. Both begin with the "
    "same context. Success is read from the forecast's pixels that show an object in either truth and the robot in "
    "neither. Optimism: near misses whose forecast looks like the touch; pessimism: touches that look like the miss. "
    "AUROC: how often a touch looks more like success than a miss does (0.5 is chance).",
    f"Tells them apart: AUROC of at least {TELLS:g} with its interval above 0.5, optimism and pessimism of at most "
    f"{100 * WRONG:.0f} %. Does not: the interval reaches 0.5. Partly: all else. Undecided: the interval holds 0.5 and "
    f"{TELLS:g}. Not legible: the reconstructed truth has an AUROC below {LEGIBLE:g}; the tokenizer hides the "
    "objects.",
    "Released models that were audited so stand at 79 % optimism and AUROC 0.495 (arXiv 2610.09134, other data).",
)


@dataclass(frozen=True, kw_only=True)
class Told:
    """How well touches and misses are told apart. Shares are 0..1."""

    area: Interval
    optimism: Interval
    pessimism: Interval


def verdict_of(own: Told | None, reconstructed: Told | None) -> tuple[str, str]:
    """`tells them apart`, `partly`, `does not`, `undecided` or `not legible`, and the sentence that says why."""
    if own is None:
        return "undecided", "No start was found from which one command touches an object and another just misses it."
    area, wrong = own.area, (own.optimism.mean, own.pessimism.mean)
    said = f"AUROC {area.said()}"
    said += f"; {100 * wrong[0]:.0f} % of misses look like a touch, {100 * wrong[1]:.0f} % of touches like a miss"
    if reconstructed is not None:
        best = reconstructed.area.mean, 100 * reconstructed.optimism.mean, 100 * reconstructed.pessimism.mean
        said += f"; of the reconstructed truth {best[0]:.2f}, {best[1]:.0f} % and {best[2]:.0f} %"
    if reconstructed is not None and reconstructed.area.mean < LEGIBLE:
        return "not legible", f"The tokenizer hardly shows whether an object was pushed ({said})."
    if np.isnan(area.low) or area.low <= 0.5 <= TELLS <= area.high:
        return "undecided", f"Too few starts to say whether it tells a touch from a near miss ({said})."
    if area.low <= 0.5:
        return "does not", f"The forecast does not tell a touch from a near miss ({said})."
    if area.mean >= TELLS and max(wrong) <= WRONG:
        return "tells them apart", f"The forecast tells a touch from a near miss ({said})."
    return "partly", f"The forecast tells a touch from a near miss in part ({said})."


def _told(found: Found, of: str) -> Told | None:
    """How well touches and misses are told apart in forecasts, reconstructions or the truth."""
    touch, miss = found.measured[f"{of}/touch"], found.measured[f"{of}/miss"]
    scores = torch.cat([touch[:, None], miss], dim=1)
    known, episodes = ~scores.isnan(), found.episodes[:, None].expand_as(scores)
    success = torch.zeros_like(known)
    success[:, 0] = True
    signal, succeeded, of_episode = (one[known].numpy() for one in (scores.double(), success, episodes))
    if not succeeded.any() or succeeded.all():
        return None
    (area,) = statistics(lambda weights: auroc(weights, signal, succeeded)[:, None], of_episode)
    optimism = found.interval((miss > 0).double().where(~miss.isnan(), torch.nan).nanmean(dim=1))
    pessimism = found.interval((touch <= 0).double().where(~touch.isnan(), torch.nan))
    assert optimism is not None, "there are misses"
    assert pessimism is not None, "and touches"
    return Told(area=area, optimism=optimism, pessimism=pessimism)


def _tables(found: Found, told: Mapping[str, Told | None]) -> Iterator[Table]:
    columns = (Column("explained", "share"), Column("cosine"), Column("energy", "share"))
    lines = []
    for of in _JUDGED[:2]:
        values = [found.interval(found.measured[f"{of}/{name}"]) for name in _DIFFERENCES]
        lines += [Line(of, tuple(values))] * any(values)
    if lines:
        yield Table(title="The difference that other moves of the arms make", columns=columns, lines=tuple(lines))
    columns = (Column("AUROC"), Column("optimism", "share"), Column("pessimism", "share"))
    lines = [
        Line("the truth" if of == "truth" else of, (one.area, one.optimism, one.pessimism))
        for of, one in told.items()
        if one is not None
    ]
    if lines:
        yield Table(title="A touch or a near miss", columns=columns, lines=tuple(lines))
    if severity := found.interval(found.measured["severity"].nanmean(dim=1)):
        columns = (Column("displaced by", "m"),)
        yield Table(title="How near the misses are", columns=columns, lines=(Line("near misses", (severity,)),))
