"""The spatio-temporal transformer: size, what may see what, caching, states, and the loss by hand."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders import SMALL_WORLD, TOKEN_GRID, small_world, token_batch
from tolerances import assert_tokens_agree, assert_values_agree
from torch import Tensor, nn

from worldline.checks import InvalidValue
from worldline.nn.fsq import FSQ
from worldline.nn.states import StateEncoder, align
from worldline.planning.meter import follow
from worldline.process.categorical import Sampling
from worldline.schema import Batch, TokenGrid, UsageError
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig

BLOCKS = TokenGrid(height=1, width=1, vocab_size=2)
UNCONDITIONAL = replace(SMALL_WORLD, unconditional=True)
ADALN = replace(SMALL_WORLD, conditioning="adaln")
DIRECT = replace(SMALL_WORLD, direct=True)
HALVES = (slice(0, 3), slice(3, 6))
WIDE = replace(SMALL_WORLD, context_grids=3, horizon_grids=6, width=8)


def _logits(world: STTransformer, tokens: Tensor, states: Tensor) -> Tensor:
    """Logits of the next grid at every input position, `b t s v`."""
    with torch.no_grad():
        return world.logits(world.hidden(tokens, world.state_codes(states)))


def _present(tokens: Tensor | None) -> Tensor:
    assert tokens is not None
    return tokens


# --- size and beginning ---


def test_the_reports_world_has_the_reports_size() -> None:
    with torch.device("meta"):
        world = STTransformerConfig().build()
    assert sum(p.numel() for p in world.parameters()) == 135_177_984
    assert sum(p.numel() for p in world.blocks.parameters()) == 100_909_056
    assert world.length == 5


def test_initialisation_is_the_documented_table() -> None:
    torch.manual_seed(0)
    world = replace(SMALL_WORLD, width=32).build(TokenGrid(height=8, width=8, vocab_size=200), 2)
    drawn = 0
    for name, parameter in world.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            drawn += 1
            spread = 4 * 0.02 / (2 * parameter.numel()) ** 0.5  # four standard errors of a standard deviation
            assert parameter.std().item() == pytest.approx(0.02, abs=spread), name
            assert parameter.mean().abs() < 4 * 0.02 / parameter.numel() ** 0.5, name
    assert drawn == 6 * 2 + 3 + 1 + 3  # blocks; state MLP and convolution; embedding; three tables of positions


def test_a_modulated_world_begins_as_one_that_knows_no_states() -> None:
    torch.manual_seed(0)
    modulated, batch = ADALN.build(TOKEN_GRID, 2).eval(), token_batch()
    unconditional = UNCONDITIONAL.build(TOKEN_GRID, 2).eval()
    unconditional.load_state_dict(
        {k: v for k, v in modulated.state_dict().items() if k in unconditional.state_dict()}, strict=True
    )
    tokens = _present(batch.tokens)[:, :5]
    assert_values_agree(_logits(modulated, tokens, batch.states), _logits(unconditional, tokens, batch.states))
    modulated.loss(batch, torch.Generator())[0].backward()
    for block in modulated.blocks:
        weight = block.get_submodule("modulation").get_parameter("weight")
        assert weight.grad is not None
        assert (weight.grad != 0).any()


def test_words_with_near_codes_begin_near() -> None:
    """Inner products of random Fourier features are a Gaussian of the distance (Rahimi & Recht 2007)."""
    torch.manual_seed(0)
    config = replace(SMALL_WORLD, code_levels=(8, 8), width=1024, heads=1, layers=1)
    words = config.build(replace(TOKEN_GRID, vocab_size=64), 2).embedding.weight.detach()
    alike = F.cosine_similarity(words[None], words[:, None], dim=-1)
    codes = FSQ((8, 8)).codebook
    distance = torch.cdist(codes, codes)
    noise = 0.5**2 / (0.5**2 + 2**2)  # the share of the words' own draw in their variance
    expected = torch.where(distance == 0, 1.0, (1 - noise) * torch.exp(-((2 * distance) ** 2) / 2))
    torch.testing.assert_close(alike, expected, rtol=0, atol=0.15)


def test_code_levels_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(UsageError, match=r"make 64 tokens, but the tokens have 63.*--model\.code-levels"):
        replace(SMALL_WORLD, code_levels=(8, 8)).build(replace(TOKEN_GRID, vocab_size=63), 2)


def test_input_and_output_embedding_are_one() -> None:
    world = small_world()
    shapes = [tuple(p.shape) for p in world.parameters()]
    assert shapes.count((TOKEN_GRID.vocab_size, SMALL_WORLD.width)) == 1
    features = torch.eye(SMALL_WORLD.width)
    assert_values_agree(world.logits(features), world.embedding.weight.T)


# --- what may see what ---


@pytest.mark.parametrize("changed", range(5))
def test_no_grid_sees_a_later_grid(changed: int) -> None:
    world, batch = small_world(), token_batch()
    tokens = _present(batch.tokens)[:, :5]
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % TOKEN_GRID.vocab_size
    before, after = _logits(world, tokens, batch.states), _logits(world, other, batch.states)
    assert torch.equal(before[:, :changed], after[:, :changed])
    for later in range(changed, 5):
        assert not torch.equal(before[:, later], after[:, later])


@pytest.mark.parametrize("config", [SMALL_WORLD, ADALN])
@pytest.mark.parametrize("changed", range(6))
def test_a_grid_sees_states_up_to_the_next_grids(changed: int, config: STTransformerConfig) -> None:
    """The convolution hands position t the states of latents t-1 .. t+1; causal attention adds those before."""
    world, batch = small_world(config), token_batch()
    tokens, states = _present(batch.tokens)[:, :5], batch.states.clone()
    first, last = _owned_frames(changed)
    states[:, first : last + 1] += 1
    before, after = _logits(world, tokens, batch.states), _logits(world, tokens, states)
    start = max(0, changed - 1)
    assert torch.equal(before[:, :start], after[:, :start])
    assert not torch.equal(before[:, start], after[:, start])


@pytest.mark.parametrize("changed", range(6))
def test_states_reach_their_own_and_the_adjacent_latents_only(changed: int) -> None:
    world, batch = small_world(), token_batch()
    states = batch.states.clone()
    first, last = _owned_frames(changed)
    states[:, first : last + 1] += 1
    assert isinstance(world.states, StateEncoder)
    before, after = world.states(batch.states), world.states(states)
    moved = [t for t in range(6) if not torch.equal(before[:, t], after[:, t])]
    assert moved == [t for t in (changed - 1, changed, changed + 1) if 0 <= t < 6]


def test_every_position_of_a_grid_sees_every_other() -> None:
    world, batch = small_world(), token_batch(size=1)
    tokens = _present(batch.tokens)[:, :1]
    other = tokens.clone()
    other[0, 0, 0, 0] = (other[0, 0, 0, 0] + 1) % TOKEN_GRID.vocab_size
    before, after = _logits(world, tokens, batch.states), _logits(world, other, batch.states)
    assert (before != after).any(dim=-1).all()


def test_a_blind_world_ignores_the_states() -> None:
    world, batch = small_world(UNCONDITIONAL), token_batch()
    tokens = _present(batch.tokens)
    nonsense = torch.full((2, 1, 99), torch.nan)  # neither values, nor rows, nor dimensions matter
    assert world.state_codes(nonsense) is None
    assert not any("states" in name for name, _ in world.named_parameters())
    seeing = [step.logits for step in world.forecast(tokens[:, :3], batch.states, sampling=Sampling())]
    not_seeing = [step.logits for step in world.forecast(tokens[:, :3], nonsense, sampling=Sampling())]
    assert torch.equal(torch.stack(seeing), torch.stack(not_seeing))


# --- loss ---


def test_loss_is_the_cross_entropy_of_the_future_grids_by_hand() -> None:
    world, batch = small_world(), token_batch()
    tokens = _present(batch.tokens)
    logits = _logits(world, tokens[:, :-1], batch.states)
    expected = torch.stack(
        [F.cross_entropy(logits[:, t].flatten(0, 1), tokens[:, t + 1].flatten()) for t in (2, 3, 4)]
    ).mean()
    loss, _ = world.loss(batch, torch.Generator())
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("chunk", [1, 5, 8192])
def test_the_chunk_of_the_loss_changes_nothing(chunk: int) -> None:
    batch = token_batch()
    expected, _ = small_world().loss(batch, torch.Generator())
    found, _ = small_world(replace(SMALL_WORLD, loss_chunk=chunk)).loss(batch, torch.Generator())
    torch.testing.assert_close(found, expected)


def test_predicting_the_context_is_not_rewarded() -> None:
    """Grids 1 and 2 are predicted at positions 0 and 1: no gradient comes from there."""
    world, batch = small_world(), token_batch()
    seen: list[Tensor] = []

    def watch(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    world.norm.register_forward_hook(watch)
    world.loss(batch, torch.Generator())[0].backward()
    gradient = seen[0].grad
    assert gradient is not None
    assert (gradient[:, :2] == 0).all()
    assert (gradient[:, 2:] != 0).any(dim=(0, 2, 3)).all()


def test_teacher_forced_logits_are_those_of_the_loss() -> None:
    world, batch = small_world(), token_batch()
    tokens = _present(batch.tokens)
    steps = list(world.teacher_forced(tokens, batch.states))
    costs = [F.cross_entropy(step.logits.flatten(0, 2), tokens[:, 3 + i].flatten()) for i, step in enumerate(steps)]
    assert len(steps) == 3
    torch.testing.assert_close(torch.stack(costs).mean(), world.loss(batch, torch.Generator())[0])
    for step in steps:
        assert torch.equal(step.tokens, step.logits.argmax(dim=-1))


def test_dropout_acts_in_training_and_is_off_in_evaluation() -> None:
    world, batch = small_world(replace(SMALL_WORLD, dropout=0.5)), token_batch()
    plain = small_world().loss(batch, torch.Generator())[0]
    assert torch.equal(world.loss(batch, torch.Generator())[0], plain)
    world.train()
    torch.manual_seed(0)
    one, two = world.loss(batch, torch.Generator())[0], world.loss(batch, torch.Generator())[0]
    assert one != two
    assert one != plain


def test_scheduled_sampling_feeds_the_world_its_own_guesses() -> None:
    batch = token_batch()
    forced = small_world().loss(batch, torch.Generator().manual_seed(0))[0]
    world = small_world(replace(SMALL_WORLD, scheduled_sampling=1.0, loss_chunk=5)).train()
    found = world.loss(batch, torch.Generator().manual_seed(0))[0]
    # By hand: grids 3 and 4 of the input give way to the guesses that the true grids before them lead to.
    tokens = _present(batch.tokens)
    guesses = torch.stack([step.tokens for step in small_world().teacher_forced(tokens, batch.states)], dim=1)
    inputs = torch.cat([tokens[:, :3], guesses[:, :2]], dim=1)
    logits = _logits(small_world(), inputs, batch.states)[:, 2:]
    torch.testing.assert_close(found, F.cross_entropy(logits.flatten(0, 2), tokens[:, 3:].flatten()))
    assert found != forced


def test_scheduled_sampling_acts_in_training_alone() -> None:
    world, batch = small_world(replace(SMALL_WORLD, scheduled_sampling=1.0)), token_batch()
    forced, figures = small_world().loss(batch, torch.Generator())
    assert torch.equal(world.loss(batch, torch.Generator())[0], forced)
    assert figures == world.loss(batch, torch.Generator())[1] == {}
    assert world.train().loss(batch, torch.Generator())[1] == {"scheduled_sampling": 1.0}


def test_scheduled_sampling_rises_over_its_share_of_the_training() -> None:
    config = replace(SMALL_WORLD, scheduled_sampling=0.8, scheduled_sampling_rise=0.5)
    world, batch = small_world(config).train(), token_batch()
    for progress, expected in ((0.0, 0.0), (0.25, 0.4), (0.5, 0.8), (1.0, 0.8)):
        world.progress = progress
        assert world.loss(batch, torch.Generator())[1] == {"scheduled_sampling": pytest.approx(expected)}
    world.progress = 0.0
    forced = small_world().loss(batch, torch.Generator())[0]
    assert torch.equal(world.loss(batch, torch.Generator())[0], forced)


def test_scheduled_sampling_holds_no_more_logits_than_the_loss_does() -> None:
    config, grid = replace(SMALL_WORLD, scheduled_sampling=0.5, loss_chunk=4), replace(TOKEN_GRID, vocab_size=5000)
    world, batch = small_world(config, grid=grid).train(), token_batch(config, size=8, grid=grid)
    peaks = [
        follow(
            lambda share=share: replaced(world, share).loss(batch, torch.Generator())[0],
            [*world.parameters(), *world.buffers()],
            autocast=False,
            device="cpu",
        ).peak
        for share in (0.0, 0.5)
    ]
    assert peaks[1] < peaks[0] + 4 * config.loss_chunk * grid.vocab_size


def replaced(world: STTransformer, share: float) -> STTransformer:
    world.config = replace(world.config, scheduled_sampling=share)
    return world


def test_scheduled_sampling_is_decided_by_the_generator() -> None:
    world, batch = small_world(replace(SMALL_WORLD, scheduled_sampling=0.5)).train(), token_batch(size=4)
    one, same, other = (world.loss(batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert one == same != other


# --- forecast ---


def _rollout(world: STTransformer, context: Tensor, states: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    steps = list(world.forecast(context, states, **options))
    return torch.stack([s.tokens for s in steps], dim=1), torch.stack([s.logits for s in steps], dim=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("config", [SMALL_WORLD, UNCONDITIONAL, WIDE, ADALN])
def test_cached_and_uncached_forecasts_are_those_of_teacher_forcing(
    config: STTransformerConfig, temperature: float
) -> None:
    world, batch = small_world(config), token_batch(config, rows=51)
    context, sampling = _present(batch.tokens)[:, :3], Sampling(temperature=temperature)
    fast, slow = (
        _rollout(
            world,
            context,
            batch.states,
            sampling=sampling,
            generators=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
            cached=cached,
        )
        for cached in (True, False)
    )
    assert fast[0].shape == (2, config.horizon_grids, 2, 2)
    assert_tokens_agree(fast[0][:, 0], slow[0][:, 0])
    # Each by its own tokens: a near tie in one grid may send the two ways apart.
    for tokens, logits in (fast, slow):
        forced = world.teacher_forced(torch.cat([context, tokens], dim=1), batch.states)
        assert_values_agree(logits, torch.stack([step.logits for step in forced], dim=1))


def test_forecast_starts_as_teacher_forcing_and_then_follows_itself() -> None:
    world, batch = small_world(), token_batch()
    tokens = _present(batch.tokens)
    guessed, logits = _rollout(world, tokens[:, :3], batch.states, sampling=Sampling())
    forced = list(world.teacher_forced(tokens, batch.states))
    assert_values_agree(logits[:, 0], forced[0].logits)
    own = torch.cat([tokens[:, :3], guessed], dim=1)
    for index, step in enumerate(world.teacher_forced(own, batch.states)):
        assert_values_agree(logits[:, index], step.logits)
    assert not torch.allclose(logits[:, 1], forced[1].logits)


def test_a_clips_forecast_depends_on_its_batch_by_rounding_alone() -> None:
    world, batch = small_world(), token_batch(size=5)
    context = _present(batch.tokens)[:, :3]
    tokens, logits = _rollout(world, context, batch.states, sampling=Sampling())
    clips = [_rollout(world, context[i : i + 1], batch.states[i : i + 1], sampling=Sampling()) for i in range(5)]
    alone, alone_logits = (torch.cat(part) for part in zip(*clips, strict=True))
    assert_tokens_agree(tokens[:, 0], alone[:, 0])
    same = (tokens == alone).flatten(1).all(dim=1)
    assert same.sum() >= 4, "a near tie may send one clip another way"
    assert_values_agree(logits[same], alone_logits[same])


def test_sampled_forecasts_differ_by_seed_only() -> None:
    world, batch = small_world(), token_batch()
    context = _present(batch.tokens)[:, :3]
    one, same, other = (
        _rollout(
            world,
            context,
            batch.states,
            sampling=Sampling(temperature=1.0),
            generators=[torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)],
        )[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- all future grids at once ---


@pytest.mark.parametrize("config", [DIRECT, replace(ADALN, direct=True), replace(DIRECT, horizon_grids=6)])
def test_a_direct_world_sees_nothing_of_the_true_future(config: STTransformerConfig) -> None:
    """Another future costs otherwise, by what was predicted without it."""
    world, batch = small_world(config), token_batch(config, rows=51)
    tokens = _present(batch.tokens)
    other = torch.cat([tokens[:, :3], (tokens[:, 3:] + 1) % TOKEN_GRID.vocab_size], dim=1)
    guessed, logits = _rollout(world, tokens[:, :3], batch.states, sampling=Sampling())
    assert guessed.shape == (2, config.horizon_grids, 2, 2)
    for future in (tokens, other):
        forced = torch.stack([step.logits for step in world.teacher_forced(future, batch.states)], dim=1)
        assert torch.equal(forced, logits)
        found, figures = world.loss(replace(batch, tokens=future), torch.Generator())
        torch.testing.assert_close(found, F.cross_entropy(logits.flatten(0, 3), future[:, 3:].flatten()))
        assert figures == {}


def test_in_a_direct_world_every_future_grid_sees_all_of_the_context_and_all_states() -> None:
    world, batch = small_world(DIRECT), token_batch()
    context = _present(batch.tokens)[:, :3]
    before = _rollout(world, context, batch.states, sampling=Sampling())[1]
    for grid in range(3):
        other = context.clone()
        other[:, grid] = (other[:, grid] + 1) % TOKEN_GRID.vocab_size
        after = _rollout(world, other, batch.states, sampling=Sampling())[1]
        assert (after != before).any(dim=-1).all()
    states = batch.states.clone()
    states[:, 26:] += 1  # of the last grid: its place is seen by the others
    after = _rollout(world, context, states, sampling=Sampling())[1]
    assert (after != before).any(dim=-1).all()


def test_a_direct_forecast_is_one_pass_whatever_its_tokens_are() -> None:
    world, batch = small_world(DIRECT), token_batch()
    context, passes = _present(batch.tokens)[:, :3], []
    world.norm.register_forward_hook(lambda *_: passes.append(1))
    greedy, logits = _rollout(world, context, batch.states, sampling=Sampling())
    assert len(passes) == 1
    drawing = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    drawn = []
    for step in world.forecast(context, batch.states, sampling=Sampling(temperature=1.0), generators=drawing):
        drawn.append((step.tokens.clone(), step.logits))
        step.tokens.zero_()  # as an ensemble writes into it
    assert torch.equal(torch.stack([one for _, one in drawn], dim=1), logits)
    assert not torch.equal(torch.stack([tokens for tokens, _ in drawn], dim=1), greedy)


def test_both_ways_have_the_same_weights() -> None:
    direct, first = small_world(DIRECT), small_world(seed=1)
    first.load_state_dict(direct.state_dict(), strict=True)
    batch = token_batch()
    ways = [
        _rollout(world, _present(batch.tokens)[:, :3], batch.states, sampling=Sampling())[1]
        for world in (direct, first)
    ]
    assert not torch.allclose(*ways)


def test_a_direct_world_learns_futures_that_its_states_say() -> None:
    """Of one batch, well below what the frequencies of its tokens give."""
    torch.manual_seed(0)
    world, batch = replace(DIRECT, init_std=0.1).build(TOKEN_GRID, 2).train(), token_batch(size=8)
    optimizer = torch.optim.Adam(world.parameters(), lr=1e-2)
    for _ in range(60):
        loss = world.loss(batch, torch.Generator())[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.2


# --- how sure it is ---


@pytest.mark.parametrize("config", [SMALL_WORLD, DIRECT])
def test_a_calibrated_world_is_as_sure_as_costs_least(config: STTransformerConfig) -> None:
    """Of drawn tokens nothing can be said: least of all is best. Where it knows them, most of all is."""
    world, plain = small_world(replace(config, calibrated=True)), small_world(config)
    batch = token_batch(size=6)
    context = _present(batch.tokens)[:, :3]
    guessed, logits = _rollout(plain, context, batch.states, sampling=Sampling())
    assert torch.equal(_rollout(world, context, batch.states, sampling=Sampling())[1], logits), "not measured yet"
    own = torch.cat([context, guessed], dim=1)
    world.calibrate(replace(batch, tokens=own[half], states=batch.states[half]) for half in HALVES)
    assert world.sharpness.tolist() == pytest.approx([2.0] * 3)
    world.calibrate([batch])
    assert (world.sharpness < 1).all()
    for grid, step in enumerate(world.forecast(context, batch.states, sampling=Sampling())):
        assert torch.equal(step.tokens, guessed[:, grid]), "no token is another one"
        assert_values_agree(step.logits, logits[:, grid])
        assert_values_agree(step.said, logits[:, grid] * world.sharpness[grid])


# --- requests that do not fit ---


def test_rows_behind_those_needed_are_ignored() -> None:
    """The challenge's test files hold 64 rows of states for 34 frames."""
    world, batch = small_world(), token_batch(rows=64)
    short = replace(batch, states=batch.states[:, :34])
    assert_values_agree(world.loss(batch, torch.Generator())[0], world.loss(short, torch.Generator())[0])


