"""Environments: Gymnasium's interface over any forecaster. Many are as one by one; what is refused changes nothing."""

import copy
import gc
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from builders import noise_frames, write_squares
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from latent_builders import of_latents, of_tokens

import worldline
from worldline.builtin import TWIN_MINI_VAL, TWIN_TABLE
from worldline.envs import DreamEnv, DreamVectorEnv, Seen, StateLimits, Transition
from worldline.forecasting.forecaster import CopyLast, Forecaster
from worldline.forecasting.tokens import TokenForecaster
from worldline.formats.open import open_source
from worldline.process.categorical import Sampling
from worldline.schema import Clip, Origin, UsageError, stack

LIMITS = StateLimits(
    names=("left", "right"),
    low=np.array([-1, -2], np.float32),
    high=np.array([1, 2], np.float32),
    change=np.array([0.1, 0.2], np.float32),
)
NORMALISED = "ignore:.*symmetric and normalized space:UserWarning"


@pytest.fixture(scope="module")
def forecasters() -> dict[str, Forecaster]:
    tokens, latents = of_tokens(sampling=Sampling(temperature=1.0)), of_latents(num_samples=1)
    one = CopyLast(context_frames=5, times=(5,), chunk_frames=1)
    return {"tokens": tokens, "latents": latents, "copy": CopyLast.beside(latents), "one": one}


@pytest.fixture(params=("tokens", "latents", "copy", "one"))
def forecaster(request: pytest.FixtureRequest, forecasters: dict[str, Forecaster]) -> Forecaster:
    return forecasters[request.param]


def starts(count: int = 4, length: int = 20) -> list[Clip]:
    frames = noise_frames(count, length, 3, 16, 16)
    rows = torch.rand(count, length, 2, generator=torch.Generator().manual_seed(5)) - 0.5
    each = enumerate(zip(frames, rows, strict=True))
    origins = [Origin(source="noise", episode=i, start=0) for i in range(count)]
    return [Clip(frames=seen, states=own, fps=30.0, origin=origins[i]) for i, (seen, own) in each]


def dream(forecaster: Forecaster, **options: Any) -> DreamEnv:
    return DreamEnv(forecaster, starts(), **({"limits": LIMITS} | options))


def actions(env: DreamEnv | DreamVectorEnv, count: int, seed: int = 0) -> list[np.ndarray]:
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def played(env: DreamEnv, count: int = 3, seed: int = 0) -> list[Any]:
    return [_read(env.step(action)) for action in actions(env, count, seed)]


def _read(stepped: tuple) -> tuple:
    return stepped[0].read(), *stepped[1:]


