"""Policies: they repeat, survive a folder, play many episodes as they play one, and are made by one call."""

import shutil
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from commands import do

from worldline import policies
from worldline.files import read_json, write_json
from worldline.judges.success import Attempts, SuccessConfig, read_all
from worldline.nn.fit import FitConfig
from worldline.policies.attempts import record_attempts
from worldline.policies.cloned import ClonedConfig, ClonedPolicy, Timing, clone
from worldline.policies.demonstrations import DemonstrationConfig, Demonstrations, demonstrate
from worldline.policies.make import BUILT, MakeOptions
from worldline.policies.mirror import mirrored
from worldline.policies.networks import Eye, NetworkConfig, PolicyNetwork
from worldline.policies.play import successes
from worldline.policies.policy import BatchPolicy, Policy
from worldline.policies.scripted import ScriptedConfig, ScriptedPolicy, missed
from worldline.policies.starts import STARTS, Use
from worldline.schema import DataError, UsageError
from worldline.twin.scene import INDEX, neutral, random_scene
from worldline.twin.simulation import Simulation, can_draw
from worldline.twin.tasks import KEPT, TASKS, Start, Task, attempt

EYES: tuple[Eye, ...] = get_args(Eye)
SMALL = NetworkConfig(side=16, width=8, hidden=16, chunk=4)
TIMING = Timing(fps=15.0, frames=45)


@pytest.fixture(autouse=True)
def _mujoco_and_opengl() -> None:
    if not can_draw():
        pytest.skip("the twin cannot draw here")


@cache
def start(seed: int = 1, task: str = "touch") -> Start:
    return TASKS[task].start(seed)


def looking(eye: Eye, seed: int = 0) -> ClonedPolicy:
    """An untrained network that acts."""
    config = ClonedConfig(network=NetworkConfig(eye=eye, side=16, width=8, hidden=16, chunk=4), execute=3)
    torch.manual_seed(seed)
    network = PolicyNetwork(config.network, 25)
    network.set_command_statistics(torch.zeros(25), torch.ones(25))
    return ClonedPolicy(config, network, TIMING)


def observations(steps: int, rows: int, size: int = 32) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    frame = (steps, rows, size, size, 3)
    frames, states = rng.integers(0, 256, frame, dtype=np.uint8), rng.normal(size=(steps, rows, 25)).astype(np.float32)
    return [{"frame": frames[i], "state": states[i]} for i in range(steps)]


def actions(policy: BatchPolicy, seen: list[dict[str, np.ndarray]], row: int, *told: Start) -> np.ndarray:
    policy.reset(3, *told)
    return np.stack([policy.act({name: value[row] for name, value in one.items()}) for one in seen])


def built(name: str) -> BatchPolicy:
    """A policy of every sort."""
    if name in EYES:
        return looking(name)  # pyright: ignore[reportArgumentType]
    config = BUILT[name]
    assert isinstance(config, ScriptedConfig)
    return ScriptedPolicy(config)


SORTS = ("aim-12", "nothing", "wave", *EYES)


@pytest.mark.parametrize("name", SORTS)
def test_a_policy_repeats_itself_and_plays_many_episodes_as_one(name: str) -> None:
    policy, seen, starts = built(name), observations(7, 2), [start(1), start(2)]
    assert isinstance(policy, Policy)
    singles = [actions(policy, seen, row, starts[row]) for row in range(2)]
    assert np.array_equal(singles[0], actions(policy, seen, 0, starts[0]))
    policy.reset_batch([3, 3], starts)
    together = np.stack([policy.act_batch(one) for one in seen], axis=1)
    assert np.allclose(together, np.stack(singles), atol=1e-5)
    assert together.dtype == np.float32


@pytest.mark.parametrize("name", SORTS)
def test_saved_and_loaded_it_acts_alike(name: str, tmp_path: Path) -> None:
    policy, seen = built(name), observations(5, 1)
    assert isinstance(policy, ScriptedPolicy | ClonedPolicy)
    policies.save(tmp_path / "one", policy, {"task": "touch"})
    again = policies.load(tmp_path / "one")
    assert np.array_equal(actions(policy, seen, 0, start()), actions(again, seen, 0, start()))
    assert (again.fps, again.needs_start) == (policy.fps, policy.needs_start)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert policies.identity(tmp_path / "one") == policies.identity(tmp_path / "two")


def test_identities_differ_with_what_a_policy_does(tmp_path: Path) -> None:
    for name, policy in {"a": looking("blind"), "b": looking("blind", seed=1), "c": looking("patches")}.items():
        policies.save(tmp_path / name, policy, {})
    assert len({policies.identity(tmp_path / name) for name in "abc"}) == 3


