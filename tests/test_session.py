"""Sessions: the first chunk is the forecast, a snapshot is a value, nothing grows, and no session knows its track."""

import gc
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import (
    GRID_200,
    SMALL_TOKENIZER,
    SMALL_WORLD,
    TWO_JOINTS,
    noise_frames,
    randomise,
    small_tokenizer,
    small_world,
)
from latent_builders import PATTERN, SMALL_VAE, SMALL_WAN
from tolerances import assert_pixels_agree
from torch import Tensor

from worldline.builtin import TWIN_MINI_VAL
from worldline.contract import FramePattern
from worldline.forecasting import live as live_module
from worldline.forecasting.forecaster import CopyLast, Forecaster, Session, advance_together
from worldline.forecasting.latents import LatentForecaster
from worldline.forecasting.live import LiveTwin
from worldline.forecasting.timing import timed
from worldline.forecasting.tokens import TokenForecaster
from worldline.formats.open import open_source
from worldline.process.categorical import Sampling
from worldline.process.flow import FlowSampling
from worldline.schema import Batch, DataError, Origin, UsageError, stack
from worldline.twin.simulation import Simulation, load_mujoco
from worldline.twin.tasks import TASKS

WORLDS = ("tokens", "direct", "seeing", "latents", "seeing latents", "copy")
WINDOW: Any = {"context_frames": 17, "times": tuple(range(17, 34)), "chunk_frames": 17}


@pytest.fixture(scope="module")
def forecasters() -> dict[str, Forecaster]:
    torch.manual_seed(0)
    tokenizer, vae = small_tokenizer(), SMALL_VAE.build().eval()
    tokens = TokenForecaster(
        world=small_world(grid=GRID_200),
        grid=tokenizer.grid(16, 16),
        tokenizer=tokenizer,
        sampling=Sampling(temperature=1.0),
        num_samples=2,
    )
    wan = SMALL_WAN.build(TWO_JOINTS.kinds, PATTERN).eval()
    randomise(wan)
    latents = LatentForecaster(
        world=wan,
        grid=vae.grid(16, 16),
        tokenizer=vae,
        pattern=PATTERN,
        sampling=FlowSampling(steps=1),
        num_samples=2,
    )
    direct = replace(tokens, world=small_world(replace(SMALL_WORLD, direct=True), grid=GRID_200))
    seeing = replace(tokens, tokenizer=small_tokenizer(replace(SMALL_TOKENIZER, decoder_sees=True)))
    sighted = replace(SMALL_VAE, decoder_sees=True).build()
    assert sighted.retouch is not None
    randomise(sighted.retouch)
    more = {"seeing latents": replace(latents, tokenizer=sighted.eval()), "copy": CopyLast.beside(latents)}
    return {"tokens": tokens, "direct": direct, "seeing": seeing, "latents": latents} | more


@pytest.fixture(params=WORLDS)
def forecaster(request: pytest.FixtureRequest, forecasters: dict[str, Forecaster]) -> Forecaster:
    return forecasters[request.param]


def states_of(count: int, seed: int = 0, clips: int = 2) -> Tensor:
    return torch.randn(clips, count, 2, generator=torch.Generator().manual_seed(seed))


def begun(forecaster: Forecaster, seed: int = 3) -> Session:
    return forecaster.start(noise_frames(2, 17, 3, 16, 16), states_of(17), seed=seed)


def rolled(session: Session, chunks: int, seed: int = 0) -> Tensor:
    """Frames of so many chunks, by states that a seed and the time say."""
    ahead = session.forecaster.lookahead_frames
    return torch.cat([session.advance(states_of(ahead, seed + session.time)).video for _ in range(chunks)], dim=2)


def test_the_first_chunk_is_the_forecast_of_the_same_window(forecaster: Forecaster) -> None:
    frames, states = noise_frames(2, 17, 3, 16, 16), states_of(17 + forecaster.horizon_frames)
    forecast = forecaster.forecast(frames, states, seeds=(3, 3))
    made = forecaster.start(frames, states[:, :17], seed=3).advance(states[:, 17:])
    assert made.times == forecast.times
    assert_pixels_agree(made.video, forecast.video)


