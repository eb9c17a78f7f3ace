"""Wrong values are refused before any work, by the name of the option; in Python and in config.json too."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from commands import parse

from worldline.checks import InvalidValue
from worldline.cli import main as entry
from worldline.cli.train import PYTHON_ONLY
from worldline.families.config import TrainConfig
from worldline.families.family import kind_of
from worldline.nn.optimizer import OptimizerConfig
from worldline.recipes import RECIPES
from worldline.rundir import from_json, to_json
from worldline.schema import DataError, UsageError

MAY_BE_ZERO = {
    *("steps", "epochs", "seed", "workers"),
    *("optimizer.warmup_steps", "optimizer.beta1", "optimizer.beta2", "optimizer.weight_decay"),
    *("data.pattern.repeat_last", "data.augment.flip", "data.augment.brightness", "data.augment.contrast"),
    *("data.augment.saturation", "model.dropout", "model.drop_states", "model.flow.pure_noise", "model.past"),
    "model.decoder_past",
    *("model.flow.shortcut", "model.scheduled_sampling", "model.scheduled_sampling_rise"),
    *("model.hysteresis", "model.l1_weight", "model.lpips_weight", "model.saturation_weight", "model.kl_weight"),
    *("model.sizes.latents_mean", "model.sizes.dropout", "data.exclude_episodes", "model.blur"),
}
MAY_BE_NEGATIVE = {"model.sizes.latents_mean"}
MAY_BE_HUGE = {
    *("epochs", "max_minutes", "optimizer.lr", "optimizer.weight_decay", "optimizer.clip_norm"),
    *("model.l1_weight", "model.lpips_weight", "model.saturation_weight", "model.kl_weight"),
    *("model.hysteresis", "model.init_std"),
    *("model.flow.shift", "model.backbone.eps", "model.sizes.latents_mean", "model.sizes.latents_std"),
}
KINDS = ("tokenizer_tiny", "compression_any", "vae_tiny", "sampling_revontuli", "inverse_dynamics_tiny")
"""One recipe for every kind of model."""


def _flat(value: Any) -> list[Any]:
    """The numbers of a field; one where it is empty."""
    return [number for part in value for number in _flat(part)] if isinstance(value, tuple) and value else [value]


def _filled(value: Any, given: Any) -> Any:
    """A field of the same length, 12 where it is empty, with another number throughout."""
    return tuple(_filled(part, given) for part in value or (0,) * 12) if isinstance(value, tuple) else given


def _numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, type, int]]:
    """Every field of numbers: its place, their type, and how many the recipe has in it."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = {kind for part in (hint, *get_args(hint)) for kind in (part, *get_args(part))} & {int, float}
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{prefix}{name}.")
        elif kinds:
            yield prefix + name, float if float in kinds else int, len(_flat(value))


CASES = sorted({(recipe, *case) for recipe in KINDS for case in _numbers(RECIPES[recipe]())})
ONCE = sorted({case[1:]: case for case in CASES}.values())
"""Each field in one of the recipes that have it."""


def _changed(config: Any, place: str, value: object) -> Any:
    """The configuration with another value in one place."""
    name, _, rest = place.partition(".")
    return dataclasses.replace(config, **{name: _changed(getattr(config, name), rest, value) if rest else value})


def _value_of(config: Any, place: str) -> Any:
    for name in place.split("."):
        config = getattr(config, name)
    return config


def _allowed(place: str, kind: type, value: float) -> bool:
    if not math.isfinite(value):
        return False
    if value == 0:
        return place in MAY_BE_ZERO
    return place in MAY_BE_NEGATIVE if value < 0 else place in MAY_BE_HUGE


def _tried(function: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """How a refusal reads, and what came of it otherwise; both empty where a parser said it by itself, with 2."""
    try:
        return "", function(*arguments)
    except UsageError as error:
        return str(error), None
    except SystemExit as ended:
        return ("" if ended.code == 2 else f"exit {ended.code}"), None


def test_the_walk_finds_the_fields() -> None:
    places = {place for _, place, *_ in ONCE}
    assert {"batch_size", "optimizer.clip_norm", "data.pattern.window", "model.lora", "model.levels"} <= places
    assert places >= MAY_BE_ZERO | MAY_BE_NEGATIVE | MAY_BE_HUGE
    assert len(places) > 80


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 10**30])
def test_wrong_values_are_refused_by_every_configuration(value: float) -> None:
    for recipe, place, kind, _ in ONCE:
        if kind is int and not isinstance(value, int):
            continue  # whoever parses refuses it
        config = RECIPES[recipe]()
        new = _filled(_value_of(config, place), kind(value))
        said, changed = _tried(_changed, config, place, new)
        if _allowed(place, kind, value):
            assert changed is not None or "one of the two" in said, (place, value, said)
        else:
            assert place.rpartition(".")[2] in said, (place, value, said)
        if changed is not None:
            assert from_json(TrainConfig, to_json(TrainConfig, changed), Path("config.json")) == changed