def same(one: Any, other: Any) -> bool:
    """Equal within one call's rounding: pixels by less than half a grey level on average."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype == object:
        return all(map(same, one.tolist(), other.tolist())) if one.ndim else one == other
    close = np.abs(one.astype(np.float64) - other).mean() < (0.5 if one.dtype == np.uint8 else 1e-5)
    return one.shape == other.shape and one.dtype == other.dtype and bool(close)


# --- Gymnasium's rules ---


@pytest.mark.filterwarnings(NORMALISED, "ignore:.*does not have a spec|.*not having a spec:UserWarning")
@pytest.mark.parametrize("shows", ["frame", "frames", "state"])
def test_gymnasium_s_checker_finds_nothing(forecaster: Forecaster, shows: str) -> None:
    check_env(dream(forecaster, shows=shows, render_mode=None if shows == "state" else "rgb_array"))


def test_a_normalised_action_space_is_a_standard_wrapper(forecasters: dict[str, Forecaster]) -> None:
    env = gymnasium.wrappers.RescaleAction(dream(forecasters["one"]), np.float32(-1), np.float32(1))
    env.reset(seed=0)
    assert np.allclose(env.step(np.array([1, -1], np.float32))[0]["state"], [1, -2])


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("one", mode) for mode in AutoresetMode),
        ("tokens", AutoresetMode.NEXT_STEP),
        *(pytest.param(name, AutoresetMode.SAME_STEP, marks=pytest.mark.slow) for name in ("tokens", "latents")),
        pytest.param("latents", AutoresetMode.NEXT_STEP, marks=pytest.mark.slow),
    ],
)
def test_many_are_what_as_many_single_ones_are(
    forecasters: dict[str, Forecaster], name: str, mode: AutoresetMode
) -> None:
    """Also where episodes end at different times and begin anew; compared with Gymnasium's own vector."""

    def ends(transition: Transition) -> bool:
        return transition.path[-1, 0] > 0.3

    options: Any = {"success": ends, "max_episode_steps": 4, "shows": "frame", "render_mode": "rgb_array"}
    single = SyncVectorEnv([lambda: dream(forecasters[name], **options)] * 3, autoreset_mode=mode)
    many = DreamVectorEnv(forecasters[name], starts(), num_envs=3, autoreset_mode=mode, limits=LIMITS, **options)
    assert single.observation_space == many.observation_space
    assert single.action_space == many.action_space
    assert single.metadata == many.metadata
    seen, other = single.reset(seed=7), many.reset(seed=7)
    assert same(seen[0], other[0].read())
    assert same(seen[1], other[1])
    finished = set()
    for action in actions(many, 7):
        expected, found = single.step(action), many.step(action)
        assert same(list(expected), [found[0].read(), *found[1:]])
        ended = expected[2] | expected[3]
        finished |= set(np.flatnonzero(ended).tolist())
        if mode is AutoresetMode.DISABLED and ended.any():
            with pytest.raises(UsageError, match="have ended"):
                many.step(action)
            again = [env.reset(options={"reset_mask": ended.copy()}) for env in (single, many)]
            assert same(again[0][0], again[1][0].read())
            assert same(again[0][1], again[1][1])
    assert finished == {0, 1, 2}, "every one has begun anew"
    assert same(list(single.render() or ()), list(many.render() or ()))


def test_episodes_are_a_matter_of_seed_start_and_actions(forecaster: Forecaster) -> None:
    env, other = dream(forecaster), dream(forecaster)
    seen, info = env.reset(seed=3)
    expected = played(env)
    other.reset(seed=4)
    played(other, seed=9)
    other.reset(seed=3)
    assert same(played(other), expected)
    assert info["start"] in range(4)
    chosen = other.reset(seed=3, options={"start": (info["start"] + 1) % 4})
    assert chosen[1]["start"] != info["start"]
    assert not same(chosen[0].read(), seen.read())
    numbers = {env.reset()[1]["start"] for _ in range(30)}
    assert numbers == {0, 1, 2, 3}


# --- actions ---


def test_a_target_is_reached_in_equal_parts_at_once_or_row_by_row(forecasters: dict[str, Forecaster]) -> None:
    seen: list[np.ndarray] = []
    options: Any = {"reward": lambda transition: seen.append(transition.path) or 0.0}
    goal = np.array([0.5, -0.5], np.float32)
    for between, action in (("ramp", goal), ("hold", goal), ("path", np.tile(goal, (60, 1)))):
        env = dream(forecasters["copy"], between=between, **options)
        state = env.reset(seed=0)[0]["state"]
        assert np.allclose(env.step(action)[0]["state"], goal)
        assert seen[-1].shape == (60, 2)
        first = state + (goal - state) / 60 if between == "ramp" else goal
        assert np.allclose(seen[-1][0], first, atol=1e-6)


def test_a_delta_is_added_to_the_state_of_now(forecasters: dict[str, Forecaster]) -> None:
    env = dream(forecasters["one"], action="delta")
    assert np.allclose(env.action_space.high, LIMITS.change)
    before = env.reset(seed=0)[0]["state"]
    after = env.step(np.array([0.05, -0.1]))[0]["state"]
    assert np.allclose(after - before, [0.05, -0.1], atol=1e-6)
    rows = dream(forecasters["tokens"], action="delta", between="path")
    before = rows.reset(seed=0)[0]["state"]
    assert np.allclose(rows.step(np.full((17, 2), 0.01))[0]["state"] - before, 0.17, atol=1e-5)