def test_times_go_on_from_chunk_to_chunk(forecasters: dict[str, Forecaster]) -> None:
    for name, chunk, first, second in (
        ("tokens", 17, range(17, 34), range(34, 51)),
        ("latents", 60, range(20, 77, 4), range(80, 137, 4)),
        ("copy", 60, range(20, 77, 4), range(80, 137, 4)),
    ):
        session = begun(forecasters[name])
        assert forecasters[name].chunk_frames == forecasters[name].lookahead_frames == chunk
        assert session.time == 17
        assert session.advance(states_of(chunk)).times == tuple(first)
        assert session.time == 17 + chunk
        assert session.advance(states_of(chunk)).times == tuple(second)


def test_a_step_says_how_sure_it_was_and_changes_nothing_by_that(forecasters: dict[str, Forecaster]) -> None:
    session, states = begun(forecasters["tokens"]), states_of(17)
    other = session.fork()
    with timed() as spent:
        made = session.advance(states, extra={"certainty"})
    certainty, plain = made.certainty, other.advance(states)
    assert certainty is not None
    assert certainty.entropy.shape == (2, 3, 2, 2)
    assert plain.certainty is None
    assert torch.equal(made.video, plain.video)
    assert spent["decode"] > 0
    kept = session.fork().advance(states, extra={"certainty"}).certainty
    together = advance_together([session, other], [states, states], extra={"certainty"})[1].certainty
    assert kept is not None
    assert together is not None
    torch.testing.assert_close(together.entropy, kept.entropy)
    with pytest.raises(UsageError, match="does not give certainty"):
        begun(forecasters["latents"]).advance(states_of(60), extra={"certainty"})


def test_predicted_token_grids_are_the_next_context(forecasters: dict[str, Forecaster]) -> None:
    """So a greedy session over the states of 51 frames is the world's own forecast from the grids it made."""
    forecaster = replace(forecasters["tokens"], sampling=Sampling(), num_samples=1)  # pyright: ignore[reportArgumentType]
    session, states = begun(forecaster), states_of(51)
    session = forecaster.start(noise_frames(2, 17, 3, 16, 16), states[:, :17])
    first, second = session.advance(states[:, 17:34]), session.advance(states[:, 34:])
    assert first.tokens is not None
    batch = Batch(states=states[:, 17:], fps=30.0, origins=(), tokens=first.tokens[:, 0])
    expected = forecaster.forecast_clips(batch)
    assert second.tokens is not None
    assert expected.tokens is not None
    assert torch.equal(second.tokens, expected.tokens)


def test_what_a_world_over_latents_goes_on_from_are_its_last_frames_encoded(forecasters: dict[str, Forecaster]) -> None:
    forecaster = replace(forecasters["latents"], num_samples=1)
    states, session = states_of(137), None
    session = forecaster.start(noise_frames(2, 17, 3, 16, 16), states[:, :17], seed=3)
    first = session.advance(states[:, 17:77])
    frames = torch.zeros(2, 17, 3, 16, 16, dtype=torch.uint8)
    frames[:, ::4] = first.video[:, 0, -5:]  # at 60, 64, ..., 76; between them none is made, and none is read
    again = forecaster.start(frames, states[:, 60:77], seed=3)
    (begins,), (goes_on,) = again.snapshot().context, session.snapshot().context
    torch.testing.assert_close(goes_on, begins, rtol=1e-4, atol=1e-4)


def test_what_was_seen_stays_in_view_from_chunk_to_chunk(forecasters: dict[str, Forecaster]) -> None:
    base = forecasters["tokens"]
    forecaster = replace(base, blend_last_frame=True, sampling=Sampling(), num_samples=1)  # pyright: ignore[reportArgumentType]
    session, states = begun(forecaster), states_of(17)
    made = session.advance(states)
    _, seen = session.snapshot().context
    assert torch.equal(seen, made.video[:, 0, -1])


def test_a_decoder_that_sees_is_shown_the_last_frame_from_chunk_to_chunk(forecasters: dict[str, Forecaster]) -> None:
    forecaster: Any = replace(forecasters["seeing"], sampling=Sampling(), num_samples=1)
    frames, session = noise_frames(2, 17, 3, 16, 16), begun(forecaster)
    for before in (frames[:, 16], None):
        seen = session.snapshot().context[1]
        assert before is None or torch.equal(seen, before)
        made = session.advance(states_of(17, session.time))
        assert made.tokens is not None
        assert_pixels_agree(made.video[:, 0], forecaster.tokenizer.decode(made.tokens[:, 0], seen))
        assert torch.equal(session.snapshot().context[1], made.video[:, 0, -1])


