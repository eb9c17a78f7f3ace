"""The driven world: causal, the same with a cache as without, one frame a step, and better than standing still."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import noise_frames, randomise
from torch import Tensor
from torch.overrides import TorchFunctionMode

import worldline
from worldline.contract import Contract, FramePattern
from worldline.families.load import Loaded
from worldline.forecasting.causal import CausalForecaster
from worldline.forecasting.forecaster import CopyLast, Session, advance_together
from worldline.forecasting.rollout import RollOut
from worldline.nn.attention import SlidingAttention
from worldline.process.categorical import Sampling
from worldline.schema import Batch, TokenGrid, UsageError
from worldline.tokenizers.fsq_video import FSQVideoConfig
from worldline.worlds.causal import CausalConfig, CausalWorld

SMALL = CausalConfig(context_grids=4, horizon_grids=3, width=16, heads=2, layers=2, state_hidden=8, code_levels=(4, 3))
GRID = TokenGrid(height=4, width=4, vocab_size=12, block=1, temporal_stride=1)
NAMES = ("LEFT", "RIGHT")
TOKENIZER = FSQVideoConfig(
    levels=(4, 3), patch=(1, 4), merges=(), widths=(8,), blocks=(1,), encoder_kernels=(3,), kernel=3, block_frames=1
)


def world_of(config: CausalConfig = SMALL, seed: int = 0) -> CausalWorld:
    torch.manual_seed(seed)
    world = config.build(GRID, NAMES).eval()
    randomise(world, std=0.2)
    return world


def forecaster_of(**options: object) -> CausalForecaster:
    torch.manual_seed(0)
    tokenizer = TOKENIZER.build().eval()
    randomise(tokenizer, std=0.5)
    return CausalForecaster(world=world_of(), grid=GRID, tokenizer=tokenizer, **options)  # pyright: ignore[reportArgumentType]


def tokens_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(GRID.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def states_of(count: int, clips: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(clips, count, 2, generator=torch.Generator().manual_seed(seed))


def begun(forecaster: CausalForecaster, seed: int = 3) -> Session:
    return forecaster.start(noise_frames(2, 4, 3, 16, 16), states_of(4), seed=seed)


def steps(session: Session, count: int, seed: int = 0) -> Tensor:
    return torch.cat([session.advance(states_of(1, seed=seed + session.time)).video for _ in range(count)], dim=2)


def test_a_driven_world_draws_at_its_own_temperature_unless_another_is_asked_for() -> None:
    def temperature(**options: float) -> float:
        forecaster = worldline.load("driven-tiny", **options).forecaster
        assert isinstance(forecaster, CausalForecaster)
        return forecaster.sampling.temperature

    assert temperature() == 0.3
    assert temperature(temperature=0.0) == 0
    assert temperature(temperature=1.0) == 1


# --- attention ---


def test_attention_step_by_step_is_attention_over_the_whole_sequence() -> None:
    torch.manual_seed(0)
    attention = SlidingAttention(8, 2, window=3)
    torch.nn.init.normal_(attention.distance)
    x, past = torch.randn(5, 9, 8), torch.zeros(5, 0, 2, 4)
    whole, _ = attention(x, past)
    parts = []
    for t in range(9):
        part, past = attention(x[:, t : t + 1], past)
        parts.append(part)
        assert past.shape[1] == min(t + 1, 3)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_attention_sees_the_window_and_nothing_older_or_later() -> None:
    torch.manual_seed(0)
    attention, x = SlidingAttention(8, 2, window=3), torch.randn(1, 9, 8)
    empty = torch.zeros(1, 0, 2, 4)
    before, _ = attention(x, empty)
    for changed in range(9):
        other = x.clone()
        other[:, changed] += 1
        after, _ = attention(other, empty)
        moved = [t for t in range(9) if not torch.equal(after[:, t], before[:, t])]
        assert moved == list(range(changed, min(changed + 4, 9)))


# --- the world ---


def test_digits_name_every_token_once_and_their_mean_code_is_the_code() -> None:
    world = world_of()
    every = torch.arange(GRID.vocab_size).view(1, 3, 4)
    digits = world.quantiser.digits(every)
    assert torch.equal(world.quantiser.of_digits(digits), every)
    sure = torch.full((*digits.shape, world.levels), -100.0).scatter(-1, digits[..., None], 100.0)
    torch.testing.assert_close(world.mean_codes(sure), world.quantiser.codes(every))


def test_no_level_is_chosen_that_a_digit_has_not() -> None:
    world = world_of()
    logits, _ = world(tokens_of(2, 5, 4, 4), world.conditions(states_of(6)))
    assert (logits[..., 1, 3] == -torch.inf).all()  # the second digit has three levels
    hot = Sampling(temperature=50.0)
    drawn = world.chosen(logits[:, 0], hot, [torch.Generator().manual_seed(i) for i in range(2)])
    assert drawn.max() < GRID.vocab_size


def test_a_grid_is_predicted_from_grids_and_states_up_to_it_alone() -> None:
    world, tokens, states = world_of(), tokens_of(1, 6, 4, 4), states_of(7, clips=1)
    before, _ = world(tokens, world.conditions(states))
    for t in range(6):
        later = tokens.clone()
        later[:, t + 1 :] = tokens_of(1, 6, 4, 4, seed=1)[:, t + 1 :]
        led = states.clone()
        led[:, t + 2 :] += 1
        after, _ = world(later, world.conditions(led))
        torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1])
        led = states.clone()
        led[:, t + 1 :] += 1
        told, _ = world(tokens, world.conditions(led))
        assert not torch.allclose(told[:, t], before[:, t])


def test_one_grid_at_a_time_with_the_past_is_all_grids_at_once() -> None:
    world, tokens = world_of(), tokens_of(2, 9, 4, 4)
    conditions, past = world.conditions(states_of(10)), None
    whole, _ = world(tokens, conditions, past)
    for t in range(9):
        now, past = world(tokens[:, t : t + 1], conditions[t : t + 1], past)
        torch.testing.assert_close(now[:, 0], whole[:, t])
    assert past is not None
    assert past.shape == (2, 2, 4, 3, 2, 8)


def test_an_unconditional_world_reads_no_states() -> None:
    world = world_of(replace(SMALL, unconditional=True))
    told, other = (world.conditions(states_of(5, seed=seed)) for seed in (0, 1))
    assert told.added is None
    assert told.modulation is not None
    assert torch.equal(told.modulation, other.modulation)
    assert told.modulation.shape == (2, 4, 16)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"block": 17, "temporal_stride": 8}, "3 grids of 17 frames"),
        ({"vocab_size": 13}, "make 12 tokens, but the tokens have 13"),
        ({"width": 5}, "4x5 tokens do not divide into squares of 2"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(grid: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SMALL.build(replace(GRID, **grid), NAMES)


def turning(seed: int) -> Batch:
    """Grids of one token each, which goes on by as much as the state says."""
    by = torch.randint(4, (8, 7), generator=torch.Generator().manual_seed(seed))
    tokens = (by.cumsum(dim=1) % 12)[..., None, None].expand(8, 7, 4, 4).contiguous()
    states = torch.stack([by, -by], dim=-1).float()
    return Batch(states=states, fps=15.0, origins=(), tokens=tokens)


@pytest.mark.parametrize(("own_from", "rolled"), [(1.0, 0.0), (0.9, 1.0)])
def test_a_run_ends_with_its_own_roll_outs_where_it_is_told_to(own_from: float, rolled: float) -> None:
    world = replace(SMALL, own_from=own_from).build(GRID, NAMES)
    world.progress = 0.95
    assert world.loss(turning(0), torch.Generator())[1]["own_roll_outs"] == rolled


def test_it_learns_where_states_lead_better_than_standing_still() -> None:
    torch.manual_seed(0)
    world = replace(SMALL, own_from=0.9).build(GRID, NAMES)
    optimizer = torch.optim.AdamW(world.parameters(), lr=1e-2)
    for step in range(150):
        world.progress = step / 150
        loss, figures = world.loss(turning(step), torch.Generator())
        assert figures["own_roll_outs"] == float(step >= 135)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = turning(10_000)
    assert held_out.tokens is not None
    made = world.eval().rolled(held_out.tokens[:, :4], world.conditions(held_out.states))[:, 4:]
    right = (made == held_out.tokens[:, 4:]).float().mean()
    still = (held_out.tokens[:, 3:4] == held_out.tokens[:, 4:]).float().mean()
    assert right > still + 0.4


# --- its forecaster ---


def test_a_step_is_one_frame_and_needs_the_state_of_that_frame_alone() -> None:
    forecaster = forecaster_of()
    assert (forecaster.context_frames, forecaster.chunk_frames, forecaster.lookahead_frames) == (4, 1, 1)
    session = begun(forecaster)
    made = [session.advance(states_of(1)) for _ in range(6)]
    assert [one.times for one in made] == [(t,) for t in range(4, 10)]
    assert made[0].video.shape == (2, 1, 1, 3, 16, 16)


def test_a_session_is_what_passes_over_all_of_it_would_choose() -> None:
    forecaster, states = forecaster_of(), states_of(12)
    frames = noise_frames(2, 4, 3, 16, 16)
    session = forecaster.start(frames, states[:, :4])
    chosen = [session.advance(states[:, t : t + 1]).tokens for t in range(4, 12)]
    world, context = forecaster.world, forecaster.encoded(Batch(states=states, fps=0.0, origins=(), frames=frames))
    assert context.tokens is not None
    rolled = world.rolled(context.tokens, world.conditions(states))[:, 4:]
    assert torch.equal(torch.cat([one[:, 0] for one in chosen if one is not None], dim=1), rolled)


def test_its_snapshots_are_values_of_constant_size() -> None:
    session = begun(forecaster_of(sampling=Sampling(temperature=1.0)))
    kept = session.snapshot()
    first = steps(session, 5)
    size = len(pickle.dumps(session.snapshot()))
    second = steps(session, 20)
    assert len(pickle.dumps(session.snapshot())) == size == len(pickle.dumps(kept))
    session.restore(pickle.loads(pickle.dumps(kept)))
    assert torch.equal(steps(session, 5), first)
    fork = session.fork()
    assert torch.equal(steps(fork, 20), second)
    assert session.time == 9


class Left(TorchFunctionMode):
    """Sizes in bytes of what is asked to leave the device of the world."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") == "cpu":
            self.sizes.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