def test_too_few_rows_of_states_are_refused() -> None:
    with pytest.raises(UsageError, match="34 states of 2 dimensions, but 33 of 2"):
        small_world().loss(token_batch(rows=33), torch.Generator())


def _with_tokens(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return replace(batch, tokens=change(_present(batch.tokens)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: replace(batch, states=batch.states[..., :1]), "states of 2 dimensions, but 34 of 1 were"),
        (lambda batch: _with_tokens(batch, lambda x: x[..., :1]), r"grids of 2x2.* 2x1"),
        (lambda batch: _with_tokens(batch, lambda x: x[:, :5]), r"expected 6 token grids.*found 5"),
        (lambda batch: replace(batch, tokens=None), "tokenize the source first"),
    ],
    ids=["states", "grid", "grids", "none"],
)
def test_a_batch_that_does_not_fit_says_both_numbers(change: Callable[[Batch], Batch], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small_world().loss(change(token_batch()), torch.Generator())


def test_a_forecast_of_another_context_says_both_numbers() -> None:
    world, batch = small_world(), token_batch()
    tokens = _present(batch.tokens)
    with pytest.raises(UsageError, match="expected 3 token grids of context, found 2"):
        list(world.forecast(tokens[:, :2], batch.states, sampling=Sampling()))
    with pytest.raises(UsageError, match=r"expected 6 token grids.*found 4"):
        list(world.teacher_forced(tokens[:, :4], batch.states))
    with pytest.raises(UsageError, match="34 states of 2 dimensions, but 34 of 5 were"):
        list(world.forecast(tokens[:, :3], torch.zeros(2, 34, 5), sampling=Sampling()))


def test_a_width_that_does_not_divide_into_heads_is_refused() -> None:
    with pytest.raises(InvalidValue, match="heads is 3, but must be a divisor of the width 16"):
        replace(SMALL_WORLD, heads=3)


# --- states ---


def _owned_frames(latent: int) -> tuple[int, int]:
    """First and last frame of a latent, in blocks of 17: 0, 1-8, 9-16, 17, 18-25, 26-33."""
    block, within = divmod(latent, 3)
    return 17 * block + max(0, 8 * within - 7), 17 * block + 8 * within


def test_latents_own_the_frames_they_encode() -> None:
    rows = torch.arange(34.0).view(1, 34, 1)
    owned = align(rows, BLOCKS, "all")
    assert owned.shape == (1, 6, 8)
    expected = [[0] * 8, list(range(1, 9)), list(range(9, 17)), [17] * 8, list(range(18, 26)), list(range(26, 34))]
    assert owned[0].tolist() == expected


def test_pooling_keeps_the_mean_or_the_last_of_them() -> None:
    rows = torch.stack([torch.arange(34.0), 100 - torch.arange(34.0)], dim=-1)[None]
    mean = align(rows, BLOCKS, "mean")
    last = align(rows, BLOCKS, "last")
    assert mean[0, :, 0].tolist() == [0, 4.5, 12.5, 17, 21.5, 29.5]
    assert last[0, :, 0].tolist() == [0, 8, 16, 17, 25, 33]
    assert last[0, :, 1].tolist() == [100, 92, 84, 83, 75, 67]


def test_all_keeps_rows_whole() -> None:
    rows = torch.stack([torch.arange(17.0), 100 + torch.arange(17.0)], dim=-1)[None]
    owned = align(rows, BLOCKS, "all")
    assert owned[0, 1].tolist() == [x for i in range(1, 9) for x in (i, 100 + i)]


def test_other_strides() -> None:
    owned = align(torch.arange(9.0).view(1, 9, 1), replace(BLOCKS, block=9, temporal_stride=4), "all")
    assert owned[0].tolist() == [[0] * 4, [1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("pooling", ["all", "mean", "last"])
def test_statistics_make_units_irrelevant_and_travel_with_the_weights(pooling: Any) -> None:
    build = partial(StateEncoder, BLOCKS, num_latents=6, state_dim=3, hidden=8, width=4, pooling=pooling)
    torch.manual_seed(0)
    encoder, states = build(), torch.randn(2, 34, 3)
    mean, std = torch.tensor([5.0, -2.0, 7.0]), torch.tensor([10.0, 0.1, 0.0])
    expected = encoder(states * torch.tensor([1.0, 1.0, 0.0]))
    encoder.set_statistics(mean, std)
    raw = states * std + mean  # the third dimension stands still: it is centred, not divided by zero
    torch.testing.assert_close(encoder(raw), expected, atol=1e-5, rtol=1e-4)
    other = build()
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(raw), encoder(raw))
