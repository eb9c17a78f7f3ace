"""Every recipe: builds its model, survives JSON, has help; and a configuration with a mistake names it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import ROOT, parse

from worldline.builtin import TOKENIZER_TINY
from worldline.families.config import TrainConfig
from worldline.families.family import initialise
from worldline.families.tokenizers import load_tokenizer
from worldline.judges.inverse_dynamics import InverseDynamics
from worldline.planning.footprint import Footprint, expected
from worldline.recipes import (
    RECIPES,
    compression_any,
    compression_revontuli,
    compression_tiny,
    compression_tiny_unconditional,
)
from worldline.rundir import from_json, to_json
from worldline.schema import Batch, DataError, TokenGrid
from worldline.tokenizers.fsq_video import FSQVideoConfig, FSQVideoTokenizer
from worldline.tokenizers.wan_vae import WanVAETokenizer
from worldline.worlds.causal import CausalWorld
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig
from worldline.worlds.wan import WanWorld

each = pytest.mark.parametrize("name", RECIPES)


@each
def test_builds_its_model(name: str) -> None:
    model = Footprint(RECIPES[name]()).model
    kinds = {"tokenizer": FSQVideoTokenizer, "compression": STTransformer, "vae": WanVAETokenizer, "sampling": WanWorld}
    kinds |= {"inverse": InverseDynamics, "driven": CausalWorld}
    assert isinstance(model, kinds[name.split("_")[0]])


@each
def test_survives_json(name: str) -> None:
    config = RECIPES[name]()
    text = json.dumps(to_json(TrainConfig, config))
    assert from_json(TrainConfig, json.loads(text), Path("config.json")) == config


@each
def test_says_how_long_it_is(name: str) -> None:
    assert RECIPES[name]().total_steps(1000) > 0


@each
def test_has_help_of_few_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["train", name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    shown = set(re.findall(r"^\W*?(--[a-z][a-z0-9.-]*)", text, re.MULTILINE))
    assert {"--out", "--batch-size", "--steps", "--data.path", "--optimizer.lr"} <= shown
    assert any(option.startswith("--model.") for option in shown)
    assert len(shown) <= 52


@each
def test_its_first_line_tells_what_it_is(name: str) -> None:
    assert len((RECIPES[name].__doc__ or "").splitlines()[0]) > 20


def test_the_reports_numbers() -> None:
    config = compression_revontuli()
    model, optimizer = config.model, config.optimizer
    assert isinstance(model, STTransformerConfig)
    assert (model.layers, model.width, model.heads, model.dropout) == (24, 512, 8, 0.1)
    assert (model.context_grids, model.horizon_grids) == (3, 3)
    assert expected(config).grid == TokenGrid(height=32, width=32, vocab_size=64_000)
    assert (config.batch_size, config.epochs, config.autocast) == (160, 80, True)
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.schedule) == (8e-4, 2000, "linear")


def test_the_blind_recipe_differs_in_nothing_but_the_states() -> None:
    sighted, unconditional = (
        to_json(TrainConfig, recipe()) for recipe in (compression_any, compression_tiny_unconditional)
    )
    assert unconditional["model"].pop("unconditional") is True
    assert sighted["model"].pop("unconditional") is False
    assert unconditional == sighted


def test_the_tokens_of_the_built_in_can_be_kept_under_a_new_decoder() -> None:
    config, built_in = RECIPES["tokenizer_tiny"](), load_tokenizer(TOKENIZER_TINY, "tokens")
    assert isinstance(config.model, FSQVideoConfig)
    model = replace(config.model, decoder_widths=(8, 16), keep_tokens=True).build()
    initialise(model, TOKENIZER_TINY)
    video = torch.randint(0, 256, (1, 17, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = built_in.tokens_of(video)
    assert torch.equal(model.tokens_of(video), tokens)
    assert not torch.equal(model.frames_of(tokens), built_in.frames_of(tokens))
    pair = Batch(frames=video.repeat(1, 2, 1, 1, 1), states=torch.zeros(1, 34, 1), fps=30.0, origins=())
    model.loss(pair, torch.Generator())[0].backward()
    learning = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert learning == {"decoder", "seen"}


def test_the_direct_recipe_differs_in_nothing_but_the_way() -> None:
    names = ("compression_revontuli", "compression_revontuli_direct")
    first, direct = (to_json(TrainConfig, RECIPES[recipe]()) for recipe in names)
    assert direct["model"].pop("direct") is True
    assert first["model"].pop("direct") is False
    assert direct == first


def test_a_direct_world_costs_what_the_other_costs() -> None:
    """One pass over as many grids as grid by grid with a cache, which recomputes none."""
    recipe = RECIPES["compression_any"]()
    first, direct = (Footprint(replace(recipe, model=replace(recipe.model, direct=way))) for way in (False, True))
    steps = [run.train(1, checkpointing=False) for run in (first, direct)]
    assert steps[0].forward_flop == steps[1].forward_flop
    assert steps[0].held == pytest.approx(steps[1].held, rel=0.01)
    ways = [run.forecast(1).forward_flop for run in (first, direct)]
    assert ways[0] == pytest.approx(ways[1], rel=0.01)


@pytest.mark.parametrize(
    ("place", "key", "value", "named"),
    [
        ((), "colour", "blue", "colour"),
        (("model",), "layrs", 4, r"model\..*layrs"),
        (("data",), "pth", "x", r"data\.pth"),
        (("optimizer",), "lr", "high", r"optimizer\.lr"),
        (("model",), "kind", "diffusion", "model"),
    ],
)
def test_a_mistake_in_a_configuration_is_named(place: tuple[str, ...], key: str, value: object, named: str) -> None:
    content = to_json(TrainConfig, compression_tiny())
    part = content
    for name in place:
        part = part[name]
    part[key] = value
    with pytest.raises(DataError, match=rf"run/config\.json.*{named}"):
        from_json(TrainConfig, content, Path("run/config.json"))


def test_a_missing_entry_is_named() -> None:
    content = to_json(TrainConfig, compression_tiny())
    del content["batch_size"]
    with pytest.raises(DataError, match="batch_size"):
        from_json(TrainConfig, content, Path("config.json"))


def test_the_readme_says_of_the_tiny_recipes_what_their_help_says() -> None:
    told = {name: " ".join((make.__doc__ or "").split()) for name, make in RECIPES.items() if name.endswith("_tiny")}
    minutes = [
        int(found[1]) for text in told.values() if (found := re.search(r"(\d+) minutes o[nf] (?:one|a) core", text))
    ]
    assert len(minutes) == 6
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"every `_tiny` recipe: {min(minutes)} to {max(minutes)} minutes of a core each" in page