def test_a_step_may_be_several_chunks(forecasters: dict[str, Forecaster]) -> None:
    long, short = dream(forecasters["one"], chunks=3), dream(forecasters["one"])
    state = long.reset(seed=0)[0]["state"]
    short.reset(seed=0)
    goal = np.array([0.8, 1.0], np.float32)
    seen, *_, info = long.step(goal)
    for part in (1, 2, 3):
        other = short.step(state + (goal - state) * part / 3)[0]
    assert info["frames"] == 3
    assert same(seen.read(), other.read())
    frames = dream(forecasters["tokens"], chunks=2, shows="frames")
    assert frames.reset(seed=0)[0]["frames"].shape == (34, 16, 16, 3)
    assert frames.step(goal)[0]["frames"].shape == (34, 16, 16, 3)


def test_states_outside_the_data_are_clipped_refused_or_let_through_and_counted(
    forecasters: dict[str, Forecaster],
) -> None:
    for choice, state in (("clip", [1, 2]), ("allow", [3, 2])):
        env = dream(forecasters["one"], out_of_range=choice)
        env.reset(seed=0)
        assert env.step(np.array([1.0, 2.0]))[4]["out_of_range"] == 0, "limits are within"
        seen, *_, info = env.step(np.array([3.0, 2.0]))
        assert np.allclose(seen["state"], state)
        assert info["out_of_range"] == 1
    env = dream(forecasters["one"], out_of_range="refuse")
    env.reset(seed=0)
    before = env.snapshot().moment
    with pytest.raises(UsageError, match=r"left to 3, outside of -1 \.\. 1"):
        env.step(np.array([3.0, 2.0]))
    assert env.snapshot().moment is before


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0, float("nan")], "no finite number for right"),
        ([float("inf"), 0.0], "no finite number for left"),
        ([1e300, 0.0], "no finite number for left"),
        ([0.0], r"shape \(2,\), not \(1,\)"),
        (np.zeros((2, 2)), r"shape \(2,\), not \(2, 2\)"),
        ("forward", "array of"),
        (None, "finite|shape|array"),
        ([[0.0], [0.0, 1.0]], "array of"),
    ],
)
def test_an_action_that_does_not_fit_changes_nothing(
    forecasters: dict[str, Forecaster], action: Any, message: str
) -> None:
    env = dream(forecasters["one"])
    env.reset(seed=0)
    before = env.snapshot().moment
    with pytest.raises(UsageError, match=message):
        env.step(action)
    assert env.snapshot().moment is before
    many = DreamVectorEnv(forecasters["one"], starts(), num_envs=2, limits=LIMITS)
    many.reset(seed=0)
    kept = many.snapshot()
    with pytest.raises(UsageError, match="environment 1: "):
        many.step([np.zeros(2), action])
    assert [one.moment for one in many.snapshot()] == [one.moment for one in kept]


# --- rewards and endings ---


def test_rewards_and_endings_are_functions_of_the_transition(forecasters: dict[str, Forecaster]) -> None:
    seen: list[Transition] = []

    def reward(transition: Transition) -> float:
        seen.append(transition)
        return transition.step

    env = dream(forecasters["tokens"], reward=reward, failure=lambda one: one.step == 2, max_episode_steps=3)
    first = env.reset(seed=0)[0]
    one, two = played(env, 2)
    assert [one[1:4], two[1:4]] == [(1.0, False, False), (2.0, True, False)]
    assert "is_success" not in one[4]
    assert same(seen[0].before.read(), first.read())
    assert same(seen[1].before.read(), one[0])
    assert same(seen[1].after.read(), two[0])
    assert same(seen[1].first.read(), first.read())
    assert seen[1].session.time == 17 * 3
    with pytest.raises(UsageError, match=r"has ended; call reset\(\)"):
        env.step(env.action_space.sample())
    short = dream(forecasters["one"], success=lambda one: 0.2, max_episode_steps=2)
    short.reset(seed=0)
    last = played(short, 2)[-1]
    assert last[1:4] == (0.0, False, True)
    assert last[4]["is_success"] is False
    for wrong, message in ((lambda one: float("nan"), "reward gave nan"), (lambda one: "good", "must give a number")):
        env = dream(forecasters["one"], reward=wrong)
        env.reset(seed=0)
        before = env.snapshot().moment
        with pytest.raises(UsageError, match=message):
            env.step(np.zeros(2))
        assert env.snapshot().moment is before