def test_a_vae_that_sees_is_shown_the_last_context_frame(forecasters: dict[str, Forecaster]) -> None:
    """Of a window, of a reconstruction, of the chunk before, and of latents alone what they show of it."""
    forecaster: Any = forecasters["seeing latents"]
    frames, vae = noise_frames(2, 77, 3, 16, 16), forecaster.tokenizer
    batch = Batch(states=states_of(77), fps=30.0, origins=(), frames=frames)
    latents = vae.encode(frames[:, list(PATTERN.frames)])
    made = vae.decode(latents, frames[:, 16])[:, 5:-2]  # frames 20, 24, ..., 72; the last two are of one instant
    assert_pixels_agree(forecaster.reconstruct(batch).video[:, 0, :-1], made)
    session = forecaster.start_clips(batch, seed=3)
    assert torch.equal(session.snapshot().context[1], frames[:, 16].repeat_interleave(2, dim=0))
    video = session.advance(states_of(60)).video
    assert torch.equal(session.snapshot().context[1], video[:, :, -1].flatten(0, 1))
    other = frames.clone()
    other[:, 16] = 0
    alone = replace(batch, latents=latents)
    assert not torch.equal(
        forecaster.start_clips(replace(alone, frames=other), seed=3).advance(states_of(60)).video, video
    )
    unseen = forecaster.start_clips(replace(alone, frames=None)).snapshot().context[1]
    assert_pixels_agree(unseen, vae.decode(latents[:, :2])[:, -1].repeat_interleave(2, dim=0))


def test_where_only_tokens_were_seen_the_last_frame_is_that_of_them(forecasters: dict[str, Forecaster]) -> None:
    forecaster: Any = replace(forecasters["seeing"], sampling=Sampling(), num_samples=1)
    tokens = forecaster.tokenizer.encode(noise_frames(2, 17, 3, 16, 16))
    session = forecaster.start_clips(Batch(states=states_of(17), fps=30.0, origins=(), tokens=tokens))
    assert_pixels_agree(session.snapshot().context[1], forecaster.tokenizer.decode(tokens)[:, -1])


def test_the_reconstruction_of_a_decoder_that_sees_is_shown_the_true_frame(forecasters: dict[str, Forecaster]) -> None:
    forecaster: Any = replace(forecasters["seeing"], decode_mode="mean", sampling=Sampling(), num_samples=1)
    frames = noise_frames(2, 34, 3, 16, 16)
    batch = Batch(states=states_of(34), fps=30.0, origins=(), frames=frames)
    tokens = forecaster.tokenizer.encode(frames)
    expected = forecaster.tokenizer.decode(tokens[:, 3:], frames[:, 16])
    assert_pixels_agree(forecaster.reconstruct(batch).video[:, 0], expected)
    other = forecaster.forecast_clips(replace(batch, tokens=tokens, frames=255 - frames))
    assert not torch.equal(other.video, forecaster.forecast_clips(batch).video), "also of mean codes"


def test_a_session_is_the_same_whatever_runs_beside_it(forecaster: Forecaster) -> None:
    alone = rolled(begun(forecaster), 3)
    one, other, third = begun(forecaster), begun(forecaster, seed=8), begun(forecaster)
    pieces, beside = [], []
    for _ in range(3):
        beside.append(rolled(other, 1, seed=5))
        torch.randn(7)
        pieces.append(rolled(one, 1))
        rolled(third, 1, seed=9)
    assert torch.equal(torch.cat(pieces, dim=2), alone)
    if forecaster.num_samples > 1:
        assert not torch.equal(torch.cat(beside, dim=2), alone)
        assert not torch.equal(alone[:, 0], alone[:, 1]), "samples differ"


def test_noise_is_drawn_anew_for_every_chunk_and_belongs_to_it(forecasters: dict[str, Forecaster]) -> None:
    """From the same context and states, another chunk's noise makes another future; the same chunk's makes the same."""
    for name in ("tokens", "latents"):
        session = begun(forecasters[name])
        now, ahead = session.snapshot(), session.forecaster.lookahead_frames
        futures = []
        for chunks in (0, 1, 2, 1):
            session.restore(replace(now, chunks=chunks))
            futures.append(session.advance(states_of(ahead)).video)
        assert torch.equal(futures[1], futures[3])
        assert not torch.equal(futures[0], futures[1])
        assert not torch.equal(futures[1], futures[2])


