"""The flow process: schedules against the team's and Wan's figures, and Gaussian data, where all is known exactly.

For x0 ~ N(mu, s^2) and x = (1 - t) x0 + t e, the best velocity is linear in x,
    v*(x, t) = E[e - x0 | x] = -mu + (t - (1 - t) s^2) / ((1 - t)^2 s^2 + t^2) (x - (1 - t) mu),
and following it from noise e at t = 1 ends at mu + s e.
"""

import sys
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worldline.process.flow import (
    SHORTCUTS,
    FlowConfig,
    FlowSampling,
    corrupt,
    draw_shortcuts,
    draw_sigma,
    integrate,
    loss_weight,
    sample_sigmas,
    shortcut_target,
    step_size,
    train_sigmas,
)
from worldline.schema import UsageError

MU, S = 1.5, 0.5
STEPS_1D = 500
Sampler = Literal["euler", "unipc"]
SAMPLERS: tuple[Sampler, ...] = ("euler", "unipc")


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _gaussian_velocity(x: Tensor, t: float, mu: Tensor | float = MU, s: float = S) -> Tensor:
    slope = (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)
    return -mu + slope * (x - (1 - t) * mu)


def _error(sampler: Sampler, steps: int, shift: float) -> float:
    """Root-mean-square distance of the integrated to the exact end."""
    noise = _noise(500, 2)
    found = integrate(_gaussian_velocity, noise, FlowSampling(sampler=sampler, steps=steps, shift=shift))
    return (found - (MU + S * noise)).square().mean().sqrt().item()


def _needed(sampler: Sampler) -> None:
    if sampler == "unipc":
        pytest.importorskip("diffusers", reason="UniPC is composed from diffusers (extra: wan)")


# --- schedules ---


def test_training_spends_half_its_time_above_five_sixths() -> None:
    sigmas = train_sigmas(FlowConfig())
    assert sigmas.shape == (1000,)
    assert sigmas[0] == 1
    torch.testing.assert_close(sigmas[500], torch.tensor(5 / 6))
    torch.testing.assert_close(sigmas[-1], torch.tensor(0.005 / 1.004))
    assert (sigmas.diff() < 0).all()


def test_a_shift_of_one_is_even_spacing() -> None:
    sigmas = train_sigmas(FlowConfig(shift=1.0, num_train_steps=4))
    torch.testing.assert_close(sigmas, torch.tensor([1.0, 0.75, 0.5, 0.25]))


def test_drawn_levels_are_spread_evenly_over_the_schedule() -> None:
    config = FlowConfig(num_train_steps=10)
    drawn = draw_sigma(config, 20_000, torch.Generator().manual_seed(0))
    counts = (drawn[:, None] == train_sigmas(config)).sum(dim=0)
    assert counts.sum() == 20_000
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()


def test_a_share_of_the_examples_stands_at_pure_noise_with_weight_one() -> None:
    config, stream = FlowConfig(pure_noise=0.25, weighting="bell"), torch.Generator().manual_seed(0)
    sigma = draw_sigma(config, 20_000, stream)
    pure = sigma == 1
    assert pure.float().mean().item() == pytest.approx(0.25, abs=0.02), "1 in 1,000 others are at 1 by chance"
    assert (loss_weight(config, sigma)[pure] == 1).all()
    assert (draw_sigma(FlowConfig(pure_noise=1.0), 50, stream) == 1).all()
    assert not FlowConfig(weighting="bell").knows_mean
    assert config.knows_mean
    assert FlowConfig().knows_mean


def test_one_euler_step_from_pure_noise_is_the_mean() -> None:
    ends = integrate(_gaussian_velocity, _noise(50, 2), FlowSampling(steps=1))
    torch.testing.assert_close(ends, torch.full((50, 2), MU))


def test_draws_are_the_generators() -> None:
    one, same, other = (draw_sigma(FlowConfig(), 8, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_euler_visits_the_levels_of_the_teams_sampler() -> None:
    sigmas = sample_sigmas(FlowSampling(steps=20))
    assert sigmas.shape == (21,)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    torch.testing.assert_close(sigmas[-2], torch.tensor(0.25 / 1.2))
    torch.testing.assert_close(sigmas[10], torch.tensor(5 / 6))


def test_euler_is_diffusers_given_unshifted_levels_and_not_its_own_choice() -> None:
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers (extra: wan)")
    ours = sample_sigmas(FlowSampling(steps=20))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20))
    torch.testing.assert_close(ours, scheduler.sigmas, rtol=0, atol=5e-7)
    scheduler.set_timesteps(20)  # shifts twice
    assert (ours - scheduler.sigmas).abs().max() > 0.15


