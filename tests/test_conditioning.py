"""How states enter: every way, alone and beside a map, in both tracks; and that the map is where the robot will be."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from builders import SMALL_WORLD, TOKEN_GRID, randomise, token_batch, write_squares
from latent_builders import SMALL_WAN
from run_builders import run_of
from test_kinematics import ARM
from tolerances import assert_values_agree
from torch import Tensor, nn

import worldline
from worldline.builtin import TWIN_MINI_TRAIN, TWIN_TABLE
from worldline.contract import ModelConfig
from worldline.data.clips import open_split
from worldline.families import load
from worldline.families.family import initialise
from worldline.families.load import load_world, prepare
from worldline.nn.attention import CrossAttention
from worldline.nn.conditioning import Conditioning, Drawn, vector_of
from worldline.nn.kinematics import Hinge, Skeleton
from worldline.process.categorical import Sampling
from worldline.process.flow import FlowSampling
from worldline.recipes import RECIPES
from worldline.rundir import from_json, to_json
from worldline.schema import Batch, LatentGrid, Origin, TokenGrid, UsageError
from worldline.training.loop import train
from worldline.twin.skeleton import twin_skeleton, unseen_view
from worldline.worlds.causal import CausalConfig
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig
from worldline.worlds.wan import WanConfig, WanWorld

NAMES = ("elbow", "gripper")
JOINED = replace(ARM.links[1], hinges=(Hinge(state="elbow", axis=(0.0, 0.0, 1.0)),))
SKELETON = Skeleton(links=(ARM.links[0], JOINED), points=ARM.points, camera=ARM.camera)
"""`ARM` of a robot with the states of the small worlds."""
KINDS = ("angle", "binary")
LATENTS = LatentGrid(channels=4, height=4, width=4)
WAYS: tuple[Conditioning, ...] = get_args(Conditioning)
every = pytest.mark.parametrize("way", WAYS)


def over_tokens(way: Conditioning, *, begun: bool = False, grid: TokenGrid = TOKEN_GRID) -> STTransformer:
    torch.manual_seed(0)
    world = replace(SMALL_WORLD, conditioning=way, skeleton=SKELETON).build(grid, 2, NAMES)
    if not begun:
        randomise(world)
    return world.eval()


def over_latents(way: Conditioning, *, begun: bool = False, **changes: bool) -> WanWorld:
    pytest.importorskip("diffusers", reason="needs the extra `wan`")
    torch.manual_seed(0)
    config = replace(SMALL_WAN, conditioning=way, skeleton=SKELETON, **changes)
    world = config.build(KINDS, names=NAMES, grid=LATENTS)
    if not begun:
        randomise(world, std=0.1)
    return world.eval()


def window(batch: int = 2) -> Tensor:
    return torch.randn(batch, 77, 2, generator=torch.Generator().manual_seed(2))


def latents(batch: int = 2) -> Tensor:
    return torch.randn(batch, 6, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def velocity(world: WanWorld, states: Tensor, dropped: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return world.velocity_of(latents(), torch.tensor([0.3, 0.8]), world.modulation(states, dropped))


def logits(world: STTransformer, states: Tensor) -> Tensor:
    tokens = token_batch().tokens
    assert tokens is not None
    with torch.no_grad():
        return world.logits(world.hidden(tokens[:, :5], world.state_codes(states)))


# --- over token grids ---


@every
def test_a_grid_is_predicted_from_states_up_to_its_own(way: Conditioning) -> None:
    """And its own do reach it: that is what following the robot is."""
    world, states = over_tokens(way), token_batch().states
    later = states.clone()
    later[:, 18:] += 1  # of grids 4 and 5; grid 3 begins the second block
    before, after = logits(world, states), logits(world, later)
    assert torch.equal(before[:, :3], after[:, :3])  # outputs 0, 1, 2 predict grids 1, 2, 3
    assert not torch.equal(before[:, 3], after[:, 3])


@every
def test_with_and_without_a_cache_the_forecast_is_one(way: Conditioning) -> None:
    world, batch = over_tokens(way), token_batch()
    assert batch.tokens is not None
    context = batch.tokens[:, :3]
    found = [
        torch.stack([step.logits for step in world.forecast(context, batch.states, sampling=Sampling(), cached=cached)])
        for cached in (True, False)
    ]
    assert_values_agree(*found)


@every
def test_a_direct_world_is_told_every_grid_in_the_same_way(way: Conditioning) -> None:
    torch.manual_seed(0)
    world = replace(SMALL_WORLD, conditioning=way, skeleton=SKELETON, direct=True).build(TOKEN_GRID, 2, NAMES).eval()
    randomise(world)
    batch = token_batch()
    assert batch.tokens is not None
    one, other = (
        torch.stack([step.logits for step in world.forecast(batch.tokens[:, :3], states, sampling=Sampling())])
        for states in (batch.states, batch.states + 1)
    )
    assert (one != other).flatten(2).any(dim=2).all()


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("add+") and way != "add"])
def test_what_is_not_added_as_a_vector_is_nothing_at_first_and_is_learnt(way: Conditioning) -> None:
    world, batch = over_tokens(way, begun=True), token_batch()
    assert torch.equal(logits(world, batch.states), logits(world, batch.states + 1))
    world.loss(batch, torch.Generator())[0].backward()
    last = {"adaln": "modulation.weight", "cross_attention": "attention.out.weight", "map": "places.read.weight"}
    for part in way.split("+"):
        learnt = [p.grad for name, p in world.named_parameters() if name.endswith(last[part])]
        assert len(learnt) == (1 if part == "map" else SMALL_WORLD.layers)
        assert all(gradient is not None and gradient.any() for gradient in learnt)


def test_the_ways_with_a_map_are_the_way_and_the_map() -> None:
    batch = token_batch()
    both, vector, places = (over_tokens(way).state_codes(batch.states) for way in ("add+map", "add", "map"))
    assert both is not None
    assert vector is not None
    assert places is not None
    assert both.added is not None
    assert both.added.shape == (2, 6, 4, SMALL_WORLD.width)
    torch.manual_seed(0)
    together = over_tokens("add+map")
    assert together.states is not None
    assert together.places is not None
    alone = together.states.told(batch.states).added
    assert alone is not None
    together.places.read.weight.data.zero_()
    together.places.read.bias.data.zero_()
    told = together.state_codes(batch.states)
    assert told is not None
    assert told.added is not None
    assert_values_agree(told.added, alone.expand(-1, -1, 4, -1))


def test_a_grid_is_shown_where_the_robot_will_be_in_the_next() -> None:
    """The elbow turns a quarter from the fourth grid on: the third is shown the hand above, where the fourth has it."""
    grid = replace(TOKEN_GRID, height=8, width=8)
    world = over_tokens("map", grid=grid)
    assert world.places is not None
    read = world.places.read
    read.weight.data.zero_()
    read.weight.data[0, ::2] = 1.0  # the spots of all frames of a grid, added up
    read.bias.data.zero_()
    states = torch.zeros(1, 34, 2)
    states[:, 17:, 0] = math.pi / 2
    told = world.state_codes(states)
    assert told is not None
    assert told.added is not None
    shown = [divmod(int(one.argmax()), 8) for one in told.added[0, :, :, 0]]
    right = [(row, column) for row in (3, 4) for column in (5, 6)]  # half way to the edge, where two positions meet
    above = [(row, column) for row in (1, 2) for column in (3, 4)]
    assert all(place in right for place in shown[:2])
    assert all(place in above for place in shown[2:])


# --- over latents ---


@every
def test_no_way_changes_the_backbone_at_step_0(way: Conditioning) -> None:
    world = over_latents(way, begun=True)
    plain = velocity(replace_world(world), window())
    assert torch.equal(velocity(world, window()), plain)


def replace_world(world: WanWorld) -> WanWorld:
    """The same backbone in a world that is told nothing."""
    config = replace(world.config, conditioning="adaln", unconditional=True, drop_states=0.0)
    other = config.build(KINDS)
    own = world.backbone.state_dict()
    other.backbone.load_state_dict(own)
    return other.eval()


@every
def test_states_speak_once_it_has_learnt(way: Conditioning) -> None:
    world, states = over_latents(way), window()
    assert not torch.equal(velocity(world, states), velocity(world, states + 0.5))
    gone = torch.ones(2, dtype=torch.bool)
    assert torch.equal(velocity(world, states, gone), velocity(world, states + 0.5, gone)), "of dropped states"
    how = FlowSampling(steps=2, guidance=2.0)
    forecast = world.forecast(latents()[:, :2], states, latents()[:, 2:], sampling=how)
    assert forecast.isfinite().all()


def test_a_latent_frame_is_shown_its_own_frames_alone() -> None:
    """Latent 0 is of frame 0; latent 1 of the next four frames that are taken."""
    world, states = over_latents("map"), window()
    changed = states.clone()
    changed[:, list(world.pattern.frames[1:5])] += 1
    before, after = world.modulation(states), world.modulation(changed)
    assert before is not None
    assert after is not None
    assert before.added is not None
    assert after.added is not None
    moved = [bool((before.added[:, i] != after.added[:, i]).any()) for i in range(6)]
    assert moved == [False, True, False, False, False, False]


def test_cross_attention_reads_the_states_of_its_own_latent_frame() -> None:
    world = over_latents("cross_attention")
    told = world.modulation(window())
    assert told is not None
    assert told.tokens is not None
    other = replace(told, tokens=told.tokens.clone())
    assert other.tokens is not None
    other.tokens[:, 5] += 1.0
    reads: list[Tensor] = []
    reader = next(m for m in world.readers if isinstance(m, CrossAttention))

    def watch(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        reads.append(output)

    reader.register_forward_hook(watch)
    for one in (told, other):
        with torch.no_grad():
            world.velocity_of(latents(), torch.tensor([0.3, 0.8]), one)
    before, after = (read.unflatten(0, (2, 6)) for read in reads)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


@pytest.mark.parametrize("way", ["cross_attention", "adaln+map"])
def test_gradient_checkpointing_changes_no_gradient(way: Conditioning) -> None:
    found: list[dict[str, Tensor]] = []
    origins = tuple(Origin(source="made up", episode=i, start=0) for i in range(2))
    batch = Batch(states=window(), fps=7.5, origins=origins, latents=latents())
    for on in (False, True):
        world = over_latents(way, gradient_checkpointing=on).train()
        losses = [world.loss(batch, torch.Generator().manual_seed(i))[0] for i in range(2)]
        torch.stack(losses).sum().backward()
        found.append({})
        for name, parameter in world.named_parameters():
            if parameter.grad is not None:
                found[-1][name] = parameter.grad
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_values_agree(found[1][name], gradient)


# --- what cannot be, and files ---


@pytest.mark.parametrize("config", [STTransformerConfig, WanConfig])
@every
def test_a_map_needs_a_skeleton(config: type[STTransformerConfig | WanConfig], way: Conditioning) -> None:
    if way.endswith("map"):
        with pytest.raises(UsageError, match=r"needs its skeleton.*compression_tiny.*model\.skeleton"):
            config(conditioning=way)
    else:
        config(conditioning=way)


@pytest.mark.parametrize("unconditional", [False, True])
@every
def test_a_configuration_says_whether_its_world_draws_a_map(way: Conditioning, unconditional: bool) -> None:
    changes: dict[str, Any] = {"conditioning": way, "skeleton": SKELETON, "unconditional": unconditional}
    expected = way.endswith("map") and not unconditional
    tokens, latents = replace(SMALL_WORLD, **changes), replace(SMALL_WAN, **changes)
    assert tokens.draws_map == latents.draws_map == expected
    assert (tokens.build(TOKEN_GRID, 2, NAMES).places is not None) == expected
    assert (over_latents(way, unconditional=unconditional).places is not None) == expected


@pytest.mark.parametrize("unconditional", [False, True])
@pytest.mark.parametrize("skeleton", [None, SKELETON])
def test_a_causal_world_draws_a_map_of_the_skeleton_that_it_has(skeleton: Skeleton | None, unconditional: bool) -> None:
    config = CausalConfig(width=16, heads=2, layers=1, skeleton=skeleton, unconditional=unconditional)
    world = config.build(TokenGrid(height=4, width=4, vocab_size=4096, block=1, temporal_stride=1), NAMES)
    expected = skeleton is not None and not unconditional
    assert config.draws_map == (world.drawn is not None) == expected


def test_training_data_are_opened_once_to_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_squares(tmp_path / "raw", 2, length=68)
    write_squares(tmp_path / "val", 1, length=68, first=50)
    config = run_of(tmp_path / "raw", "tokens", window_stride=17, val_path=tmp_path / "val")
    opened = []
    monkeypatch.setattr(load, "open_split", lambda data, split: opened.append(split) or open_split(data, split))
    prepare(replace(config, model=replace(SMALL_WORLD, conditioning="map", skeleton=SKELETON)))
    assert opened.count("train") == 1


def test_what_draws_a_map_is_no_field_of_a_file() -> None:
    for config in (replace(SMALL_WORLD, conditioning="map", skeleton=SKELETON), RECIPES["tokenizer_tiny"]().model):
        content = to_json(ModelConfig, config)
        assert "draws_map" not in content
        assert from_json(ModelConfig, content, Path("model.json")) == config
    assert not RECIPES["tokenizer_tiny"]().model.draws_map


def test_a_map_of_another_robot_or_of_no_square_is_refused() -> None:
    config = replace(SMALL_WORLD, conditioning="map", skeleton=SKELETON)
    with pytest.raises(UsageError, match="no state elbow"):
        config.build(TOKEN_GRID, 2, ("knee", "gripper"))
    with pytest.raises(UsageError, match=r"square pictures only, and these are 2 to 3.*--model\.conditioning"):
        config.build(replace(TOKEN_GRID, width=3), 2, NAMES)
    with pytest.raises(UsageError, match="reads 34 states of 2 dimensions, but 30 of 2 were given"):
        config.build(TOKEN_GRID, 2, NAMES).state_codes(torch.zeros(1, 30, 2))


@pytest.mark.parametrize("way", ["cross_attention+map", "map"])
def test_a_run_keeps_the_way_and_the_skeleton(way: Conditioning, tmp_path: Path) -> None:
    write_squares(tmp_path / "raw", 2, length=68)
    write_squares(tmp_path / "val", 1, length=68, first=50)
    config = run_of(tmp_path / "raw", "tokens", window_stride=17, val_path=tmp_path / "val")
    model = replace(SMALL_WORLD, conditioning=way, skeleton=SKELETON, normalise_states=True)
    train(replace(config, model=model), tmp_path / "run")
    world, card = load_world(tmp_path / "run")
    assert card.config == model
    assert isinstance(world.places, Drawn)
    assert (world.states is None) == (vector_of(way) is None)


def test_a_trained_world_becomes_one_with_a_map(tmp_path: Path) -> None:
    write_squares(tmp_path / "raw", 2, length=68)
    write_squares(tmp_path / "val", 1, length=68, first=50)
    config = run_of(tmp_path / "raw", "tokens", window_stride=17, val_path=tmp_path / "val")
    train(replace(config, model=replace(SMALL_WORLD, conditioning="adaln")), tmp_path / "run")
    before, _ = load_world(tmp_path / "run")
    after = replace(SMALL_WORLD, conditioning="adaln+map", skeleton=SKELETON).build(before.grid, 2, NAMES).eval()
    initialise(after, tmp_path / "run")
    batch = token_batch(grid=before.grid)
    tokens = batch.tokens
    assert tokens is not None
    steps = [world.teacher_forced(tokens, batch.states) for world in (before, after)]
    assert torch.equal(*(torch.stack([step.logits for step in each]) for each in steps))


def test_the_tiny_recipes_with_a_map_differ_in_nothing_else() -> None:
    for name in ("compression", "sampling"):
        drawn, plain = RECIPES[f"{name}_tiny"](), RECIPES[f"{name}_any"]()
        assert replace(drawn, model=replace(drawn.model, conditioning="adaln", skeleton=None)) == plain


def test_attention_to_one_token_is_that_token() -> None:
    attention = CrossAttention(4, 2)
    nn.init.eye_(attention.out.weight)
    nn.init.zeros_(attention.out.bias)
    other = torch.randn(1, 1, 4)
    expected = attention.pair(other)[..., 4:].expand(1, 3, 4)
    assert_values_agree(attention(torch.randn(1, 3, 4), other), expected)


def test_a_map_of_the_twin_over_other_pictures_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A robot with the twin's joints has another camera, and its data look the same by their names."""
    assert unseen_view(twin_skeleton("room"), TWIN_MINI_TRAIN) is None
    assert unseen_view(twin_skeleton("table"), TWIN_TABLE) is None
    assert unseen_view(twin_skeleton("room"), TWIN_TABLE) == "room"
    assert unseen_view(twin_skeleton("table"), tmp_path) == "table"
    other = replace(twin_skeleton("room"), points=twin_skeleton("room").points[:1])
    assert unseen_view(other, tmp_path) is None
    squares = write_squares(tmp_path / "squares", 2, length=34)
    with pytest.raises(UsageError, match="differ in state names"):
        worldline.train("compression_tiny", out=tmp_path / "run", data={"path": squares, "cache": tmp_path / "cache"})
    assert f"{squares}: nothing here says that the pictures show the twin" in capsys.readouterr().err
    split: dict[str, object] = {"path": squares, "val_path": None, "train_episodes": ":1", "val_episodes": "1:"}
    with pytest.raises(UsageError, match="the skeleton is of another robot"):
        worldline.train("compression_tiny", out=tmp_path / "run", data={**split, "cache": tmp_path / "cache"})
    assert not (tmp_path / "cache").exists(), "it was refused before anything was tokenized"
    capsys.readouterr()
    given: dict[str, object] = {
        "model": {"unconditional": True},
        "data": {"path": squares, "cache": tmp_path / "cache"},
    }
    with pytest.raises(UsageError, match="differ in state names"):
        worldline.train("compression_tiny", out=tmp_path / "run", **given)
    assert "pictures show the twin" not in capsys.readouterr().err, "no map is drawn"
