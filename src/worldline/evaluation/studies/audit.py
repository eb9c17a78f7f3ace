"""Does the world follow the robot? What every condition costs, doses and responses, and the joints it answers to."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldline.evaluation.conditions import NOISES, SHIFTS, frozen
from worldline.evaluation.result import Chart, Column, Finding, Line, Table, label_of
from worldline.evaluation.rows import CONDITIONS, Scene
from worldline.evaluation.study import Found, Study, only_few, study
from worldline.forecasting.forecaster import Forecaster
from worldline.metrics.bootstrap import Interval
from worldline.metrics.image import psnr
from worldline.metrics.table import METRICS, NotComputed

AUDITED = ("psnr_db_last", "psnr_db_mean", "lpips_last", "state_error_last", "full_ce")
"""Metrics in which a condition may cost something."""
DOSED = ("psnr_db_mean", "full_ce")
"""The first that there is, is drawn against doses; over all frames, because late states may arrive in time at last."""
FOLLOWS = {"psnr_db_last": 1.0, "full_ce": 0.1}
"""What another clip's states must cost at least, in dB or in nats per token, for a world to follow its robot. In dB it
is a fifth less error; worlds that ignore their robot cost 0 but for chance, those that follow it several dB."""
MOVED = 0.25
"""Deviations that a joint must move by in a clip to be judged there: what hardly moves can hardly be answered to."""
ANSWERED_DB = 0.05
"""What a joint must cost when it is frozen, in dB over all frames, with its whole interval above zero."""


@study
class Audit(Study):
    """The action-following audit: the complaint most heard of world models is that they ignore the robot."""

    id: ClassVar[str] = "audit"
    title: ClassVar[str] = "Does it follow the robot?"

    def measure(self, scene: Scene) -> Mapping[str, Float[Tensor, "b s"]]:
        """Of a few clips, for each joint by itself: how the forecast answers where the joint is frozen."""
        if scene.condition_samples == 0:
            raise NotComputed("switched off (--condition-samples 0)")
        few, count = list(scene.few), scene.batch.states.shape[-1]
        if scene.truth is None:
            return {}
        names = ("joint_moved", "joint_response", "joint_cost")
        if not few:
            return only_few(scene, {name: torch.empty(0, count) for name in names})
        own, now = scene.commands[few], scene.now[few]
        several = [scene.batch.states[few]]
        for joint in range(count):
            changed = scene.batch.states[few].clone()
            changed[:, -own.shape[1] :, joint] = frozen(own, now)[:, :, joint]
            several.append(changed)
        seeds = [scene.seeds[place] for place in few]
        made = scene.forecasts_given(_cheapest(scene.forecaster), scene.few_of(), several, seeds=seeds)
        frames = [one.frames for one in made if one.frames is not None]
        if not frames:
            return {}
        moved = (own - now[:, None]).abs().amax(dim=1) / scene.state_std
        return only_few(scene, dict(zip(names, (moved, *_answers(frames, scene.truth[few])), strict=True)))

    def conclude(self, found: Found) -> Finding:
        shuffled = {one: cost for one in FOLLOWS if (cost := _cost(found, one, "shuffled_states"))}
        if not shuffled:
            raise NotComputed("no condition could be made, or nothing of it measured")
        metric = next(iter(shuffled))
        verdict = verdict_of(shuffled[metric], _cost(found, metric, "frozen_states"), metric)
        joints, answered = _joints(found)
        return Finding(
            id=self.id,
            title=self.title,
            verdict=verdict,
            sentence=_sentence(verdict, shuffled[metric], metric) + answered,
            tables=(_costs(found), *joints),
            charts=tuple(_charts(found)),
            notes=_NOTES,
        )


_NOTES = (
    "Costs are paired: the forecast with the true states minus the same world, clips and noise with other states. "
    "Positive means that the true states help.",
    f"Follows: another clip's states cost at least {FOLLOWS['psnr_db_last']:g} dB at the last frame (of tokens alone "
    f"{FOLLOWS['full_ce']:g} nats) and frozen ones cost something too, both intervals above zero. Ignores: the "
    "interval of another clip's states is not above zero. Follows partly: all else.",
)


def verdict_of(shuffled: Interval, still: Interval | None, metric: str) -> str:
    """`follows`, `follows partly` or `ignores`, from what shuffled and frozen states cost (positive is worse)."""
    if not shuffled.low > 0:  # with one episode there is no interval, and nothing is claimed
        return "ignores" if shuffled.low <= 0 else "undecided"
    both = still is not None and still.low > 0
    return "follows" if both and shuffled.mean >= FOLLOWS[metric] else "follows partly"


def _sentence(verdict: str, shuffled: Interval, metric: str) -> str:
    about = METRICS[metric]
    cost = shuffled.said(about.unit)
    said = {
        "follows": "The world follows its robot",
        "follows partly": "The world follows its robot in part",
        "ignores": "The world ignores its robot",
        "undecided": "One episode does not tell whether the world follows its robot",
    }[verdict]
    return f"{said}: with another clip's states its forecast is {cost} worse ({about.label})."


def _cost(found: Found, metric: str, row: str) -> Interval | None:
    """What a condition costs in a metric: positive where it makes the forecast worse."""
    one, other = (found.alike, row) if METRICS[metric].higher_is_better else (row, found.alike)
    return found.minus(metric, one, other)


def _costs(found: Found) -> Table:
    """What each condition costs in every metric that there is."""
    rows = [row for row in CONDITIONS if row in found.numbers]
    every = {one: [_cost(found, one, row) for row in rows] for one in AUDITED if one in METRICS}
    costs = {one: own for one, own in every.items() if any(own)}
    lines = zip(rows, zip(*costs.values(), strict=True), strict=True)
    return Table(
        title="What other states cost",
        columns=tuple(Column(METRICS[one].label, METRICS[one].unit) for one in costs),
        lines=tuple(Line(label_of(row), values) for row, values in lines),
    )


def _charts(found: Found) -> list[Chart]:
    """What the forecast is worth against the size of the noise, and against the shift in time."""
    metric = next((one for one in DOSED if one in found.numbers[found.alike]), "")
    own = {0.0: found.alike}
    doses = {"Noise on the states": ("deviations", own | {size: row for row, size in NOISES.items()})}
    doses["States that come late"] = ("seconds", own | {seconds: row for row, seconds in SHIFTS.items()})
    charts = []
    for title, (x_label, rows) in doses.items():
        there = {
            x: found.numbers[row][metric] for x, row in sorted(rows.items()) if metric in found.numbers.get(row, {})
        }
        curve = found.curve("forecast", there)
        if curve is not None and len(curve.x) > 1:
            charts.append(Chart(title=title, x_label=x_label, y_label=METRICS[metric].heading, curves=(curve,)))
    return charts


def _joints(found: Found) -> tuple[tuple[Table, ...], str]:
    """Each joint: how far it moved, how the picture answers where it is frozen, and how many it answers to."""
    if "joint_cost" not in found.measured:
        return (), ""
    columns = (Column("moved", "deviations"), Column("picture changes", "grey levels"), Column("cost", "dB"))
    lines, judged, answered = [], 0, 0
    for joint, name in enumerate(found.state_names):
        moved, response, cost = (found.measured[f"joint_{one}"][:, joint] for one in ("moved", "response", "cost"))
        enough = moved > MOVED
        about = found.interval(moved), *(found.interval(one.where(enough, torch.nan)) for one in (response, cost))
        lines.append(Line(name, about))
        judged += about[2] is not None
        answered += about[2] is not None and about[2].low > 0 and about[2].mean >= ANSWERED_DB
    several = len(found.episodes.unique()) > 1  # of one there are no intervals, so no joint is judged
    said = f" The picture answers to {answered} of {judged} joints that moved." if judged and several else ""
    return (Table(title="One joint frozen at a time", columns=columns, lines=tuple(lines)),), said


def _cheapest(forecaster: Forecaster) -> Forecaster:
    """The forecaster in as few network calls as it can: the change of the states is what counts."""
    return forecaster.conditional_mean(1) or forecaster.one_roll_out() or replace(forecaster, num_samples=1)


def _answers(
    frames: Sequence[UInt8[Tensor, "b f 3 h w"]], truth: UInt8[Tensor, "b f 3 h w"]
) -> tuple[Float[Tensor, "b s"], Float[Tensor, "b s"]]:
    """How much the picture changes, in grey levels, and what PSNR over all frames loses; the first is the forecast."""
    own = frames[0].float()
    best = psnr(frames[0], truth).mean(dim=1)
    response = [(one.float() - own).abs().mean(dim=(1, 2, 3, 4)) for one in frames[1:]]
    cost = [best - psnr(one, truth).mean(dim=1) for one in frames[1:]]
    return torch.stack(response, dim=1), torch.stack(cost, dim=1)
