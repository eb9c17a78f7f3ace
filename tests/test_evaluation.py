"""Evaluation against known answers: worlds that know everything or nothing, still copies, foreign states, contracts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import (
    GRID_200,
    SMALL_TOKENIZER,
    TWO_JOINTS,
    arrays_in,
    moving_square,
    noise_frames,
    small_tokenizer,
    small_world,
)
from data_builders import CAMERA, write_lerobot, write_raw
from tolerances import assert_pixels_agree
from torch import Tensor

from worldline.contract import Contract, FramePattern
from worldline.data.clips import Clips, DataConfig, evenly, source_windows
from worldline.evaluation.engine import Amount, score
from worldline.evaluation.evaluate import Autoencoder
from worldline.evaluation.held_out import DataChoice, foreign_states, held_out
from worldline.evaluation.result import Evaluation
from worldline.evaluation.rows import Judged
from worldline.files import write_json
from worldline.forecasting.forecaster import CopyLast, clip_seeds
from worldline.forecasting.tokens import TokenForecaster, blend_last_frame
from worldline.formats.source import Source
from worldline.metrics.bootstrap import interval
from worldline.process.categorical import GridStep, Sampling
from worldline.rundir import to_json
from worldline.schema import Batch, Episode, TokenGrid, UsageError
from worldline.tokenizers.fsq_video import FSQVideoTokenizer
from worldline.tokenizers.tokenizer import to_signed

CONTRACT = Contract(
    fps=30.0,
    state_names=TWO_JOINTS.names,
    state_kinds=TWO_JOINTS.kinds,
    source_kind="1x-raw",
    pattern=FramePattern(window=34),
)
CLIPS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class _InMemory(Source):
    """Exact frames, without a video codec in between; or tokens."""

    states: Tensor
    film: Tensor | None = None
    tokens: Tensor | None = None

    def shows(self, episode: int, start: int, stop: int) -> dict[str, Tensor]:
        shown = {} if self.film is None else {"frames": self.film[episode, start:stop]}
        return shown if self.tokens is None else {"tokens": self.tokens[episode]}

    def states_of(self, episode: int) -> tuple[Path, np.ndarray]:
        return self.path, self.states[episode].numpy()


def _memory(
    states: Tensor,
    *,
    frames: Tensor | None = None,
    tokens: Tensor | None = None,
    grid: TokenGrid | None = None,
    kind: str = "1x-raw",
    context_only: bool = False,
) -> Source:
    return _InMemory(
        states=states,
        film=frames,
        tokens=tokens,
        grid=grid,
        kind=kind,
        context_only=context_only,
        path=Path("memory"),
        fps=30.0,
        layout=TWO_JOINTS,
        episodes=tuple(Episode(index=i, length=34, name=f"episode {i}") for i in range(len(states))),
        image_size=None if frames is None else (frames.shape[-2], frames.shape[-1]),
    )


@dataclass(frozen=True, kw_only=True)
class _Oracle:
    """A `TokenWorld` that has seen which future belongs to which states. `certain=False` gives it no idea at all."""

    states: Tensor
    futures: Tensor
    vocab_size: int
    certain: bool = True
    context_grids: int = 3
    horizon_grids: int = 3

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        raise NotImplementedError

    def forecast(
        self,
        context: Tensor,
        states: Tensor,
        *,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Iterator[GridStep]:
        known = (states[:, None] == self.states[None]).all(dim=-1).all(dim=-1)
        for grid in self.futures[known.int().argmax(dim=1)].unbind(dim=1):
            logits = F.one_hot(grid, self.vocab_size).float() * (1e3 if self.certain else 0)
            yield GridStep(logits.argmax(dim=-1), logits)

    def teacher_forced(self, tokens: Tensor, states: Tensor) -> Iterator[GridStep]:
        return self.forecast(tokens[:, :3], states, sampling=Sampling())


@dataclass(frozen=True, kw_only=True)
class _Undecided(_Oracle):
    """Knows the word, but holds another for as likely."""

    def forecast(self, context: Tensor, states: Tensor, **options: Any) -> Iterator[GridStep]:
        for step in super().forecast(context, states, **options):
            other = F.one_hot((step.tokens + 1) % self.vocab_size, self.vocab_size)
            yield GridStep(step.tokens, step.logits + 1e3 * other)


@dataclass(frozen=True)
class _WithoutCodes:
    """A tokenizer as Cosmos' is: tokens in, frames out."""

    behind: FSQVideoTokenizer
    sees = False

    @property
    def vocab_size(self) -> int:
        return self.behind.vocab_size

    @property
    def spatial_stride(self) -> int:
        return self.behind.spatial_stride

    def grid(self, height: int, width: int) -> TokenGrid:
        return self.behind.grid(height, width)

    def encode(self, frames: Tensor) -> Tensor:
        return self.behind.encode(frames)

    def decode(self, tokens: Tensor) -> Tensor:
        return self.behind.decode(tokens)


