"""No option does nothing: another value changes what is computed, or is refused with the reason."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from builders import SMALL_TOKENIZER, SMALL_WORLD, TOKEN_GRID, noise_frames, randomise, token_batch, write_squares
from commands import parse
from jaxtyping import TypeCheckError
from latent_builders import SMALL_BACKBONE, SMALL_VAE, SMALL_WAN, small_vae, world_run
from run_builders import run_of

from worldline.data.augment import AugmentConfig
from worldline.families.config import TrainConfig
from worldline.families.family import idle, refuse_idle
from worldline.families.load import load_world
from worldline.nn.optimizer import OptimizerConfig
from worldline.recipes import RECIPES
from worldline.schema import Batch, DataError, Origin, UsageError
from worldline.training.loop import train
from worldline.worlds.wan_text import save_text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("compression_tiny --weights X", "pretrained backbone"),
        ("compression_tiny --text X", "prompt"),
        ("compression_tiny --data.pattern.window 51", "--model.horizon-grids"),
        ("compression_tiny --data.cache-size 96", "augmented"),
        ("compression_tiny --model.unconditional True --model.conditioning add", "unconditional"),
        ("compression_tiny_unconditional --model.conditioning add", "unconditional"),
        ("compression_tiny --model.normalise-states False --model.conditioning map", "no states enter as numbers"),
        ("sampling_tiny --model.states.normalise False --model.conditioning map", "no states enter as numbers"),
        ("compression_tiny --model.code-levels 8 8", "the tokenizer's own"),
        ("tokenizer_tiny --tokenizer X", "reads frames as they are"),
        ("tokenizer_tiny --start-offsets 3", "start offsets"),
        ("tokenizer_tiny --data.pattern.stride 2", "--model.block-frames"),
        ("vae_tiny --weights X", "pretrained backbone"),
        ("vae_tiny --data.cache-size 96", "augmented"),
        ("sampling_tiny --start-offsets 3", "start offsets"),
        ("sampling_tiny --model.block-bias True", "without adapters"),
        ("sampling_tiny --model.unconditional True --model.states.normalise False", "unconditional"),
        ("sampling_tiny --model.unconditional True --model.drop-states 0.5", "unconditional"),
    ],
)
def test_what_would_change_nothing_is_refused_with_the_reason(words: str, why: str) -> None:
    option = next(word for word in words.split() if word.startswith("--") and word != "--model.unconditional")
    with pytest.raises(UsageError, match=rf"^{option} would change nothing: .*{why}"):
        parse(["train", *words.split()])


@pytest.mark.parametrize(
    "words",
    [
        "tokenizer_tiny --data.cache-size 96",
        "compression_tiny --model.unconditional True",
        "compression_tiny --model.conditioning cross_attention --model.normalise-states False",
        "compression_tiny --model.code-levels",
        "compression_revontuli --model.code-levels 8 8 8 5 5 5",
        "sampling_tiny --model.unconditional True",
        "vae_tiny --data.pattern.window 17",
        "sampling_revontuli --model.lora None --weights X --text Y",
    ],
)
def test_what_changes_something_is_taken(words: str) -> None:
    parse(["train", *words.split()])


@pytest.mark.parametrize("recipe", ["compression_tiny", "sampling_tiny --data.cache None", "driven_tiny"])
def test_a_map_that_would_not_follow_its_picture_is_refused(recipe: str) -> None:
    with pytest.raises(UsageError, match="the map of the robot would not follow"):
        parse(["train", *recipe.split(), "--data.augment", "unflipped"])
    parse(["train", "compression_tiny", "--model.conditioning", "adaln", "--data.augment", "unflipped"])


def test_python_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tokenizer would change nothing"):
        train(replace(RECIPES["vae_tiny"](), tokenizer=Path("X")), tmp_path / "run")
    config = RECIPES["compression_tiny"]()
    with pytest.raises(UsageError, match="--weights would change nothing"):
        train(replace(config, weights=Path("X")), tmp_path / "run")
    direct = replace(config, model=replace(config.model, direct=True))
    for recipe, unread, why in (
        (config, {"scheduled_sampling_rise": 0.5}, "scheduled_sampling is 0"),
        (direct, {"scheduled_sampling": 0.5}, "reads no grids of the future"),
    ):
        set_idly = replace(recipe, model=replace(recipe.model, **unread))  # pyright: ignore[reportArgumentType]
        with pytest.raises(UsageError, match=f"would change nothing: .*{why}"):
            refuse_idle(set_idly, recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ["compression_tiny --model.vocab-size 5", "sampling_tiny --model.states.window 78"])
def test_what_data_decide_is_no_option(words: str) -> None:
    with pytest.raises(SystemExit):
        parse(["train", *words.split()])


# --- a pretrained backbone, trained whole ---


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A short run over latents that begins from a small pretrained backbone."""
    root = tmp_path_factory.mktemp("latents")
    write_squares(root / "train", 3, length=81)
    write_squares(root / "val", 1, length=81, first=50)
    torch.manual_seed(5)
    SMALL_BACKBONE.build().save_pretrained(root / "weights")
    save_text(root / "text.safetensors", torch.zeros(1, 8), "", {"encoder": "e", "dtype": "float32"})
    config = world_run(root / "train", root / "val", small_vae(root / "vae")[0], steps=1, evaluate_every=1)
    return replace(config, weights=root / "weights", text=root / "text.safetensors")