def test_what_a_session_goes_on_from_stays_where_the_world_computes_until_it_is_pickled() -> None:
    session = begun(forecaster_of())
    parts = session.part()
    with Left() as step:
        session.advance(states_of(1))
        advance_together(parts, states_of(1).split(1))
    _, past = session.snapshot().context
    frames = 2 * 3 * 16 * 16
    assert frames in step.sizes, "frames leave"
    assert max(step.sizes) == frames < past.nbytes
    with Left() as pickled:
        pickle.dumps(session.snapshot())
    assert past.nbytes in pickled.sizes


def test_snapshots_of_two_devices_go_on_together_where_the_world_computes() -> None:
    here = begun(forecaster_of()).snapshot().context
    there = tuple(part.to("meta") for part in here)
    joined = replace(forecaster_of(), device=torch.device("meta")).joined([here, there])
    assert [part.device.type for part in joined] == ["meta", "meta"]
    assert [len(part) for part in joined] == [4, 4]


def test_samples_differ_by_seed_and_batches_change_nothing() -> None:
    forecaster = forecaster_of(sampling=Sampling(temperature=1.0), num_samples=3)
    made = steps(begun(forecaster), 3)
    assert not torch.equal(made[:, 0], made[:, 1])
    assert not torch.equal(steps(begun(forecaster, seed=4), 3), made)
    assert torch.equal(steps(begun(replace(forecaster, rows=2)), 3), made)


