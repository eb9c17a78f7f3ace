"""The state-conditioned Wan world: parity with the untouched backbone, conditioning, adapters, flow on latents."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tolerances import assert_values_agree
from torch import Tensor

from worldline.nn.conditioning import Told
from worldline.nn.states import StateOptions
from worldline.nn.weights import changing_state
from worldline.process.flow import (
    TIMESTEPS,
    FlowConfig,
    FlowSampling,
    corrupt,
    draw_shortcuts,
    draw_sigma,
    integrate,
    loss_weight,
    shortcut_target,
)
from worldline.schema import Batch, Origin, UsageError
from worldline.worlds.wan import LORA_TARGETS, WanConfig, WanWorld
from worldline.worlds.wan_weights import BackboneConfig

pytest.importorskip("diffusers", reason="needs the extra `wan`")

BACKBONE = BackboneConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    freq_dim=16,
    ffn_dim=48,
    num_layers=2,
)
CONFIG = WanConfig(backbone=BACKBONE, lora=None, states=StateOptions(hidden=16, null=True), text_length=4)


def build(config: WanConfig = CONFIG) -> WanWorld:
    torch.manual_seed(0)
    return config.build().eval()


def wake(world: WanWorld) -> WanWorld:
    """Let the states speak: the last projection leaves zero."""
    assert world.states is not None
    torch.nn.init.normal_(world.states.projection[-1].weight, std=0.1)  # pyright: ignore[reportArgumentType]
    return world


def latents(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def states(batch: int = 2) -> Tensor:
    return torch.randn(batch, 77, 25, generator=torch.Generator().manual_seed(2))


def batch(size: int = 2) -> Batch:
    origins = tuple(Origin(source="made up", episode=i, start=0) for i in range(size))
    return Batch(states=states(size), fps=7.5, origins=origins, latents=latents(size))


def untouched(world: WanWorld, x: Tensor, sigma: Tensor) -> Tensor:
    """diffusers' own forward with a timestep for every token, as upstream runs an image-to-video clip."""
    plain = copy.deepcopy(world.backbone)
    tokens = (x.shape[-2] // 2) * (x.shape[-1] // 2)
    frames = torch.cat([torch.zeros(len(x), 2), (TIMESTEPS * sigma)[:, None].expand(-1, 4)], dim=1)
    with torch.no_grad():
        out = plain(
            hidden_states=x.transpose(1, 2),
            timestep=frames.repeat_interleave(tokens, dim=1),
            encoder_hidden_states=torch.zeros(len(x), 4, 8),
            return_dict=False,
        )[0]
    return out.transpose(1, 2)[:, 2:]


def test_at_step_0_it_is_the_untouched_backbone() -> None:
    world, sigma = build(), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        ours = world.velocity_of(latents(), sigma, world.modulation(states()))
    assert_values_agree(ours, untouched(world, latents(), sigma))


def test_states_speak_once_the_projection_leaves_zero() -> None:
    world, sigma = wake(build()), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        ours = world.velocity_of(latents(), sigma, world.modulation(states()))
        other = world.velocity_of(latents(), sigma, world.modulation(states() + 0.5))
    assert (ours - untouched(world, latents(), sigma)).abs().max() > 1e-3
    assert (ours - other).abs().max() > 1e-4


def test_modulation_reaches_every_block_as_an_addition_to_its_own_table() -> None:
    """One constant modulation for all frames equals moving every block's table by it: the hook adds where blocks do."""
    world, sigma = build(), torch.tensor([0.5, 0.5])
    constant = torch.randn(6, BACKBONE.width) * 0.1
    with torch.no_grad():
        ours = world.velocity_of(latents(), sigma, Told(modulation=constant.expand(2, 6, 6, -1)))
        for block in world.backbone.blocks:
            block.scale_shift_table += constant
        moved = untouched(world, latents(), sigma)
    assert_values_agree(ours, moved)


def test_a_forecast_leaves_no_modulation_behind() -> None:
    world = wake(build())
    world.forecast(latents()[:, :2], states(), latents()[:, 2:], sampling=FlowSampling(steps=2))
    assert not world.backbone.condition_embedder._forward_hooks


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients: list[dict[str, Tensor]] = []
    for on in (False, True):
        world = wake_step(build(replace(FEW, gradient_checkpointing=on))).train()
        # Two forwards before one backward: the hook must have given its modulation to the right one.
        loss = sum(world.loss(batch(), torch.Generator().manual_seed(i))[0] for i in range(2))
        assert isinstance(loss, Tensor)
        loss.backward()
        gradients.append({name: p.grad for name, p in world.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_values_agree(gradients[1][name], gradient)


def test_the_loss_ignores_what_the_network_says_of_context() -> None:
    """Context latents are out of the loss: with one generator the loss is the error of generated latents alone."""
    world = wake(build())
    loss, figures = world.loss(batch(), torch.Generator().manual_seed(3))
    sigma_and_noise = torch.Generator().manual_seed(3)
    sigma = draw_sigma(CONFIG.flow, 2, sigma_and_noise)
    noise = torch.randn(2, 4, 4, 4, 4, generator=sigma_and_noise)
    x0 = latents()
    mixed = torch.cat([x0[:, :2], corrupt(x0[:, 2:], noise, sigma)[0]], dim=1)
    with torch.no_grad():
        predicted = world.velocity_of(mixed, sigma, world.modulation(states()))
    expected = (predicted - (noise - x0[:, 2:])).square().mean()
    torch.testing.assert_close(loss.detach(), expected)
    assert figures["velocity_mse"] == pytest.approx(expected.item())


def test_a_forecast_is_a_pure_function_and_rows_do_not_mix() -> None:
    world, sampling = wake(build()), FlowSampling(steps=3)
    context, noise = latents(3)[:, :2], latents(3)[:, 2:]
    together = world.forecast(context, states(3), noise, sampling=sampling)
    again = world.forecast(context, states(3), noise, sampling=sampling)
    alone = world.forecast(context[1:2], states(3)[1:2], noise[1:2], sampling=sampling)
    assert torch.equal(together, again)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_guidance_interpolates_between_the_null_state_and_the_states() -> None:
    world = wake(build())
    context, noise = latents()[:, :2], latents()[:, 2:]

    def at(guidance: float, s: Tensor) -> Tensor:
        return world.forecast(context, s, noise, sampling=FlowSampling(steps=1, guidance=guidance))

    with_states, without, doubled = at(1.0, states()), at(0.0, states()), at(2.0, states())
    assert torch.equal(without, at(0.0, states() + 1)), "at 0 the states are ignored"
    torch.testing.assert_close(doubled, 2 * with_states - without, rtol=1e-4, atol=1e-4)


def test_guidance_without_a_null_state_is_refused() -> None:
    world = build(replace(CONFIG, states=StateOptions(hidden=16)))
    with pytest.raises(UsageError, match="no null state"):
        world.forecast(latents()[:, :2], states(), latents()[:, 2:], sampling=FlowSampling(guidance=1.5))


def test_dropping_states_trains_the_null_code() -> None:
    world = wake(build(replace(CONFIG, drop_states=1.0))).train()
    world.loss(batch(), torch.Generator().manual_seed(0))[0].backward()
    assert world.states is not None
    assert world.states.null is not None
    assert world.states.null.grad is not None
    assert world.states.null.grad.abs().max() > 0
    features: Any = world.states.features[0]
    assert features.weight.grad is None or features.weight.grad.abs().max() == 0


def test_validation_hides_no_states() -> None:
    world = wake(build(CONFIG)).eval()
    whole, _ = world.loss(batch(), torch.Generator().manual_seed(0))
    world.config = replace(CONFIG, drop_states=1.0)
    assert torch.equal(world.loss(batch(), torch.Generator().manual_seed(0))[0], whole)


# --- shortcuts ---

FEW = replace(CONFIG, flow=FlowConfig(shortcut=0.5))


def wake_step(world: WanWorld) -> WanWorld:
    """Let the step size speak: its last layer leaves zero."""
    assert world.step is not None
    torch.nn.init.normal_(world.step.embedding.linear_2.weight, std=0.3)
    return wake(world)


@pytest.mark.parametrize("changes", [{}, {"lora": 3}])
def test_an_untrained_step_size_changes_no_bit(changes: dict[str, Any]) -> None:
    """Adapters on a bfloat16 backbone too, and the whole of it."""
    dtype = torch.bfloat16 if changes else torch.float32
    torch.manual_seed(0)
    base = BACKBONE.build(dtype)
    torch.manual_seed(1)
    plain = wake(replace(CONFIG, **changes).build(backbone=copy.deepcopy(base)).eval())
    few = replace(FEW, **changes).build(backbone=copy.deepcopy(base)).eval()
    few.load_state_dict(plain.state_dict(), strict=False)
    sigma = torch.tensor([0.2, 0.9])
    with torch.no_grad():
        expected = plain.velocity_of(latents(), sigma, plain.modulation(states()))
        for size in (None, torch.zeros(2), torch.tensor([0.25, 1.0])):
            assert torch.equal(few.velocity_of(latents(), sigma, few.modulation(states()), size), expected)
    extra = {name for name, p in few.named_parameters() if p.requires_grad} - {
        name for name, _ in plain.named_parameters()
    }
    assert extra == {f"step.embedding.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}


def test_a_step_size_reaches_the_generated_latents_as_an_addition_to_the_time_embedding() -> None:
    """Equal to a bias of the time embedding's last layer where there is no context; told 0 and told nothing are one."""
    world, sigma = wake_step(build(FEW)), torch.tensor([0.5, 0.5])
    half = torch.full((2,), 0.5)
    with torch.no_grad():
        told = world.velocity_of(latents(), sigma, None, half)
        untold = world.velocity_of(latents(), sigma, None)
        assert torch.equal(untold, world.velocity_of(latents(), sigma, None, torch.zeros(2)))
        assert (told - untold).abs().max() > 1e-3
        seen: list[Tensor] = []
        embedder: Any = world.backbone.condition_embedder
        with embedder.register_forward_hook(lambda module, inputs, output: seen.append(output[0])):
            for size in (half, None):
                world.velocity_of(latents(), sigma, None, size)
        assert world.step is not None
        moved = world.step(half) - world.step(torch.zeros(2))
    torch.testing.assert_close(seen[0][:, 2:] - seen[1][:, 2:], moved[:, None].expand(-1, 4, -1), rtol=1e-4, atol=1e-5)
    assert torch.equal(seen[0][:, :2], seen[1][:, :2]), "context latents have no step"
    assert not world.backbone.condition_embedder.time_embedder._forward_hooks


def test_a_sampler_tells_the_step_sizes_that_were_learnt_and_the_mean_is_of_the_plain_flow() -> None:
    world, context, noise = wake_step(build(FEW)), latents()[:, :2], latents()[:, 2:]

    def made(**how: Any) -> Tensor:
        return world.forecast(context, states(), noise, sampling=FlowSampling(**how))

    def by_hand(steps: int, size: float) -> Tensor:
        def velocity_at(x: Tensor, sigma: float) -> Tensor:
            x = torch.cat([context, x], dim=1)
            return world.velocity_of(x, torch.full((2,), sigma), world.modulation(states()), torch.full((2,), size))

        with torch.no_grad():
            return integrate(velocity_at, noise, FlowSampling(steps=steps))

    for steps, size in ((1, 1.0), (2, 0.5), (4, 0.25), (3, 0.0)):
        assert torch.equal(made(steps=steps), by_hand(steps, size))
    assert torch.equal(made(steps=1, shortcuts=False), by_hand(1, 0.0))
    assert not torch.equal(made(steps=1), made(steps=1, shortcuts=False))


def test_guidance_interpolates_between_shortcuts_too() -> None:
    world, context, noise = wake_step(build(FEW)), latents()[:, :2], latents()[:, 2:]

    def at(guidance: float) -> Tensor:
        return world.forecast(context, states(), noise, sampling=FlowSampling(steps=1, guidance=guidance))

    torch.testing.assert_close(at(2.0), 2 * at(1.0) - at(0.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weighting", ["uniform", "bell"])
def test_the_loss_aims_at_two_half_steps_of_the_world_itself(weighting: Any) -> None:
    """Of two examples the first learns a shortcut, with weight 1, the other the plain flow."""
    config = replace(FEW, flow=FlowConfig(shortcut=0.5, weighting=weighting))
    world, x0 = wake_step(build(config)), latents()
    loss, figures = world.loss(batch(), torch.Generator().manual_seed(3))
    stream = torch.Generator().manual_seed(3)
    sigma, far = draw_shortcuts(config.flow, draw_sigma(config.flow, 2, stream), stream)
    noise = torch.randn(2, 4, 4, 4, 4, generator=stream)
    x, target = corrupt(x0[:, 2:], noise, sigma)

    def velocity_of(count: int, x: Tensor, sigma: Tensor, size: Tensor) -> Tensor:
        told = world.modulation(states())
        assert told is not None
        return world.velocity_of(torch.cat([x0[:count, :2], x], dim=1), sigma, told.first(count), size)

    shift = config.flow.shift
    target[:1] = shortcut_target(partial(velocity_of, 1), x[:1], sigma[:1], far.size, shift)
    with torch.no_grad():
        error = (velocity_of(2, x, sigma, far.told(2)) - target).square().flatten(1).mean(dim=1)
    expected = (error[0] + loss_weight(config.flow, sigma)[1] * error[1]) / 2
    torch.testing.assert_close(loss.detach(), expected)
    assert figures["shortcut_mse"] == pytest.approx(error[0].item(), rel=1e-4)
    assert figures["velocity_mse"] == pytest.approx(error[1].item(), rel=1e-4)


# --- adapters ---

ADAPTED = replace(CONFIG, lora=3)


def test_the_report_s_adapters_have_80_609_280_parameters() -> None:
    import peft

    with torch.device("meta"):
        backbone = BackboneConfig().build()
        backbone.add_adapter(peft.LoraConfig(r=32, lora_alpha=32, target_modules=list(LORA_TARGETS)))
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    assert len(trainable) == 600
    assert sum(p.numel() for p in trainable) == 80_609_280
    assert sum(p.numel() for p in backbone.parameters()) == 80_609_280 + 4_999_787_712


def test_adapters_train_in_fp32_on_a_frozen_bf16_backbone() -> None:
    torch.manual_seed(0)
    world = ADAPTED.build(backbone=BACKBONE.build(torch.bfloat16)).train()
    trainable = {name: p for name, p in world.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("states.") for name in trainable)
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    world.loss(batch(), torch.Generator().manual_seed(0))[0].backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for name, p in trainable.items() if "lora_B" in name)


def test_block_tables_train_when_asked() -> None:
    world = build(replace(ADAPTED, block_bias=True))
    extra = {name for name, p in world.named_parameters() if p.requires_grad and "scale_shift_table" in name}
    assert extra == {f"backbone.blocks.{i}.scale_shift_table" for i in range(2)}


def test_adapters_reload_bit_exactly_onto_the_base() -> None:
    torch.manual_seed(0)
    base = BACKBONE.build()
    world = wake(ADAPTED.build(backbone=copy.deepcopy(base)).eval())
    for name, parameter in world.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    saved = changing_state(world)
    assert not any("base_layer" in name for name in saved), "the frozen base is not saved"
    again = ADAPTED.build(backbone=copy.deepcopy(base)).eval()
    again.load_state_dict(saved, strict=False)
    context, noise, sampling = latents()[:, :2], latents()[:, 2:], FlowSampling(steps=2)
    forecast = world.forecast(context, states(), noise, sampling=sampling)
    assert torch.equal(forecast, again.forecast(context, states(), noise, sampling=sampling))


def test_impossible_requests_are_refused() -> None:
    world = build()
    with pytest.raises(UsageError, match="expected 6 latents"):
        world.loss(replace(batch(), latents=latents()[:, :5]), torch.Generator())
    with pytest.raises(UsageError, match="needs latents"):
        world.loss(replace(batch(), latents=None), torch.Generator())
    with pytest.raises(UsageError, match="4 latents from 2, not 4 from 3"):
        world.forecast(latents()[:, :3], states(), latents()[:, 2:], sampling=FlowSampling())
    with pytest.raises(UsageError, match=r"states 6 codes .*reads 5 of each"):
        build(replace(CONFIG, horizon_latents=3))
    with pytest.raises(UsageError, match="needs a null code"):
        build(replace(CONFIG, states=StateOptions(hidden=16), drop_states=0.1))
    with pytest.raises(UsageError, match="the prompt has 2 rows"):
        world.set_text(torch.zeros(2, 8))
