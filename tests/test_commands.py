"""What the project tells people to type can be typed: every command and option parses by the real parsers."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import pytest
from builders import write_followed_tokens, write_squares
from commands import (
    PAGES,
    ROOT,
    SCRIPTS,
    SOURCES,
    Told,
    do,
    options,
    page_commands,
    parse,
    parses,
    script_commands,
    source_commands,
    source_texts,
    words_of,
)
from torch.distributed.run import get_args_parser

from worldline import builtin
from worldline.cli import train
from worldline.cli.main import NAMES
from worldline.families.config import TrainConfig
from worldline.recipes import RECIPES
from worldline.rundir import to_json
from worldline.tokenizers.wan_vae import WanVAEConfig
from worldline.worlds.wan import WanConfig
from worldline.worlds.wan_weights import BackboneConfig

Capture = pytest.CaptureFixture[str]
DATA_VERBS = ("info", "convert", "tokenize", "encode", "twin")
PARSERS = (
    *(["train", recipe] for recipe in ("sampling_revontuli_cfg", "compression_tiny", "tokenizer_tiny", "vae_tiny")),
    ["train", "inverse_dynamics_tiny"],
    ["train", "driven_tiny"],
    ["plan", "vae_tiny"],
    ["train", "--resume", "X"],
    ["data", "info", "X"],
    ["data", "convert", "X", "Y"],
    ["data", "tokenize", "X", "Y", "--tokenizer", "Z"],
    ["data", "encode", "X", "Y", "--tokenizer", "Z"],
    ["data", "twin", "X", "--episodes", "1"],
    ["data", "twin", "X", "--episodes", "1", "--view", "table", "--tasks", "push"],
    *([verb, "X"] for verb in ("evaluate", "verify", "compare", "forecast", "submission", "text", "report")),
    ["rank", "X", "--policy", "own:fast"],
    ["forecast", "X", "--temperature", "1"],
    ["evaluate", "X", "--num-samples", "20"],
    ["policies", "X"],
    ["view"],
    ["demo"],
)
"""One sound command for every parser there is; recipes for the same kind of model have the same options."""

ELSEWHERE = (
    "--dirty",
    "--query-gpu",
    "--always",
    "--abbrev",
    "--exclude",
    "--quiet",
    "--editable",
    "--shm-size",
    "--no-deps",
    "--target",
    "--upgrade",
    *("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor"),
)
"""Options of git, pip, docker and Chromium."""


@lru_cache
def _help(*words: str) -> str:
    """The help of a verb."""
    said = io.StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit):
        parse([*words, "--help"])
    return said.getvalue()


def _problems(commands: list[Told], capsys: Capture) -> list[str]:
    found = []
    for told in commands:
        words = words_of(told.text)
        known = words[0] in NAMES or words[0] == "--help"
        if not known or (words[0] == "data" and len(words) > 1 and words[1].split("|")[0] not in DATA_VERBS):
            found.append(f"{told}: no such verb")
        elif len(words) > 1 + (words[0] == "data") and "|" not in words[1]:
            said = parses([word for word in words if word != "..."], capsys)
            found += [f"{told}\n{said}"] if said else []
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_pages_parse(page: Path, capsys: Capture) -> None:
    assert _problems(list(page_commands(page)), capsys) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_commands_of_scripts_parse(script: Path, tmp_path: Path, capsys: Capture) -> None:
    commands = script_commands(script, tmp_path / "bin")
    assert len(commands) > 5
    assert _problems(commands, capsys) == []


def test_commands_of_help_texts_and_messages_parse(capsys: Capture) -> None:
    commands = [told for path in SOURCES for told in source_commands(path)]
    assert len(commands) > 30
    assert _problems(commands, capsys) == []


@pytest.mark.slow
def test_options_that_are_named_anywhere_parse(capsys: Capture) -> None:
    """An option alone must be one of some verb's; an option with a value must be taken with it."""
    texts = [Told(page.name, page.read_text(encoding="utf-8")) for page in PAGES]
    texts += [told for path in SOURCES for told in source_texts(path)]
    named = {option: told.place for told in texts for option in options(told)}
    foreign = {string for action in get_args_parser()._actions for string in action.option_strings}
    foreign |= {"--resume", "--help", "--help-all"}
    for file in (file for folder in ("benchmarks", "scripts", "examples") for file in (ROOT / folder).glob("*.py")):
        foreign |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', file.read_text(encoding="utf-8")))
    left = {option: place for option, place in named.items() if option[0] not in foreign and option[0] not in ELSEWHERE}
    assert len(left) > 60
    assert {option: place for option, place in left.items() if not _taken(*option, capsys)} == {}