@pytest.mark.parametrize("steps", [1, 20, 50, 333])
def test_unipc_visits_exactly_the_levels_of_its_scheduler(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers (extra: wan)")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0.0, steps + 1)[:-1])
    told: list[float] = []

    def still(x: Tensor, sigma: float) -> Tensor:
        told.append(sigma)
        return torch.zeros_like(x)

    sampling = FlowSampling(sampler="unipc", steps=steps)
    integrate(still, _noise(1, 2), sampling)
    assert torch.equal(sample_sigmas(sampling), scheduler.sigmas)
    assert told == scheduler.sigmas[:-1].tolist()


# --- corruption, target, weight ---


def test_corruption_mixes_each_example_at_its_own_level() -> None:
    x0, noise = torch.full((3, 2, 4, 1, 1), 10.0), torch.full((3, 2, 4, 1, 1), -2.0)
    x, _ = corrupt(x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(x[:, 0, 0, 0, 0], torch.tensor([10.0, 7.0, -2.0]))
    assert torch.equal(x, x[:, :1, :1].expand_as(x))


def test_the_target_is_the_derivative_of_the_corruption_in_sigma() -> None:
    x0, noise = _noise(4, 3), _noise(4, 3, seed=1)
    (high, target), (low, _) = (corrupt(x0, noise, torch.full((4,), sigma)) for sigma in (0.75, 0.25))
    torch.testing.assert_close((high - low) / 0.5, target)


def test_half_precision_data_are_corrupted_in_float32() -> None:
    x0, noise, sigma = _noise(4, 3).bfloat16(), _noise(4, 3, seed=1), torch.full((4,), 0.3)
    for half, whole in zip(corrupt(x0, noise, sigma), corrupt(x0.float(), noise, sigma), strict=True):
        assert torch.equal(half, whole)


BELL = {1.0: 0.0, 0.978: 0.14, 0.92: 0.50, 0.833: 1.03, 0.68: 1.74, 0.50: 2.08, 0.36: 1.87, 0.05: 0.31}
"""Weight by sigma, as measured on the team's training library; the levels there are rounded to the digits shown."""


def test_the_bell_is_that_of_the_teams_library() -> None:
    weight = loss_weight(FlowConfig(weighting="bell"), torch.tensor(list(BELL)))
    torch.testing.assert_close(weight, torch.tensor(list(BELL.values())), rtol=0, atol=0.01)


@pytest.mark.parametrize("weighting", ["uniform", "bell"])
@pytest.mark.parametrize(("shift", "steps"), [(5.0, 1000), (1.0, 50), (12.0, 8)])
def test_weights_have_mean_one_over_the_schedule(weighting: Any, shift: float, steps: int) -> None:
    config = FlowConfig(weighting=weighting, shift=shift, num_train_steps=steps)
    weight = loss_weight(config, train_sigmas(config))
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0))
    assert (weight >= 0).all()


def test_by_default_every_level_counts_the_same() -> None:
    assert torch.equal(loss_weight(FlowConfig(), torch.tensor([1.0, 0.3, 0.01])), torch.ones(3))


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_least_squares_on_corrupted_gaussians_finds_the_best_velocity(t: float) -> None:
    """Regressing the target on the corrupted input is what training does; here the answer is known."""
    count = 200_000
    x0, noise = MU + S * _noise(count), _noise(count, seed=1)
    x, target = corrupt(x0, noise, torch.full((count,), t))
    slope, offset = np.polyfit(x.double().numpy(), target.double().numpy(), 1)
    at_zero, at_one = (_gaussian_velocity(torch.tensor(point), t).item() for point in (0.0, 1.0))
    assert offset == pytest.approx(at_zero, abs=0.03)
    assert slope == pytest.approx(at_one - at_zero, abs=0.02)


# --- samplers ---


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_is_transported_to_the_data(sampler: Sampler) -> None:
    _needed(sampler)
    noise = _noise(20_000, 1)
    x0 = integrate(_gaussian_velocity, noise, FlowSampling(sampler=sampler, steps=200))
    torch.testing.assert_close(x0, MU + S * noise, rtol=0, atol=0.05)
    assert x0.mean().item() == pytest.approx(MU, abs=0.02)
    assert x0.std().item() == pytest.approx(S, abs=0.02)


