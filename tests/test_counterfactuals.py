"""Other futures of one start: what physics says of them, what they share, and who owns a pixel."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.builtin import TWIN_MINI_TRAIN, TWIN_MINI_VAL
from worldline.formats.open import OpenOptions
from worldline.schema import UsageError
from worldline.twin.counterfactuals import (
    LEFT_ALONE,
    MISSES,
    MOVED,
    TILTED,
    Future,
    TouchOrMiss,
    execute,
    object_pixels,
    other_arms,
    touch_or_miss,
)
from worldline.twin.generate import PAIR_CONTEXT, Pairs, TwinConfig, generate, look, physics_of, resume
from worldline.twin.scene import random_scene
from worldline.twin.simulation import REGIONS, Simulation

CONTEXT, HORIZON, SHOWN = 17, 17, (0, 4, 8, 12, 16)
ROOM, ROBOT, OBJECTS = range(3)


@cache
def why_not() -> str:
    """Why the twin cannot run here; empty where it can."""
    try:
        with Simulation(random_scene(np.random.default_rng(0)), size=2) as simulation:
            simulation.frame()
    except UsageError as error:
        return str(error)
    return ""


@pytest.fixture
def _twin() -> None:
    if why_not():
        pytest.skip(why_not())


def found(episode: int, seed: int) -> TouchOrMiss | None:
    simulation, commands = resume(TWIN_MINI_VAL, episode, 0)
    with simulation:
        rng = np.random.default_rng(seed)
        return touch_or_miss(simulation, commands[0], rng, context=CONTEXT, horizon=HORIZON, shown=SHOWN)


# --- what a pixel shows ---


@pytest.mark.usefixtures("_twin")
def test_regions_are_where_physics_has_robot_and_objects() -> None:
    """Without objects their pixels change, and no others do; every pixel shows one thing."""
    simulation, _ = resume(TWIN_MINI_VAL, 3, 30)
    with simulation:
        frame, regions = simulation.frame(), simulation.regions()
        assert {*np.unique(regions)} == {ROOM, ROBOT, OBJECTS}
        assert [*REGIONS] == ["room", "robot", "objects"]
        changed = np.abs(simulation.frame(objects=False).astype(int) - frame).max(axis=-1)
        np.testing.assert_array_equal(simulation.frame(), frame)
    of_objects, robot = regions == OBJECTS, regions == ROBOT
    assert (changed[of_objects] > 0).mean() > 0.98
    assert (changed[~of_objects] > 0).mean() < 0.02, "at an edge a pixel shows both"
    assert changed[robot].mean() < 2


@pytest.mark.usefixtures("_twin")
def test_a_look_at_recorded_frames_shows_what_was_recorded() -> None:
    source = OpenOptions().open(TWIN_MINI_VAL)
    root, number = physics_of(source, 4)
    assert (root, number) == (TWIN_MINI_VAL, 4)
    seen = look(root, number, [50, 20], whole=[20, 50])
    assert [*seen] == [20, 50]
    clip = source.read(4, 20, 51)
    assert clip.frames is not None
    for frame, view in seen.items():
        recorded = clip.frames[frame - 20].permute(1, 2, 0).numpy()
        assert view.frame is not None
        assert np.abs(view.frame.astype(int) - recorded).mean() < 6
        assert view.regions.shape == view.frame.shape[:2]
    assert look(root, number, [50], size=32)[50].regions.shape == (32, 32)


def test_data_without_saved_physics_say_so() -> None:
    with pytest.raises(UsageError, match="no saved physics"):
        physics_of(OpenOptions().open(TWIN_MINI_TRAIN), 0)


# --- futures ---


@pytest.mark.usefixtures("_twin")
def test_the_recorded_commands_give_the_recorded_future_and_others_another() -> None:
    simulation, commands = resume(TWIN_MINI_VAL, 1, 16)
    commands = commands[:17]
    with simulation:
        start = simulation.snapshot()
        other = other_arms(simulation, commands, np.random.default_rng(1))
        again = other_arms(simulation, commands, np.random.default_rng(1))
        first, second = (execute(simulation, start, these, shown=(3, 16)) for these in (commands, other))
    np.testing.assert_array_equal(other, again)
    arms = slice(6, 20)
    np.testing.assert_array_equal(np.delete(other, arms, axis=1), np.delete(commands, arms, axis=1))
    assert np.abs(other[0] - commands[0]).max() < 1e-6, "both begin with the same motion"
    assert np.abs(other[-1] - commands[-1]).max() > 0.1
    recorded = np.fromfile(TWIN_MINI_VAL / "robot_states/states_1.bin", dtype=np.float32).reshape(-1, 25)
    np.testing.assert_allclose(first.states, recorded[17:34], atol=1e-3)
    assert first.frames.shape == (2, 64, 64, 3)
    seen = look(TWIN_MINI_VAL, 1, [20, 33], whole=[20, 33])
    np.testing.assert_array_equal(first.frames, [seen[20].frame, seen[33].frame])
    np.testing.assert_array_equal(first.regions, [seen[20].regions, seen[33].regions])
    assert np.abs(second.frames.astype(int) - first.frames).mean() > 1


@pytest.mark.usefixtures("_twin")
def test_a_touch_and_its_misses_are_what_physics_says() -> None:
    pair = found(3, 0)
    assert pair is not None
    assert pair.frames.shape == (CONTEXT, 64, 64, 3)
    assert pair.states.shape == (CONTEXT, 25)
    simulation, _ = resume(TWIN_MINI_VAL, 3, 0)
    with simulation:
        simulation.restore(pair.snapshot)  # the last frame of the context, bit for bit
        np.testing.assert_array_equal(simulation.frame(), pair.frames[-1])
        np.testing.assert_array_equal(simulation.state(), pair.states[-1])
        for future in (pair.touch, *pair.misses):
            repeated = execute(simulation, pair.snapshot, future.commands, shown=SHOWN)
            np.testing.assert_array_equal(repeated.frames, future.frames)
            np.testing.assert_array_equal(repeated.states, future.states)
            np.testing.assert_array_equal(repeated.moved, future.moved)
    assert pair.touch.succeeded
    assert pair.touch.touched.any()
    assert pair.touch.moved.max() >= MOVED or pair.touch.tilted.max() >= TILTED
    assert 1 <= len(pair.misses) <= 2
    for miss in pair.misses:
        assert miss.kind in MISSES
        assert miss.severity > 0
        assert not miss.touched.any()
        assert miss.moved.max() < LEFT_ALONE
        assert not miss.succeeded
    again = found(3, 0)
    assert again is not None
    np.testing.assert_array_equal(again.touch.frames, pair.touch.frames)
    np.testing.assert_array_equal(again.snapshot, pair.snapshot)


@pytest.mark.usefixtures("_twin")
def test_without_objects_nothing_can_be_touched() -> None:
    simulation, commands = resume(TWIN_MINI_VAL, 0, 0)
    with simulation:
        for name in simulation.scene.objects:
            simulation.data.joint(simulation.model.body(name).jntadr[0]).qpos[:3] = 0, 0, -50
        assert (
            touch_or_miss(simulation, commands[0], np.random.default_rng(0), context=4, horizon=5, shown=(1, 4)) is None
        )


def test_pixels_of_objects_are_those_of_either_future_away_from_the_robot() -> None:
    first, second = np.zeros((2, 1, 5, 7), dtype=np.uint8)
    first[0, 2, 1] = OBJECTS  # where it was
    second[0, 2, 3] = OBJECTS  # where it went
    second[0, 1, 5] = OBJECTS  # beside the robot
    first[0, 0, 6] = ROBOT
    found = object_pixels(first, second)
    assert np.argwhere(found[0]).tolist() == [[2, 1], [2, 3]]
    assert object_pixels(first, second, margin=0).sum() == 3
    np.testing.assert_array_equal(object_pixels(second, first), found)


def test_futures_say_what_succeeded() -> None:
    nothing = np.zeros((0, 25), np.float32)
    seen = {"frames": np.zeros((0, 2, 2, 3), np.uint8), "regions": np.zeros((0, 2, 2), np.uint8)}

    objects = {"touched": np.zeros(2, bool), "moved": np.zeros(2), "tilted": np.zeros(2), "on_table": np.ones(2, bool)}
    still = Future(commands=nothing, states=nothing, **seen, **objects)
    assert still.missed
    assert not still.succeeded
    brushed = replace(still, touched=np.array([True, False]))
    assert not brushed.missed
    assert not brushed.succeeded
    pushed = replace(brushed, moved=np.array([MOVED, 0.0]))
    assert pushed.succeeded
    assert replace(brushed, tilted=np.array([TILTED, 0.0])).succeeded
    rolled_by_itself = replace(brushed, moved=np.array([0.0, MOVED]))
    assert not rolled_by_itself.succeeded
    assert not rolled_by_itself.missed
    assert replace(still, moved=np.array([0.0, 1.0]), on_table=np.array([True, False])).missed


@pytest.mark.usefixtures("_twin")
def test_pairs_are_written_as_a_data_set(tmp_path: Path) -> None:
    config = TwinConfig(episodes=1, seed=3, size=32, frames=34)
    generate(tmp_path / "pairs", config, content=Pairs())
    source = OpenOptions().open(tmp_path / "pairs")
    with np.load(tmp_path / "pairs/pairs/pair_0.npz") as said:
        kinds, succeeded = said["kind"].tolist(), said["succeeded"].tolist()
    assert [one.length for one in source.episodes] == [34] * len(kinds)
    assert kinds[0] == "touch"
    assert set(kinds[1:]) <= set(MISSES)
    assert succeeded == [True] + [False] * (len(kinds) - 1)
    touch, miss = (source.read(episode, 0, 34) for episode in (0, 1))
    assert torch.equal(touch.states[:PAIR_CONTEXT], miss.states[:PAIR_CONTEXT]), "one context, to the bit"
    assert not torch.equal(touch.states[PAIR_CONTEXT:], miss.states[PAIR_CONTEXT:])
    assert touch.frames is not None
    assert miss.frames is not None
    apart = (touch.frames.float() - miss.frames.float()).abs().mean(dim=(1, 2, 3))
    assert apart[PAIR_CONTEXT - 1] < 2 < apart[-1]
    with pytest.raises(UsageError, match=r"another pairs \(pairs: True there, None now\)"):
        generate(tmp_path / "pairs", config)
    with pytest.raises(UsageError, match="a pair has at least 27 frames"):
        generate(tmp_path / "short", replace(config, frames=20), content=Pairs())
    assert not (tmp_path / "short").exists()