@pytest.mark.slow
def test_wrong_values_are_refused_on_the_command_line_by_the_name_of_the_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for recipe, place, kind, count in ONCE:
        no_option = (*PYTHON_ONLY, *kind_of(RECIPES[recipe]().model).python_only)
        if place.startswith(("model.backbone.", "model.sizes.", "data.augment.", *no_option)):
            continue  # given together by the name of a preset, or in Python
        option = "--" + place.replace("_", "-")
        wrong = "nan" if kind is float else "-1"
        said, job = _tried(parse, ["train", recipe, option, *[wrong] * count])
        assert job is None, f"{option} {wrong} was taken"
        said = said if said else capsys.readouterr().err  # not even of the field's type
        assert said.startswith(f"{option} is ") or "invalid" in said.lower(), said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train compression_tiny --batch-size 0", "--batch-size is 0"),
        ("train compression_tiny --model.heads 3", "--model.heads is 3, but must be a divisor of the width 128"),
        ("train compression_tiny --model.dropout 2", "below 1"),
        ("train compression_tiny --accumulate 5", "--accumulate is 5, but must be at most the batch of 4"),
        ("train compression_tiny --epochs nan", "--epochs is nan"),
        ("train compression_tiny --epochs 1 --steps 1", "one of the two"),
        ("train compression_tiny --steps 0", "one of the two"),
        ("train compression_tiny --device banana", "there is no device 'banana'"),
        ("train sampling_revontuli --model.lora 0", "--model.lora is 0"),
        ("train sampling_revontuli --model.drop-states 0.5", "--model.states.null True"),
        ("train tokenizer_tiny --model.kernel 4", "--model.kernel is 4, but must be odd"),
        ("train tokenizer_tiny --model.levels 8 1", "each of at least 2"),
        ("train tokenizer_tiny --model.widths 8", "2 numbers, one for each stage"),
        ("train tokenizer_tiny --model.decoder-widths 8", "2 numbers, one for each stage"),
        ("train tokenizer_tiny --model.keep-tokens True", "tokens stay those of given weights"),
        ("train vae_tiny --model.keep-latents True", "latents stay those of given weights"),
        ("train vae_tiny --model.kl-weight nan", "--model.kl-weight is nan"),
        ("plan sampling_tiny --model.backbone wan2.2-ti2v-5b", "the world reads 48 channels"),
        ("train --resume X --max-minutes -1", "X/config.json"),
        ("plan vae_tiny --gpus 0", "--gpus is 0"),
        ("plan vae_tiny --gpu-memory nan", "--gpu-memory is nan"),
        ("data convert X Y --size 0", "--size is 0"),
        ("data convert X Y --append --task wave", "--append and --task would change nothing of 1X data"),
        ("forecast X --format lerobot-v3.0 --horizon soon", "--horizon soon is no length of a forecast"),
        ("data tokenize X Y --tokenizer Z --start-offsets 0", "--start-offsets is 0"),
        ("data encode X Y --tokenizer Z --batch-size -1", "--batch-size is -1"),
        ("data encode X Y --tokenizer Z --pattern.stride 0", "--pattern.stride is 0"),
        ("data twin X --episodes 0", "--episodes is 0"),
        ("data twin X --episodes 1 --seed -1", "--seed is -1"),
        ("data twin X --episodes 1 --pairs --frames 20", "a pair has at least 27 frames"),
        ("data twin X --episodes 1 --failures 0.5", "give --tasks too"),
        ("data twin X --episodes 1 --tasks push", "give --view table"),
        ("data twin X --episodes 1 --view table --tasks", "which tasks? There are: touch, push"),
        ("data twin X --episodes 1 --view table --tasks push --failures 2", "--failures is 2"),
        ("data twin X --episodes 1 --view table --tasks push --miss -1", "--miss is -1"),
        ("data twin X --episodes 1 --view table --tasks push --frames 9", "more than 17 frames"),
        ("view --port 70000", "--port is 70000"),
        ("view compression-tiny --sessions 0", "--sessions is 0"),
        ("view compression-tiny --idle-minutes nan", "--idle-minutes is nan"),
        ("demo --steps 0", "--steps is 0"),
    ],
)
def test_the_program_ends_with_2_and_one_line_and_leaves_nothing(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldline", *words.split()])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert shown.err.count("\n") == 1 or "run folder" in shown.err
    assert list(tmp_path.rglob("metrics.json")) == []
    assert list(tmp_path.rglob("config.json")) == []


def test_python_and_config_json_refuse_the_same() -> None:
    with pytest.raises(InvalidValue, match=r"OptimizerConfig\.beta2 is 1\.0, but must be a number .* below 1"):
        OptimizerConfig(beta2=1.0)
    content = to_json(TrainConfig, RECIPES["compression_tiny"]())
    content["optimizer"]["clip_norm"] = -1.0
    with pytest.raises(
        DataError, match=r"run/config\.json: .* OptimizerConfig\.clip_norm is -1\.0, .* a number above 0"
    ):
        from_json(TrainConfig, content, Path("run/config.json"))
    content = to_json(TrainConfig, RECIPES["compression_tiny"]())
    content["epochs"] = 3.0
    with pytest.raises(DataError, match=r"run/config\.json.*one of the two"):
        from_json(TrainConfig, content, Path("run/config.json"))