def test_one_euler_step_is_the_mean_of_the_data() -> None:
    x0 = integrate(_gaussian_velocity, _noise(10, 3), FlowSampling(steps=1))
    torch.testing.assert_close(x0, torch.full((10, 3), MU))


@pytest.mark.parametrize(("shift", "steps"), [(1.0, 40), (5.0, 80)])
def test_twice_the_steps_halve_the_error_of_euler(shift: float, steps: int) -> None:
    assert _error("euler", steps, shift) / _error("euler", 2 * steps, shift) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [10, 20, 40])
def test_unipc_errs_less_than_euler_at_equal_steps(steps: int, shift: float) -> None:
    _needed("unipc")
    assert _error("unipc", steps, shift) < _error("euler", steps, shift)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_noise_gives_the_same_data_and_is_left_alone(sampler: Sampler) -> None:
    _needed(sampler)
    noise = _noise(4, 3)
    one, other = (integrate(_gaussian_velocity, noise, FlowSampling(sampler=sampler)) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(noise, _noise(4, 3))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_example_does_not_feel_its_neighbours(sampler: Sampler) -> None:
    _needed(sampler)
    noise = _noise(4, 2, 3, 2)
    alone = integrate(_gaussian_velocity, noise[1:2], FlowSampling(sampler=sampler))
    noise[0], noise[2], noise[3] = torch.nan, 1e6, 0
    among = integrate(_gaussian_velocity, noise, FlowSampling(sampler=sampler))
    torch.testing.assert_close(among[1:2], alone)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_velocities_in_half_precision_are_summed_in_float32(sampler: Sampler) -> None:
    _needed(sampler)
    seen: set[torch.dtype] = set()

    def coarse(x: Tensor, sigma: float) -> Tensor:
        seen.add(x.dtype)
        return _gaussian_velocity(x, sigma).bfloat16()

    x0 = integrate(coarse, _noise(4, 3).bfloat16(), FlowSampling(sampler=sampler))
    assert x0.dtype == torch.float32
    assert seen == {torch.float32}


def test_the_mean_of_samples_nears_the_conditional_mean_as_one_over_the_root_of_their_number() -> None:
    """Data c + N(0, S^2) given a condition c: with k samples the mean errs by S / sqrt(k)."""
    conditions = _noise(400, 1, seed=5)

    def error(k: int) -> float:
        means = conditions.expand(400, k)
        samples = integrate(lambda x, t: _gaussian_velocity(x, t, means), _noise(400, k), FlowSampling(steps=400))
        return (samples.mean(dim=1, keepdim=True) - conditions).square().mean().sqrt().item()

    for k in (1, 4, 16, 64):
        assert error(k) == pytest.approx(S / k**0.5, rel=0.1)


# --- shortcuts ---


def test_step_sizes_that_were_learnt_sum_to_one_and_others_are_the_plain_flow() -> None:
    config = FlowConfig(shortcut=0.25)
    for steps in SHORTCUTS:
        assert step_size(config, FlowSampling(steps=steps)) * steps == 1
        assert step_size(FlowConfig(), FlowSampling(steps=steps)) == 0, "a world without shortcuts is told nothing"
    plain: tuple[dict[str, Any], ...] = (
        {"steps": 20},
        {"steps": 3},
        {"steps": 4, "sampler": "unipc"},
        {"steps": 4, "shift": 1.0},
        {"steps": 1, "shortcuts": False},
    )
    assert {step_size(config, FlowSampling(**how)) for how in plain} == {0.0}


def test_shortcuts_are_learnt_where_a_sampler_takes_them_by_their_share_of_the_examples() -> None:
    config, stream = FlowConfig(shortcut=0.25), torch.Generator().manual_seed(0)
    plain = torch.full((40_000,), 0.123)
    sigma, far = draw_shortcuts(config, plain, stream)
    told = far.told(len(sigma))
    assert torch.equal(sigma[10_000:], plain[10_000:])
    assert far.learnt.all()
    for steps in SHORTCUTS:
        at = told == 1 / steps
        assert at.sum().item() == pytest.approx(2500, abs=5 * 2500**0.5)
        torch.testing.assert_close(sigma[at].unique().flip(0), sample_sigmas(FlowSampling(steps=steps))[:-1])
    assert (told > 0).sum() == 10_000


def test_of_a_single_example_a_quarter_learns_a_shortcut_and_every_rank_works_alike() -> None:
    config, stream = FlowConfig(shortcut=0.25), torch.Generator().manual_seed(0)
    drawn = [draw_shortcuts(config, torch.full((1,), 0.123), stream) for _ in range(2000)]
    assert {len(far.size) for _, far in drawn} == {1}
    learnt = torch.cat([far.learnt for _, far in drawn])
    assert learnt.float().mean().item() == pytest.approx(0.25, abs=0.05)
    plain = torch.tensor(0.123)
    assert all((sigma == plain).item() != far.learnt.item() for sigma, far in drawn)


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", SHORTCUTS)
def test_a_shortcut_ends_where_two_half_steps_end(steps: int, shift: float) -> None:
    """From noise, through all steps of a sampler, to the very place where one of twice the steps ends."""
    noise, told = _noise(50, 2), set[float]()

    def exact(x: Tensor, sigma: Tensor, size: Tensor) -> Tensor:
        told.add(size[0].item())
        return _gaussian_velocity(x, sigma[0].item())

    def shortcut(x: Tensor, sigma: float) -> Tensor:
        return shortcut_target(exact, x, torch.full((50,), sigma), torch.full((50,), 1 / steps), shift)

    found = integrate(shortcut, noise, FlowSampling(steps=steps, shift=shift))
    expected = integrate(_gaussian_velocity, noise, FlowSampling(steps=2 * steps, shift=shift))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert told == {0.0 if steps == SHORTCUTS[-1] else 1 / (2 * steps)}, "the smallest rests on the plain flow"


def _small_network(share: float) -> Any:
    """A network of 1-d data that are -1 or 1, trained with a share of shortcuts."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))
    config, stream = FlowConfig(shortcut=share, shift=1.0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters())

    def velocity_of(x: Tensor, sigma: Tensor, size: Tensor) -> Tensor:
        return network(torch.stack([x[:, 0], sigma, size], dim=1))

    for step in range(STEPS_1D):
        optimizer.param_groups[0]["lr"] = 6e-3 * (1 - step / STEPS_1D)
        x0 = torch.randint(2, (128, 1), generator=stream) * 2.0 - 1
        sigma, size = draw_sigma(config, 128, stream), torch.zeros(128)
        noise = torch.randn(128, 1, generator=stream)
        if share > 0:
            sigma, far = draw_shortcuts(config, sigma, stream)
            size = far.told(128)
        x, target = corrupt(x0, noise, sigma)
        if (count := int((size > 0).sum())) > 0:
            means = shortcut_target(velocity_of, x[:count], sigma[:count], size[:count], config.shift)
            target = torch.cat([means, target[count:]])
        optimizer.zero_grad()
        (velocity_of(x, sigma, size) - target).square().mean().backward()
        optimizer.step()

    @torch.no_grad()
    def draw(**how: Any) -> Tensor:
        sampling = FlowSampling(shift=1.0, **how)
        size = torch.full((2000,), step_size(config, sampling))
        return integrate(lambda x, t: velocity_of(x, torch.full((2000,), t), size), _noise(2000, 1, seed=7), sampling)

    return draw


def test_one_call_draws_the_distribution_after_training_with_shortcuts_and_its_mean_without() -> None:
    """Data are -1 or 1, and their mean, 0, is no sample. With shortcuts both are there, by what the network is told."""
    without, with_them = _small_network(0.0), _small_network(0.25)
    assert without(steps=1).abs().mean() < 0.25
    ends = with_them(steps=1)
    assert ends.abs().mean() > 0.75
    assert (ends > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert with_them(steps=1, shortcuts=False).abs().mean() < 0.25
    assert with_them(steps=20).abs().mean() > 0.85, "the plain flow stays"


# --- requests that cannot be met ---


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"shift": 0.0}, {"shift": float("nan")}, {"guidance": -1.0}])
def test_impossible_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FlowSampling(**wrong)


@pytest.mark.parametrize("wrong", [{"shift": -5.0}, {"num_train_steps": 1}, {"shortcut": 1.0}])
def test_impossible_training_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FlowConfig(**wrong)


def test_without_diffusers_unipc_says_what_to_do_and_euler_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffusers", "diffusers.schedulers.scheduling_unipc_multistep"):
        monkeypatch.setitem(sys.modules, name, None)
    integrate(_gaussian_velocity, _noise(1, 1), FlowSampling(sampler="euler"))
    with pytest.raises(UsageError, match=r"pip install worldline\[wan\]"):
        integrate(_gaussian_velocity, _noise(1, 1), FlowSampling(sampler="unipc"))