def _taken(option: str, value: str | None, capsys: Capture) -> bool:
    known = [words for words in PARSERS if re.search(rf"{option}(?![\w-])", _help(*words))]
    if not known:  # options that help leaves out are taken all the same
        known = [words for words in PARSERS if "nrecognized" not in parses([*words, option], capsys)]
    if value is None:
        return bool(known)
    return any(not parses([*words, option, *[value] * count], capsys) for words in known for count in (1, 2))


def test_what_is_wrong_is_found(tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```bash\nset="--nonsense 3"\nworldline evaluate X $set && worldline report Y # why\n```\n'
        "`worldline VERB` `worldline train compression_tiny --model.unconditional`\n"
        "```bash\ntorchrun --no-python worldline evaluate Z $set\n```\n"
    )
    commands = list(page_commands(page))
    assert [words_of(told.text) for told in commands] == [
        ["evaluate", "X", "--nonsense", "3"],
        ["report", "Y"],
        ["evaluate", "Z", "--nonsense", "3"],
        ["train", "compression_tiny", "--model.unconditional"],
    ]
    assert len(_problems(commands, capsys)) == 3
    assert options(Told("", "`--check-memory False`, --seed=3 (--model.lora None): --data.cache DIR --x-y.")) == {
        ("--check-memory", "False"),
        ("--seed", "3"),
        ("--model.lora", "None"),
        ("--data.cache", None),
        ("--x-y", None),
    }
    assert not _taken("--model.unconditional", "Treu", capsys)
    assert not _taken("--run", None, capsys)


# --- one spelling ---


def _config(words: str) -> TrainConfig:
    job = parse(words.split())
    assert isinstance(job, train.Train | train.Estimate)
    return job.config


def test_a_field_that_is_true_or_false_takes_its_value() -> None:
    words = "--model.states.null True --check-memory False --model.gradient-checkpointing False"
    config = _config(f"train sampling_revontuli {words} --model.block-bias False")
    assert isinstance(config.model, WanConfig)
    assert not config.check_memory
    assert (config.model.states.null, config.model.gradient_checkpointing) == (True, False)
    assert not config.model.block_bias
    unconditional = _config("train sampling_revontuli --model.unconditional True").model
    assert isinstance(unconditional, WanConfig)
    assert unconditional.unconditional


def test_an_optional_part_goes_and_comes() -> None:
    recipe, tiny = RECIPES["sampling_revontuli"](), RECIPES["sampling_tiny"]()
    assert isinstance(recipe.model, WanConfig)
    assert isinstance(tiny.model, WanConfig)
    without = replace(recipe, model=replace(recipe.model, lora=None))
    assert _config("train sampling_revontuli --model.lora None") == without
    assert _config("train sampling_revontuli --seed 3 --model.lora=None") == replace(without, seed=3)
    lora = replace(tiny, model=replace(tiny.model, lora=4))
    assert _config("train sampling_tiny --model.lora 4") == lora


def test_sizes_are_named_by_a_preset_and_stored_in_full() -> None:
    large = _config("train sampling_tiny --model.backbone wan2.2-ti2v-5b").model
    assert isinstance(large, WanConfig)
    assert large.backbone == BackboneConfig.presets["wan2.2-ti2v-5b"] == BackboneConfig()
    small = _config("train sampling_revontuli --model.backbone tiny").model
    assert isinstance(small, WanConfig)
    assert to_json(WanConfig, small)["backbone"]["ffn_dim"] == 640
    vae = _config("train vae_tiny --model.sizes wan2.2-ti2v-5b").model
    assert isinstance(vae, WanVAEConfig)
    assert vae == WanVAEConfig()
    assert "--model.backbone.num-layers" not in _help("train", "sampling_tiny")


@pytest.mark.parametrize("name", RECIPES)
def test_one_length_of_a_run_replaces_the_other(name: str) -> None:
    by_steps, by_epochs = _config(f"plan {name} --steps 7"), _config(f"train {name} --epochs=1.5")
    assert (by_steps.steps, by_steps.epochs) == (7, 0)
    assert (by_epochs.steps, by_epochs.epochs) == (0, 1.5)


# --- torchrun ---