@dataclass
class _Case:
    """Clips in memory, a tokenizer and the tokens it makes of them."""

    levels: tuple[int, ...] = SMALL_TOKENIZER.levels
    clips: Clips = field(init=False)

    def __post_init__(self) -> None:
        made = [moving_square(34, seed=seed) for seed in range(CLIPS)]
        self.frames = torch.stack([torch.from_numpy(frames).permute(0, 3, 1, 2) for frames, _ in made])
        self.states = torch.stack([torch.from_numpy(states) for _, states in made])
        self.tokenizer = small_tokenizer(replace(SMALL_TOKENIZER, levels=self.levels))
        self.tokens = self.tokenizer.encode(self.frames)
        self.clips = _clips(_memory(self.states, frames=self.frames))

    def oracle(self, *, certain: bool = True) -> TokenForecaster:
        world = _Oracle(
            states=self.states,
            futures=self.tokens[:, 3:],
            vocab_size=self.tokenizer.vocab_size,
            certain=certain,
        )
        return self.forecaster(world)

    def forecaster(self, world: Any) -> TokenForecaster:
        return TokenForecaster(tokenizer=self.tokenizer, world=world, grid=self.tokenizer.grid(16, 16))


def _clips(source: Any) -> Clips:
    return Clips(source, source_windows(source, window=34, stride=34), pattern=FramePattern(window=34))