def test_entropy_is_that_of_independent_digits() -> None:
    session = begun(forecaster_of())
    sure = session.advance(states_of(1), extra=("certainty",)).certainty
    assert sure is not None
    assert sure.entropy.shape == (2, 1, 4, 4)
    assert (sure.entropy >= 0).all()
    assert (sure.entropy <= torch.tensor(12.0).log() + 1e-5).all()


def test_frames_may_wait_until_they_are_read() -> None:
    now, later = begun(forecaster_of()), begun(forecaster_of(lazy=True))
    made = later.advance(states_of(1))
    assert made.frames is None
    assert torch.equal(made.video, now.advance(states_of(1)).video)


def test_over_a_window_it_is_rolled_on_with_the_same_frames() -> None:
    forecaster, states = forecaster_of(), states_of(10)
    frames = noise_frames(2, 4, 3, 16, 16)
    session = forecaster.start(frames, states[:, :4])
    alone = torch.cat([session.advance(states[:, t : t + 1]).video for t in range(4, 10)], dim=2)
    window = RollOut.of(forecaster, 6)
    assert torch.equal(window.forecast(frames, states).video, alone)


def test_it_is_judged_over_the_window_of_its_training() -> None:
    names: tuple[str, ...] = ("a", "b")
    trained_on = {"pattern": FramePattern(window=9), "state_names": names, "state_kinds": ("other", "other")}
    contract = Contract(fps=15.0, source_kind="1x-raw", grid=GRID, **trained_on)  # pyright: ignore[reportArgumentType]
    whole = Loaded(forecaster=forecaster_of(), contract=contract).whole
    assert whole.times == (4, 5, 6, 7, 8)
    one_window = CopyLast(context_frames=4, times=(4, 5, 6, 7, 8), chunk_frames=5)
    assert Loaded(forecaster=one_window, contract=contract).whole is one_window


