"""Tasks: what physics calls success, starts that repeat, sessions that begin at them, and episodes of them on disk."""

import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from worldline.forecasting.live import LiveTwin
from worldline.formats.open import OpenOptions
from worldline.schema import DataError, UsageError, stack
from worldline.twin import tasks
from worldline.twin.generate import TASK_CONTEXT, TaskEpisodes, TwinConfig, generate, record_task, resume
from worldline.twin.simulation import Simulation, can_draw
from worldline.twin.tasks import TASKS, Facts, Start, aim_error, attempt, labels, solve, tilt
from worldline.twin.trial import Trial

SMALL = TwinConfig(episodes=4, seed=2, size=32, fps=15, frames=54, view="table")
BOTH = TaskEpisodes(tasks=("touch", "push"), failures=0.5)
WINDOW = {"context_frames": 4, "times": (4, 5, 6), "chunk_frames": 3}


@pytest.fixture(autouse=True)
def _mujoco_and_opengl() -> None:
    if not can_draw():
        pytest.skip("the twin cannot draw here")


@cache
def start(task: str, seed: int = 1) -> Start:
    return TASKS[task].start(seed)


def at_start(which: Start) -> Facts:
    with which.open(size=2) as simulation:
        return Trial(simulation).facts()


def placed(which: Start, *, ahead: float = 0.0, up: float = 0.0, tilt: float = 0.0) -> Facts:
    """What physics knows after the object was moved by hand."""
    with which.open(size=2) as simulation:
        x, *_ = simulation.model.joint(simulation.model.body("OBJECT_0").jntadr[0]).qposadr
        simulation.data.qpos[[x, x + 2]] += ahead, up
        if tilt:
            simulation.data.qpos[x + 3 : x + 7] = np.cos(tilt / 2), np.sin(tilt / 2), 0, 0
        simulation.restore(simulation.snapshot())
        return Trial(simulation).facts()


# --- starts ---


@pytest.mark.parametrize("task", TASKS)
def test_a_start_is_made_again_from_task_and_seed_to_the_last_bit(task: str) -> None:
    first = start(task)
    tasks._start.cache_clear()
    again = TASKS[task].start(1)
    assert again is not first
    assert again.scene == first.scene
    for name in ("snapshot", "command", "object", "turns", "before", "lead_in"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name), err_msg=name)
    assert TASKS[task].start(2).scene != first.scene


@pytest.mark.parametrize("fps", [15.0, 30.0])
def test_the_context_of_a_start_ends_now(fps: float) -> None:
    which = TASKS["push"].start(3, fps=fps)
    frames, states = which.context(9, size=32)
    later, measured = which.context(4, size=32)
    np.testing.assert_array_equal(later, frames[5:])
    np.testing.assert_array_equal(measured, states[5:])
    assert 0 < np.abs(np.diff(states[:, :21], axis=0)).max() < 0.02, "the robot sways a little"
    with which.open(size=32) as simulation:
        frame, state = simulation.observe()
        np.testing.assert_array_equal(frame, frames[-1])
        np.testing.assert_array_equal(state, states[-1])
        for _ in range(round(fps)):
            simulation.step(which.command)
        np.testing.assert_allclose(simulation.objects()[0], which.object, atol=2e-3)
    with pytest.raises(UsageError, match="frames of what was before"):
        which.context(1000)
    with pytest.raises(UsageError, match="0 or more"):
        TASKS["push"].start(-1)


@pytest.mark.parametrize("seed", range(3))
def test_things_are_where_a_start_says_and_are_seen(seed: int) -> None:
    which = TASKS["push"].start(seed)
    assert which.line is not None
    assert which.object[0] + 0.05 < which.line < which.object[0] + 0.2
    with which.open(size=128) as simulation:
        np.testing.assert_allclose(simulation.objects()[0], which.object, atol=0.01)
        assert (simulation.regions() == 2).sum() > 60, "the block"
        assert (simulation.frame().min(axis=-1) > 170).sum() > 20, "the white line"
    which = TASKS["avoid"].start(seed)
    assert which.obstacle is not None
    assert np.linalg.norm(which.obstacle[:2]) < np.linalg.norm(which.object[:2])
    with which.open(size=128) as simulation:
        red, green, blue = np.moveaxis(simulation.frame().astype(int), -1, 0)
        assert (red > 2 * np.maximum(green, blue)).sum() > 20, "the red post"