def _means(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    return {row.id: {name: value.mean for name, value in row.metrics.items()} for row in evaluation.rows}


def same(value: float) -> Any:
    """The figure of the same pictures decoded in another batch: a few pixels by one grey level."""
    return pytest.approx(value, abs=5e-3)


def _evaluate(
    forecaster: TokenForecaster, clips: Clips, out: Path, *, batch_size: int = 3, **options: Any
) -> Evaluation:
    judged = Judged(forecaster=forecaster, protocol="compression", run="run", **options)
    return score(judged, clips, Amount(batch_size=batch_size), out=out)


def _sampled_frames(forecaster: TokenForecaster, clips: Clips, amount: Amount, out: Path) -> Evaluation:
    return score(Judged(forecaster=forecaster, protocol="sampling", run="run"), clips, amount, out=out)


@dataclass(frozen=True)
class _Known:
    """What a world scores that knows everything, beside baselines from the counts of training tokens."""

    case: _Case
    evaluation: Evaluation
    out: Path

    @property
    def rows(self) -> dict[str, dict[str, float]]:
        return _means(self.evaluation)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> _Known:
    case, out = _Case(), tmp_path_factory.mktemp("known")
    counts = {"unigram": np.arange(200), "kept": np.array([[90, 10], [70, 30], [0, 0]])}
    return _Known(case, _evaluate(case.oracle(), case.clips, out, **counts), out)


@pytest.mark.parametrize("levels", [SMALL_TOKENIZER.levels, (8, 8, 5, 5), (8, 8)])
def test_no_token_of_these_clips_is_near_a_tie(levels: tuple[int, ...]) -> None:
    """So they are the same tokens on every processor and in every batch, and known scores can be exact."""
    case = _Case(levels=levels)
    with torch.no_grad():
        latents = torch.cat([case.tokenizer.latents_of(to_signed(part)) for part in case.frames.split(17, dim=1)], 1)
    for shift in (-1e-4, 1e-4):
        assert torch.equal(case.tokenizer.quantiser.indices(case.tokenizer.codes_of(latents + shift)), case.tokens)


# --- what is shown ---


def _undecided(case: _Case, **options: Any) -> TokenForecaster:
    vocab_size = case.tokenizer.vocab_size
    world = _Undecided(states=case.states, futures=case.tokens[:, 3:], vocab_size=vocab_size)
    return replace(case.forecaster(world), **options)


def test_two_equally_likely_words_are_shown_as_the_code_between_them() -> None:
    case = _Case()
    forecaster = _undecided(case, decode_mode="mean")
    codes, other = case.tokenizer.codebook, (case.tokens[:, 3:] + 1) % case.tokenizer.vocab_size
    between = (codes[case.tokens[:, 3:]] + codes[other]) / 2
    forecast = forecaster.forecast(case.frames[:, :17], case.states)
    assert forecast.tokens is not None
    assert torch.equal(forecast.tokens[:, 0], case.tokens[:, 3:])
    assert_pixels_agree(forecast.video[:, 0], case.tokenizer.decode_codes(between))


def test_chosen_words_are_shown_unless_asked_otherwise() -> None:
    case = _Case()
    forecast = _undecided(case).forecast(case.frames[:, :17], case.states)
    assert forecast.tokens is not None
    assert_pixels_agree(forecast.video[:, 0], case.tokenizer.decode(forecast.tokens[:, 0]))


def test_words_without_codes_have_no_mean() -> None:
    case = _Case()
    forecaster = replace(_undecided(case), tokenizer=_WithoutCodes(case.tokenizer))
    words = forecaster.forecast(case.frames[:, :17], case.states)
    assert_pixels_agree(words.video[:, 0], case.tokenizer.decode(case.tokens[:, 3:]))
    with pytest.raises(UsageError, match="--decode-mode tokens"):
        replace(forecaster, decode_mode="mean").forecast(case.frames[:, :17], case.states)


def test_pictures_of_likeliest_words_are_scored_beside_mean_ones(tmp_path: Path) -> None:
    case = _Case()
    evaluation = _evaluate(_undecided(case, decode_mode="mean"), case.clips, tmp_path)
    rows = _means(evaluation)
    assert rows["forecast_tokens"]["psnr_db_last"] == same(rows["reconstruction"]["psnr_db_last"])
    assert rows["forecast"]["psnr_db_last"] != same(rows["reconstruction"]["psnr_db_last"])


def test_where_every_word_is_kept_the_last_frame_seen_is_shown() -> None:
    case = _Case()
    still = replace(case.oracle().world, futures=case.tokens[:, [2, 2, 2]])  # pyright: ignore[reportArgumentType]
    forecaster = replace(case.oracle(), world=still, blend_last_frame=True)
    frames = forecaster.forecast(case.frames[:, :17], case.states).video[:, 0]
    assert torch.equal(frames, case.frames[:, 16:17].expand_as(frames))


def test_where_no_word_is_kept_the_words_are_shown() -> None:
    case = _Case()
    changed = (case.tokens[:, [2, 2, 2]] + 1) % case.tokenizer.vocab_size
    world = replace(case.oracle().world, futures=changed)  # pyright: ignore[reportArgumentType]
    forecaster = replace(case.oracle(), world=world, blend_last_frame=True)
    frames = forecaster.forecast(case.frames[:, :17], case.states).video[:, 0]
    assert_pixels_agree(frames[:, 7:], case.tokenizer.decode(changed)[:, 7:])


def test_what_was_seen_fades_with_the_probability_of_its_word_and_between_patches() -> None:
    grid = TokenGrid(height=1, width=2, vocab_size=9, block=9, temporal_stride=8)
    decoded = torch.full((1, 9, 3, 8, 16), 100, dtype=torch.uint8)
    kept = torch.tensor([[[[0.5, 0.5]], [[1.0, 0.0]]]])
    seen = torch.full((1, 3, 8, 16), 120, dtype=torch.uint8)
    frames = blend_last_frame(decoded, kept, seen=seen, grid=grid)
    # From the middle of one patch to the middle of the next, 8 px, it falls linearly.
    whole = [120, 120, 120, 120, 119, 116, 114, 111, 109, 106, 104, 101, 100, 100, 100, 100]
    assert frames[0, 7, 0, 0].tolist() == frames[0, 8, 0, 0].tolist() == whole
    # Over the 8 frames of a latent the forecast's share grows evenly: where half of the frame seen stays, 1.25 a frame.
    assert (frames[:, 0] == 119).all(), "half as likely, half of an eighth"
    assert frames[0, 1:, 0, 0, -1].tolist() == [115, 112, 110, 108, 105, 102, 100, 100]


def test_mean_codes_keep_a_word_by_its_probability() -> None:
    case = _Case()
    forecaster = _undecided(case, decode_mode="mean", blend_last_frame=True)
    # The future's first word of two equally likely ones is the last context grid's everywhere.
    last = case.tokens[:, 2:3].expand(-1, 3, -1, -1)
    world = replace(forecaster.world, futures=last)  # pyright: ignore[reportArgumentType]
    forecast = replace(forecaster, world=world).forecast(case.frames[:, :17], case.states)
    codes, other = case.tokenizer.codebook, (last + 1) % case.tokenizer.vocab_size
    decoded = case.tokenizer.decode_codes((codes[last] + codes[other]) / 2)
    half = (decoded.float() + case.frames[:, 16:17].float()) / 2
    assert (forecast.video[:, 0].float() - half)[:, 7:].abs().max() <= 1


def test_kept_parts_are_scored_beside_plain_words(tmp_path: Path) -> None:
    case = _Case()
    evaluation = _evaluate(replace(case.oracle(), blend_last_frame=True), case.clips, tmp_path)
    rows = _means(evaluation)
    assert rows["forecast"]["psnr_db_last"] == same(rows["reconstruction_blended"]["psnr_db_last"])
    assert rows["forecast_tokens"]["psnr_db_last"] == same(rows["reconstruction"]["psnr_db_last"])
    assert rows["forecast"]["psnr_db_last"] != same(rows["reconstruction"]["psnr_db_last"])


# --- worlds with known scores ---


def test_a_world_that_knows_everything_costs_nothing(known: _Known) -> None:
    rows = known.rows
    for metric in ("full_ce", "top500_ce_residual", "top500_ce_floor", "top500_ce_hits_only", "teacher_forced_ce"):
        assert rows["forecast"][metric] == 0
    assert rows["forecast"]["token_accuracy"] == rows["forecast"]["top500_coverage"] == 1
    for metric in ("psnr_db_last", "psnr_db_mean", "ssim_mean"):
        assert rows["forecast"][metric] == same(rows["reconstruction"][metric])


def test_states_of_another_clip_lead_to_that_clips_future(known: _Known) -> None:
    case, rows = known.case, known.rows
    future, partner = case.tokens[:, 3:], case.tokens[[2, 3, 0, 1], 3:]
    expected = (future == partner).float().mean().item()
    assert expected < 1
    assert rows["shuffled_states"]["token_accuracy"] == pytest.approx(expected)
    assert rows["shuffled_states"]["full_ce"] == pytest.approx(1e3 * (1 - expected), rel=1e-4)
    compared = {(c.than, c.metric): c for c in known.evaluation.comparisons}
    assert compared["shuffled_states", "full_ce"].difference.mean == pytest.approx(-1e3 * (1 - expected), rel=1e-4)


def test_a_world_that_knows_nothing_costs_the_log_of_the_vocabulary(tmp_path: Path) -> None:
    case = _Case(levels=(8, 8, 5, 5))  # 1,600 tokens: more than the 500 that count
    rows = _means(_evaluate(case.oracle(certain=False), case.clips, tmp_path))
    future = case.tokens[:, 3:]
    covered = (future < 500).float().mean().item()
    assert 0 < covered < 1
    assert rows["forecast"]["full_ce"] == pytest.approx(math.log(1600), rel=1e-5)
    assert rows["forecast"]["top500_ce_residual"] == pytest.approx(math.log(1600), rel=1e-5)
    assert rows["forecast"]["teacher_forced_ce"] == pytest.approx(math.log(1600), rel=1e-5)
    assert rows["forecast"]["top500_coverage"] == pytest.approx(covered)
    floor = covered * math.log(500) + (1 - covered) * math.log(1e6)
    assert rows["forecast"]["top500_ce_floor"] == pytest.approx(floor, rel=1e-5)
    assert rows["forecast"]["top500_ce_hits_only"] == pytest.approx(math.log(500), rel=1e-5)


@pytest.mark.parametrize(("words", "hits"), [((7, 900), 1), ((900, 900), None)])
def test_a_clip_without_a_single_hit_has_no_cost_of_hits(
    tmp_path: Path, words: tuple[int, int], hits: int | None
) -> None:
    tokens = torch.tensor(words).view(2, 1, 1, 1).expand(2, 6, 2, 2)
    states = torch.arange(2 * 34 * 2.0).view(2, 34, 2)
    grid = TokenGrid(height=2, width=2, vocab_size=1600)
    clips = _clips(_memory(states, tokens=tokens, grid=grid, kind="1x-tokens"))
    tokenizer = small_tokenizer(replace(SMALL_TOKENIZER, levels=(8, 8, 5, 5)))
    world = _Oracle(states=states, futures=tokens[:, 3:], vocab_size=1600, certain=False)
    forecaster = TokenForecaster(tokenizer=tokenizer, world=world, grid=grid)
    evaluation = _evaluate(forecaster, clips, tmp_path)
    metrics = evaluation.rows[0].metrics
    assert metrics["full_ce"].num_clips == 2
    if hits is None:
        assert "top500_ce_hits_only" not in metrics
    else:
        assert metrics["top500_ce_hits_only"].num_clips == hits
        assert metrics["top500_ce_hits_only"].mean == pytest.approx(math.log(500), rel=1e-5)
    assert "tokens only" in evaluation.not_computed["psnr_db"]


def test_token_frequencies_cost_what_their_counts_say(known: _Known) -> None:
    shares = np.arange(1, 201) / np.arange(1, 201).sum()
    expected = -np.log(shares)[known.case.tokens[:, 3:].numpy()].mean()
    assert known.rows["unigram"]["full_ce"] == pytest.approx(expected, rel=1e-5)


def test_keeping_the_last_tokens_scores_as_by_hand(known: _Known) -> None:
    case, row = known.case, known.rows["keep_last_tokens"]
    last, future = case.tokens[:, 2:3], case.tokens[:, 3:]
    stays = last == future
    assert row["token_accuracy"] == pytest.approx(stays.float().mean().item())
    # One imagined token of either kind: the third grid, of which nothing is known, changes half the time.
    changed = torch.tensor([11 / 102, 31 / 102, 1 / 2]).view(1, 3, 1, 1)
    prior = torch.arange(1.0, 201) / torch.arange(1.0, 201).sum()
    others = changed * prior[future] / (1 - prior[last])
    expected = -torch.where(stays, 1 - changed, others).log().mean().item()
    assert row["full_ce"] == row["top500_ce_residual"] == pytest.approx(expected, rel=1e-5)
    still = case.tokenizer.decode(last.expand_as(future))
    error = (still[:, -1].double() - case.frames[:, 33].double()).square().mean(dim=(1, 2, 3))
    assert row["psnr_db_last"] == pytest.approx((10 * (255**2 / error).log10()).mean().item(), abs=1e-3)
    assert known.evaluation.settings["keep_last_tokens_changed"] == "0.1078, 0.3039, 0.5000"
    assert known.evaluation.settings["keep_last_tokens_from"] == "training tokens"


def test_keeping_the_last_tokens_knows_nothing_of_the_future_it_is_scored_on(tmp_path: Path) -> None:
    """Without counts of the training tokens its distribution is a constant, whatever is evaluated."""
    case = _Case()
    evaluation = _evaluate(case.oracle(), case.clips, tmp_path)
    stays = (case.tokens[:, 2:3] == case.tokens[:, 3:]).float().mean().item()
    row = _means(evaluation)["keep_last_tokens"]
    assert row["full_ce"] == pytest.approx(math.log(2) + (1 - stays) * math.log(199), rel=1e-5)
    assert "constant" in str(evaluation.settings["keep_last_tokens_from"])


def test_copying_the_last_frame_scores_as_by_hand(known: _Known) -> None:
    case, rows = known.case, known.rows
    error = (case.frames[:, 17:].double() - case.frames[:, 16:17].double()).square().mean(dim=(2, 3, 4))
    expected = 10 * (255**2 / error.clamp_min(1 / 12)).log10()
    assert rows["copy_last"]["psnr_db_last"] == pytest.approx(expected[:, -1].mean().item(), abs=1e-3)
    assert rows["copy_last"]["psnr_db_mean"] == pytest.approx(expected.mean().item(), abs=1e-3)
    curve = [point.mean for point in known.evaluation.curves["psnr_db"]["copy_last"]]
    assert curve == pytest.approx(expected.mean(dim=0).tolist(), abs=1e-3)


def test_the_size_of_a_batch_changes_no_number(tmp_path: Path) -> None:
    case = _Case()
    forecaster = case.forecaster(small_world(grid=GRID_200))
    one, four = (_means(_evaluate(forecaster, case.clips, tmp_path, batch_size=size)) for size in (1, 4))
    for name, metrics in one.items():
        assert metrics == pytest.approx(four[name], rel=1e-4), name


# --- noise belongs to a sample ---


def _sampled(case: _Case) -> TokenForecaster:
    forecaster = case.forecaster(small_world(grid=GRID_200))
    return replace(forecaster, sampling=Sampling(temperature=1.0))


def test_a_sample_is_the_same_in_an_evaluation_of_any_size_and_in_a_forecast_alone(tmp_path: Path) -> None:
    case = _Case()
    forecaster, pictures = _sampled(case), []
    for samples, size, clips in ((3, 4, None), (1, 1, None), (2, 3, 2)):
        amount = Amount(num_clips=clips, batch_size=size, condition_samples=0, seed=7)
        out = tmp_path / str(samples)
        _sampled_frames(replace(forecaster, num_samples=samples), case.clips, amount, out)
        archive = arrays_in(out / "forecasts.npz")
        single = archive[f"forecast_{archive['rows'].tolist().index('sample')}"][:, 17:]
        pictures.append(torch.from_numpy(single).permute(0, 1, 4, 2, 3))
    assert_pixels_agree(pictures[1], pictures[0])
    assert_pixels_agree(pictures[2], pictures[0][[0, 3]])
    for number in range(CLIPS):
        clip = case.clips[number]
        assert clip.frames is not None
        alone = forecaster.forecast(clip.frames[None, :17], clip.states[None], seeds=clip_seeds(7, [clip.origin]))
        assert_pixels_agree(alone.frames[0, 0], pictures[0][number])


def test_fewer_shuffled_samples_are_compared_with_as_many_of_the_forecast(tmp_path: Path) -> None:
    case = _Case()
    clips = _clips(_memory(case.states[:1].expand(2, -1, -1).contiguous(), frames=case.frames[:2]))
    found = {}
    for samples in (None, 2, 1, 0):
        amount = Amount(condition_samples=samples, means=(), batch_size=4)
        found[samples] = _sampled_frames(replace(_sampled(case), num_samples=3), clips, amount, tmp_path)
    assert found[0].not_computed["shuffled_states"] == "switched off (--condition-samples 0)"
    assert [e.settings["condition_samples"] for e in found.values()] == [3, 2, 1, 0]
    assert "shuffled_states" not in _means(found[0])
    for samples, mean in ((None, "mean_3"), (2, "mean_2"), (1, "sample")):
        (shuffled,) = [c for c in found[samples].comparisons if c.than == "shuffled_states"]
        assert shuffled.better == mean
        # Every clip has the same states here, so that another clip's are its own: the same noise gives the same.
        assert shuffled.difference.mean == pytest.approx(0, abs=1e-3)


# --- what a forecast may know ---


def test_a_forecast_does_not_know_the_frames_it_predicts(tmp_path: Path) -> None:
    case = _Case()
    forecaster = case.forecaster(small_world(grid=GRID_200))
    other = case.frames.clone()
    other[:, 17:] = noise_frames(CLIPS, 17, 3, 16, 16)
    for name, frames in (("one", case.frames), ("two", other)):
        _evaluate(forecaster, _clips(_memory(case.states, frames=frames)), tmp_path / name)
    one, two = (arrays_in(tmp_path / name / "forecasts.npz") for name in ("one", "two"))
    assert one["context"] == 17
    assert not np.array_equal(one["real"], two["real"])
    for index, row in enumerate(one["rows"]):
        same = np.array_equal(one[f"forecast_{index}"], two[f"forecast_{index}"])
        assert same == (row != "reconstruction"), row


def test_the_page_gets_context_and_forecast_of_every_row(known: _Known) -> None:
    archive = arrays_in(known.out / "forecasts.npz")
    assert archive["real"].shape == (CLIPS, 34, 16, 16, 3)
    assert archive["rows"].tolist() == [
        "forecast",
        "copy_last",
        "reconstruction",
        "shuffled_states",
        "frozen_states",
    ]
    assert np.array_equal(archive["forecast_1"][:, 17:], np.repeat(archive["real"][:, 16:17], 17, axis=1))
    assert np.array_equal(archive["forecast_0"][:, :17], archive["real"][:, :17])


@pytest.mark.parametrize("chosen", [[0], [3], [0, 1], [0, 1, 2], [0, 2, 3, 4], [0, 1, 2, 3, 4]])
def test_foreign_states_are_never_a_clips_own(chosen: list[int]) -> None:
    states = torch.arange(5.0).view(5, 1, 1).expand(5, 34, 2).contiguous()
    found = foreign_states(_clips(_memory(states, frames=noise_frames(5, 34, 3, 8, 8))), chosen)
    assert found is not None
    assert found.shape == (len(chosen), 34, 2)
    whose = found[:, 0, 0].long().tolist()
    assert all(own != other for own, other in zip(chosen, whose, strict=True))
    if len(chosen) > 1:
        assert sorted(whose) == chosen, "every clip lends its states once"


def test_pieces_of_one_recording_are_one_in_the_intervals(tmp_path: Path) -> None:
    """As a token folder with two start offsets has them: what they show is not independent."""
    case = _Case()
    source = case.clips.source
    pieces = tuple(replace(one, recording=f"recording {one.index // 2}") for one in source.episodes)
    evaluation = _evaluate(case.oracle(), _clips(replace(source, episodes=pieces)), tmp_path)
    of_each = _evaluate(case.oracle(), case.clips, tmp_path)
    assert (evaluation.data.num_clips, evaluation.data.num_episodes, of_each.data.num_episodes) == (4, 2, 4)
    assert evaluation.rows[0].metrics["psnr_db_mean"].num_episodes == 2
    values = torch.from_numpy(np.load(tmp_path / "scores.npz")["copy_last/psnr_db"]).mean(dim=1)
    found = next(row for row in evaluation.rows if row.id == "copy_last").metrics["psnr_db_mean"]
    expected = interval(values, torch.tensor([0, 0, 2, 2]))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_clip_alone_has_no_foreign_states(tmp_path: Path) -> None:
    case = _Case()
    clips = _clips(_memory(case.states[:1], frames=case.frames[:1]))
    assert foreign_states(clips, [0]) is None
    evaluation = _evaluate(case.oracle(), clips, tmp_path)
    assert "one clip only" in evaluation.not_computed["shuffled_states"]
    assert "forecast" in _means(evaluation)


def test_clips_are_spread_over_the_data() -> None:
    assert evenly(100, 5) == [0, 25, 50, 74, 99]
    assert evenly(3, 5) == evenly(3, None) == [0, 1, 2]
    assert len(set(evenly(129, 128))) == 128


# --- requests that do not fit ---


def test_data_of_another_contract_are_refused(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    assert len(held_out(tmp_path, CONTRACT, DataChoice(data=raw))) == 1
    for change, message in (
        ({"state_names": ("elbow", "gripper", "neck")}, "2-dimensional states.*trained with 3"),
        ({"state_names": ("elbow", "claw")}, "state 1 is 'gripper'.*'claw'"),
        ({"fps": 10.0}, "30.0 fps.*10.0"),
    ):
        with pytest.raises(UsageError, match=message):
            held_out(tmp_path, replace(CONTRACT, **change), DataChoice(data=raw))


def test_other_data_are_read_as_the_runs_own_in_all_but_their_place(tmp_path: Path) -> None:
    """Conditioning, camera, kinds of states, and that files may be missing."""
    data = DataConfig(
        path=tmp_path / "absent",
        val_path=tmp_path / "absent too",
        camera=CAMERA,
        conditioning="action",
        state_kinds={"elbow": "velocity", "gripper": "binary"},
        allow_missing=True,
        exclude_episodes=(0,),
    )
    write_json(tmp_path / "config.json", {"data": to_json(DataConfig, data)})
    contract = replace(CONTRACT, conditioning="action", camera=CAMERA, image_size=16)
    other = write_lerobot(tmp_path / "other", "v2.1", names=["elbow", "gripper"])
    (other / "data/chunk-000/episode_000001.parquet").unlink()
    clips = held_out(tmp_path, contract, DataChoice(data=other))
    assert clips.source.layout.kinds == ("velocity", "binary")
    assert len(clips.source.left_out) == 1
    assert len(clips) == 2, "episodes 0 and 2: what is excluded of the run's own data has no say here"
    assert clips[0].states[0].tolist() == [0.5, 1.5], "actions"
    assert clips[0].frames is not None
    assert clips[0].frames.shape[-2:] == (16, 16)
    for change in ({"camera": "another"}, {"conditioning": "state+action"}):
        with pytest.raises(UsageError):
            held_out(tmp_path, replace(contract, **change), DataChoice(data=other))


def test_held_out_windows_share_no_frame(tmp_path: Path) -> None:
    short = replace(CONTRACT, pattern=FramePattern(window=17))
    clips = held_out(tmp_path, short, DataChoice(data=write_raw(tmp_path / "raw", lengths=(40, 36))))
    assert clips.windows.tolist() == [[0, 0], [0, 17], [1, 0], [1, 17]]
    some = held_out(tmp_path, short, DataChoice(data=tmp_path / "raw", episodes="1:"))
    assert set(some.windows[:, 0].tolist()) == {1}


def test_a_model_without_a_run_needs_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data DIR"):
        held_out(tmp_path, CONTRACT)


def test_samples_without_a_future_cannot_be_evaluated(tmp_path: Path) -> None:
    case = _Case()
    clips = _clips(_memory(case.states, frames=case.frames, context_only=True))
    with pytest.raises(UsageError, match="no future"):
        _evaluate(case.oracle(), clips, tmp_path)


def test_an_unconditional_world_of_other_tokens_is_no_baseline(tmp_path: Path) -> None:
    case = _Case()
    with pytest.raises(UsageError, match="other times or tokens"):
        _evaluate(case.oracle(), case.clips, tmp_path, unconditional=_Case(levels=(8, 8)).oracle())


def test_an_unconditional_world_is_scored_on_the_same_clips(tmp_path: Path) -> None:
    case = _Case()
    rows = _means(_evaluate(case.oracle(), case.clips, tmp_path, unconditional=case.oracle(certain=False)))
    assert rows["unconditional"]["full_ce"] == pytest.approx(math.log(200), rel=1e-5)
    assert rows["forecast"]["full_ce"] == 0


# --- forecasters ---


def test_a_forecast_has_samples_of_the_horizon_only() -> None:
    case = _Case()
    world = small_world(grid=GRID_200)
    forecaster = replace(case.forecaster(world), sampling=Sampling(temperature=1.0), num_samples=3)
    assert (forecaster.context_frames, forecaster.horizon_frames) == (17, 17)
    draw = [forecaster.forecast(case.frames[:2, :17], case.states[:2], seeds=(seed, 9)) for seed in (0, 0, 1)]
    assert draw[0].video.shape == (2, 3, 17, 3, 16, 16)
    assert draw[0].tokens is not None
    assert_pixels_agree(draw[0].video[:, 0], case.tokenizer.decode(draw[0].tokens[:, 0]))
    assert torch.equal(draw[0].video, draw[1].video)
    assert not torch.equal(draw[0].video, draw[2].video)
    assert not torch.equal(draw[0].video[:, 0], draw[0].video[:, 1])


def test_a_forecast_takes_the_context_and_nothing_else() -> None:
    case = _Case()
    with pytest.raises(UsageError, match="17 frames, but 34 were given"):
        case.oracle().forecast(case.frames, case.states)


def test_greedy_samples_would_all_be_alike() -> None:
    case = _Case()
    with pytest.raises(UsageError, match="--temperature"):
        replace(case.oracle(), num_samples=2).forecast(case.frames[:, :17], case.states)


def test_copy_last_stands_still() -> None:
    frames = noise_frames(2, 5, 3, 8, 8)
    forecast = CopyLast(context_frames=5, times=(5, 6, 7, 8), chunk_frames=4).forecast(frames, torch.zeros(2, 9, 1))
    assert forecast.frames.shape == (2, 1, 4, 3, 8, 8)
    assert (forecast.frames == frames[:, None, 4:5]).all()


# --- tokenizers ---


def _blocks(case: _Case) -> Clips:
    source = _memory(case.states, frames=case.frames)
    return Clips(source, source_windows(source, window=17, stride=17), pattern=FramePattern(window=17))


def _reconstructed(case: _Case, clips: Clips, out: Path, *, device: torch.device = torch.device("cpu")) -> Evaluation:  # noqa: B008
    tokenizer, grid = case.tokenizer.to(device), case.tokenizer.grid(16, 16)
    nothing, times = {"context_frames": 0, "chunk_frames": 0}, tuple(range(17))
    alone = Autoencoder(**nothing, times=times, tokenizer=tokenizer, grid=grid, device=device)
    judged = Judged(forecaster=alone, protocol="tokenizer", run="tokenizer")
    return score(judged, clips, Amount(num_clips=None, batch_size=3), out=out)


def test_a_tokenizers_round_trip_scores_as_by_hand(tmp_path: Path) -> None:
    case = _Case()
    evaluation = _reconstructed(case, _blocks(case), tmp_path / "out")
    error = (case.tokenizer.decode(case.tokens).double() - case.frames.double()).square().mean(dim=(2, 3, 4))
    expected = (10 * (255**2 / error).log10()).mean().item()
    assert _means(evaluation)["reconstruction"]["psnr_db_mean"] == pytest.approx(expected, abs=1e-3)
    counts = torch.bincount(case.tokens.flatten()).double()
    shares = counts[counts > 0] / counts.sum()
    assert evaluation.settings["tokens_used"] == (counts > 0).sum()
    assert evaluation.settings["token_perplexity"] == pytest.approx(
        math.exp(-(shares * shares.log()).sum().item()), abs=0.06
    )
    assert Evaluation.load(tmp_path / "out/metrics.json") == evaluation


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_tokenizer_is_judged_on_the_device_that_is_asked_for(tmp_path: Path) -> None:
    case, found = _Case(), []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        used = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
        found.append(_reconstructed(case, _blocks(case), tmp_path / name, device=device))
        assert (torch.cuda.memory_stats().get("allocation.all.allocated", 0) > used) == (name == "cuda")
    one, two = (_means(evaluation)["reconstruction"] for evaluation in found)
    assert two == pytest.approx(one, rel=1e-3)


def test_tokens_alone_cannot_judge_a_tokenizer(tmp_path: Path) -> None:
    case = _Case()
    grid = case.tokenizer.grid(16, 16)
    clips = _clips(_memory(case.states, tokens=case.tokens, grid=grid, kind="1x-tokens"))
    with pytest.raises(UsageError, match="no frames"):
        _reconstructed(case, clips, tmp_path)