def test_a_snapshot_is_a_value_to_return_to(forecaster: Forecaster) -> None:
    session = begun(forecaster)
    rolled(session, 1)
    kept = session.snapshot()
    fork = session.fork()
    future = rolled(session, 2)
    other = rolled(fork, 1, seed=77)
    assert torch.equal(rolled(session.fork(), 1, seed=1), rolled(session, 1, seed=1))
    session.restore(kept)
    assert session.time == 17 + forecaster.chunk_frames
    assert torch.equal(rolled(session, 2), future)
    elsewhere = begun(forecaster, seed=99)
    elsewhere.restore(pickle.loads(pickle.dumps(kept)))
    assert torch.equal(rolled(elsewhere, 2), future)
    if forecaster.num_samples > 1:
        assert not torch.equal(other, future[:, :, : other.shape[2]])


def test_a_caller_may_write_into_what_it_gave_and_was_given(forecaster: Forecaster) -> None:
    expected = rolled(begun(forecaster), 2)
    frames, states = noise_frames(2, 17, 3, 16, 16), states_of(17)
    session = forecaster.start(frames, states, seed=3)
    frames.zero_()
    states.zero_()
    ahead = states_of(forecaster.lookahead_frames, 17)
    made = session.advance(ahead)
    first = made.video.clone()
    for tensor in (ahead, made.video, made.tokens):
        if tensor is not None:
            tensor.zero_()
    assert torch.equal(torch.cat([first, rolled(session, 1)], dim=2), expected)


def test_a_session_holds_no_more_after_twelve_chunks_than_after_four(forecaster: Forecaster) -> None:
    def held(session: Session) -> dict[int, int]:
        """Bytes of every tensor that can be reached from a session and not through its forecaster."""
        found, todo = {}, [value for name, value in vars(session).items() if name != "forecaster"]
        while todo:
            thing = todo.pop()
            if isinstance(thing, Tensor):
                found[len(found)] = thing.untyped_storage().nbytes()
            elif not isinstance(thing, type):
                todo += gc.get_referents(thing)
        return found

    forecaster = replace(forecaster, num_samples=1)
    session = begun(forecaster)
    for _ in range(4):
        session.advance(states_of(forecaster.lookahead_frames))
    four = held(session)
    assert len(four) >= 2
    for _ in range(8):
        session.advance(states_of(forecaster.lookahead_frames))
    assert held(session) == four
    assert len(pickle.dumps(session.snapshot())) < 30_000


def test_the_states_of_a_chunk_are_read(forecasters: dict[str, Forecaster]) -> None:
    for name in ("tokens", "latents"):
        ahead = forecasters[name].lookahead_frames
        one, other = (begun(forecasters[name]) for _ in range(2))
        rolled(one, 1)
        rolled(other, 1)
        assert not torch.equal(one.advance(states_of(ahead, 1)).video, other.advance(states_of(ahead, 2)).video)


def test_a_clip_of_a_batch_is_the_same_alone(forecasters: dict[str, Forecaster]) -> None:
    frames, states = noise_frames(2, 17, 3, 16, 16), states_of(17)
    for forecaster in forecasters.values():
        together = forecaster.start(frames, states, seed=(3, 4))
        alone = forecaster.start(frames[1:], states[1:], seed=4)
        for _ in range(2):
            ahead = states_of(forecaster.lookahead_frames, together.time)
            one, other = together.advance(ahead).video[1:], alone.advance(ahead[1:]).video
            assert (one.int() - other.int()).abs().float().mean() < 0.5