def test_other_states_are_those_of_the_context_too() -> None:
    forecaster = RollOut.of(forecaster_of(), 3)
    own, others = (states_of(7, seed=seed) for seed in (0, 1))
    clips = Batch(states=own, fps=15.0, origins=(), frames=noise_frames(2, 4, 3, 16, 16))
    made = forecaster.forecast_clips(clips, states=others)
    assert torch.equal(made.video, forecaster.forecast_clips(replace(clips, states=others)).video)
    assert not torch.equal(made.video, forecaster.forecast_clips(clips).video)


def test_the_mean_code_is_decoded_where_that_is_asked_for() -> None:
    made = [steps(begun(forecaster_of(decode_mode=mode)), 2) for mode in ("tokens", "mean")]
    assert not torch.equal(*made)
    with pytest.raises(UsageError, match="--temperature"):
        forecaster_of(num_samples=2)


@pytest.mark.slow
def test_from_the_recipes_to_an_evaluation_and_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few episodes, and without studies: the demo's test asks those of a driven world."""
    monkeypatch.chdir(tmp_path)
    few = {"train_episodes": ":1", "val_episodes": "5:6", "window_stride": 140}
    short = {"steps": 2, "batch_size": 1, "validation_clips": 2, "data": few}
    tokenizer = worldline.train("tokenizer_driven", out="tokenizer", **short).run
    world = worldline.train("driven_tiny", out="world", tokenizer=str(tokenizer), **short).run
    found = worldline.evaluate(world, num_clips=1, condition_samples=0, studies=())
    assert {row.id for row in found.rows} >= {"forecast", "copy_last", "reconstruction"}
    assert found.rows[0].metrics["psnr_db_last"].mean > 0
    clip, loaded = worldline.open_data("twin-table").read(6, 0, 18), worldline.load(world)
    frames, states = clip.frames, clip.states[None]
    assert frames is not None
    session = loaded.start(frames[None, :16], states[:, :16])
    assert session.advance(states[:, 16:17]).video.shape == (1, 1, 1, 3, 128, 128)
