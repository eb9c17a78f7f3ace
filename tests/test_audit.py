"""The action-following audit: what each condition gives, and what is said of worlds that follow or ignore a robot."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import write_squares
from torch import Tensor

from worldline.contract import FramePattern
from worldline.data.clips import Clips, DataConfig, open_clips
from worldline.evaluation.conditions import NOISES, SHIFTS, sides_of
from worldline.evaluation.engine import Amount, score
from worldline.evaluation.result import Evaluation, Finding, Table
from worldline.evaluation.rows import CONDITIONS, ROWS, Judged, Scene
from worldline.evaluation.studies.audit import verdict_of
from worldline.forecasting.forecaster import Context, CopyLast, Seeds, States, Step
from worldline.formats.source import Source
from worldline.metrics.bootstrap import Interval
from worldline.metrics.table import NotComputed
from worldline.schema import Batch, Forecast, Origin, StateLayout, UsageError

PAST, FUTURE, SIZE = 4, 30, 16


@dataclass(frozen=True, kw_only=True)
class Drawing(CopyLast):
    """A world that draws the square where the states of `heeded` say; other states it takes from the context."""

    heeded: tuple[bool, bool] = (True, True)

    def step(self, context: Context, states: States, *, seeds: Seeds) -> Step:
        past = self.context_frames
        given = torch.where(torch.tensor(self.heeded), states, states[:, past - 1 : past])
        places = (given[:, list(self.times)] * (SIZE - 6)).round().int()
        frames = torch.full((*places.shape[:2], 3, SIZE, SIZE), 40, dtype=torch.uint8)
        for video, clip in zip(frames, places.tolist(), strict=True):
            for frame, (x, y) in zip(video, clip, strict=True):
                frame[:, y : y + 6, x : x + 6] = torch.tensor([220, 180, 90], dtype=torch.uint8)[:, None, None]
        made = frames[:, None].repeat(1, self.num_samples, 1, 1, 1, 1)
        return Forecast(times=self.times, frames=made), lambda: context


def forecaster(kind: type[CopyLast], **more: Any) -> CopyLast:
    return kind(context_frames=PAST, times=tuple(range(PAST, PAST + FUTURE)), chunk_frames=FUTURE, **more)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    folder = write_squares(tmp_path_factory.mktemp("squares"), 6, length=PAST + FUTURE)
    return open_clips(DataConfig(path=folder, pattern=FramePattern(window=PAST + FUTURE)), "val")


def audited(world: CopyLast, clips: Clips, out: Path) -> tuple[Evaluation, Finding]:
    judged = Judged(forecaster=world, protocol="sampling", run="run")
    found = score(judged, clips, Amount(batch_size=4), out=out)
    return found, next(one for one in found.findings if one.id == "audit")


def column(table: Table, label: str) -> dict[str, Interval | None]:
    place = [one.label for one in table.columns].index(label)
    return {line.label: line.values[place] for line in table.lines}


@pytest.fixture(scope="module")
def followed(squares: Clips, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    """The evaluation of a world that follows its robot, in batches of four clips, and its folder."""
    out = tmp_path_factory.mktemp("follows")
    return audited(forecaster(Drawing), squares, out)[0], out


def test_a_world_that_follows_its_robot_is_told_from_one_that_ignores_it(
    squares: Clips, followed: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    found, out = followed
    follows = next(one for one in found.findings if one.id == "audit")
    _, ignores = audited(forecaster(CopyLast), squares, tmp_path)
    assert (follows.verdict, ignores.verdict) == ("follows", "ignores")
    assert "The picture answers to 2 of 2 joints that moved." in follows.sentence
    assert "The picture answers to 0 of 2 joints that moved." in ignores.sentence
    costs, none = column(follows.tables[0], "PSNR, all frames"), column(ignores.tables[0], "PSNR, all frames")
    assert all(cost is not None and cost.low > 0 for label, cost in costs.items() if "limb" not in label)
    assert all(cost is not None and cost.mean == cost.low == cost.high == 0 for cost in none.values())
    # The more noise, and the longer the wait, the worse.
    noise, wait = (chart.curves[0] for chart in follows.charts)
    assert [value.mean for value in noise.y] == sorted((value.mean for value in noise.y), reverse=True)
    assert noise.x == (0.0, *NOISES.values())
    assert wait.x == (-0.5, -0.2, 0.0, 0.2, 0.5)
    assert max(value.mean for value in wait.y) == wait.y[2].mean
    assert Evaluation.load(out / "metrics.json").findings == found.findings


def test_one_episode_says_of_no_joint_that_it_is_not_answered(tmp_path: Path) -> None:
    folder = write_squares(tmp_path / "squares", 1, length=2 * (PAST + FUTURE))
    clips = open_clips(DataConfig(path=folder, val_episodes=":", pattern=FramePattern(window=PAST + FUTURE)), "val")
    _, found = audited(forecaster(Drawing), clips, tmp_path / "out")
    assert found.verdict == "undecided"
    assert "joints" not in found.sentence
    assert column(found.tables[1], "moved")["elbow"] is not None


def test_a_joint_that_a_world_does_not_read_is_named(squares: Clips, tmp_path: Path) -> None:
    """Shuffled states cost something, but freezing one joint costs nothing: the picture does not answer to it."""
    _, half = audited(forecaster(Drawing, heeded=(True, False)), squares, tmp_path)
    response, cost = (column(half.tables[1], label) for label in ("picture changes", "cost"))
    assert response["gripper"] is not None
    assert response["gripper"].mean == 0 == cost["gripper"].mean  # pyright: ignore[reportOptionalMemberAccess]
    assert response["elbow"] is not None
    assert response["elbow"].low > 0
    assert "to 1 of 2 joints" in half.sentence


def test_numbers_do_not_depend_on_the_batch_and_scores_of_every_clip_are_kept(
    squares: Clips, followed: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    judged, (found, out) = Judged(forecaster=forecaster(Drawing), protocol="sampling", run="run"), followed
    assert score(judged, squares, Amount(batch_size=1), out=tmp_path).findings == found.findings
    with np.load(out / "scores.npz") as kept:
        assert kept["episode"].tolist() == [0, 1, 2, 3, 4, 5]
        assert kept["start"].tolist() == [0] * 6
        assert kept["states_late_0_5s/psnr_db"].shape == (6, FUTURE)
        rows = {row.id: row.metrics for row in found.rows}
        own = kept["sample/psnr_db"].mean(axis=1).mean()
        assert own == pytest.approx(rows["sample"]["psnr_db_mean"].mean, abs=1e-4)


def test_without_conditions_there_is_no_audit(squares: Clips, tmp_path: Path) -> None:
    judged = Judged(forecaster=forecaster(Drawing), protocol="sampling", run="run")
    found = score(judged, squares, Amount(condition_samples=0), out=tmp_path)
    assert [one.id for one in found.findings if one.id == "audit"] == []
    assert (
        found.not_computed["audit"] == found.not_computed["shuffled_states"] == "switched off (--condition-samples 0)"
    )


def test_studies_are_chosen_and_what_is_forecast_for_others_alone_is_not_made(
    squares: Clips, followed: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    judged = Judged(forecaster=forecaster(Drawing), protocol="sampling", run="run")
    one = score(judged, squares, Amount(studies=("audit",)), out=tmp_path / "one")
    assert [finding.id for finding in one.findings] == ["audit"]
    assert one.findings[0] == followed[0].findings[0], "it asks as it does beside the others"
    assert one.not_computed["drift"] == "left out (--studies)"
    none = score(judged, squares, Amount(studies=()), out=tmp_path / "none")
    made = {row.id for row in none.rows}
    assert none.findings == ()
    assert made == {row.id for row in one.rows} - {id for id in CONDITIONS if ROWS[id].study == "audit"}
    assert {"shuffled_states", "frozen_states"} <= made, "tables have these"
    with pytest.raises(UsageError, match=r"Amount.studies is \('audits',\), but must be some of audit, regions"):
        Amount(studies=("audits",))


# --- what conditions give ---

NAMES = ("HIP_YAW", "leftElbow", "L_HAND", "right_elbow.pos")


@dataclass(frozen=True, kw_only=True, eq=False)
class InMemory(Source):
    of: Tensor

    def shows(self, episode: int, start: int, stop: int) -> dict[str, Tensor]:
        return {}

    def states_of(self, episode: int) -> tuple[Path, np.ndarray]:
        return self.path, self.of[episode].numpy()


def scene(states: Tensor, *, past: int = 2, names: tuple[str, ...] = NAMES, fps: float = 10.0) -> Scene:
    count = len(states)
    layout = StateLayout(names=names, kinds=("angle",) * len(names))
    source = InMemory(path=Path("drawn"), fps=fps, layout=layout, episodes=(), image_size=None, kind="drawn", of=states)
    return Scene(
        forecaster=CopyLast(context_frames=past, times=tuple(range(past, states.shape[1])), chunk_frames=1),
        protocol="sampling",
        run="run",
        batch=Batch(
            states=states, fps=fps, origins=tuple(Origin(source="drawn", episode=i, start=0) for i in range(count))
        ),
        clips=Clips(source, np.zeros((0, 2), np.int64), pattern=FramePattern(window=states.shape[1])),
        seeds=tuple(range(count)),
        foreign=None,
        condition_samples=1,
        state_std=torch.full((states.shape[-1],), 2.0),
    )


def given(states: Tensor, **how: Any) -> Mapping[str, Tensor]:
    found = {}
    for id, states_of in CONDITIONS.items():
        try:
            found[id] = states_of(scene(states, **how))
        except NotComputed:
            continue
    return found


def test_every_condition_keeps_the_context_and_changes_the_commands_as_it_says() -> None:
    ramp = torch.arange(12.0)[None, :, None] * torch.tensor([0.0, 1.0, 10.0, 2.0])  # 1, 2: the left limb
    made = given(ramp)
    assert made.keys() == CONDITIONS.keys() - {"shuffled_states"}, "one clip has no other's states"
    assert all(torch.equal(one[:, :2], ramp[:, :2]) for one in made.values())
    own, elbow = ramp[0, :, 1].tolist(), {id: one[0, 2:, 1].tolist() for id, one in made.items()}
    assert elbow["frozen_states"] == [1.0] * 10
    assert elbow["states_late_0_2s"] == [1.0, 1.0, *own[2:10]], "two frames late, after the state that is there"
    assert elbow["states_early_0_2s"] == [*own[4:], 11.0, 11.0], "two frames early, then the last is held"
    assert elbow["limb_frozen"] == [1.0] * 10
    assert elbow["limb_mirrored"] == [1.0 - steps for steps in range(1, 11)]
    assert torch.equal(made["limb_mirrored"][..., 3], ramp[..., 3]), "the other limb moves less, and stays true"
    assert torch.equal(made["limb_frozen"][..., 0], ramp[..., 0]), "of no limb"


def test_noise_has_the_stated_size() -> None:
    still = torch.zeros(4, 400, 4)
    made = given(still)
    for id, size in NOISES.items():
        assert made[id][:, 2:].std().item() == pytest.approx(2 * size, rel=0.03), "in deviations of the states"
    other = given(still.flip(0))
    assert torch.equal(made["states_noise_1"], other["states_noise_1"]), "it depends on the clip's seed alone"


def test_what_cannot_be_given_is_not_computed() -> None:
    names = ("a", "b", "c", "d")
    made = given(torch.randn(2, 12, 4), names=names, fps=2.0)
    assert not made.keys() & {"limb_frozen", "limb_mirrored"}, "no name says left or right"
    assert SHIFTS.keys() & made.keys() == {"states_early_0_5s", "states_late_0_5s"}, (
        "0.2 s are no frame at 2 per second"
    )


def test_limbs_are_known_by_name() -> None:
    names = ("LEFT_ELBOW", "kRightWristYaw", "l_shoulder_pan.pos", "linear", "r", "leftover", "gripper_right")
    assert sides_of(names) == ["left", "right", "left", None, "right", None, "right"]


@pytest.mark.parametrize(
    ("shuffled", "still", "verdict"),
    [
        ((2.0, 1.5, 2.5), (1.0, 0.5, 1.5), "follows"),
        ((2.0, 1.5, 2.5), (0.1, -0.1, 0.3), "follows partly"),
        ((0.4, 0.2, 0.6), (0.3, 0.1, 0.5), "follows partly"),
        ((0.4, -0.1, 0.9), (0.3, 0.1, 0.5), "ignores"),
        ((0.4, float("nan"), float("nan")), None, "undecided"),
    ],
)
def test_the_verdict_follows_from_intervals(shuffled: Any, still: Any, verdict: str) -> None:
    def cost(values: tuple[float, float, float]) -> Interval:
        return Interval(mean=values[0], low=values[1], high=values[2], num_clips=9, num_episodes=9)

    assert verdict_of(cost(shuffled), still and cost(still), "psnr_db_last") == verdict
