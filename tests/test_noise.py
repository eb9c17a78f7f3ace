"""Noise belongs to a sample: sample k of a clip is a function of (seed, clip, k), whatever is forecast beside it."""

from dataclasses import replace

import pytest
import torch
from builders import GRID_200, noise_frames, small_tokenizer, small_world
from tolerances import assert_pixels_agree

from worldline.forecasting.forecaster import clip_seeds, generators
from worldline.forecasting.tokens import TokenForecaster
from worldline.process.categorical import Sampling
from worldline.schema import Origin, UsageError

ORIGINS = [Origin(source="here", episode=episode, start=start) for episode in range(4) for start in (0, 34, 68)]
SAMPLED = Sampling(temperature=1.0)


def forecaster_of(num_samples: int, sampling: Sampling = SAMPLED) -> TokenForecaster:
    tokenizer = small_tokenizer()
    world = small_world(grid=GRID_200)
    grid = tokenizer.grid(16, 16)
    return TokenForecaster(world=world, grid=grid, tokenizer=tokenizer, sampling=sampling, num_samples=num_samples)


def test_a_clip_is_known_by_where_it_begins_and_not_by_where_its_data_lie() -> None:
    seeds = clip_seeds(3, ORIGINS)
    assert len(set(seeds)) == len(ORIGINS)
    assert clip_seeds(3, ORIGINS[::-1]) == seeds[::-1]
    assert clip_seeds(3, [replace(origin, source="elsewhere") for origin in ORIGINS]) == seeds
    assert not set(clip_seeds(4, ORIGINS)) & set(seeds)


def test_noise_is_equal_to_the_bit_whatever_the_number_of_samples_and_the_clips_beside() -> None:
    seeds = clip_seeds(0, ORIGINS)
    many, few = (
        torch.stack(
            [torch.randn(4, 3, 2, 2, generator=one) for one in generators(given, k, clips=len(given))]
        ).unflatten(0, (-1, k))
        for given, k in ((seeds, 5), (seeds[::-1], 2))
    )
    assert torch.equal(many[:, :2], few.flip(0))
    assert len(many.flatten(2).flatten(0, 1).unique(dim=0)) == len(seeds) * 5, "no two samples are alike"
    assert many.mean().abs() < 4 / many.numel() ** 0.5
    assert (many.var() - 1).abs() < 6 / many.numel() ** 0.5
    between = torch.corrcoef(many.flatten(2).flatten(0, 1)).fill_diagonal_(0)
    assert between.abs().max() < 0.7, "48 numbers each"


def test_sampled_roll_outs_do_not_depend_on_their_number_order_or_company() -> None:
    frames, states = noise_frames(4, 17, 3, 16, 16), torch.randn(4, 34, 2, generator=torch.Generator().manual_seed(0))
    seeds = clip_seeds(0, ORIGINS[:4])
    together = forecaster_of(3).forecast(frames, states, seeds=seeds).frames
    two, order = forecaster_of(2), [3, 1, 0]
    apart = [two.forecast(frames[[i]], states[[i]], seeds=[seeds[i]]).frames for i in range(4)]
    turned = two.forecast(frames[order], states[order], seeds=[seeds[i] for i in order]).frames
    assert_pixels_agree(together[:, :2], torch.cat(apart))
    assert_pixels_agree(together[order, :2], turned)
    assert not torch.equal(together[:, 0], together[:, 1])
    single = forecaster_of(1).forecast(frames, states, seeds=seeds)
    assert_pixels_agree(together[:, :1], single.frames)


def test_a_seed_for_every_clip_is_needed_where_something_is_drawn() -> None:
    frames, states = noise_frames(2, 17, 3, 16, 16), torch.zeros(2, 34, 2)
    assert forecaster_of(1, Sampling()).forecast(frames, states).frames.shape[:2] == (2, 1)
    for seeds in (None, (1,)):
        with pytest.raises(UsageError, match="one seed for each of 2 clips"):
            forecaster_of(1).forecast(frames, states, seeds=seeds)