def test_sessions_at_different_times_go_on_together_as_each_would_alone(forecaster: Forecaster) -> None:
    """A batched session comes apart, one part begins anew, and together they give what each gives by itself."""
    whole, other = begun(forecaster), begun(forecaster, seed=8)
    rolled(whole, 2)
    first, second = whole.part()
    rolled(other, 1)
    parts = [first, second, other]
    alone = [session.fork() for session in parts]
    ahead = [states_of(forecaster.lookahead_frames, seed, clips) for seed, clips in enumerate((1, 1, 2))]
    for _ in range(2):
        together = advance_together(parts, ahead)
        for made, session, states in zip(together, alone, ahead, strict=True):
            expected = session.advance(states)
            assert made.times == expected.times
            assert made.video.shape == expected.video.shape
            assert (made.video.int() - expected.video.int()).abs().float().mean() < 0.5
    assert [session.time for session in parts] == [session.time for session in alone]
    assert [len(session.snapshot().seeds) for session in parts] == [1, 1, 2]
    assert all(x.untyped_storage().nbytes() == x.nbytes for part in parts for x in part.snapshot().context)
    before = [session.snapshot() for session in parts]
    for given in ([*ahead[:2], ahead[2][:1]], [*ahead[:2], ahead[2] / 0], ahead[:2]):
        with pytest.raises(UsageError):
            advance_together(parts, given)
    with pytest.raises(UsageError, match="different sessions"):
        advance_together([first, first], ahead[:2])
    with pytest.raises(UsageError, match="different forecasters"):
        advance_together([first, begun(replace(forecaster, num_samples=5))], [ahead[0], ahead[2]])
    assert [session.snapshot() for session in parts] == before, "what was refused changed nothing"


def test_frames_that_are_made_when_read_are_the_same(forecasters: dict[str, Forecaster]) -> None:
    for forecaster in forecasters.values():
        eager, lazy = begun(forecaster), begun(replace(forecaster, lazy=True))
        lazy.restore(eager.snapshot())
        kept = []
        for _ in range(2):
            ahead = states_of(forecaster.lookahead_frames, eager.time)
            kept.append((eager.advance(ahead), lazy.advance(ahead)))
        for expected, made in kept:  # the first is read after the session has gone on
            if made.tokens is not None:
                assert (made.frames is None) == (forecaster is not forecasters["seeing"]), "decoded when it is read"
                made.tokens.zero_()
            assert torch.equal(made.video, expected.video)
    tokens: Any = forecasters["tokens"]
    blended = begun(replace(tokens, lazy=True, blend_last_frame=True, sampling=Sampling(), num_samples=1))
    assert blended.advance(states_of(17)).frames is not None, "what goes on from frames makes them"


def test_clips_of_tokens_begin_as_the_frames_they_were_made_of(forecasters: dict[str, Forecaster]) -> None:
    forecaster, batch = forecasters["tokens"], Batch(states=states_of(40), fps=30.0, origins=(), frames=None)
    frames = noise_frames(2, 34, 3, 16, 16)
    tokens = forecaster.encoded(replace(batch, frames=frames)).tokens
    sessions = [
        forecaster.start_clips(replace(batch, tokens=tokens)),
        forecaster.start_clips(replace(batch, frames=frames)),
    ]
    one, other = (session.advance(states_of(17, 5)).tokens for session in sessions)
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


def test_a_world_without_a_tokenizer_goes_on_in_tokens(forecasters: dict[str, Forecaster]) -> None:
    whole = forecasters["tokens"]
    alone = replace(whole, tokenizer=None)  # pyright: ignore[reportArgumentType]
    clips = Batch(states=states_of(17), fps=30.0, origins=(), frames=noise_frames(2, 17, 3, 16, 16))
    clips = replace(whole.encoded(clips), frames=None)
    sessions = [forecaster.start_clips(clips, seed=3) for forecaster in (whole, alone)]
    for _ in range(2):
        one, other = (session.advance(states_of(17, session.time)) for session in sessions)
        assert other.frames is None
        assert one.tokens is not None
        assert other.tokens is not None
        assert torch.equal(one.tokens, other.tokens)
    with pytest.raises(UsageError, match="--tokenizer DIR"):
        begun(alone)


# --- requests that do not fit ---