def test_what_a_policy_must_not_be_given_is_refused() -> None:
    scripted, cloned, (seen,) = ScriptedPolicy(ScriptedConfig()), looking("convolution"), observations(1, 2)
    with pytest.raises(UsageError, match="told the start"):
        scripted.reset(0)
    with pytest.raises(UsageError, match=r"worldline\.twin\.tasks\.Start, not a str"):
        scripted.reset(0, "there")
    with pytest.raises(UsageError, match="reset"):
        cloned.act_batch(seen)
    cloned.reset_batch([0, 1])
    with pytest.raises(UsageError, match=r"\(2, 25\), not \(2, 3\)"):
        cloned.act_batch(seen | {"state": seen["state"][:, :3]})
    with pytest.raises(UsageError, match="uint8"):
        cloned.act_batch(seen | {"frame": seen["frame"].astype(np.float32)})


def test_folders_that_hold_no_policy_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of a policy"):
        policies.load(tmp_path / "none")
    with pytest.raises(UsageError, match="no policies of the task 'touch'"):
        policies.found(tmp_path, "touch")
    policies.save(tmp_path / "a", looking("blind"), {})
    content = read_json(tmp_path / "a/config.json")
    for damage in ({"config": {"kind": "other"}}, {"config": content["config"] | {"execute": 9}}, {"state_dim": "x"}):
        write_json(tmp_path / "a/config.json", content | damage)
        with pytest.raises(DataError, match=r"config\.json"):
            policies.load(tmp_path / "a")
    write_json(tmp_path / "a/config.json", content)
    (tmp_path / "a/model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model\.safetensors"):
        policies.load(tmp_path / "a")


# --- scripts ---


def test_an_aim_error_has_its_size_and_its_seed_and_never_reaches_farther() -> None:
    which = start()
    errors = np.array([missed(which, 0.1, [seed]) for seed in range(50)])
    assert np.allclose(np.linalg.norm(errors, axis=1), 0.1)
    before, goal = (point.where for point in which.task.path(which)[-2:])
    assert (errors @ (goal - before) <= 1e-9).all()
    assert missed(which, 0.1, [7]) == missed(which, 0.1, [7]) != missed(which, 0.1, [8])


def test_scripts_succeed_hold_still_and_wave_as_they_should() -> None:
    which, outcomes = start(), {}
    seen = {"state": which.context(1, size=2)[1]}
    for name in ("aim-0", "nothing", "wave"):
        policy = built(name)
        policy.reset_batch([0], [which])
        commands = [policy.act_batch(seen) for _ in range(which.frames)]
        outcomes[name] = attempt(which, np.concatenate(commands))[0]
    assert outcomes == {"aim-0": "succeeded", "nothing": "open", "wave": "open"}


# --- learning ---


def test_the_mirror_shows_the_robot_with_left_and_right_exchanged() -> None:
    rng = np.random.default_rng(0)
    command = neutral() + np.append(rng.uniform(-0.3, 0.3, 21), np.zeros(4)).astype(np.float32)
    assert np.array_equal(mirrored(mirrored(command)), command)
    hands = {}
    with Simulation(random_scene(rng, "table"), size=2) as simulation:
        for name, pose in {"here": command, "there": mirrored(command)}.items():
            simulation.data.qpos[simulation.places[:21]] = pose[:21]
            simulation.restore(simulation.snapshot())
            hands[name] = {side: simulation.hand(side) for side in ("LEFT", "RIGHT")}
    # Its shoulders are not quite as far from the middle.
    assert np.allclose(hands["here"]["LEFT"], hands["there"]["RIGHT"] * [1, -1, 1], atol=0.01)
    assert np.allclose(hands["here"]["RIGHT"], hands["there"]["LEFT"] * [1, -1, 1], atol=0.01)


def shown(count: int = 3) -> Demonstrations:
    rng = np.random.default_rng(0)
    rows = np.cumsum(rng.normal(size=(count, 9, 25)), axis=1).astype(np.float32)
    rows[..., INDEX["LINEAR_VELOCITY"] :] = 0
    frames = rng.integers(0, 256, (count, 3, 3, 16, 16), dtype=np.uint8)
    return Demonstrations(fps=15.0, every=3, frames=frames, states=rows, commands=rows)


