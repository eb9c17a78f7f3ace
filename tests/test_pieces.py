"""Forecasts are made in pieces of bounded size, whatever the batch: the same results, in the memory of a piece."""

from dataclasses import replace

import pytest
import torch
from builders import GRID_200, SMALL_WORLD, noise_frames, small_tokenizer, small_world
from latent_builders import SMALL_VAE
from tolerances import assert_pixels_agree
from torch import Tensor

from worldline import builtin
from worldline.contract import FramePattern
from worldline.families.tokenizers import load_tokenizer
from worldline.forecasting.forecaster import generators
from worldline.forecasting.latents import LatentForecaster
from worldline.forecasting.tokens import DecodeMode, TokenForecaster
from worldline.planning.meter import follow
from worldline.process.categorical import Sampling
from worldline.process.flow import FlowSampling
from worldline.schema import Batch, LatentGrid, TokenGrid, UsageError
from worldline.tokenizers.tokenizer import reconstructed
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig
from worldline.worlds.wan import WanConfig, WanWorld
from worldline.worlds.wan_weights import BackboneConfig

REPORT_GRID = TokenGrid(height=32, width=32, vocab_size=64_000)
SEEDS = (4, 8, 15, 16, 23)


def forecaster_of(rows: int | None, decode_mode: DecodeMode = "tokens", **changes: object) -> TokenForecaster:
    tokenizer = small_tokenizer()
    made = TokenForecaster(
        world=small_world(grid=GRID_200),
        grid=tokenizer.grid(16, 16),
        tokenizer=tokenizer,
        sampling=Sampling(temperature=1.0),
        decode_mode=decode_mode,
        blend_last_frame=decode_mode == "mean",
        num_samples=3,
        rows=rows,
    )
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


