"""Where a forecast is good: objects, robot and room apart on the twin, what moves and what stands still on all data.

A mean over the whole picture is mostly one of a still wall; it hides that objects fade or vanish.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldline.evaluation.result import Chart, Column, Finding, Line, Table, label_of
from worldline.evaluation.rows import Made, Protocol, Scene
from worldline.evaluation.study import Found, Study, study
from worldline.metrics.bootstrap import Interval
from worldline.metrics.image import DATA_RANGE, SMALLEST_MSE, SSIM_BORDER, psnr, ssim_map
from worldline.metrics.table import NotComputed
from worldline.schema import UsageError
from worldline.twin.generate import View, look, physics_of
from worldline.twin.simulation import REGIONS, can_draw

SHOWN = ("copy_last", "reconstruction", "unconditional", "shuffled_states")
"""Rows beside the first one, where they are made."""
FEWEST = 20
"""Pixels of a region below which a clip says nothing about it."""
MOVING = 10
"""Grey levels by which a pixel must differ from the last frame seen to count as moving, in one colour at least. Of the
pixels that stay exactly the same in the twin, 99 % differ by at most 9 after video coding; of those that change by 25
or more, 99 % differ by at least 14."""
SAME_DB = 28.0
"""PSNR between a recorded frame and the same one drawn again, below which physics did not repeat itself. Video coding
alone leaves 34 dB or more in the built-in data; another processor may round in another way, and what is pushed then
rolls elsewhere."""
THERE, GONE = 0.75, 0.5
"""Objects stay where at least so much of them is left in the last frame, and vanish where less than so much is."""
_ORDER = ("objects", "robot", "room", "moving", "still")
LARGEST = 512
"""Side of the largest square that the twin draws."""
_WHY = (
    "",
    "MuJoCo cannot draw here",
    "their data hold no saved physics of the twin",
    "the physics gave other pictures than were recorded",
    f"their frames are no squares of at most {LARGEST} pixels",
)


@study
class Regions(Study):
    """PSNR and SSIM of each part of the picture, and how much of the objects is left."""

    id: ClassVar[str] = "regions"
    title: ClassVar[str] = "Where is it good?"
    protocols: ClassVar[Sequence[Protocol]] = ("compression", "sampling", "tokenizer")

    def measure(self, scene: Scene) -> Mapping[str, Float[Tensor, "b ..."]]:
        truth = scene.truth
        if truth is None:
            raise NotComputed("the data hold tokens only, no frames")
        views, why = drawn_again(scene, truth)
        masks = _masks(views, truth) | _moving(scene, truth)
        found = {"why": torch.tensor(why, dtype=torch.float32)}
        for row, made in _rows(scene):
            assert made.frames is not None, "only such rows are taken"
            found |= {f"{row}/{name}": value for name, value in by_region(made.frames, truth, masks).items()}
            left = [left_of(*clip) for clip in zip(made.frames, truth, views, strict=True)]
            found[f"{row}/left"] = torch.stack(left)
        return found

    def conclude(self, found: Found) -> Finding:
        shown = dict.fromkeys((found.forecast, *SHOWN))
        rows = [row for row in shown if f"{row}/still/psnr_db" in found.measured]
        regions = [one for one in _ORDER if any(_mean(found, f"{row}/{one}/psnr_db") for row in rows)]
        if not regions:
            raise NotComputed(f"no clip shows {FEWEST} pixels of any region")
        there = {row: _last(found, row) for row in rows}
        verdict, sentence = _said(found, there) if "objects" in regions else _said_of_motion(found)
        tables = [_table(found, rows, regions, *what) for what in _TABLES]
        if any(there.values()):
            columns = (Column("all frames", "share"), Column("last frame", "share"))
            lines = tuple(Line(label_of(row), (_all(found, row), there[row])) for row in rows)
            tables.append(Table(title="How much of the objects is there", columns=columns, lines=lines))
        charts = [*_charts(found, rows, "objects" if "objects" in regions else "moving")]
        tables = [table for table in tables if any(value for line in table.lines for value in line.values)]
        notes = (*_NOTES, *_reasons(found))
        return Finding(
            id=self.id,
            title=self.title,
            verdict=verdict,
            sentence=sentence,
            tables=tuple(tables),
            charts=tuple(charts),
            notes=notes,
        )


# --- measuring ---


def drawn_again(
    scene: Scene, truth: UInt8[Tensor, "b f 3 h w"], *, places: Sequence[int] | None = None
) -> tuple[list[list[View]], list[int]]:
    """For each clip of the twin the views of its predicted frames, else none; and the place in `_WHY` of the reason.

    Clips of one episode share a run of its physics. What the physics draws at both ends of a clip is compared with what
    was recorded: where it differs (`SAME_DB`), the clip has none.
    """
    times, (height, width), count = scene.forecaster.times, truth.shape[-2:], len(truth)
    views: list[list[View]] = [[] for _ in range(count)]
    why, clips = [0] * count, dict[tuple[Path, int], list[int]]()
    for place in range(count) if places is None else places:
        try:
            episode = physics_of(scene.clips.source, scene.batch.origins[place].episode)
        except UsageError:
            why[place] = 2
            continue
        why[place] = 4 if height != width or width > LARGEST else 0 if can_draw() else 1
        if not why[place]:
            clips.setdefault(episode, []).append(place)
    frames_of = scene.clips.pattern.frames
    for (root, episode), some in clips.items():
        wanted = {place: [scene.batch.origins[place].start + frames_of[time] for time in times] for place in some}
        ends = {frame for frames in wanted.values() for frame in (frames[0], frames[-1])}
        seen = look(root, episode, [*chain(*wanted.values())], whole=ends, size=width)
        for place, frames in wanted.items():
            views[place] = [seen[frame] for frame in frames]
            drawn = [whole for frame in (frames[0], frames[-1]) if (whole := seen[frame].frame) is not None]
            if not alike(np.stack(drawn), truth[place, [0, -1]]):
                views[place], why[place] = [], 3
    return views, why


def alike(drawn: UInt8[np.ndarray, "f h w 3"], recorded: UInt8[Tensor, "f 3 h w"]) -> bool:
    """Whether the physics repeated what was recorded, up to video coding."""
    again = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    return again.shape == recorded.shape and bool(psnr(again, recorded).min() >= SAME_DB)


def by_region(
    frames: UInt8[Tensor, "b f 3 h w"], truth: UInt8[Tensor, "b f 3 h w"], masks: Mapping[str, Bool[Tensor, "b f h w"]]
) -> dict[str, Float[Tensor, "b ..."]]:
    """PSNR in dB and SSIM of each region, over the pixels of all frames of a clip together, and of its last frame.

    PSNR is that of the mean squared error over the region's pixels; SSIM the mean over them of the SSIM of the whole
    picture, whose window of 11 pixels looks beyond the region. NaN where the region has fewer than `FEWEST` pixels.
    `REGION/psnr_db_curve` is of each frame.
    """
    found, similar = {}, None
    error = torch.stack([(a.float() - b.float()).square().mean(dim=1) for a, b in zip(frames, truth, strict=True)])
    with suppress(NotComputed):
        similar = torch.stack([ssim_map(a, b).mean(dim=1) for a, b in zip(frames, truth, strict=True)])
    for region, mask in masks.items():
        found[f"{region}/psnr_db"] = _psnr(_within(error, mask, (1, 2, 3)))
        found[f"{region}/psnr_db_last"] = _psnr(_within(error[:, -1], mask[:, -1], (1, 2)))
        found[f"{region}/psnr_db_curve"] = _psnr(_within(error, mask, (2, 3)))
        if similar is not None:
            inside = mask[..., SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER]
            found[f"{region}/ssim"] = _within(similar, inside, (1, 2, 3))
            found[f"{region}/ssim_last"] = _within(similar[:, -1], inside[:, -1], (1, 2))
    return found


def left_of(
    frames: UInt8[Tensor, "f 3 h w"], truth: UInt8[Tensor, "f 3 h w"], views: Sequence[View]
) -> Float[Tensor, " f"]:
    """How much of the objects is left in each frame: 1 as in the truth, 0 as in the same picture without them.

    With the difference `d` that the objects make to the true picture, it is `<frame - empty, d> / <d, d>` over the
    pixels that show an object: the share of their contrast, at their true place. NaN where fewer than `FEWEST` do.
    """
    left = torch.full((len(frames),), torch.nan)
    for i, view in enumerate(views):
        shown = torch.from_numpy(view.regions == REGIONS.index("objects"))
        full, empty = truth[i].float()[:, shown], torch.from_numpy(view.empty).permute(2, 0, 1).float()[:, shown]
        energy = (full - empty).square().sum()
        if shown.sum() >= FEWEST and energy > 0:
            left[i] = ((frames[i].float()[:, shown] - empty) * (full - empty)).sum() / energy
    return left


def _rows(scene: Scene) -> Iterator[tuple[str, Made]]:
    """The first row and those beside it that have frames."""
    first = next(iter(scene.made), "")
    for row, made in scene.made.items():
        if made.frames is not None and row in (first, *SHOWN):
            yield row, made


def _masks(views: Sequence[Sequence[View]], truth: UInt8[Tensor, "b f 3 h w"]) -> dict[str, Bool[Tensor, "b f h w"]]:
    """Which pixels show what; none of a clip without views."""
    count, frames, _, height, width = truth.shape
    kinds = torch.full((count, frames, height, width), len(REGIONS), dtype=torch.uint8)
    for place, clip in enumerate(views):
        if clip:
            kinds[place] = torch.from_numpy(np.stack([view.regions for view in clip]))
    return {name: kinds == number for number, name in enumerate(REGIONS)}


def _moving(scene: Scene, truth: UInt8[Tensor, "b f 3 h w"]) -> dict[str, Bool[Tensor, "b f h w"]]:
    """Which pixels differ from the last frame seen, and which do not; of a tokenizer from the first frame."""
    before = scene.before if scene.forecaster.context_frames else truth[:, 0]
    assert before is not None, "there are frames"
    change = [(clip.short() - seen.short()).abs().amax(dim=1) for clip, seen in zip(truth, before, strict=True)]
    moving = torch.stack(change) > MOVING
    return {"moving": moving, "still": ~moving}


def _within(
    values: Float[Tensor, "*b h w"], mask: Bool[Tensor, "*b h w"], axes: tuple[int, ...]
) -> Float[Tensor, "..."]:
    """The mean over a mask; NaN where it holds too little."""
    count = mask.sum(dim=axes)
    mean = values.where(mask, 0).sum(dim=axes, dtype=torch.float64) / count
    return mean.where(count >= FEWEST, torch.nan).float()


def _psnr(error: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return 10 * (DATA_RANGE**2 / error.clamp_min(SMALLEST_MSE)).log10()  # of NaN it is NaN


# --- concluding ---

_TABLES = (
    ("PSNR by region, all frames", "psnr_db", "dB"),
    ("PSNR by region, last frame", "psnr_db_last", "dB"),
    ("SSIM by region, all frames", "ssim", ""),
    ("SSIM by region, last frame", "ssim_last", ""),
)
_NOTES = (
    f"Moving: pixels that differ from the last frame seen by more than {MOVING} of 255 grey levels in some colour; "
    "still: all others. A copy of the last frame is bad in the first and good in the second by this definition.",
    f"A clip counts where it shows at least {FEWEST} pixels of a region.",
)


def _mean(found: Found, name: str) -> Interval | None:
    return found.interval(found.measured[name]) if name in found.measured else None


def _all(found: Found, row: str) -> Interval | None:
    return found.interval(found.measured[f"{row}/left"].nanmean(dim=1))


def _last(found: Found, row: str) -> Interval | None:
    return found.interval(found.measured[f"{row}/left"][:, -1])


def _table(found: Found, rows: Sequence[str], regions: Sequence[str], title: str, metric: str, unit: str) -> Table:
    lines = [Line(label_of(row), tuple(_mean(found, f"{row}/{one}/{metric}") for one in regions)) for row in rows]
    return Table(title=title, columns=tuple(Column(one, unit) for one in regions), lines=tuple(lines))


def _charts(found: Found, rows: Sequence[str], region: str) -> Iterator[Chart]:
    """PSNR of the region that matters, and what is left of objects, over time."""
    what = {f"PSNR of {region} over time": (f"{region}/psnr_db_curve", "PSNR (dB)")}
    if region == "objects":
        what["How much of the objects is there, over time"] = ("left", "share")
    for title, (name, label) in what.items():
        values = {row: found.measured[f"{row}/{name}"].unbind(dim=1) for row in rows}
        columns = {row: dict(zip(found.seconds, own, strict=False)) for row, own in values.items()}
        curves = tuple(one for row, own in columns.items() if (one := found.curve(label_of(row), own)))
        if curves:
            yield Chart(title=title, x_label="seconds", y_label=label, curves=curves)


def _said(found: Found, there: Mapping[str, Interval | None]) -> tuple[str, str]:
    """Verdict and sentence where objects are known."""
    own, copied = (_mean(found, f"{row}/objects/psnr_db") for row in (found.forecast, "copy_last"))
    assert own is not None, "objects are seen"
    sentence = f"Objects: {own.mean:.1f} dB"
    pair = [found.measured[f"{found.forecast}/{one}/psnr_db"] for one in ("robot", "objects")]
    if gap := found.interval(pair[0] - pair[1]):
        sentence += f", {abs(gap.mean):.1f} dB {'below' if gap.mean > 0 else 'above'} the robot"
    if copied is not None:
        sentence += f"; a copy of the last frame has {copied.mean:.1f} dB"
    left, best = there[found.forecast], there.get("reconstruction")
    if left is None:
        return "no object at the end", f"{sentence}. None is in view in the last frame."
    verdict = "objects stay" if left.mean >= THERE else "objects vanish" if left.mean < GONE else "objects fade"
    sentence += f". Of the objects {100 * left.mean:.0f} % is left in the last frame"
    if best is not None and found.forecast != "reconstruction":
        sentence += f" (of the reconstruction, {100 * best.mean:.0f} %)"
    return verdict, f"{sentence}."


def _said_of_motion(found: Found) -> tuple[str, str]:
    """Verdict and sentence where only motion is known."""
    moving, still = (_mean(found, f"{found.forecast}/{one}/psnr_db") for one in ("moving", "still"))
    named = {"what moves": moving, "what stands still": still}
    sentence = ", ".join(f"{name} has {value.mean:.1f} dB" for name, value in named.items() if value)
    sentence = f"{sentence[0].upper()}{sentence[1:]}."
    name = "copy_last/moving/psnr_db"
    if moving is None or name not in found.measured:
        return "measured", sentence
    gain = found.interval(found.measured[f"{found.forecast}/moving/psnr_db"] - found.measured[name])
    assert gain is not None, "the same pixels"
    how = f"{abs(gain.mean):.1f} dB {'better' if gain.mean > 0 else 'worse'} than a copy of the last frame"
    verdict = "motion is forecast" if gain.low > 0 else "motion is missed" if gain.high < 0 else "undecided"
    return verdict, f"{sentence} Where something moves, it is {how}."


def _reasons(found: Found) -> Iterator[str]:
    """Why robot, objects and room were not told apart."""
    codes = found.measured["why"]
    for code, why in enumerate(_WHY[1:], 1):
        if number := int((codes == code).sum()):
            yield f"Robot, objects and room are not told apart in {number} of {len(codes)} clips: {why}."