def test_wrong_frames_states_and_seeds_are_refused(forecaster: Forecaster) -> None:
    frames, states = noise_frames(2, 17, 3, 16, 16), states_of(17)
    for given, rows, seed, message in (
        (frames[:, :16], states, 0, "17 frames, but 16"),
        (frames, states[:, :16], 0, "2 clips x 17 frames x 2 dimensions, not 2 x 16 x 2"),
        (frames[:1], states, 0, "1 clips x 17 frames"),
        (frames, states, -1, "seed of 0 or more"),
        (frames, states, (1, 2, 3), "one for each of 2 clips"),
        (frames, states * float("nan"), 0, "no finite numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            forecaster.start(given, rows, seed=seed)
    session, ahead = begun(forecaster), forecaster.lookahead_frames
    before = session.snapshot()
    for rows in (states_of(ahead - 1), states_of(ahead + 1), states_of(ahead)[:1], states_of(ahead)[:, :, :1]):
        with pytest.raises(UsageError, match=f"2 clips x {ahead} frames x 2 dimensions"):
            session.advance(rows)
    with pytest.raises(UsageError, match="no finite numbers"):
        session.advance(states_of(ahead) / 0)
    assert session.snapshot() is before, "what was refused changed nothing"


def test_frames_that_are_no_grey_levels_are_refused_and_numbers_of_numpy_will_do() -> None:
    """In a process of its own, where nothing checks the types of arguments."""
    lines = (
        "import numpy as np, torch",
        "from worldline.forecasting.forecaster import CopyLast",
        "from worldline.schema import UsageError",
        "one = CopyLast(context_frames=2, times=(2,), chunk_frames=1)",
        "frames, states = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8), torch.from_numpy(np.zeros((1, 3, 5)))",
        "session = one.start(frames, states[:, :2], seed=np.int64(3))",
        "session.advance(states[:, 2:])",
        "assert session.snapshot().states.dtype == torch.float32",
        "assert one.forecast(frames, states).video.shape == (1, 1, 1, 3, 4, 4)",
        "for wrong in (frames / 255, frames.transpose(2, 4), frames[0], frames[:0]):",
        "    try:",
        "        one.forecast(wrong, states[: len(wrong)])",
        "    except UsageError as error:",
        "        print(error)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = "frames are uint8 RGB, 0..255, of clips x frames x 3 x height x width, one clip at least, not "
    found = ["float32 of 1 x 2 x 3 x 4 x 4", "uint8 of 1 x 2 x 4 x 4 x 3", "uint8 of 2 x 3 x 4 x 4"]
    assert done.stdout.splitlines() == [said + one for one in (*found, "uint8 of 0 x 2 x 3 x 4 x 4")]


def test_frames_of_another_size_are_refused(forecasters: dict[str, Forecaster]) -> None:
    for name in ("tokens", "latents"):
        with pytest.raises(UsageError, match="16x16, not 32x32"):
            forecasters[name].start(noise_frames(2, 17, 3, 32, 32), states_of(17))
        rows = states_of(17 + forecasters[name].horizon_frames)
        with pytest.raises(UsageError, match="16x16, not 32x32"):
            forecasters[name].forecast(noise_frames(2, 17, 3, 32, 32), rows, seeds=(0, 0))


def test_a_snapshot_of_another_forecaster_is_refused(forecasters: dict[str, Forecaster]) -> None:
    tokens = forecasters["tokens"]
    assert isinstance(tokens, TokenForecaster)
    others = [
        *forecasters.values(),
        replace(tokens, world=small_world(seed=1, grid=GRID_200)),
        replace(tokens, sampling=Sampling(temperature=0.5)),
        replace(tokens, num_samples=3),
    ]
    sessions = [begun(one) for one in others]
    for i, session in enumerate(sessions):
        for j, other in enumerate(sessions):
            if i != j:
                with pytest.raises(UsageError, match="another forecaster"):
                    session.restore(other.snapshot())
    same = begun(replace(tokens, rows=1))
    same.restore(sessions[0].snapshot())


def test_a_window_that_ends_off_its_pace_goes_on_from_where_it_can(forecasters: dict[str, Forecaster]) -> None:
    base = forecasters["latents"]
    assert isinstance(base, LatentForecaster)
    odd = replace(base, pattern=FramePattern(window=79, stride=4, repeat_last=1))
    assert (odd.horizon_frames, odd.chunk_frames, odd.lookahead_frames) == (62, 60, 62)
    assert odd.times[-1] == 78


# --- the live twin ---


@pytest.fixture(scope="module")
def twin_clip() -> Batch:
    load_mujoco()
    return stack([open_source(TWIN_MINI_VAL).read(episode, start, start + 51) for episode, start in ((1, 4), (2, 10))])


def _error(one: Tensor, other: Tensor) -> float:
    return (one.double() - other.double()).square().mean().item()


def test_the_live_twin_shows_what_was_recorded_and_what_would_have_been(twin_clip: Batch) -> None:
    live = LiveTwin(**WINDOW, root=TWIN_MINI_VAL)
    session, real = live.start_clips(twin_clip), twin_clip.frames
    assert real is not None
    first = session.advance(twin_clip.states[:, 17:34])
    assert first.times == tuple(range(17, 34))
    kept, fork = session.snapshot(), session.fork()
    second = session.advance(twin_clip.states[:, 34:51])
    assert second.times == tuple(range(34, 51))
    seen, still = torch.cat([first.video, second.video], dim=2)[:, 0], real[:, 16:17]
    assert _error(seen, real[:, 17:51]) < _error(still, real[:, 17:51]) / 8
    other = fork.advance(twin_clip.states[:, 17:34])
    assert _error(other.video, second.video) > 20, "other states, other frames"
    for _ in range(2):
        session.restore(kept)
        assert torch.equal(session.advance(twin_clip.states[:, 34:51]).video, second.video)
    elsewhere = LiveTwin(**WINDOW, root=TWIN_MINI_VAL).start_clips(twin_clip)
    elsewhere.restore(pickle.loads(pickle.dumps(kept)))
    assert torch.equal(elsewhere.advance(twin_clip.states[:, 34:51]).video, second.video)
    together = advance_together(parts := elsewhere.part(), list(twin_clip.states[:, 17:34].split(1)))
    elsewhere.advance(twin_clip.states[:, 17:34])
    both = elsewhere.advance(twin_clip.states[:, 34:51]).video
    again = advance_together(parts[::-1], list(twin_clip.states[:, 34:51].split(1))[::-1])
    assert len(together) == 2
    assert torch.equal(torch.cat([made.video for made in again[::-1]]), both)
    live.close()
    again = session.fork()
    again.restore(kept)
    assert torch.equal(again.advance(twin_clip.states[:, 34:51]).video, second.video), "scenes are opened again"


def test_of_open_scenes_the_one_unused_for_longest_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened(Simulation):
        def __init__(self) -> None: ...

        def close(self) -> None:
            closed.append(self)

    closed: list[Opened] = []
    monkeypatch.setattr(live_module, "MOST_SCENES", 2)
    monkeypatch.setattr(live_module, "resume", lambda *_: (Opened(), None))
    live = LiveTwin(**WINDOW, root=TWIN_MINI_VAL)
    first, second, again = (live._scene((-1, episode, 0, 0, 0)) for episode in (0, 1, 0))
    assert again is first
    live._scene((-1, 2, 0, 0, 0))
    assert closed == [second]


def test_the_live_twin_keeps_to_the_times_of_the_forecaster_beside_it(
    twin_clip: Batch, forecasters: dict[str, Forecaster]
) -> None:
    live = LiveTwin.beside(forecasters["latents"], root=TWIN_MINI_VAL)
    states = torch.cat([twin_clip.states, twin_clip.states[:, -1:].expand(-1, 26, -1)], dim=1)
    made = live.start_clips(twin_clip).advance(states[:, 17:])
    assert made.times == tuple(range(20, 77, 4))
    assert torch.equal(live.forecast_clips(twin_clip, states=states).video, made.video)


def test_the_live_twin_keeps_a_rate_that_is_no_whole_number() -> None:
    """As worlds have it that show one frame in four of 30 a second."""
    load_mujoco()
    start = TASKS["push"].start(seed=3, fps=7.5)
    live = LiveTwin(context_frames=8, times=(8,), chunk_frames=1, drive="command")
    session = live.start_clips(stack([start.clip(8)]))
    assert [one.fps for one in live.scenes.values()] == [7.5]
    assert [one.fps for one in live.starts(session) if one] == [7.5]
    live.close()


def test_the_live_twin_needs_saved_physics(twin_clip: Batch, tmp_path: Path) -> None:
    live = LiveTwin(**WINDOW, root=TWIN_MINI_VAL)
    with pytest.raises(UsageError, match="start_clips"):
        live.start(noise_frames(1, 17, 3, 64, 64), torch.zeros(1, 17, 25))
    absent = replace(twin_clip, origins=(Origin(source="here", episode=99, start=0),) * 2)
    with pytest.raises(DataError, match="saved physics"):
        live.start_clips(absent)
    with pytest.raises(UsageError, match="25 states, not 24"):
        live.start_clips(replace(twin_clip, states=twin_clip.states[..., :24]))