@pytest.mark.parametrize("eye", EYES)
def test_training_repeats_with_its_seed_and_learns(eye: Eye) -> None:
    network = NetworkConfig(eye=eye, side=16, width=8, hidden=64, chunk=2)

    def trained(steps: int, seed: int = 0) -> ClonedPolicy:
        fit = FitConfig(steps=steps, batch_size=12, seed=seed, lr=5e-3)
        return clone(ClonedConfig(network=network, fit=fit, demonstrations=3, execute=2), shown())

    first, again, other = (trained(2, seed).network.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    one, many = (errors(trained(steps), shown()) for steps in (1, 60))
    assert many < 0.8 * one


def errors(policy: ClonedPolicy, of: Demonstrations) -> float:
    """How far the first actions of a policy are from what was shown."""
    policy.reset_batch(range(len(of)))
    acted = policy.act_batch({"frame": of.frames[:, 0].transpose(0, 2, 3, 1), "state": of.states[:, 0]})
    return float(np.abs(acted - of.commands[:, 0]).mean())


def test_too_few_demonstrations_are_refused() -> None:
    with pytest.raises(UsageError, match="4 demonstrations of 16 px are needed; there are 3"):
        clone(ClonedConfig(network=SMALL, demonstrations=4, execute=2), shown())


def test_demonstrations_succeed_and_say_what_should_have_been_commanded() -> None:
    config = DemonstrationConfig(side=32, push=0.05)
    two = demonstrate(TASKS["touch"], 2, config)
    assert two.frames.shape == (2, 15, 3, 32, 32)
    assert two.states.shape == two.commands.shape == (2, 45, 25)
    calm = demonstrate(TASKS["touch"], 2, DemonstrationConfig(side=32, push=0.0))
    assert np.array_equal(two.commands, calm.commands)  # without the pushes
    assert not np.allclose(two.states, calm.states, atol=0.02)


# --- the set ---


def test_no_start_has_two_uses() -> None:
    seeds = [seed for use in STARTS.values() for seed in (use.start, use.stop - 1)]
    assert seeds == sorted(set(seeds))
    assert seeds[-1] < KEPT, "those that recorded episodes may have begin there"


def test_there_are_twelve_policies_that_were_not_made_from_one_another() -> None:
    cloned = [one for one in BUILT.values() if isinstance(one, ClonedConfig)]
    assert len(BUILT) >= 12
    assert len({one.network.eye for one in cloned}) >= 3
    assert len({one.fit.seed for one in cloned}) == len(cloned)
    assert len({one.demonstrations for one in cloned}) >= 3


def test_one_call_makes_them_and_another_keeps_what_is_there(tmp_path: Path) -> None:
    how = {"tasks": ("touch",), "only": ("nothing", "aim-20"), "classifier": False}
    made = policies.make(tmp_path / "set", **how, measure=2)
    assert made.policies == {"touch": ("aim-20", "nothing")}
    assert made.tried["touch"]["nothing"].successes == 0
    folder = policies.found(tmp_path / "set", "touch")["nothing"]
    before = folder.stat().st_ino
    policies.make(tmp_path / "set", **how)
    assert folder.stat().st_ino == before
    with pytest.raises(UsageError, match="another seed"):
        policies.make(tmp_path / "set", **how, seed=1)
    with pytest.raises(UsageError, match="did you mean 'touch'"):
        MakeOptions(tasks=("tuch",)).at  # noqa: B018 - it refuses
    with pytest.raises(UsageError, match="built policy 'aim-1'"):
        policies.make(tmp_path / "other", only=("aim-1",))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_cloned_policy_beats_one_that_learned_nothing_in_the_twin() -> None:
    """Which moves as demonstrations do on average, and so succeeds from 4 of these 10 starts."""
    config = BUILT["convolution-40"]
    assert isinstance(config, ClonedConfig)
    # Fewer, and not those after others, which would be recorded, too: so it succeeds from 8.
    config = replace(config, first=0, demonstrations=20, fit=replace(config.fit, steps=120))
    policy = clone(config, demonstrate(TASKS["touch"], config.demonstrations))
    starts = [TASKS["touch"].start(seed) for seed in STARTS["testing"][:10]]
    found = successes({"cloned": policy, "nothing": built("nothing"), "aim-0": built("aim-0")}, starts)
    assert found["nothing"].sum() == 0
    assert found["cloned"].sum() >= 6
    assert found["aim-0"].sum() >= 9


@pytest.mark.slow
def test_the_classifier_tells_success_from_failure_on_starts_it_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: dict[str, Attempts] = {}

    def recording(tasks: list[Task], use: Use, starts: int, **how: Any) -> Attempts:
        recorded[use] = record_attempts(tasks, use, starts, **how)
        return recorded[use]

    making = sys.modules["worldline.policies.make"]
    monkeypatch.setattr(making, "record_attempts", recording)
    monkeypatch.setattr(making, "SuccessConfig", partial(SuccessConfig, fit=FitConfig(steps=100, batch_size=32)))
    made = policies.make(tmp_path, tasks=("touch",), only=("nothing",), classifier_starts=16)
    assert made.errors["touch"].auroc.mean > 0.75
    reader = policies.load_success(tmp_path / "success")
    again = policies.make(tmp_path, tasks=("touch",), only=("nothing",))
    assert again.errors["touch"] == made.errors["touch"]
    assert policies.load_success(tmp_path / "success").identity == reader.identity  # it is frozen
    held_out = recorded.pop("testing")
    assert not set(held_out.start) & {start for attempts in recorded.values() for start in attempts.start}
    assert read_all(reader, held_out).mean() == pytest.approx(held_out.succeeded.mean(), abs=0.25)


def test_a_tokenizer_that_nothing_would_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --no-classifier"):
        do("policies", [str(tmp_path / "p"), "--no-classifier", "--tokenizer", str(tmp_path / "none")])
    assert not (tmp_path / "p").exists()
