"""The live twin as an environment: physics says success, commands move the robot, and what is looked at is drawn."""

import ctypes
import os
import pickle
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from worldline.envs import DreamEnv, DreamVectorEnv, Physics
from worldline.envs.made import TWINS, dream, twin, twin_vector
from worldline.schema import UsageError
from worldline.twin.simulation import can_draw
from worldline.twin.tasks import TASKS, solve

SEED = 3
TASK = TASKS["touch"]


@pytest.fixture(autouse=True)
def _mujoco_and_opengl() -> None:
    if not can_draw():
        pytest.skip("neither MuJoCo nor OpenGL here")


def played(env: DreamEnv, actions: Any) -> list[Any]:
    found = []
    for action in actions:
        found.append(env.step(action))
        if found[-1][2] or found[-1][3]:
            break
    return found


def test_commands_that_solve_the_task_solve_it_here_and_doing_nothing_does_not() -> None:
    start = TASK.start(SEED)
    env = twin("touch", reward="distance", shows="state")
    seen, info = env.reset(seed=0, options={"start": SEED})
    assert info["start"] == SEED
    solved = played(env, solve(start))
    assert solved[-1][2:4] == (True, False)
    assert solved[-1][4]["is_success"] is True
    assert solved[-1][1] > 0.8 > 0 > solved[0][1]
    held = env.reset(options={"start": SEED})[0]["state"]
    idle = played(env, [start.command] * 60)
    assert len(idle) == 45, "three seconds at 15 frames a second"
    assert idle[-1][2:4] == (False, True)
    assert np.abs(idle[-1][0]["state"] - held).max() < 0.05
    assert not np.array_equal(idle[-1][0]["state"], start.command), "measured, not commanded"
    assert np.array_equal(held, seen["state"])


def test_some_joints_can_be_moved_by_deltas_from_what_is_commanded() -> None:
    arm = ("LEFT_SHOULDER_PITCH", "LEFT_ELBOW_PITCH")
    env = twin("touch", moves=arm, action="delta", chunks=3, shows="state")
    assert env.action_space.shape == (2,)
    env.reset(seed=0, options={"start": SEED})
    command = env.snapshot().moment.command
    env.step(np.array([0.1, 0.0]))
    after = env.snapshot().moment.command
    changed = np.flatnonzero(np.abs(after - command) > 1e-6).tolist()
    assert [env.core.limits.names[entry] for entry in changed] == [arm[0]]
    assert after[changed[0]] == pytest.approx(command[changed[0]] + 0.1, abs=1e-5)
    with pytest.raises(UsageError, match="entry of the state 'LEFT_ELBO'"):
        twin("touch", moves=("LEFT_ELBO",))


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space:UserWarning")
def test_it_is_made_by_name_and_passes_gymnasium_s_checker() -> None:
    env = gymnasium.make("worldline/TwinReach-v0", size=16, seeds=range(SEED, SEED + 1), render_mode="rgb_array")
    check_env(env.unwrapped)
    assert {f"worldline/{name}-v0" for name in TWINS.values()} <= set(gymnasium.registry)


def test_a_moment_of_the_twin_is_gone_back_to_and_pictures_are_drawn_when_read() -> None:
    commands = solve(TASK.start(SEED))[:12]
    lazy, eager = (twin("touch", size=16, seeds=range(SEED, SEED + 1), lazy=lazy) for lazy in (True, False))
    for env in (lazy, eager):
        env.reset(seed=0)
    before, expected = played(lazy, commands[:4]), played(eager, commands[:4])
    kept, fork = lazy.snapshot(), lazy.fork()
    future = played(lazy, commands[4:])
    for (one, *_), (other, *_) in zip(before, expected, strict=True):  # drawn after the episode has gone on
        assert np.array_equal(one["frame"], other["frame"])
        assert np.array_equal(one["state"], other["state"])
    for env in (fork, lazy, eager):
        env.restore(pickle.loads(pickle.dumps(kept)))
        for (one, *_), (other, *_) in zip(played(env, commands[4:]), future, strict=True):
            assert np.array_equal(one["frame"], other["frame"])
    lazy.close()
    assert not lazy.core.forecaster.scenes, "no OpenGL context is left"  # pyright: ignore[reportAttributeAccessIssue]


def test_several_twins_are_what_single_ones_are() -> None:
    commands = solve(TASK.start(SEED))
    many: DreamVectorEnv = twin_vector(2, "touch", shows="state", seeds=range(SEED, SEED + 2))
    many.reset(seed=0, options={"start": [SEED, SEED + 1]})
    one = twin("touch", shows="state")
    one.reset(seed=0, options={"start": SEED})
    for command in commands[:6]:
        seen, rewards, *_ = many.step(np.stack([command, TASK.start(SEED + 1).command]))
        alone, reward, *_ = one.step(command)
        assert np.array_equal(seen["state"][0], alone["state"])
        assert rewards[0] == reward


@pytest.mark.slow
def test_a_world_can_begin_where_a_task_does() -> None:
    env = dream("compression-tiny", task="touch", seeds=range(SEED, SEED + 1))
    seen, _ = env.reset(seed=0)
    assert seen["frame"].shape == (64, 64, 3)
    env.step(env.action_space.sample())
    judged = dream("compression-tiny", task="touch", success=Physics("succeeded"))
    judged.reset(seed=0, options={"start": SEED})
    with pytest.raises(UsageError, match="only the live twin knows physics"):
        judged.step(judged.action_space.sample())


def test_wrong_options_are_refused() -> None:
    for options, message in (
        ({"task": "throw"}, "no task 'throw'"),
        ({"task": "touch", "drive": "push"}, "no drive 'push'"),
        ({"task": "touch", "reward": "fame"}, "no reward 'fame'"),
        ({"task": "touch", "chunk_frames": 0}, "chunk_frames is a whole number"),
        ({"task": "touch", "chunks": 0}, "chunks is 0"),
        ({"task": "touch", "fps": "15"}, "fps is a number above 0 that divides 240, not '15'"),
        ({"task": "touch", "fps": 0}, "fps is a number above 0"),
        ({"task": "touch", "size": 10_000}, "size is a whole number"),
        ({"task": "touch", "chunk": 2}, "options of an environment are"),
    ):
        with pytest.raises(UsageError, match=message):
            twin(**options)
    for options, message in (
        ({"task": "touch", "episodes": ":2"}, "leave out one of the two"),
        ({"seeds": range(3)}, "give the task too"),
        ({"load": {"temprature": 1.0}}, "temprature"),
    ):
        with pytest.raises(UsageError, match=message):
            dream("compression-tiny", **options)


@pytest.mark.slow
def test_without_opengl_it_says_what_to_install() -> None:
    """In a process of its own: the backend is chosen once. Nothing hangs."""
    try:
        ctypes.CDLL("libOSMesa.so.8")
    except OSError:
        pass
    else:
        pytest.skip("OSMesa is installed here")
    code = (
        "import worldline.envs, gymnasium\n"
        "gymnasium.make('worldline/TwinReach-v0', size=16, seeds=range(3, 4)).reset(seed=0)[0]['frame']\n"
    )
    environment = os.environ | {"MUJOCO_GL": "osmesa"}
    environment.pop("PYOPENGL_PLATFORM", None)
    how = {"capture_output": True, "text": True, "check": False, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", code], env=environment, **how)
    assert done.returncode != 0
    assert "UsageError" in done.stderr
    assert "apt-get install" in done.stderr
