"""Regions and counterfactuals: pure functions by hand, forecasters whose answer is known, data without physics."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from worldline import builtin
from worldline.contract import FramePattern
from worldline.data.clips import DataConfig, open_clips
from worldline.evaluation.rows import Judged, Made, Scene
from worldline.evaluation.studies.counterfactuals import Counterfactuals, Told, differences, looks_like, verdict_of
from worldline.evaluation.studies.regions import Regions, by_region, drawn_again, left_of
from worldline.evaluation.study import Found
from worldline.families.load import load_forecaster
from worldline.forecasting.forecaster import CopyLast, Forecaster, clip_seeds
from worldline.forecasting.live import LiveTwin
from worldline.metrics.bootstrap import Interval
from worldline.metrics.table import NotComputed
from worldline.schema import stack
from worldline.twin.generate import View
from worldline.twin.simulation import REGIONS, can_draw

needs_twin = pytest.mark.skipif(not can_draw(), reason="MuJoCo cannot draw here")
ROOM, ROBOT, OBJECTS = range(3)
COPY = CopyLast(context_frames=17, times=tuple(range(17, 34)), chunk_frames=17)


def scene_of(forecaster: Forecaster, data: Path = builtin.TWIN_MINI_VAL, *, chosen: tuple[int, ...] = (0, 7)) -> Scene:
    """A batch of clips, with the rows that a study reads."""
    clips = open_clips(DataConfig(path=data, val_path=data, pattern=FramePattern(window=34)), "val")
    batch = forecaster.encoded(stack([clips[i] for i in chosen]))
    seeds = clip_seeds(0, batch.origins)
    made = {"forecast": Made(frames=forecaster.forecast_clips(batch, seeds=seeds).video[:, 0])}
    made["copy_last"] = Made(frames=COPY.forecast_clips(batch).video[:, 0])
    return Scene(
        forecaster=forecaster,
        protocol="compression",
        run="test",
        batch=batch,
        clips=clips,
        seeds=seeds,
        foreign=None,
        condition_samples=1,
        state_std=torch.ones(25),
        few=range(len(chosen)),
        made=made,
    )


def found_in(scene: Scene, measured: Mapping[str, Tensor]) -> Found:
    episodes = torch.tensor([origin.episode for origin in scene.batch.origins])
    judged = {name: getattr(scene, name) for name in ("forecaster", "protocol", "run")}
    return Found(
        judged=Judged(**judged),
        measured=measured,
        scores={},
        numbers={},
        episodes=episodes,
        forecast="forecast",
        alike="forecast",
        fps=30.0,
        state_names=scene.clips.source.layout.names,
    )


# --- regions ---


def test_psnr_and_ssim_of_a_region_are_those_of_its_pixels() -> None:
    truth = torch.full((1, 2, 3, 24, 24), 100, dtype=torch.uint8)
    frames, mask = truth.clone(), torch.zeros(1, 2, 24, 24, dtype=torch.bool)
    mask[..., :12, :] = True
    frames[..., :12, :] += 10
    frames[:, 1, :, :12] += 10
    found = by_region(frames, truth, {"upper": mask, "lower": ~mask, "none": mask & ~mask})
    assert found["upper/psnr_db"].item() == pytest.approx(10 * math.log10(255**2 / 250), abs=1e-4)  # (100 + 400) / 2
    assert found["upper/psnr_db_last"].item() == pytest.approx(10 * math.log10(255**2 / 400), abs=1e-4)
    assert found["upper/psnr_db_curve"][0, 0].item() == pytest.approx(10 * math.log10(255**2 / 100), abs=1e-4)
    assert found["lower/psnr_db"].item() == pytest.approx(58.92, abs=0.01)
    assert found["lower/ssim"].item() > found["upper/ssim"].item()
    for name, value in found.items():
        assert value.isnan().all() == name.startswith("none/")


def test_what_is_left_of_objects() -> None:
    """1 of the truth, 0 of the empty scene, a half of their mean; a scene without objects says nothing."""
    empty, regions = np.full((16, 16, 3), 50, np.uint8), np.zeros((16, 16), np.uint8)
    regions[4:10, 4:10] = OBJECTS
    regions[12:, :] = ROBOT
    view = View(regions, empty)
    bare = torch.from_numpy(empty).permute(2, 0, 1)
    truth = bare.clone()
    truth[:, 4:10, 4:10] = torch.tensor([150, 50, 90], dtype=torch.uint8)[:, None, None]
    half = ((truth.int() + bare.int()) // 2).byte()
    arm_elsewhere = truth.clone()
    arm_elsewhere[:, 12:] = 255
    frames = torch.stack([truth, bare, half, arm_elsewhere])
    left = left_of(frames, truth.expand_as(frames), [view] * 4)
    torch.testing.assert_close(left, torch.tensor([1.0, 0.0, 0.5, 1.0]))
    nothing = View(np.zeros_like(regions), empty)
    assert left_of(frames[:1], truth[None], [nothing]).isnan().all()


@needs_twin
def test_regions_of_the_built_in_data() -> None:
    scene = scene_of(COPY)
    truth = scene.truth
    assert truth is not None
    views, why = drawn_again(scene, truth)
    assert why == [0, 0], "the physics repeats what was recorded"
    kinds = np.stack([np.stack([view.regions for view in clip]) for clip in views])
    shares = [(kinds == number).mean() for number in range(len(REGIONS))]
    assert sum(shares) == 1
    assert all(share > 0.005 for share in shares)
    measured = Regions().measure(scene)
    assert all(len(value) == 2 for value in measured.values())
    # The same clip alone gives the same numbers, so the size of a batch changes nothing.
    alone = Regions().measure(scene_of(COPY, chosen=(7,)))
    for name, value in alone.items():
        torch.testing.assert_close(value[0], measured[name][1], equal_nan=True, rtol=1e-5, atol=1e-5)
    finding = Regions().conclude(found_in(scene, measured))
    assert finding.sentence.startswith("Objects: ")
    assert finding.verdict.startswith("objects ")
    [psnr, *_] = finding.tables
    assert [column.label for column in psnr.columns] == ["objects", "robot", "room", "moving", "still"]
    assert [line.label for line in psnr.lines] == ["forecast", "copy-last"]
    assert psnr.lines[0].values == psnr.lines[1].values, "the forecast is a copy here"
    assert {chart.x_label for chart in finding.charts} == {"seconds"}


def test_without_saved_physics_only_motion_is_known() -> None:
    scene = scene_of(COPY, builtin.TWIN_MINI_TRAIN)
    finding = Regions().conclude(found_in(scene, Regions().measure(scene)))
    assert [column.label for column in finding.tables[0].columns] == ["moving", "still"]
    assert finding.verdict == "undecided", "a copy is as good as a copy"
    assert "What moves has" in finding.sentence
    assert any("2 of 2 clips: their data hold no saved physics" in note for note in finding.notes)
    with pytest.raises(NotComputed, match="no saved physics"):
        Counterfactuals().measure(scene)


# --- counterfactuals: pure functions ---


def test_a_difference_is_explained_as_far_as_it_is_shown() -> None:
    a = torch.randint(40, 200, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    b = (a.int() + 20).byte()
    same = differences((a, b), (a, b))
    assert same == pytest.approx({"share": 1, "cosine": 1, "energy": 1})
    ignoring = differences((a, a), (a, b))
    assert (ignoring["share"], ignoring["energy"]) == (0, 0)
    assert math.isnan(ignoring["cosine"])
    half = differences((a, (a.int() + 10).byte()), (a, b))
    assert half == pytest.approx({"share": 0.75, "cosine": 1, "energy": 0.25})
    backwards = differences((b, a), (a, b))
    assert backwards == pytest.approx({"share": -3, "cosine": -1, "energy": 1})
    assert all(math.isnan(value) for value in differences((a, b), (a, a)).values())


def test_what_a_forecast_looks_like() -> None:
    success, failure = torch.zeros(2, 1, 3, 4, 4, dtype=torch.uint8)
    success[..., 0, 0] = 200
    failure[..., 3, 3] = 200
    where = (success != failure).any(dim=1)
    assert looks_like(success, success, failure, where) == 1
    assert looks_like(failure, success, failure, where) == -1
    assert looks_like(torch.zeros_like(success), success, failure, where) == 0, "an object that vanished"
    arm = success.clone()
    arm[..., 1, 1] = 255
    assert looks_like(arm, success, failure, where) == 1, "pixels elsewhere do not count"
    assert math.isnan(looks_like(success, success, failure, torch.zeros_like(where)))


def interval(mean: float, low: float = math.nan, high: float = math.nan) -> Interval:
    return Interval(mean=mean, low=low, high=high, num_clips=9, num_episodes=9)


@pytest.mark.parametrize(
    ("area", "optimism", "pessimism", "reconstructed", "verdict"),
    [
        ((0.97, 0.9, 1.0), 0.1, 0.1, 1.0, "tells them apart"),
        ((0.97, 0.9, 1.0), 0.1, 0.9, 1.0, "partly"),
        ((0.97, 0.9, 1.0), 0.5, 0.1, 1.0, "partly"),
        ((0.7, 0.6, 0.8), 0.3, 0.3, 1.0, "partly"),
        ((0.495, 0.4, 0.6), 0.79, 0.2, 1.0, "does not"),
        ((0.7, 0.4, 0.95), 0.3, 0.3, 1.0, "undecided"),
        ((0.7, math.nan, math.nan), 0.3, 0.3, 1.0, "undecided"),
        ((0.495, 0.4, 0.6), 0.79, 0.2, 0.6, "not legible"),
    ],
)
def test_verdicts(
    area: tuple[float, float, float], optimism: float, pessimism: float, reconstructed: float, verdict: str
) -> None:
    told = Told(area=interval(*area), optimism=interval(optimism), pessimism=interval(pessimism))
    best = replace(told, area=interval(reconstructed, reconstructed, reconstructed))
    found, sentence = verdict_of(told, best)
    assert found == verdict
    assert f"AUROC {area[0]:.2f}" in sentence
    assert f"{100 * optimism:.0f} %" in sentence
    assert verdict_of(None, None)[0] == "undecided"


# --- counterfactuals: forecasters whose answer is known ---


@cache
def copied() -> tuple[Scene, dict[str, Tensor]]:
    scene = scene_of(COPY, chosen=(0, 7))
    return scene, dict(Counterfactuals().measure(scene))


@needs_twin
def test_a_world_that_ignores_its_states_explains_nothing_and_cannot_tell() -> None:
    scene, measured = copied()
    assert measured["forecast/share"].tolist() == [0, 0]
    assert measured["forecast/energy"].tolist() == [0, 0]
    torch.testing.assert_close(measured["reconstruction/share"], torch.ones(2))
    known = ~measured["truth/touch"].isnan()
    assert known.any()
    torch.testing.assert_close(measured["truth/touch"][known], torch.ones(int(known.sum())))
    missed = measured["truth/miss"][~measured["truth/miss"].isnan()]
    torch.testing.assert_close(missed, -torch.ones(len(missed)))
    assert (measured["forecast/miss"][known].nan_to_num(-1) < 0).all(), "a copy shows that nothing was pushed"
    finding = Counterfactuals().conclude(found_in(scene, measured))
    lines = {line.label: line.values for line in finding.tables[1].lines}
    assert lines["the truth"][0] is not None
    assert lines["the truth"][0].mean == 1
    assert lines["forecast"][2] is not None
    assert lines["forecast"][2].mean == 1, "it never shows a push"
    assert finding.verdict != "tells them apart"
    assert "explains 0 %" in finding.sentence


@needs_twin
def test_numbers_depend_on_the_clip_alone() -> None:
    _, measured = copied()
    alone = Counterfactuals().measure(scene_of(COPY, chosen=(7,)))
    for name, value in alone.items():
        torch.testing.assert_close(value[0], measured[name][1], equal_nan=True)
    none = Counterfactuals().measure(replace(scene_of(COPY, chosen=(7,)), few=[]))
    assert none.keys() == measured.keys()
    assert all(value.isnan().all() for value in none.values())


@needs_twin
def test_the_live_twin_explains_what_other_arms_change() -> None:
    with_physics = LiveTwin.beside(COPY, root=builtin.TWIN_MINI_VAL)
    measured = Counterfactuals().measure(scene_of(with_physics, chosen=(7,)))
    assert measured["forecast/share"].item() > 0.8
    assert measured["forecast/cosine"].item() > 0.9
    with_physics.close()


@needs_twin
def test_the_built_in_world_answers_to_other_arms() -> None:
    forecaster = load_forecaster(builtin.COMPRESSION_TINY).forecaster
    scene = scene_of(forecaster, chosen=(7,))
    measured = Counterfactuals().measure(scene)
    assert 0.2 < measured["forecast/share"].item() < measured["reconstruction/share"].item() < 1
    assert Counterfactuals().conclude(found_in(scene, measured)).verdict == "undecided", "of one episode"


def test_it_is_switched_off_with_the_conditions() -> None:
    with pytest.raises(NotComputed, match="switched off"):
        Counterfactuals().measure(replace(scene_of(COPY), condition_samples=0))


def test_long_roll_outs_are_left_to_other_studies() -> None:
    scene = scene_of(COPY)
    long = replace(COPY, times=tuple(range(17, 300)))
    scene = replace(scene, forecaster=long, batch=scene.batch)
    frames = scene.batch.frames
    assert frames is not None
    longer = replace(scene.batch, frames=frames[:, :1].expand(-1, 300, -1, -1, -1))
    with pytest.raises(NotComputed, match="at most 3 s"):
        Counterfactuals().measure(replace(scene, batch=longer))