@pytest.mark.parametrize("words", PARSERS, ids=" ".join)
def test_torchrun_hands_every_option_on(words: list[str]) -> None:
    """torchrun takes an abbreviation of one of its own options for that option, wherever it stands."""
    shown = set(re.findall(r"--[a-z][a-z0-9.-]*", _help(*words)))
    assert len(shown) > 2
    for option in shown:
        assert words_of(f"torchrun --no-python worldline train RECIPE {option} X")[-2:] == [option, "X"]


def _tiny(recipe: str, folder: Path) -> list[str]:
    """Options that make a recipe small enough for two processes of a laptop, with data of its kind."""
    data = f"--data.path {folder}/train --data.val-path {folder}/val --out {folder}/run --device cpu --workers 0"
    short = "--steps 2 --batch-size 2 --accumulate 1 --validation-clips 2"
    if recipe.startswith("compression"):
        for name, episodes, seed in (("train", 4, 0), ("val", 2, 1)):
            write_followed_tokens(folder / name, episodes, seed=seed)
        return f"{data} {short} --model.width 16 --model.heads 2 --model.layers 1".split()
    for name, episodes, first in (("train", 3, 0), ("val", 2, 50)):
        write_squares(folder / name, episodes, length=81, first=first, size=64)
    small = "--model.backbone tiny --data.image-size 64"
    alone = "--model.lora None --weights None --text None --tokenizer vae-tiny"
    return f"{data} {short} {small} {alone}".split()


def _torchrun_lines() -> dict[str, list[str]]:
    """What torchrun is told to start anywhere, by where: the options of lines that do the same to the same in one."""
    found = [told for page in PAGES for told in page_commands(page)]
    sources = [path for path in SOURCES if "torchrun" in path.read_text(encoding="utf-8")]
    found += [told for path in sources for told in source_commands(path)]
    places, lines = dict[tuple[str, ...], list[str]](), dict[tuple[str, ...], list[str]]()
    for told in found:
        if told.text.startswith("torchrun"):
            words = words_of(told.text)
            what = tuple(takewhile(lambda word: word == "--resume" or not word.startswith("-"), words))
            places.setdefault(what, []).append(told.place)
            lines.setdefault(what, [*what]).extend(words[len(what) :])
    return {" ".join(dict.fromkeys(places[what])): words for what, words in lines.items()}


TORCHRUN = _torchrun_lines()


def _made_small(words: list[str], folder: Path) -> list[str]:
    """A command as it stands, and behind it what makes it small; what it names is there."""
    if words[:2] == ["train", "--resume"]:
        recipe = "compression_revontuli"
        do("train", [recipe, *_tiny(recipe, folder), "--steps", "1", "--out", str(folder / words[2])])
        return [*words, "--steps", "2", "--workers", "0"]
    if words[0] == "train":
        return [*words, *_tiny(words[1], folder)]
    if not builtin.COMPRESSION_TINY.is_dir():
        pytest.skip("this checkout has no built-in checkpoints")
    (folder / "runs").mkdir()
    (folder / "test_v2.0").symlink_to(builtin.TWIN_MINI_VAL)
    for name, place in (
        ("revontuli", builtin.COMPRESSION_TINY),
        ("sampling", builtin.SAMPLING_TINY),
        ("tokenizer", builtin.TOKENIZER_TINY),
    ):
        (folder / "runs" / name).symlink_to(place)
    write_squares(folder / "ROBOT", 2, length=51, size=64)
    small = {
        "forecast": f"--clips 0 1 --device cpu --out {folder}/out",
        "evaluate": "--num-clips 2 --num-samples 1 --steps 1 --condition-samples 0 --studies --data test_v2.0 "
        f"--device cpu --out {folder}/out",
        "data": "--size 64 --device cpu",
    }
    return [*words, *small[words[0]].split()]


@pytest.mark.slow
@pytest.mark.parametrize("place", TORCHRUN)
def test_torchrun_lines_start_two_processes(place: str, tmp_path: Path) -> None:
    words = _made_small(TORCHRUN[place], tmp_path)
    # Whatever the line says of the number of machines and cards, the words behind it are as typed; later ones win.
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "--no-python", "worldline"]
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command, *words, "--json"],
        env={**clean, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).get("step", 2) == 2, "one rank reports"
    written = ("out", "run", "runs/world", "OUT")
    assert [path for folder in written for path in (tmp_path / folder).rglob("*") if path.is_file()]