def _still(config: TrainConfig) -> TrainConfig:
    return replace(config, optimizer=replace(config.optimizer, lr=1e-30, warmup_steps=0, ema_decay=None))


def test_a_pretrained_backbone_is_trained_whole(latents: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(latents.weights or "", tmp_path / "weights")
    pretrained = {f"backbone.{name}": value for name, value in load_world_backbone(tmp_path / "weights").items()}
    config = replace(latents, weights=tmp_path / "weights")
    still, moved = tmp_path / "still", tmp_path / "moved"
    train(_still(config), still)
    train(replace(config, optimizer=replace(config.optimizer, lr=0.1, warmup_steps=0)), moved)
    shutil.rmtree(tmp_path / "weights")  # the runs hold all there is
    began, ended = (load_world(run)[0].state_dict() for run in (still, moved))
    torch.testing.assert_close({name: began[name] for name in pretrained}, pretrained, rtol=0, atol=1e-20)
    changed = [name for name, value in pretrained.items() if not torch.equal(ended[name], value)]
    assert len(changed) > 0.8 * len(pretrained)  # biases of keys, say, have no gradient
    assert all(value.dtype == torch.float32 for value in ended.values())
    with pytest.raises(UsageError, match="holds all weights of its world; --weights would change nothing"):
        load_world(still, weights=tmp_path)


def test_a_pretrained_backbone_needs_its_prompt(latents: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--text"):
        train(replace(latents, text=None), tmp_path / "run")


def load_world_backbone(path: Path) -> dict[str, torch.Tensor]:
    return SMALL_BACKBONE.build().from_pretrained(path).state_dict()


# --- every field of a model changes what it computes ---

PLACES = {
    "tokenizer": SMALL_TOKENIZER,
    "world": replace(SMALL_WORLD, dropout=0.1, normalise_states=False, scheduled_sampling=0.5),
    "vae": SMALL_VAE,
    "wan": replace(SMALL_WAN, lora=2, text_length=3),
}
MEMORY_ONLY = {"loss_chunk", "gradient_checkpointing"}
"""These change what a step takes, not what it gives."""
NOT_IN_THE_LOSS = {
    "scheduled_sampling_rise": "a matter of the step, see test_st_transformer.py",
    "calibrated": "measured after the last step, see test_st_transformer.py",
    "keep_tokens": "which gradients there are, see test_training.py",
    "decoder_sees": "trains on pairs of blocks, see test_tokenizers.py",
    "lpips_weight": "needs weights that may not be here, see test_learned_metrics.py",
    "keep_latents": "which gradients there are, see test_training.py",
    "block_frames": "the frames of a clip, checked by the loss",
    "backbone.rope_max_seq_len": "the longest sequence, refused when exceeded",
    "states.normalise": "statistics are set from the data, see test_adaln.py",
    "normalise_states": "statistics are set from the data, see test_st_transformer.py",
    "sizes.latents_mean": "scales what a world sees, not the VAE's own loss; see test_wan_vae.py",
    "sizes.latents_std": "scales what a world sees, not the VAE's own loss; see test_wan_vae.py",
    "kind": "which of the models it is",
}


def _fields(config: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _others(config: Any, place: str) -> Iterator[Any]:
    """The configuration with other values in one place, as far as it takes them."""
    name, _, rest = place.partition(".")
    value = getattr(config, name)
    beside = _others(value, rest) if rest else _values_beside(value, get_type_hints(type(config))[name])
    for other in (other for other in beside if other != value):
        try:
            yield replace(config, **{name: other})
        except (UsageError, TypeCheckError):
            continue


def _values_beside(value: Any, hint: Any) -> Iterator[Any]:
    choices = [choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)]
    yield from (choice for choice in choices if choice != value)
    match value:
        case bool():
            yield not value
        case int():
            yield from (2 * value, value + 2, value + 1, max(1, value // 2))
        case float():
            yield from (value / 2 + 0.05, value + 1.0, value * 2)
        case tuple():
            for beside in _values_beside(value[0], None) if value else (11, 0.5):
                yield (beside, *value[1:])
            if any(isinstance(part, bool) for part in value):
                yield (False, *value)
        case None:
            yield from (0.5, 2, 4)


def _outcome(config: Any) -> tuple[Any, ...]:
    """Shapes of the parameters and what one loss and its gradients are; or how it is refused."""
    try:
        torch.manual_seed(0)
        model = (config.build(TOKEN_GRID, 2) if config.kind == "st-transformer" else config.build()).train()
        if config.kind == "wan":
            randomise(model, std=0.1)  # what begins at zero would hide what is behind it
            model.set_text(torch.randn(config.text_rows, config.backbone.text_dim))
        torch.manual_seed(1)
        loss, _ = model.loss(_batch(config), torch.Generator().manual_seed(2))
        loss.backward()
    except (UsageError, RuntimeError, TypeCheckError) as error:
        return (str(error),)
    grown = {name: tuple(value.shape) for name, value in model.named_parameters()}
    trained = tuple(name for name, value in model.named_parameters() if value.requires_grad)
    return tuple(grown.items()), trained, loss.item()


def _batch(config: Any) -> Batch:
    if config.kind == "st-transformer":
        return token_batch()
    origins = (Origin(source="drawn", episode=0, start=0),) * 2
    drawn = torch.Generator().manual_seed(3)
    if config.kind == "wan":
        states, latents = torch.randn(2, 77, 25, generator=drawn), torch.randn(2, 6, 4, 2, 2, generator=drawn)
        return Batch(latents=latents, states=states, fps=30.0, origins=origins)
    frames = noise_frames(2, 17, 3, 16, 16)
    return Batch(frames=frames, states=torch.zeros(2, 17, 2), fps=30.0, origins=origins)


@pytest.mark.parametrize("name", PLACES)
def test_every_field_of_a_model_changes_what_it_computes(name: str) -> None:
    config = PLACES[name]
    before = _outcome(config)
    assert len(before) == 3, before
    silent = []
    for place in _fields(config):
        if place not in MEMORY_ONLY and place not in NOT_IN_THE_LOSS:
            tried = list(_others(config, place))
            if tried and all(_outcome(other) == before for other in tried[:3]):
                silent.append(place)
    assert silent == []


# --- every field of a run changes what it does ---

HOW_NOT_WHAT = {
    "accumulate": "memory",
    "workers": "time",
    "device": "place",
    "check_memory": "asked on CUDA",
    "autocast": "asked on CUDA",
    "max_minutes": "see test_training.py",
    "epochs": "steps are given",
    "start_offsets": "frames that are tokenized, see test_tokenize.py",
    "tokenizer": "refused, see above",
    "weights": "refused, see above",
    "text": "refused, see above",
    "init_from": "see test_training.py",
    "keep_best": "see test_training.py",
    "model.kind": "which of the models it is",
    "data.allow_missing": "nothing is missing here, see test_data_lerobot.py",
}


def _run(config: TrainConfig, folder: Path) -> tuple[str, ...]:
    """What a run leaves: its figures and the names of its files; or how it is refused."""
    try:
        train(config, folder)
    except (UsageError, DataError) as error:
        return (str(error),)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [str({name: value for name, value in line.items() if name != "seconds"}) for line in lines]
    return (*kept, *sorted(path.name for path in folder.rglob("*") if "events" not in path.name))


def test_every_field_of_a_run_changes_what_it_does(tmp_path: Path) -> None:
    write_squares(tmp_path / "data", 4, length=51)
    config = run_of(
        tmp_path / "data", "tokenizer", train_episodes=":-1", val_episodes="-1:", augment=AugmentConfig.presets["usual"]
    )
    config = replace(config, steps=4, log_every=1, evaluate_every=2, checkpoint_every=1, keep_checkpoints=2)
    config = replace(config, data=replace(config.data, cache_size=20), optimizer=OptimizerConfig(warmup_steps=2))
    before = _run(config, tmp_path / "before")
    assert len(before) > 4
    silent = []
    for number, place in enumerate(_fields(replace(config, model=RECIPES["tokenizer_tiny"]().model))):
        top = place.partition(".")[0]
        if top == "model" or place in HOW_NOT_WHAT or any(place.startswith(name) for name in idle(config)):
            continue
        others = list(_others(config, place))[:2]
        if others and all(_run(other, tmp_path / f"{number}_{i}") == before for i, other in enumerate(others)):
            silent.append(place)
    assert silent == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context_latents": 3}, "make 6 latents.* reads 7 of each"),
        ({"backbone": replace(SMALL_BACKBONE, patch_size=(1, 4, 4))}, "do not divide into patches of 4x4"),
        ({"backbone": replace(SMALL_BACKBONE, in_channels=8, out_channels=8)}, "the VAE makes 4"),
        ({"states": replace(SMALL_WAN.states, mode="full"), "context_latents": 1, "horizon_latents": 5}, ""),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_encoded(
    changes: dict[str, Any], said: str, latents: TrainConfig, tmp_path: Path
) -> None:
    model = replace(SMALL_WAN, **changes)
    config = replace(latents, model=model, data=replace(latents.data, cache=tmp_path / "cache"), weights=None)
    if said:
        with pytest.raises(UsageError, match=said):
            train(config, tmp_path / "run")
        assert not (tmp_path / "cache").exists()
        assert not (tmp_path / "run").exists()
    else:  # what can be is not
        train(config, tmp_path / "run")
        assert (tmp_path / "cache").exists()