def test_a_judge_of_many_is_asked_once_for_all(forecasters: dict[str, Forecaster]) -> None:
    class Bright:
        asked = 0

        def __call__(self, transition: Transition) -> float:
            return self.many([transition])[0]

        def many(self, transitions: list[Transition]) -> list[float]:
            self.asked += 1
            return [float(one.after["frame"].mean() / 255) for one in transitions]

    judge = Bright()
    many = DreamVectorEnv(forecasters["one"], starts(), num_envs=3, limits=LIMITS, reward=judge)
    many.reset(seed=0)
    _, rewards, *_ = many.step(np.zeros((3, 2)))
    assert judge.asked == 1
    assert 0.2 < rewards.min() <= rewards.max() < 0.8


def test_a_classifier_of_pictures_reads_the_episode_from_its_start(forecasters: dict[str, Forecaster]) -> None:
    asked: list[tuple[int, ...]] = []

    class Later:
        def chance(self, frames: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
            asked.append(tuple(frames.shape))
            assert states.shape == (*frames.shape[:2], 2)
            return torch.full((len(frames),), frames.shape[1] / 5)

    options: Any = {"success": Seen(Later(), threshold=0.7), "limits": LIMITS}
    many = DreamVectorEnv(forecasters["one"], starts(), num_envs=2, **options)
    many.reset(seed=0)
    many.step(np.zeros((2, 2)))
    many.reset(options={"reset_mask": np.array([True, False])})
    ended = [many.step(np.zeros((2, 2)))[2].tolist() for _ in range(2)]
    assert sorted(asked[1:3]) == [(1, 2, 3, 16, 16), (1, 3, 3, 16, 16)]
    assert ended == [[False, False], [False, True]], "four pictures of five are enough"


# --- pictures ---


def test_pictures_are_decoded_only_when_they_are_read(
    forecasters: dict[str, Forecaster], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    decode = TokenForecaster._decode
    monkeypatch.setattr(
        TokenForecaster, "_decode", lambda self, tokens: calls.append(len(tokens)) or decode(self, tokens)
    )
    many = DreamVectorEnv(forecasters["tokens"], starts(), num_envs=3, limits=LIMITS)
    many.reset(seed=0)
    kept = [many.step(action)[0] for action in actions(many, 3)]
    assert calls == []
    assert kept[1]["state"].shape == (3, 2)
    assert kept[1].unread == {"frame"}
    first = dict(kept[1])["frame"]
    assert calls == [3], "all of a step at once"
    assert kept[1]["frame"] is kept[1]["frame"]
    eager = DreamVectorEnv(forecasters["tokens"], starts(), num_envs=3, limits=LIMITS, lazy=False)
    eager.reset(seed=0)
    expected = [eager.step(action)[0] for action in actions(eager, 3)]
    assert type(expected[0]) is dict
    assert same(first, expected[1]["frame"])
    for other in (copy.deepcopy(kept[2]), pickle.loads(pickle.dumps(kept[2])), kept[2] | {}, kept[2].copy()):
        assert same(other["frame"], expected[2]["frame"])


def test_what_a_wrapper_writes_into_an_observation_stays(forecasters: dict[str, Forecaster]) -> None:
    env, grey = DreamEnv(forecasters["tokens"], starts(), limits=LIMITS), np.zeros((16, 16), np.uint8)

    def seen() -> Any:
        return env.reset(seed=0)[0]

    updated, joined, kept, without = seen(), seen(), seen(), seen()
    updated.update(frame=grey)
    joined |= {"frame": grey}
    assert updated["frame"] is grey
    assert joined["frame"] is grey
    assert joined.read()["frame"] is grey
    assert same(kept.setdefault("frame", grey), seen()["frame"]), "a picture that is there, though unread"
    del without["frame"]
    assert "frame" not in without
    with pytest.raises(KeyError):
        without["frame"]


def test_without_a_tokenizer_only_states_can_be_shown(forecasters: dict[str, Forecaster]) -> None:
    whole: Any = forecasters["tokens"]
    clips = [replace(clip, tokens=whole._encode(clip.frames[None, :17])[0], frames=None) for clip in starts()]
    alone = replace(whole, tokenizer=None)
    with pytest.raises(UsageError, match=r"--tokenizer DIR.*shows='state'"):
        DreamEnv(alone, clips, limits=LIMITS)
    blind, seeing = (DreamEnv(one, clips, limits=LIMITS, shows="state") for one in (alone, whole))
    for env in (blind, seeing):
        env.reset(seed=0)
    assert same(played(blind), played(seeing))
    assert DreamEnv(whole, clips, limits=LIMITS).reset(seed=0)[0]["frame"].shape == (16, 16, 3)


# --- moments ---


def test_a_moment_can_be_kept_and_gone_back_to(forecaster: Forecaster) -> None:
    env = dream(forecaster, render_mode="rgb_array", max_episode_steps=5)
    env.reset(seed=0)
    played(env, 1)
    kept, fork = env.snapshot(), env.fork()
    expected, picture = played(env, 2, seed=1), env.render()
    anew = env.reset()[0].read()
    played(fork, 2, seed=8)
    fork.restore(kept)
    assert same(played(fork, 2, seed=1), expected)
    assert same(fork.reset()[0].read(), anew), "its random numbers come with it"
    elsewhere = dream(forecaster, render_mode="rgb_array", max_episode_steps=5)
    seen = elsewhere.restore(pickle.loads(pickle.dumps(kept)))
    assert same(seen.read(), env.restore(kept).read())
    assert same(played(elsewhere, 2, seed=1), expected)
    assert same(elsewhere.render(), picture)
    many = DreamVectorEnv(forecaster, starts(), num_envs=2, limits=LIMITS, max_episode_steps=5)
    many.reset(seed=3)
    many.restore([kept, kept])
    action = np.stack([env.action_space.sample()] * 2)
    seen = many.step(action)[0].read()
    assert same(seen["state"][0], seen["state"][1])
    fork.close()
    env.close()
    with pytest.raises(UsageError, match="another forecaster"):
        dream(CopyLast(context_frames=3, times=(3,), chunk_frames=1)).restore(kept)


@pytest.mark.slow
def test_forks_of_one_moment_take_little_memory(forecasters: dict[str, Forecaster]) -> None:
    env = dream(forecasters["one"])
    env.reset(seed=0)
    env.step(np.zeros(2))
    gc.collect()
    tracemalloc.start()
    forks = [env.fork() for _ in range(250)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    few = held < 250 * 6e3
    assert few, "6 kB each: of a thousand 6 MB"
    assert forks[0].snapshot().moment is forks[-1].snapshot().moment
    assert same(played(forks[17]), played(env))


def test_what_cannot_be_is_said(forecasters: dict[str, Forecaster]) -> None:
    one = forecasters["one"]
    env = dream(one)
    for call in (env.render, env.snapshot, env.fork, lambda: env.step(np.zeros(2)), lambda: env.now):
        with pytest.raises(UsageError, match=r"call reset\(\) first"):
            call()
    wrong: list[Any] = [
        ({"start": 4}, r"0 \.\. 3, not 4"),
        ({"strat": 1}, "no option 'strat'"),
        ({"start": "x"}, "'x'"),
    ]
    for options, message in wrong:
        with pytest.raises(UsageError, match=message):
            env.reset(options=options)
    env.reset(seed=0)
    env.close()
    env.close()
    for call in (env.render, env.reset, env.fork, lambda: env.step(np.zeros(2))):
        with pytest.raises(UsageError, match="is closed"):
            call()
    many = DreamVectorEnv(one, starts(), num_envs=2, limits=LIMITS)
    with pytest.raises(UsageError, match="call reset"):
        many.step(np.zeros((2, 2)))
    many.reset(seed=[1, 2], options={"start": [0, 3]})
    assert [snapshot.moment.start for snapshot in many.snapshot()] == [0, 3]
    for wrong in (np.zeros(2), np.zeros((3, 2)), None, 1.0):
        with pytest.raises(UsageError):
            many.step(wrong)
    for options in ({"reset_mask": np.zeros(2, bool)}, {"reset_mask": [True, False]}, {"start": [0, 1, 2]}):
        with pytest.raises(UsageError):
            many.reset(options=options)
    many.close()
    with pytest.raises(UsageError, match="is closed"):
        many.step(np.zeros((2, 2)))
    for made in (
        lambda: dream(one, out_of_range="cut"),
        lambda: dream(one, chunks=0),
        lambda: dream(one, speed=2),
        lambda: dream(one, render_mode="human"),
        lambda: DreamEnv(one, [], limits=LIMITS),
        lambda: DreamVectorEnv(one, starts(), limits=LIMITS, num_envs=0),
        lambda: DreamVectorEnv(one, starts(), limits=LIMITS, num_envs=2, autoreset_mode="Never"),
        lambda: DreamEnv(one, starts(), limits=replace(LIMITS, high=LIMITS.low)),
    ):
        with pytest.raises(UsageError):
            made()
    ones = np.ones(1, np.float32)
    narrow = StateLimits(names=("x",), low=-ones, high=ones, change=ones)
    with pytest.raises(UsageError, match="limits are given for 1"):
        dream(one, limits=narrow).reset(seed=0)


# --- by name ---


@pytest.mark.filterwarnings(NORMALISED)
def test_a_world_is_made_by_name() -> None:
    env = gymnasium.make("worldline.envs:worldline/Dream-v0", world="compression-tiny", episodes=":2", action="delta")
    seen, _ = env.reset(seed=0)
    assert seen in env.observation_space
    assert env.action_space.shape == (25,)
    _, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert (reward, terminated, truncated, info["frames"]) == (0.0, False, False, 17)
    many = gymnasium.make_vec("worldline/Dream-v0", num_envs=2, world="compression-tiny", max_episode_steps=9)
    assert type(many.unwrapped) is DreamVectorEnv
    with pytest.raises(UsageError, match="no built-in has that name"):
        gymnasium.make("worldline/Dream-v0", world="dream-tiny")


def test_a_loaded_world_refuses_data_of_other_states_or_another_rate_and_knows_its_own(tmp_path: Path) -> None:
    world, squares = worldline.load("driven-tiny"), open_source(write_squares(tmp_path / "squares", 1))
    with pytest.raises(UsageError, match="holds other states than this world was trained with"):
        DreamEnv(world, squares, shows="state")
    faster, own = open_source(TWIN_MINI_VAL), open_source(TWIN_TABLE)
    for given in (faster, [faster.read(0, 0, 20)], stack([faster.read(0, 0, 20)])):
        with pytest.raises(UsageError, match="would begin at 30 fps, but this world was trained at 15"):
            DreamEnv(world, given, shows="state")
    assert DreamEnv(world, own, shows="state").metadata["render_fps"] == 15
    assert DreamVectorEnv(world, own, num_envs=2, shows="state").metadata["render_fps"] == 15


def test_limits_are_those_of_the_data() -> None:
    source = open_source(TWIN_MINI_VAL)
    limits = StateLimits.of_source(source)
    rows = np.concatenate([source.read_states(i) for i in range(len(source.episodes))])
    assert limits.names == source.layout.names
    assert np.allclose(limits.low, rows.min(axis=0), atol=2e-3)
    assert np.allclose(limits.high, rows.max(axis=0), atol=2e-3)
    assert (limits.low < limits.high).all()
