"""Policies play: the same from the same (policy, start, seed), in closed loop, and a bad one is named and left."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import TWO_JOINTS
from latent_builders import PATTERN, SMALL_VAE, SMALL_WAN
from ranking_builders import (
    Bright,
    Broken,
    Constant,
    Looking,
    Slow,
    Wandering,
    WanderingTogether,
    contender,
    place,
    small_starts,
    still,
    token_forecaster,
)

from worldline.forecasting.forecaster import CopyLast
from worldline.forecasting.latents import LatentForecaster
from worldline.formats.limits import OutOfRange, StateLimits
from worldline.process.flow import FlowSampling
from worldline.ranking import actors
from worldline.ranking.actors import Held, PolicyError
from worldline.ranking.protocol import Manner, Played, _round_trip, _Step, between, play
from worldline.schema import Batch, Forecast, UsageError

TWO = Manner(steps=2, seed=4)


def _alike(one: Played, other: Played) -> None:
    for name in ("chances", "commands", "motion"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-4)


def test_the_same_policy_start_and_seed_give_the_same_episode_however_they_are_batched() -> None:
    world, starts = place(token_forecaster()), small_starts(3)
    first = play(world, contender(Wandering), starts, Bright(), TWO)
    _alike(first, play(world, contender(Wandering), starts, Bright(), TWO))
    _alike(first, play(replace(world, rows=2), contender(Wandering), starts, Bright(), TWO))
    _alike(first, play(world, contender(WanderingTogether), starts, Bright(), TWO))
    few = first.first(2)
    assert (len(few.chances), len(few.commands), few.succeeded) == (2, 2, None)
    alone = play(world, contender(Wandering), starts.rows(1, 2), Bright(), TWO)
    np.testing.assert_allclose(first.commands[1:2], alone.commands, atol=1e-6)
    other = play(world, contender(Wandering), starts, Bright(), replace(TWO, seed=5))
    assert not np.allclose(first.commands, other.commands)
    assert first.commands.shape == (3, 2, 2)
    assert not np.allclose(first.commands[0], first.commands[1]), "each start has its own seed"


def test_a_policy_sees_the_forecast_and_the_state_it_commanded() -> None:
    world, seen = place(token_forecaster(num_samples=1)), list[Any]()

    class Recording(Constant):
        def act(self, observation: Any) -> np.ndarray:
            seen.append(observation)
            return super().act(observation)

    starts = small_starts(1)
    played = play(world, contender(Recording), starts, Bright(), replace(TWO, films=1))
    assert starts.batch.frames is not None
    np.testing.assert_array_equal(seen[0]["frame"], starts.batch.frames[0, -1].permute(1, 2, 0))
    np.testing.assert_array_equal(seen[0]["state"], starts.batch.states[0, -1])
    np.testing.assert_array_equal(seen[1]["frame"], played.films[0, 17], "the last of 17 predicted frames")
    np.testing.assert_array_equal(seen[1]["state"], played.commands[0, 0])
    assert played.films.shape == (1, 1 + 2 * 17, 16, 16, 3)
    assert played.succeeded is None
    assert played.gap is None, "nothing is measured in a world"


def test_what_a_looking_policy_does_depends_on_the_pictures() -> None:
    played = play(place(token_forecaster()), contender(Looking), small_starts(3), Bright(), TWO)
    assert len({*played.commands[:, 1, 0].tolist()}) == 3


def test_contexts_of_any_length_end_at_the_start() -> None:
    """A place that begins with five frames gets the newest five, and origins move along."""
    starts = small_starts(2)
    clips = starts.contexts(5)
    assert starts.batch.frames is not None
    assert clips.frames is not None
    assert torch.equal(clips.frames, starts.batch.frames[:, -5:])
    assert clips.origins[0].start == 12
    played = play(still(), contender(Constant), starts, Bright(), Manner(steps=3, films=2))
    assert (played.motion == 0).all()
    with pytest.raises(UsageError, match="hold 17 frames"):
        starts.contexts(18)


def test_a_step_leads_to_what_was_commanded_and_stays_there() -> None:
    last, wanted = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    far = CopyLast(context_frames=5, times=(5, 6, 7, 8, 9, 10), chunk_frames=4)
    assert between(last, wanted, far, "ramp")[0, :, 0].tolist() == [0.25, 0.5, 0.75, 1, 1, 1]
    assert between(last, wanted, far, "hold")[0, :, 0].tolist() == [1] * 6
    near = CopyLast(context_frames=5, times=(5,), chunk_frames=1)
    assert between(last, wanted, near, "ramp").tolist() == [[[1, 1]]]


class _Told(Bright):
    """Keeps the states that it is told."""

    def chances(self, task: str, frames: np.ndarray, states: np.ndarray) -> np.ndarray:
        self.states = states
        return super().chances(task, frames, states)


def test_a_reader_is_told_the_state_of_every_frame_also_within_a_step() -> None:
    world, reader = place(token_forecaster()), _Told()
    for how, share in (("ramp", 9 / 17), ("hold", 1.0)):
        play(world, contender(Constant), small_starts(), reader, Manner(steps=2, between=how))
        first, middle, last = (reader.states[:, time] for time in (0, 9, 17))
        assert reader.states.shape == (3, 35, 2)
        np.testing.assert_allclose(middle, first + share * (last - first), atol=1e-6)
        assert (reader.states[:, 17:] == np.float32(0.3)).all(), "there it stays"


def test_shuffled_states_are_those_of_the_next_start_and_replayed_ones_need_no_policy() -> None:
    forecaster, starts = token_forecaster(), small_starts(3)
    own = play(place(forecaster), contender(Wandering), starts, Bright(), replace(TWO, films=3))
    other = play(place(forecaster, given="shuffled"), contender(Wandering), starts, Bright(), replace(TWO, films=3))
    np.testing.assert_array_equal(own.commands[:, 0], other.commands[:, 0])
    assert not np.array_equal(own.films, other.films)
    again = place(forecaster, given="replayed")
    same = play(again, contender(Broken), starts, Bright(), replace(TWO, films=3), replayed=own.commands)
    np.testing.assert_array_equal(own.films, same.films)
    with pytest.raises(UsageError, match="replayed"):
        play(again, contender(Constant), starts, Bright(), TWO)


def test_signals_of_trust_are_measured_by_name() -> None:
    starts = small_starts(2)
    spread = play(
        place(token_forecaster(num_samples=2)), contender(Constant), starts, Bright(), replace(TWO, signal="spread")
    )
    assert spread.signal is not None
    assert (spread.signal > 0).all()
    assert spread.doubt is not None
    np.testing.assert_allclose(spread.doubt, spread.signal / np.maximum(spread.motion, 0.25))
    lost = play(place(token_forecaster()), contender(Constant), starts, Bright(), replace(TWO, signal="round_trip"))
    assert lost.signal is not None
    assert np.isfinite(lost.signal).all()
    with pytest.raises(UsageError, match="no tokenizer"):
        play(still(), contender(Constant), starts, Bright(), replace(TWO, signal="round_trip"))


class _Paced(CopyLast):
    """Reads every fourth frame of its context and keeps nothing of it."""

    def round_trip(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        assert batch.frames is not None
        taken = batch.frames[:, ::4]
        return taken, torch.zeros_like(taken)


def test_what_a_tokenizer_loses_is_asked_of_predicted_frames_at_their_own_pace() -> None:
    """Fifteen frames, four apart, of grey levels 1 to 15: a context of seventeen takes the last five of them."""
    forecaster = _Paced(context_frames=17, times=tuple(range(20, 77, 4)), chunk_frames=60)
    film = torch.arange(1, 16, dtype=torch.uint8).view(1, 1, 15, 1, 1, 1).expand(2, 1, 15, 3, 8, 8)
    step = _Step(Forecast(times=forecaster.times, frames=film))
    lost = _round_trip(forecaster, np.full((2, 1, 8, 8, 3), 200, np.uint8), [step])
    assert lost.tolist() == [13, 13], "none of the 200 of the real frame"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Broken("nan", after=1), r"policy 'mine', start squares 0, step 1: .*no finite number in entry 1"),
        (lambda: Broken("shape"), r"start squares 0, step 0: its action has the shape \(3,\), not \(2,\)"),
        (lambda: Broken("text"), "not numbers"),
        (lambda: Broken("ragged"), "no array"),
        (lambda: Broken("raises", after=1), "step 1: it raised KeyError: 'lidar'"),
        (object, "without a method `act"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_bad_policy_is_named_with_start_and_step(make: Any, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        play(still(), contender(make), small_starts(2), Bright(), Manner(steps=3))


def test_a_batched_policy_is_checked_row_by_row() -> None:
    class Wrong(WanderingTogether):
        def act_batch(self, observations: Any) -> Any:
            found = super().act_batch(observations)
            found[1, 0] = np.inf
            return found

    class Few(WanderingTogether):
        def act_batch(self, observations: Any) -> Any:
            return super().act_batch(observations)[:1]

    with pytest.raises(PolicyError, match=r"start squares 1, step 0: .*no finite number"):
        play(still(), contender(Wrong), small_starts(2), Bright(), Manner(steps=1))
    with pytest.raises(PolicyError, match=r"starts squares 0 to squares 1, step 0: .*shape \(1, 2\), not \(2, 2\)"):
        play(still(), contender(Few), small_starts(2), Bright(), Manner(steps=1))


def test_a_policy_that_never_answers_is_left_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(PolicyError, match=r"no answer within 0.2 s; .*--act-seconds"):
        play(still(), contender(Slow), small_starts(2), Bright(), Manner(steps=1, limit=0.2))
    assert time.monotonic() - began < 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors, "MAKE_SECONDS", 0.2)
        with pytest.raises(PolicyError, match=r"start squares 0, step 0: no answer within 0.2 s"):
            play(still(), contender(lambda: Slow().act({})), small_starts(2), Bright(), Manner(steps=1, limit=0.1))
    assert play(still(), contender(Constant), small_starts(2), Bright(), Manner(steps=1)).motion.shape == (2,)


def test_a_policy_for_another_rate_or_that_must_know_the_start_is_refused() -> None:
    class Fast(Constant):
        fps = 15.0

    class Told(Constant):
        needs_start = True

        def reset(self, seed: int, start: Any) -> None:
            self.value = start

    with pytest.raises(PolicyError, match="made for 15 actions per second, but here it acts 30 times"):
        play(still(), contender(Fast), small_starts(1), Bright(), Manner(steps=1))
    with pytest.raises(PolicyError, match="told where things are"):
        play(still(), contender(Told), small_starts(1), Bright(), Manner(steps=1))
    starts = small_starts(2)
    starts = replace(starts, named=replace(starts.named, told=(0.25, 0.75)))
    played = play(still(), contender(Told), starts, Bright(), Manner(steps=1))
    assert played.commands[:, 0, 0].tolist() == [0.25, 0.75]


RANGE = {"low": -1, "high": 0.5, "change": 1}
LIMITS = StateLimits(names=("left", "right"), **{name: np.full(2, value, np.float32) for name, value in RANGE.items()})


def test_actions_outside_of_the_data_are_counted_and_given_clipped_or_refused_as_is_chosen() -> None:
    """A policy that commands 0.3, and 0.9 from its second action on, where the data end at 0.5."""

    class Rising(Constant):
        def act(self, observation: Any) -> np.ndarray:
            given = super().act(observation)
            self.value = 0.9
            return given

    def played(how: OutOfRange, make: Any = Rising) -> Played:
        held = Held(limits=LIMITS, out_of_range=how)
        return play(still(), contender(make), small_starts(2), Bright(), Manner(steps=3, held=held))

    allowed, clipped = played("allow"), played("clip")
    assert allowed.commands[0, :, 0].tolist() == [np.float32(0.3), np.float32(0.9), np.float32(0.9)]
    assert clipped.commands[0, :, 0].tolist() == [np.float32(0.3), 0.5, 0.5]
    for found in (allowed, clipped):
        assert found.outside is not None
        assert found.outside.tolist() == [2, 2]
    assert played("clip", Constant).outside is not None
    assert (played("clip", Constant).commands == np.float32(0.3)).all(), "to the last bit"
    said = r"'mine', start squares 0, step 1: the action leads left to 0\.9, outside of -1 .. 0\.5; .*--out-of-range"
    with pytest.raises(PolicyError, match=said):
        played("refuse")
    assert play(still(), contender(Rising), small_starts(2), Bright(), Manner(steps=3)).outside is None, "no range"


def test_a_policy_cannot_change_what_is_recorded() -> None:
    class Vandal(Constant):
        def act(self, observation: Any) -> np.ndarray:
            observation["frame"][:] = 0
            observation["state"][:] = 7
            return super().act(observation)

    starts = small_starts(2)
    one, other = (
        play(still(), contender(make), starts, Bright(), Manner(steps=2, films=2)) for make in (Vandal, Constant)
    )
    np.testing.assert_array_equal(one.films, other.films)


def test_frames_that_nobody_sees_are_not_made_and_nothing_else_changes() -> None:
    """A reader of three frames and a policy that looks every other time see what they would see anyway."""
    asked, every = list[int](), place(token_forecaster())

    class Sometimes(Looking):
        fps = 30 / 17

        def __init__(self) -> None:
            self.time = 0

        @property
        def looks_now(self) -> bool:
            return self.time % 2 == 0

        def act(self, observation: Any) -> np.ndarray:
            if self.looks_now:
                self.last = super().act(observation)
            self.time += 1
            return self.last

    class Counting(CopyLast):
        def step(self, context: Any, states: Any, *, seeds: Any) -> Any:
            made, onward = super().step(context, states, seeds=seeds)
            number = len(asked)
            asked.append(0)

            def later() -> Any:
                asked[number] += 1
                return made.video

            return replace(made, frames=None, later=later), onward

    copy = Counting(context_frames=5, times=(5,), chunk_frames=1)
    manner = Manner(steps=8)
    play(replace(still(), forecaster=copy), contender(Constant), small_starts(2), Bright(looks=3), manner)
    assert sum(map(bool, asked)) == 8, "this policy looks always"

    class Blind(Constant):
        looks_now = False

    asked.clear()
    play(replace(still(), forecaster=copy), contender(Blind), small_starts(2), Bright(looks=3), manner)
    assert [bool(times) for times in asked] == [i in (3, 7) for i in range(8)], "frames 4 and 8 of 0 to 8"
    lazy = replace(every, forecaster=replace(every.forecaster, lazy=True))
    manner = Manner(steps=3, films=1)
    one, other = (
        play(where, contender(Sometimes), small_starts(3), Bright(looks=4), manner) for where in (every, lazy)
    )
    np.testing.assert_array_equal(one.commands, other.commands)
    np.testing.assert_allclose(one.chances, other.chances)
    np.testing.assert_array_equal(one.films, other.films)
    assert one.films.shape[:2] == (1, 1 + 3 * 17)


def test_a_world_over_latents_is_played_in_its_long_steps() -> None:
    """Sixty frames a step, of which every fourth is predicted: nothing asks for the track."""
    vae = SMALL_VAE.build().eval()
    wan = SMALL_WAN.build(TWO_JOINTS.kinds, PATTERN).eval()
    latents = LatentForecaster(
        world=wan, grid=vae.grid(16, 16), tokenizer=vae, pattern=PATTERN, sampling=FlowSampling(steps=1)
    )
    manner = Manner(steps=2, signal="round_trip", films=1)
    played = play(place(latents), contender(Wandering), small_starts(2), Bright(looks=3), manner)
    assert played.commands.shape == (2, 2, 2)
    assert played.films.shape == (1, 1 + 2 * 15, 16, 16, 3)
    assert played.signal is not None
    assert np.isfinite(played.signal).all()
