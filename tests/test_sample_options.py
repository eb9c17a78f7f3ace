"""The sampling options of `forecast` and `evaluate`: values are checked before anything is read, none does nothing."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from commands import do

from worldline import builtin
from worldline.families.card import describe_model
from worldline.families.config import SampleOptions
from worldline.families.family import KINDS, WorldKind, kind_of
from worldline.families.sampling import LatentWorldKind
from worldline.schema import UsageError
from worldline.worlds.st_transformer import STTransformerConfig
from worldline.worlds.wan import WanConfig

TOKENS, LATENTS = "tokens", "latents"
NONSENSE = [
    ("--num-samples 0", "num-samples"),
    ("--num-samples -2", "num-samples"),
    ("--rows 0", "--rows"),
    ("--rows -1", "--rows"),
    ("--temperature -1", "temperature"),
    ("--temperature nan", "temperature"),
    ("--temperature inf", "temperature"),
    ("--temperature 1 --top-k 0", "--top-k is 0"),
    ("--temperature 1 --top-p 0", "--top-p is 0"),
    ("--temperature 1 --top-p 1.5", "--top-p is 1.5"),
    ("--temperature 1 --top-p nan", "--top-p is nan"),
    ("--top-k 5", "--top-k is 5, but must be None"),
    ("--top-p 0.9", "--top-p is 0.9, but must be None"),
    ("--steps 0", "steps"),
    ("--guidance -1", "guidance"),
    ("--guidance inf", "guidance"),
    ("--guidance nan", "guidance"),
]
OF_THIS_WORLD = [
    (TOKENS, "--steps 5", "--steps would change nothing"),
    (TOKENS, "--guidance 2", "--guidance would change nothing"),
    (TOKENS, "--mean-draws 8", r"over tokens: --mean-draws would change nothing \(only worlds over latents use it\)"),
    (TOKENS, "--sampler unipc", "--sampler would change nothing"),
    (TOKENS, "--average-repeats", "--average-repeats would change nothing"),
    (TOKENS, "--num-samples 3", "--temperature|--num-samples"),
    (LATENTS, "--temperature 1", "--temperature would change nothing"),
    (LATENTS, "--temperature 1 --top-k 3", r"--temperature, --top-k would change nothing \(only .* tokens use them\)"),
    (LATENTS, "--decode-mode mean", "--decode-mode would change nothing"),
    (LATENTS, "--blend-last-frame", "--blend-last-frame would change nothing"),
    (LATENTS, "--guidance 2", "null code"),
]


def without_weights(place: Path, kind: str) -> Path:
    """What describes a world without a null code, and no weights: what is said of it is said before they are read."""
    shutil.copy((builtin.COMPRESSION_TINY if kind == TOKENS else builtin.SAMPLING_TINY) / "model.json", place)
    content = json.loads((place / "model.json").read_text())
    if kind == LATENTS:
        content["config"]["states"]["null"] = False
        content["config"]["drop_states"] = 0.0
    (place / "model.json").write_text(json.dumps(content))
    return place


@pytest.mark.parametrize("verb", ["forecast", "evaluate"])
@pytest.mark.parametrize(("words", "message"), NONSENSE)
def test_values_that_make_no_sense_are_refused_before_anything_is_read(verb: str, words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        do(verb, ["/absent", *words.split()])


def test_a_seed_below_nothing_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="seed is -1"):
        do("forecast", ["/absent", "--seed", "-1"])


@pytest.mark.parametrize("verb", ["forecast", "evaluate"])
@pytest.mark.parametrize(("kind", "words", "message"), OF_THIS_WORLD)
def test_what_a_world_would_ignore_is_refused_before_its_weights_are_read(
    verb: str, kind: str, words: str, message: str, tmp_path: Path
) -> None:
    place = without_weights(tmp_path, kind)
    with pytest.raises(UsageError, match=message):
        do(verb, [str(place), *words.split()])


def test_a_world_without_states_has_nothing_to_guide() -> None:
    card = describe_model(builtin.SAMPLING_TINY)
    assert isinstance(card.config, WanConfig)
    ignores = replace(card, config=replace(card.config, unconditional=True))
    with pytest.raises(UsageError, match="--guidance would change nothing"):
        LatentWorldKind().check_options(ignores, SampleOptions(guidance=2.0))


def test_a_null_code_that_was_never_trained_guides_nothing() -> None:
    card = describe_model(builtin.SAMPLING_TINY)
    assert isinstance(card.config, WanConfig)
    assert card.config.states.null
    never = replace(card, config=replace(card.config, drop_states=0.0))
    with pytest.raises(UsageError, match=r"--guidance 2 .* has not learned"):
        LatentWorldKind().check_options(never, SampleOptions(guidance=2.0))


def test_a_direct_world_has_one_distribution_to_mix() -> None:
    card = describe_model(builtin.COMPRESSION_TINY)
    assert isinstance(card.config, STTransformerConfig)
    direct = replace(card, config=replace(card.config, direct=True))
    with pytest.raises(UsageError, match="--mixture would change nothing"):
        kind_of(card.config).check_options(direct, SampleOptions(mixture=2))  # pyright: ignore[reportAttributeAccessIssue]


def test_a_pattern_that_shows_every_instant_once_has_nothing_to_average() -> None:
    card = describe_model(builtin.SAMPLING_TINY)
    promise = replace(card.promise, pattern=replace(card.promise.pattern, repeat_last=0))
    with pytest.raises(UsageError, match="--average-repeats would change nothing"):
        LatentWorldKind().check_options(replace(card, contract=promise), SampleOptions(average_repeats=True))


def test_every_option_belongs_to_a_kind_of_world_or_to_both() -> None:
    names = {field.name for field in fields(SampleOptions)}
    read = [name for kind in KINDS.values() if isinstance(kind, WorldKind) for name in kind.options]
    assert names == {*read, "num_samples", "rows"}