# --- success and failure ---


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_open_at_its_start_and_its_own_motion_solves_it(task: str) -> None:
    for seed in (1, 2):
        which = start(task, seed)
        assert which.outcome(at_start(which)) == "open"
        outcome, facts = attempt(which, solve(which))
        assert outcome == "succeeded", (task, seed)
        assert 10 < facts.frame < which.frames


@pytest.mark.parametrize("task", TASKS)
def test_a_hand_that_passes_over_the_object_solves_nothing(task: str) -> None:
    which = start(task)
    outcome, facts = attempt(which, solve(which, miss=aim_error(which, "over", 0.3)))
    assert outcome == "open"
    assert facts.frame == which.frames
    assert (facts.touched == -1).all()
    late, _ = attempt(which, solve(which, late=10.0))
    assert late == "open"


def test_a_touch_is_of_a_hand_and_a_near_miss_is_none() -> None:
    which = start("touch")
    outcomes = {size: attempt(which, solve(which, miss=aim_error(which, "short", size))) for size in (0.0, 0.2)}
    assert outcomes[0.0][0] == "succeeded"
    hand, robot = outcomes[0.0][1].touched[:, 0]
    assert hand == outcomes[0.0][1].frame, "an episode ends with the first touch"
    assert 0 <= robot <= hand
    assert outcomes[0.2][0] == "open"
    facts = at_start(which)
    assert not TASKS["touch"].succeeded(which, replace(facts, touched=np.array([[-1], [5]]))), "an elbow is no hand"


def test_over_the_line_is_the_middle_of_the_block_on_the_table() -> None:
    which = start("push")
    assert which.line is not None
    there = which.line - which.object[0]
    said = {place: which.outcome(placed(which, ahead=there + place)) for place in (-0.02, 0.02)}
    assert said == {-0.02: "open", 0.02: "succeeded"}
    assert which.outcome(placed(which, ahead=there + 0.02, up=-0.5)) == "open", "it fell off the table"


def test_toppled_is_a_tilt_of_45_degrees() -> None:
    which = start("topple")
    said = {}
    for degrees in (0, 40, 50, 90):
        facts = placed(which, tilt=np.deg2rad(degrees))
        said[degrees] = which.outcome(facts)
    assert said == {0: "open", 40: "open", 50: "succeeded", 90: "succeeded"}
    assert tilt(which, at_start(which)) == pytest.approx(0, abs=0.02)


def test_an_obstacle_that_is_touched_first_loses_the_episode() -> None:
    which = start("avoid")
    straight = tasks._through(which, tasks._ahead(which), height=0.0, gap=0.3, beyond=0.0, time=0.6)
    with which.open(size=2) as simulation:
        commands, _ = tasks._moved(simulation, which, straight, 1.0)
    outcome, facts = attempt(which, commands)
    assert outcome == "failed"
    assert facts.touched[1, 1] == facts.frame
    told = {"before": [[9, -1], [9, 8]], "together": [[9, -1], [9, 9]], "after": [[9, -1], [9, 10]]}
    said = {when: which.outcome(replace(facts, touched=np.array(touched))) for when, touched in told.items()}
    assert said == {"before": "failed", "together": "failed", "after": "succeeded"}


# --- sessions ---