def states_of(count: int) -> Tensor:
    return torch.randn(count, 34, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("decode_mode", ["tokens", "mean"])
def test_forecasts_depend_on_the_rows_at_once_by_rounding_alone(decode_mode: DecodeMode) -> None:
    frames, states = noise_frames(5, 17, 3, 16, 16), states_of(5)
    whole = forecaster_of(None, decode_mode).forecast(frames, states, seeds=SEEDS)
    for rows in (1, 4, 100):
        pieces = forecaster_of(rows, decode_mode).forecast(frames, states, seeds=SEEDS)
        same = (pieces.tokens == whole.tokens).flatten(1).all(dim=1)  # pyright: ignore
        assert same.sum() >= len(same) - 1, "a near tie may send one clip another way"
        assert_pixels_agree(pieces.frames[same], whole.frames[same])


def test_costs_depend_on_the_rows_at_once_by_rounding_alone_and_are_of_the_first_sample() -> None:
    """Along a greedy roll-out whose own tokens are the true ones, both kinds of cost are the same."""
    forecaster, frames, states = (
        forecaster_of(2, sampling=Sampling(), num_samples=1),
        noise_frames(5, 17, 3, 16, 16),
        states_of(5),
    )
    given = Batch(states=states, fps=30.0, origins=(), frames=frames)
    own = forecaster.forecast_clips(given).tokens
    past = forecaster.encoded(given).tokens
    assert own is not None
    assert past is not None
    batch = replace(given, tokens=torch.cat([past, own[:, 0]], dim=1))
    extra = ("costs", "teacher_forced_costs", "top")
    for rows in (1, 2, 100):
        made = replace(forecaster, rows=rows).forecast_clips(batch, extra=extra)
        assert made.costs.keys() == made.teacher_forced_costs.keys()
        assert made.costs["token_accuracy"].shape == (5, 3)
        assert (made.costs["token_accuracy"] == 1).all()
        for name, costs in made.costs.items():
            torch.testing.assert_close(costs, made.teacher_forced_costs[name], rtol=1e-4, atol=1e-4)
        assert made.top_log_probs is not None
        likeliest = made.top_log_probs[..., 0].flatten(2).mean(dim=2)
        torch.testing.assert_close(made.costs["full_ce"], -likeliest, rtol=1e-4, atol=1e-4)
    several = replace(forecaster, sampling=Sampling(temperature=1.0), num_samples=3)
    for rows in (1, 4, None):
        three = replace(several, rows=rows).forecast_clips(batch, seeds=SEEDS, extra=extra)
        one = replace(several, num_samples=1).forecast_clips(batch, seeds=SEEDS, extra=extra)
        same = (three.tokens[:, 0] == one.tokens[:, 0]).flatten(1).all(dim=1)  # pyright: ignore
        assert same.sum() >= len(same) - 1, "a near tie may send one clip another way"
        torch.testing.assert_close(three.costs["full_ce"][same], one.costs["full_ce"][same], rtol=1e-4, atol=1e-4)
        assert torch.equal(three.top_ids[same, 0, 0, 0, :3], one.top_ids[same, 0, 0, 0, :3])  # pyright: ignore


def test_a_mixture_scores_the_mean_of_the_distributions_along_its_roll_outs() -> None:
    """By hand: one greedy roll-out and two drawn ones of each clip, each along its own tokens."""
    forecaster = forecaster_of(2, sampling=Sampling(), num_samples=1, mixture=3)
    frames, states = noise_frames(5, 34, 3, 16, 16), states_of(5)
    batch = forecaster.encoded(Batch(states=states, fps=30.0, origins=(), frames=frames))
    made = forecaster.forecast_clips(batch, seeds=SEEDS, extra=("costs",))
    assert batch.tokens is not None
    context, true = batch.tokens[:, :3], batch.tokens[:, 3:]
    streams = generators(SEEDS, 2, clips=5)
    for clip in range(5):
        one = context[[clip]], states[[clip]]
        two = (x.expand(2, *x.shape[1:]) for x in one)
        greedy = forecaster.world.forecast(*one, sampling=Sampling())
        drawn = forecaster.world.forecast(
            *two, sampling=Sampling(temperature=1.0), generators=streams[2 * clip : 2 * clip + 2]
        )
        for grid, (first, others) in enumerate(zip(greedy, drawn, strict=True)):
            chances = torch.cat([first.logits, others.logits]).softmax(dim=-1).mean(dim=0)
            cost = -chances.gather(-1, true[clip, grid, ..., None]).log().mean()
            torch.testing.assert_close(made.costs["full_ce"][clip, grid], cost, rtol=1e-3, atol=1e-3)
            assert (made.tokens[clip, 0, grid] == first.tokens[0]).float().mean() > 0.9, "the greedy one is shown"  # pyright: ignore
    alone = forecaster.one_roll_out()
    assert alone is not None
    assert alone.one_roll_out() is None
    with pytest.raises(UsageError, match="no --num-samples, no --temperature"):
        replace(forecaster, num_samples=2)


def test_a_roll_out_of_many_clips_takes_the_memory_of_its_rows() -> None:
    grid = TokenGrid(height=4, width=4, vocab_size=5000)
    world = small_world(grid=grid)
    context = torch.randint(5000, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    logits = 4 * 16 * 5000  # of one grid of one clip

    def peak(rows: int | None) -> int:
        forecaster = TokenForecaster(world=world, grid=grid, tokenizer=None, rows=rows)
        weights = [*world.parameters(), *world.buffers()]
        batch = Batch(states=states_of(5), fps=30.0, origins=(), tokens=context)
        work = lambda: forecaster.forecast_clips(batch).tokens  # noqa: E731
        return follow(work, weights, autocast=False, device="cpu", native=True, backward=False).peak

    assert peak(None) > 5 * logits
    assert peak(1) < 3 * logits


def test_a_roll_out_at_the_report_s_size_has_room_on_a_card() -> None:
    """A batch of 32 clips would take 25 GB of logits alone. Every layer more keeps 84 MB: 4.1 GB for all 24."""
    forecaster = TokenForecaster(world=small_world(), grid=REPORT_GRID, tokenizer=None)
    assert forecaster.rows_at_once == 4
    with torch.device("meta"):
        world = STTransformerConfig(layers=3).build().eval()
    assert isinstance(world, STTransformer)
    context = torch.zeros(4, 3, 32, 32, dtype=torch.int64, device="meta")
    states = torch.zeros(4, 34, 25, device="meta")

    @torch.no_grad()
    def roll() -> Tensor:
        for step in world.forecast(context, states, sampling=Sampling()):
            context.copy_(step.tokens[:, None].expand(-1, 3, -1, -1))
        return context

    assert follow(roll, [*world.parameters()], autocast=False, native=True, backward=False).peak < 2.5e9


def test_generation_at_the_5b_s_size_takes_less_than_decoding_a_clip() -> None:
    backbone = replace(BackboneConfig(), num_layers=2)  # no layer's memory outlives it
    with torch.device("meta"):
        world = WanConfig(backbone=backbone, lora=None).build().eval()
    assert isinstance(world, WanWorld)
    forecaster = LatentForecaster(
        world=world,
        grid=LatentGrid(channels=48, height=32, width=32),
        tokenizer=SMALL_VAE.build(),  # not asked: what is generated is not decoded here
        pattern=FramePattern.report_77(),
    )
    rows = forecaster.rows_at_once
    assert rows == 8
    shapes = ((rows, 2, 48, 32, 32), (rows, 77, 25), (rows, 4, 48, 32, 32))
    context, states, noise = (torch.empty(*shape, device="meta") for shape in shapes)
    work = lambda: world.forecast(context, states, noise, sampling=FlowSampling(steps=1))  # noqa: E731
    weights = [*world.parameters(), *world.buffers()]
    assert follow(work, weights, autocast=False, backward=False).peak < 4.5e9
    assert replace(forecaster, rows=3).rows_at_once == 3


# --- there and back ---


@pytest.mark.parametrize(("name", "block"), [("tokenizer-tiny", 17), ("vae-tiny", 5)])
def test_any_number_of_frames_goes_through_a_tokenizer_and_back(name: str, block: int) -> None:
    tokenizer = load_tokenizer(builtin.resolve(name))
    frames = torch.randint(0, 256, (2, block, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(reconstructed(tokenizer, frames), tokenizer.decode(tokenizer.encode(frames)))
        few = reconstructed(tokenizer, frames[:, :3])
        assert few.shape == frames[:, :3].shape
        assert torch.equal(few[:, :1], reconstructed(tokenizer, frames[:, :1]))  # what came before is not changed


def test_calibration_changes_costs_and_no_picture() -> None:
    frames, states = noise_frames(3, 34, 3, 16, 16), states_of(3)
    plain = forecaster_of(None, "mean", sampling=Sampling(), num_samples=1)
    world = small_world(replace(SMALL_WORLD, calibrated=True), grid=GRID_200)
    world.sharpness.copy_(torch.tensor([1.0, 0.5, 0.25]))
    batch = plain.encoded(Batch(states=states, fps=30.0, origins=(), frames=frames))
    made, other = (
        one.forecast_clips(batch, extra=("costs", "teacher_forced_costs", "top", "certainty"))
        for one in (plain, replace(plain, world=world))
    )
    assert_pixels_agree(made.video, other.video)
    for name in ("token_accuracy", "top500_coverage"):
        assert torch.equal(made.costs[name], other.costs[name])
    differ = (made.costs["full_ce"] - other.costs["full_ce"]).abs() > 1e-3
    assert differ.any(dim=0).tolist() == [False, True, True]
    torch.testing.assert_close(made.teacher_forced_costs["full_ce"], other.teacher_forced_costs["full_ce"])
    assert made.certainty is not None
    assert other.certainty is not None
    assert (other.certainty.entropy[:, 1:] > made.certainty.entropy[:, 1:]).all(), "it is less sure"
    assert other.top_log_probs is not None
    assert torch.equal(made.top_ids[:, 0], other.top_ids[:, 0])  # pyright: ignore[reportOptionalSubscript]