def test_a_live_session_begins_at_a_start_and_its_motors_take_commands() -> None:
    task, which = "avoid", start("avoid")
    live = LiveTwin(**WINDOW, drive="command")
    session = live.start_clips(stack([which.clip(4, size=32)]))
    begun = live.starts(session)[0]
    assert begun is not None
    assert (begun.task.id, begun.seed) == (task, 1)
    assert live.outcomes(session) == ["open"]
    commands = torch.from_numpy(solve(which))[None]
    moments, seen, told = [], [], []
    for chunk in commands.split(3, dim=1):
        moments.append(session.snapshot())
        seen.append(session.advance(chunk).video[0, 0])
        told += live.outcomes(session)
    expected, facts = attempt(which, commands[0].numpy())
    assert told[-1] == expected == "succeeded"
    assert told.index("succeeded") == -(-facts.frame // 3) - 1
    assert live.facts(session)[0].frame == which.frames
    np.testing.assert_array_equal(live.facts(session)[0].touched[:, 0], facts.touched[:, 0])
    with which.open(size=32) as simulation:
        frames = []
        for command in commands[0].numpy():
            simulation.step(command)
            frames.append(simulation.frame())
        np.testing.assert_array_equal(torch.cat(seen).permute(0, 2, 3, 1).numpy(), np.stack(frames))
        np.testing.assert_array_equal(live.simulation_of(session).objects(), simulation.objects())
        np.testing.assert_array_equal(live.facts(session)[0].state, simulation.state())
    middle, rest = pickle.loads(pickle.dumps(moments[8])), commands[:, 24:]
    elsewhere = LiveTwin(**WINDOW, drive="command").start_clips(stack([start(task, 2).clip(4, size=32)]))
    elsewhere.restore(middle)
    session.restore(middle)
    for branch in (session, session.fork(), elsewhere):
        again = torch.cat([branch.advance(chunk).video[0, 0] for chunk in rest.split(3, dim=1)])
        assert torch.equal(again, torch.cat(seen)[24:])
        assert live.outcomes(branch) == ["succeeded"]
    live.close()


def test_frames_of_a_lazy_twin_are_drawn_when_they_are_read_and_are_the_same() -> None:
    commands = torch.from_numpy(solve(start("touch")))[None].expand(2, -1, -1)
    batch = stack([start("touch").clip(4, size=32), start("push").clip(4, size=32)])
    seen, facts = {}, {}
    for lazy in (False, True):
        live = LiveTwin(**WINDOW, drive="command", lazy=lazy)
        session = live.start_clips(batch)
        made = [session.advance(chunk) for chunk in commands[:, 20:32].split(3, dim=1)]
        assert all((one.frames is None) == lazy for one in made)
        seen[lazy] = torch.cat([one.video for one in reversed(made)], dim=2)  # in any order
        facts[lazy] = live.facts(session)[1].objects
        live.close()
    assert torch.equal(seen[False], seen[True])
    np.testing.assert_array_equal(facts[False], facts[True])


def test_states_are_followed_or_commanded_as_is_chosen() -> None:
    which = start("touch")
    ahead = torch.from_numpy(solve(which))[None, 4:7]
    batch = stack([which.clip(4, size=32), start("push").clip(4, size=32)])
    reached = {}
    for drive in ("follow", "command"):
        live = LiveTwin(**WINDOW, drive=drive)
        session = live.start_clips(batch)
        session.advance(ahead.expand(2, -1, -1))
        reached[drive] = np.abs(live.facts(session)[0].state[:21] - ahead[0, -1, :21].numpy()).max()
        assert live.facts(session)[1].frame == 3
    assert reached["follow"] < 1e-6, "it is there"
    assert reached["command"] > 0.01, "motors lag behind"


def test_a_live_session_without_what_it_needs_says_so() -> None:
    live, clip = LiveTwin(**WINDOW), start("touch").clip(4, size=32)
    elsewhere = replace(clip, origin=replace(clip.origin, source="somewhere"))
    with pytest.raises(UsageError, match=r"folder of their data \(root\)"):
        live.start_clips(stack([elsewhere]))
    unknown = replace(clip, origin=replace(clip.origin, source="twin task juggle"))
    with pytest.raises(UsageError, match="no task 'juggle'"):
        live.start_clips(stack([unknown]))


# --- data ---


def test_episodes_of_tasks_hold_what_their_labels_say(tmp_path: Path) -> None:
    generate(tmp_path / "a", SMALL, content=BOTH)
    found = labels(tmp_path / "a")
    assert [one.task for one in found] == ["touch", "push", "touch", "push"]
    assert [one.succeeded for one in found] == [True, True, False, False], "half of each task"
    source = OpenOptions().open(tmp_path / "a")
    for i, one in enumerate(found):
        which = TASKS[one.task].start(one.seed)
        clip = source.read(i, 0, SMALL.frames)
        if i == 0:
            np.testing.assert_array_equal(clip.states[: one.begin + 1].numpy(), which.context(TASK_CONTEXT, size=2)[1])
        simulation, commands = resume(tmp_path / "a", i, one.begin)
        with simulation:
            np.testing.assert_array_equal(simulation.snapshot(), which.snapshot)
        outcome, facts = attempt(which, commands[: SMALL.frames - TASK_CONTEXT])
        assert outcome == one.outcome
        assert one.frame == (one.begin + facts.frame if one.succeeded else -1)
    (tmp_path / "a/tasks/task_3.npz").unlink()
    with pytest.raises(DataError, match="task_3"):
        labels(tmp_path / "a")
    generate(tmp_path / "a", SMALL, content=BOTH)
    assert labels(tmp_path / "a") == found
    with pytest.raises(UsageError, match=r"failures: 0\.5 there, 0\.25 now"):
        generate(tmp_path / "a", SMALL, content=replace(BOTH, failures=0.25))


def test_no_recorded_episode_has_a_start_that_is_kept_for_policies() -> None:
    """Of this seed, the draw of episode 233 is 238,634: a start that policies learn from."""
    config = replace(SMALL, episodes=234, seed=0, size=2, frames=19)
    assert record_task(config, TaskEpisodes(tasks=("touch",)), 233)[1].seed == 2**32 + 238_634


@pytest.mark.slow
def test_episodes_of_tasks_are_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    content = TaskEpisodes(tasks=("topple", "avoid"), failures=0.25, miss=0.3)
    generate(tmp_path / "one", SMALL, content=content)
    generate(tmp_path / "two", SMALL, content=content, workers=2)
    one, two = ({p.relative_to(root): p.read_bytes() for p in root.rglob("*.*")} for root in tmp_path.iterdir())
    assert one == two
    assert len(one) > 20


def test_tasks_that_cannot_be_recorded_say_so(tmp_path: Path) -> None:
    for config, content, said in (
        (replace(SMALL, view="room"), BOTH, "--view table"),
        (replace(SMALL, frames=17), BOTH, "more than 17 frames"),
        (SMALL, TaskEpisodes(tasks=()), "which tasks"),
        (replace(SMALL, fps=6), BOTH, "give --fps 8 or more"),
    ):
        with pytest.raises(UsageError, match=said):
            generate(tmp_path / "x", config, content=content)
    assert not (tmp_path / "x").exists()


def test_hands_and_other_parts_are_told_apart() -> None:
    """The forearm is laid on the object: the robot touches it, its hand does not."""
    which = start("touch")
    with which.open(size=2) as simulation:
        assert not simulation.touching().any()
        for part, expected in (("PALM", [True, True]), ("FOREARM", [False, True])):
            simulation.restore(which.snapshot)
            put(simulation, simulation.data.body(f"{which.side}_{part}").xpos - np.array([0, 0, 0.1]))
            assert simulation.touching()[:, 0].tolist() == expected


def put(simulation: Simulation, place: np.ndarray) -> None:
    """Move the first object to a place, and let contacts be found."""
    x, *_ = simulation.model.joint(simulation.model.body("OBJECT_0").jntadr[0]).qposadr
    simulation.data.qpos[x : x + 3] = place
    simulation._mujoco.mj_forward(simulation.model, simulation.data)
