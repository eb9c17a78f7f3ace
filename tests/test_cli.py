"""The command line as a user meets it: exit codes, hints, one JSON object, and raw video to a report, end to end."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from builders import small_reader, write_followed_tokens, write_squares
from commands import do
from latent_builders import SMALL_WAN, small_vae, world_run

from worldline.cli import main as entry
from worldline.cli.verbs import Evaluate
from worldline.data.splits import recording_of
from worldline.evaluation.result import Evaluation
from worldline.evaluation.rows import CONDITIONS
from worldline.families.tokenizers import TokenizerIdentity, fingerprint
from worldline.formats.open import open_source
from worldline.metrics.table import METRICS
from worldline.progress import show
from worldline.rundir import RunDir, save_tensors, to_json
from worldline.schema import DataError, UsageError
from worldline.training.loop import train as run_training

Capture = pytest.CaptureFixture[str]


def _words(line: str) -> list[str]:
    return line.split()


SMALL_TOKENIZER = _words("--model.levels 8 5 5 --model.widths 8 16 --model.blocks 1 1 --model.kernel 3")
SMALL_WORLD = _words("--model.width 16 --model.heads 2 --model.layers 1")


def _worldline(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the entry point in this process; give its exit code."""
    monkeypatch.setattr(sys, "argv", ["worldline", *map(str, arguments)])
    try:
        entry.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _printed(capsys: Capture) -> dict[str, Any]:
    """The one JSON object on stdout; anything beside it is an error."""
    return json.loads(capsys.readouterr().out)


def _on(raw: Path, cache: Path) -> list[str]:
    choice = _words("--data.val-path None --data.train-episodes :-2 --data.val-episodes -2: --data.image-size 16")
    return ["--data.path", str(raw), *choice, "--data.cache", str(cache), "--device", "cpu"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw video of a moving square, a tokenizer, a world and an unconditional world, all made by `worldline train`."""
    lab = tmp_path_factory.mktemp("lab")
    data = _on(write_squares(lab / "raw", 4, length=68), lab / "cache")
    few = _words("--batch-size 2 --validation-clips 2 --json")
    do("train", ["tokenizer_tiny", "--out", str(lab / "tokenizer"), "--steps", "4", *SMALL_TOKENIZER, *data, *few])
    tokenizer = ["--tokenizer", str(lab / "tokenizer"), "--start-offsets", "2"]
    for recipe in ("compression_any", "compression_tiny_unconditional"):
        do("train", [recipe, "--out", str(lab / recipe), "--steps", "3", *SMALL_WORLD, *data, *few, *tokenizer])
    return lab


# --- words that are not understood ---


def test_help_shows_every_verb_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """And what `data` asks for its own."""
    assert _worldline(monkeypatch, "data", "?") == 2
    known = capsys.readouterr().err.partition("there are: ")[2].strip().split(", ")
    expected = {*(set(entry.NAMES) - {"data"}), *(f"data {verb}" for verb in known)}
    assert _worldline(monkeypatch, "--help") == 0
    lines = re.findall(r"^  ([a-z]+(?: [a-z]+)?)  +\S", capsys.readouterr().out, re.MULTILINE)
    assert len(known) == 5
    assert sorted(lines) == sorted(expected)


@pytest.mark.parametrize("verb", entry.VERBS)
def test_every_verb_has_help(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert _worldline(monkeypatch, *verb.split(), "--help") == 0
    assert f"worldline {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "there is no verb 'trian'"),
        (["train", "compression_tny"], "did you mean 'compression_tiny'?"),
        (["train", "qqqq"], "there are: tokenizer_tiny, tokenizer_fine"),
        (["data", "inf", "x"], "did you mean 'info'?"),
        (["data", "info", "/absent"], "/absent does not exist"),
        (["evaluate", "/absent"], "/absent does not exist"),
        (["report", "/absent"], "/absent is no folder"),
        (["report"], "give a run folder"),
        (["train", "--resume", "/absent"], "/absent/config.json"),
        (["train", "compression_tiny", "--colour", "blue"], "--colour"),
    ],
)
def test_wrong_words_end_with_2_and_say_what_to_do(
    arguments: list[str], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert _worldline(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert hint in shown.err
    assert shown.out == ""


def test_bad_data_end_with_2_and_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert _worldline(monkeypatch, "data", "info", tmp_path) == 2
    assert "metadata.json" in capsys.readouterr().err
    raw = write_squares(tmp_path / "raw", 3, length=17)
    (raw / "robot_states/states_1.bin").write_bytes(b"123")
    assert _worldline(monkeypatch, "data", "convert", raw, tmp_path / "out") == 2
    assert "states_1.bin" in capsys.readouterr().err


ENTRY = "from worldline.cli.main import main; main()"
SHOWN = "from worldline.progress import show; show({}, text='done', as_json=False)"


def test_a_process_of_its_own_keeps_stdout_for_the_result(tmp_path: Path) -> None:
    raw = write_squares(tmp_path / "raw", 1, length=34)
    command = [sys.executable, "-c", ENTRY, "data", "info", str(raw), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["frames"] == 34


@pytest.mark.parametrize(
    "words", [[ENTRY, "--help"], [ENTRY, "report", "--help"], [SHOWN]], ids=["help", "verb", "job"]
)
def test_a_reader_that_has_enough_fails_no_command(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does, once it has its lines
    with open(writing, "w") as gone:
        done = subprocess.run([sys.executable, "-c", *words], stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# --- data ---


def test_info_is_one_json_object(tmp_path: Path, capsys: Capture) -> None:
    do("data", ["info", str(write_squares(tmp_path / "raw", 2, length=85)), "--json"])
    info = _printed(capsys)
    assert {"left_out", "statistics", "bytes", "state_kinds", "cameras"} <= info.keys()
    expected = {
        "kind": "1x-raw",
        "episodes": 2,
        "frames": 170,
        "fps": 30.0,
        "state_dim": 2,
        "state_names": ["elbow", "gripper"],
        "image_size": [16, 16],
        "samples": 4,
        "windows_77": 4,
        "problems": [],
    }
    assert {name: info[name] for name in expected} == expected


def test_info_for_people_names_problems(tmp_path: Path, capsys: Capture) -> None:
    raw = write_squares(tmp_path / "raw", 2, length=34)
    states = np.fromfile(raw / "robot_states/states_1.bin", np.float32)
    states[5] = np.nan
    states.tofile(raw / "robot_states/states_1.bin")
    with pytest.raises(SystemExit) as exited:
        do("data", ["info", str(raw)])
    assert exited.value.code == 2  # a script notices
    shown = capsys.readouterr().out
    assert shown.count("problem: ") == 1
    assert "states_1.bin" in shown
    assert "elbow" in shown


def test_tokenize_by_command(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["tokenize", str(lab / "raw"), str(tmp_path / "out"), "--tokenizer", str(lab / "tokenizer")]
    do("data", [*command, "--episodes", ":2", "--json"])
    done = _printed(capsys)
    assert (done["episodes"], done["blocks"], done["reused"]) == (2, 8, 0)
    do("data", ["info", str(tmp_path / "out"), "--json"])
    info = _printed(capsys)
    assert (info["kind"], info["samples"], info["grid"]["vocab_size"]) == ("1x-tokens", 4, 200)
    do("data", [*command, "--episodes", ":2", "--json"])
    assert _printed(capsys)["reused"] == 2


# --- from raw video to a report ---


def test_training_reports_its_end(lab: Path, capsys: Capture) -> None:
    do("train", ["--resume", str(lab / "compression_any"), "--json"])
    shown = capsys.readouterr()
    assert json.loads(shown.out)["step"] == 3
    assert "run folder" in shown.err


def test_a_failed_job_ends_with_1(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    # Nothing but these words differs from a run that works.
    wild = _words("--optimizer.lr 1e30 --optimizer.warmup-steps 0 --optimizer.clip-norm None")
    words = [
        "compression_any",
        "--out",
        tmp_path / "run",
        "--steps",
        "4",
        *SMALL_WORLD,
        *_on(lab / "raw", lab / "cache"),
    ]
    tokenizer = ["--batch-size", "2", "--start-offsets", "2", "--tokenizer", lab / "tokenizer"]
    assert _worldline(monkeypatch, "train", *words, *tokenizer, *wild) == 1
    assert "at step 1" in capsys.readouterr().err


def test_a_world_is_evaluated_beside_its_baselines(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    world, unconditional = lab / "compression_any", lab / "compression_tiny_unconditional"
    do(
        "evaluate",
        [str(world), "--unconditional", str(unconditional), "--num-clips", "4", "--out", str(tmp_path), "--json"],
    )
    printed = _printed(capsys)
    evaluation = Evaluation.load(tmp_path / "metrics.json")
    assert [row["id"] for row in printed["rows"]] == [row.id for row in evaluation.rows]
    rows = {row.id: row for row in evaluation.rows}
    assert {name: row.role for name, row in rows.items()} == {
        "forecast": "model",
        "shuffled_states": "ablation",
        "unconditional": "baseline",
        "copy_last": "baseline",
        "keep_last_tokens": "baseline",
        "unigram": "baseline",
        "reconstruction": "ceiling",
        **dict.fromkeys(CONDITIONS.keys() - {"limb_frozen", "limb_mirrored"}, "ablation"),  # its joints have no side
    }
    assert {"psnr_db_last", "ssim_mean", "full_ce", "token_accuracy", "teacher_forced_ce"} <= set(
        rows["forecast"].metrics
    )
    assert set().union(*(row.metrics for row in evaluation.rows)) <= set(METRICS)
    assert {"lpips", "fid", "fvd", "fd_alex"} <= set(evaluation.not_computed), "no weights, or too small images"
    assert evaluation.tokenizer == TokenizerIdentity(fingerprint=fingerprint(lab / "tokenizer")[:12], hysteresis=0.0)
    said = {
        name: evaluation.settings[name] for name in ("temperature", "decode_mode", "blend_last_frame", "vocabulary")
    }
    assert said == {"temperature": 0.0, "decode_mode": "tokens", "blend_last_frame": False, "vocabulary": 200}
    assert evaluation.data.split == "held out"
    assert (evaluation.data.num_clips, evaluation.data.num_episodes, evaluation.data.horizon_frames) == (4, 2, 17)
    assert len(evaluation.curves["psnr_db"]["forecast"]) == 17


def test_a_tokenizer_is_evaluated(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    do("evaluate", [str(lab / "tokenizer"), "--num-clips", "3", "--out", str(tmp_path)])
    assert "metrics.json" in capsys.readouterr().out
    evaluation = Evaluation.load(tmp_path / "metrics.json")
    assert evaluation.protocol == "tokenizer"
    assert evaluation.settings["vocabulary"] == 200
    latest = RunDir(lab / "tokenizer").checkpoints()[-1].name
    assert evaluation.settings["checkpoint"] == latest
    assert evaluation.tokenizer == TokenizerIdentity(fingerprint=fingerprint(lab / "tokenizer")[:12], hysteresis=0.0)
    assert [row.role for row in evaluation.rows] == ["ceiling"]


def test_the_copied_tokenizer_cannot_be_evaluated_and_says_why(lab: Path) -> None:
    with pytest.raises(UsageError, match="own run folder"):
        do("evaluate", [str(lab / "compression_any/tokenizer")])


def test_other_data_are_judged_by_the_same_contract(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    other = write_squares(tmp_path / "other", 1, length=34, first=50)
    do("evaluate", [str(lab / "compression_any"), "--data", str(other), "--out", str(tmp_path / "out"), "--json"])
    printed = _printed(capsys)
    assert printed["data"]["num_clips"] == 1
    assert "one clip only" in printed["not_computed"]["shuffled_states"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-size 0", "--batch-size"),
        ("--batch-size -1", "--batch-size"),
        ("--num-clips 0", "--num-clips"),
        ("--num-clips -3", "--num-clips"),
        ("--num-samples 0", "sample"),
        ("--num-samples -2", "sample"),
        ("--means 0", "--means"),
        ("--means 2 7 --num-samples 3", "too few for a mean of 7"),
        ("--mean-draws 0", "--mean-draws is .0,., but must be whole numbers, each of at least 1"),
        ("--mean-draws 1 -4", "--mean-draws"),
        ("--mean-draws 4 1 4", "--mean-draws is .4, 1, 4., but must be numbers that are all different"),
        ("--condition-samples -1", "--condition-samples"),
        ("--condition-samples 4 --num-samples 3", "too few for a mean of 4"),
        ("--window-stride 0", "--window-stride"),
        ("--window-stride -17", "--window-stride"),
        ("--seed -1", "--seed"),
        ("--guidance inf", "guidance"),
        ("--guidance nan", "guidance"),
        ("--temperature nan", "temperature"),
        ("--temperature inf", "temperature"),
        ("--top-p 0", "top_p|top-p"),
        ("--steps 0", "step"),
        ("--rows 0", "rows"),
    ],
)
def test_values_by_which_nothing_can_be_judged_are_refused_before_anything_is_read(
    tmp_path: Path, words: str, message: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.json").write_text("this is not read")
    with pytest.raises(UsageError, match=message):
        do("evaluate", [str(tmp_path / "run"), *_words(words)])
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "run", tmp_path / "run/model.json"]


# --- every option does something, or is refused ---

HOW_NOT_WHAT = {"batch_size", "rows", "device", "allow_missing", "allow_different"}
"""Fields that change how much is computed at once, or where, and no number; and what allows."""
LEROBOT = {"camera", "state_keys"}
"""What there is to choose in LeRobot's format alone."""
LEARNED = {"lpips_weights", "fid_weights", "fvd_weights"}
"""Files that the tests do not have; others are refused."""
CHANGES: dict[str, tuple[str, str]] = {  # field of evaluate -> words that change it, and those it needs beside it
    "protocol": ("--protocol sampling", ""),
    "data": ("--data {other}", ""),
    "episodes": ("--episodes 0:1", "--data {other}"),
    "exclude_episodes": ("--exclude-episodes 1", "--data {other}"),
    "camera": ("--camera head", ""),
    "state_keys": ("--state-keys action", ""),
    "on": ("--on training-data", ""),
    "unconditional": ("--unconditional {unconditional}", ""),
    "members": ("--members {unconditional}", ""),
    "inverse_dynamics": ("--inverse-dynamics {reader}", ""),
    "tokenizer": ("--tokenizer {wrong}", ""),
    "checkpoint": ("--checkpoint best", ""),
    "weights": ("--weights {other}", ""),
    "out": ("--out {out}", ""),
    "num_clips": ("--num-clips 1", ""),
    "window_stride": ("--window-stride 9", "--num-clips None"),
    "horizon": ("--horizon 9", ""),
    "means": ("--means 2", "--protocol sampling --num-samples 3 --temperature 1"),
    "condition_samples": ("--condition-samples 1", ""),
    "studies": ("--studies drift", ""),
    "study_clips": ("--study-clips 1", "--studies audit --condition-samples 1"),
    "seed": ("--seed 5", "--temperature 1"),
    "json": ("--json", ""),
    "num_samples": ("--num-samples 2", "--protocol sampling --temperature 1"),
    "temperature": ("--temperature 1", ""),
    "top_k": ("--top-k 3", "--temperature 1"),
    "top_p": ("--top-p 0.5", "--temperature 1"),
    "mixture": ("--mixture 2", ""),
    "decode_mode": ("--decode-mode mean", ""),
    "blend_last_frame": ("--blend-last-frame", ""),
    "steps": ("--steps 3", ""),
    "guidance": ("--guidance 1.5", ""),
    "sampler": ("--sampler unipc", ""),
    "mean_draws": ("--mean-draws 8", ""),
    "average_repeats": ("--average-repeats", ""),
    "lpips": ("--lpips off", ""),
    "lpips_weights": ("--lpips-weights {other}", ""),
    "fid_weights": ("--fid-weights {other}", ""),
    "fvd_weights": ("--fvd-weights {other}", ""),
}

FEW = "--num-clips 2 --condition-samples 0 --studies"
"""Of a world: little that takes time. Its states need not be changed to see that an option changes its numbers."""


@pytest.fixture(scope="module")
def latent_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world over latents, named as that over tokens is in the other lab."""
    pytest.importorskip("diffusers", reason="needs the extra `wan`")
    lab = tmp_path_factory.mktemp("latent_lab")
    small_vae(lab / "vae")
    raw = [write_squares(lab / f"raw{i}", 2, length=93, first=i) for i in (0, 7)]
    run_training(world_run(*raw, lab / "vae", steps=1, checkpoint_every=1), lab / "compression_any")
    return lab


def _told(words: str, capsys: Capture, out: Path) -> tuple[str, Any]:
    """What an evaluation prints and finds, without the time and what it was told; or that it was refused."""
    shutil.rmtree(out, ignore_errors=True)
    try:
        do("evaluate", _words(words))
    except (UsageError, DataError) as refusal:
        return "refused", str(refusal)
    printed = capsys.readouterr().out.replace(str(out), "OUT")
    found = Evaluation.load(out / "metrics.json")
    found = replace(found, seconds=0.0, environment={}, settings={})
    return printed if words.endswith("--json") else "", to_json(Evaluation, found)


def _assert_nothing_is_idle(
    lab: Path, run: str, tmp_path: Path, capsys: Capture, base: str, **others: tuple[str, str]
) -> set[str]:
    """Change one option after the other, some by other words; give those that were refused."""
    places = {
        "other": write_squares(tmp_path / "other", 2, length=93, first=50),
        "unconditional": lab / f"{run.replace('any', 'tiny')}_unconditional",
        "wrong": lab / "wrong",
        "reader": small_reader(tmp_path / "reader"),
        "out": tmp_path / "elsewhere",
    }
    names = {f.name for f in fields(Evaluate)}
    assert names - {"run"} == CHANGES.keys() | HOW_NOT_WHAT, "an option without a test"
    refused, plain, out = set(), {}, tmp_path / "out"
    for name, (change, beside) in (CHANGES | others).items():
        for needed in (beside, ""):  # what an option needs beside it may be refused, too, and then so must it be
            common = f"{lab / run} {base} {needed} --out {out}".format(**places)
            if common not in plain:
                plain[common] = _told(common, capsys, out)
            if plain[common][0] != "refused":
                break
        changed = _told(f"{common} {change.format(**places)}", capsys, places["out"] if name == "out" else out)
        assert changed != plain[common] or name == "out", name
        if changed[0] == "refused":
            refused.add(name)
    assert (places["out"] / "metrics.json").exists()
    return refused


@pytest.mark.slow
def test_no_option_is_idle_for_a_world_over_tokens(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(lab / "tokenizer", lab / "wrong")
    for path in (lab / "wrong").glob("checkpoints/*/model.json"):
        path.write_text(path.read_text().replace('"hysteresis": 0.0', '"hysteresis": 0.5'))
    refused = _assert_nothing_is_idle(lab, "compression_any", tmp_path, capsys, FEW)
    others = {"steps", "guidance", "sampler", "mean_draws", "average_repeats"}
    assert refused == {"tokenizer", "checkpoint", "weights", *others, *LEROBOT, *LEARNED}


@pytest.mark.slow
def test_no_option_is_idle_for_a_tokenizer(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    refused = _assert_nothing_is_idle(lab, "tokenizer", tmp_path, capsys, "--num-clips 2", studies=("--studies", ""))
    assert CHANGES.keys() - refused == {
        *("data", "episodes", "exclude_episodes", "on", "out", "num_clips", "window_stride", "studies", "json", "lpips")
    }


@pytest.mark.slow
def test_no_option_is_idle_for_a_world_over_latents(latent_lab: Path, tmp_path: Path, capsys: Capture) -> None:
    raw, without = (latent_lab / "raw0", latent_lab / "raw7"), replace(SMALL_WAN, unconditional=True, drop_states=0.0)
    run_training(world_run(*raw, latent_lab / "vae", model=without), latent_lab / "compression_tiny_unconditional")
    small_vae(latent_lab / "wrong", seed=1)
    others = {"protocol": ("--protocol compression", ""), "means": ("--means 2", "--num-samples 3")}
    others |= {"members": ("--members {unconditional}", "--num-samples 3")}
    refused = _assert_nothing_is_idle(latent_lab, "compression_any", tmp_path, capsys, f"{FEW} --steps 2", **others)
    only_tokens = {"temperature", "top_k", "top_p", "mixture", "decode_mode", "blend_last_frame"}
    assert refused == {"protocol", "tokenizer", "checkpoint", "weights", *only_tokens, *LEROBOT, *LEARNED}


@pytest.mark.slow
def test_a_direct_world_goes_through_every_verb(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    run, few = str(tmp_path / "run"), _words("--batch-size 2 --validation-clips 2 --start-offsets 2 --json")
    recipe = _words(f"compression_any --model.direct True --model.calibrated True --tokenizer {lab / 'tokenizer'}")
    do("train", [*recipe, *SMALL_WORLD, *_on(lab / "raw", lab / "cache"), *few, "--steps", "2", "--out", run])
    do("evaluate", [run, "--num-clips", "2", "--json"])
    rows = {row.id: row.metrics for row in Evaluation.load(tmp_path / "run/evaluation/metrics.json").rows}
    assert {"full_ce", "token_accuracy", "top500_coverage", "psnr_db_last"} <= rows["forecast"].keys()
    do("evaluate", [run, "--num-clips", "2", "--horizon", "1s", "--out", str(tmp_path / "rolled"), "--json"])
    do("forecast", [run, "--clips", "0", "1", "--format", "npz", "--out", str(tmp_path / "forecasts"), "--json"])
    assert len([*(tmp_path / "forecasts").glob("*.npz")]) == 2
    do("report", [run, "--out", str(tmp_path / "page.html"), "--json"])
    assert "run" in (tmp_path / "page.html").read_text()
    with pytest.raises(UsageError, match="--mixture would change nothing"):
        do("forecast", [run, "--clips", "0", "--mixture", "2", "--out", str(tmp_path / "mixed")])
    capsys.readouterr()


# --- what is held out ---


@pytest.fixture
def squares(lab: Path, tmp_path: Path) -> dict[str, Path]:
    """What the lab was trained on in its own place, as a copy, and one of its episodes listed again among others."""
    copied, again = tmp_path / "copied", write_squares(tmp_path / "again", 2, length=68, first=60)
    shutil.copytree(lab / "raw", copied)
    for folder in ("robot_states", "segment_indices", "videos"):
        for path in (lab / "raw" / folder).glob("*_0.*"):
            shutil.copy(path, again / folder / path.name.replace("_0.", "_1."))
    return {"itself": lab / "raw", "copied": copied, "again": again}


@pytest.mark.parametrize(("which", "known"), [("itself", "2 of 4"), ("copied", "2 of 4"), ("again", "1 of 2")])
@pytest.mark.parametrize("run", ["compression_any", "tokenizer"])
def test_what_was_trained_on_is_judged_on_only_when_asked_for_by_name(
    lab: Path, squares: dict[str, Path], tmp_path: Path, run: str, which: str, known: str, capsys: Capture
) -> None:
    words = ["--data", str(squares[which]), "--out", str(tmp_path / "out"), "--num-clips", "2"]
    words += ["--condition-samples", "0"] if run == "compression_any" else []
    with pytest.raises(UsageError, match=rf"{known} episodes are recordings that the run was trained on.*--on"):
        do("evaluate", [str(_without_weights(lab / run, tmp_path / "run")), *words])
    assert not (tmp_path / "out").exists()
    do("evaluate", [str(lab / run), *words, "--on", "training-data"])
    assert "TRAINING DATA" in capsys.readouterr().out
    assert Evaluation.load(tmp_path / "out/metrics.json").data.split == "training data"


def _without_weights(run: Path, out: Path) -> Path:
    """A copy of a run whose weights are of nothing: what is refused in time needs none."""
    shutil.copytree(run, out)
    for path in out.glob("checkpoints/*/model.safetensors"):
        save_tensors(path, {"none": torch.zeros(1)})
    return out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data {short}", "no window of 34 frames"),
        ("--episodes 7:", "episode"),
        ("--data {tokens} --protocol sampling", "no frames to compare"),
        ("--data {tokens}", "but this world uses those of"),
        ("--on training-data --data {short}", "none of these episodes was trained on"),
        ("--unconditional {tokenizer}", "is not an unconditional world"),
        ("--unconditional {run}", "is not an unconditional world"),
        ("--tokenizer {other}", "made with another tokenizer"),
        ("--tokenizer {short}", "neither a run folder"),
    ],
)
def test_data_by_which_a_world_cannot_be_judged_are_refused_before_its_weights_are_read(
    lab: Path, tmp_path: Path, words: str, message: str
) -> None:
    places = {
        "short": write_squares(tmp_path / "short", 1, length=20, first=70),
        "tokens": write_followed_tokens(tmp_path / "tokens", 1),
        "tokenizer": lab / "tokenizer",
        "other": _without_weights(lab / "tokenizer", tmp_path / "other"),
        "run": lab / "compression_any",
    }
    run = _without_weights(lab / "compression_any", tmp_path / "run")
    with pytest.raises(UsageError, match=message):
        do("evaluate", [str(run), "--out", str(tmp_path / "out"), *_words(words.format(**places))])
    assert not (tmp_path / "out").exists()


def test_a_baseline_must_not_have_been_trained_on_the_held_out_clips(lab: Path, tmp_path: Path) -> None:
    seen = tmp_path / "unconditional"
    shutil.copytree(lab / "compression_tiny_unconditional", seen)
    for path in seen.glob("checkpoints/*/model.json"):
        whole = json.loads(path.read_text())
        held = json.loads((lab / "compression_any" / path.relative_to(seen)).read_text())
        assert whole["trained_on"] == held["trained_on"]
        val = open_source(lab / "raw")
        whole["trained_on"]["contents"] = [recording_of(val, 3)]
        path.write_text(json.dumps(whole))
    words = [str(lab / "compression_any"), "--out", str(tmp_path / "out"), "--unconditional", str(seen)]
    with pytest.raises(UsageError, match="1 of 2 episodes are recordings"):
        do("evaluate", words)


def test_the_runs_own_training_clips_can_be_asked_for(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    run = str(lab / "compression_any")
    do("evaluate", [run, "--on", "training-data", "--episodes", "0", "--out", str(tmp_path), "--json"])
    printed = _printed(capsys)
    assert printed["data"]["split"] == "training data"
    assert (printed["data"]["num_clips"], printed["data"]["num_episodes"]) == (2, 1)
    other = write_squares(tmp_path / "other", 1, length=34, first=50)
    with pytest.raises(UsageError, match="none of these episodes was trained on"):
        do("evaluate", [run, "--on", "training-data", "--data", str(other), "--out", str(tmp_path / "out")])


def test_tokens_of_another_tokenizer_are_judged_only_when_that_is_allowed_and_under_its_name(
    lab: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "another tokenizer"
    shutil.copytree(lab / "tokenizer", other)
    for path in other.glob("checkpoints/*/model.json"):
        path.write_text(path.read_text().replace('"hysteresis": 0.0', '"hysteresis": 0.5'))
    places = {name: tmp_path / name for name in ("own", "another")}
    for tokenizer, place in zip((lab / "tokenizer", other), places.values(), strict=True):
        words = [str(lab / "raw"), str(place), "--tokenizer", str(tokenizer), "--size", "16", "--episodes", "2:"]
        do("data", ["tokenize", *words])
    run = [str(lab / "compression_any"), "--out", str(tmp_path / "out"), "--data"]
    do("evaluate", [*run, str(places["own"])])
    with pytest.raises(UsageError, match=r"made with another tokenizer .*--allow-different tokenizer"):
        do("evaluate", [*run, str(places["another"])])
    assert Evaluation.load(tmp_path / "out/metrics.json").tokenizer == TokenizerIdentity(
        fingerprint=fingerprint(lab / "tokenizer")[:12]
    )
    do("evaluate", [*run, str(places["another"]), "--allow-different", "tokenizer"])
    found = Evaluation.load(tmp_path / "out/metrics.json").tokenizer
    assert found == TokenizerIdentity(fingerprint=fingerprint(other)[:12])


def test_a_run_that_does_not_tell_is_judged_and_the_table_says_it_was_not_checked(
    lab: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "old"
    shutil.copytree(lab / "tokenizer", run)
    for path in run.glob("checkpoints/*/model.json"):
        described = json.loads(path.read_text())
        del described["trained_on"]
        path.write_text(json.dumps(described))
    do("evaluate", [str(run), "--num-clips", "1"])
    captured = capsys.readouterr()
    assert "does not say which recordings it was trained on" in captured.err
    assert "not checked to be held out" in captured.out


def test_forecasts_are_videos_of_the_clip_and_its_futures(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    sampled = _words("--clips 0 3 --temperature 1.0 --num-samples 2 --json")
    do("forecast", [str(lab / "compression_any"), "--out", str(tmp_path), *sampled])
    videos = _printed(capsys)["files"]
    assert [Path(video).name for video in videos] == ["clip_00000.mp4", "clip_00003.mp4"]
    with av.open(videos[0]) as container:
        shapes = [(frame.width, frame.height) for frame in container.decode(video=0)]
    assert shapes == [(3 * 4 * 16, 4 * 16)] * 34  # real and two futures, enlarged four times
    with pytest.raises(UsageError, match=r"clips 0\.\.3"):
        do("forecast", [str(lab / "compression_any"), "--out", str(tmp_path), "--clips", "4"])


def test_greedy_samples_would_all_be_alike(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--temperature"):
        do("forecast", [str(lab / "compression_any"), "--out", str(tmp_path), "--num-samples", "2"])


def test_a_report_of_two_runs_is_one_page(lab: Path, tmp_path: Path, capsys: Capture) -> None:
    runs = [str(lab / "compression_any"), str(lab / "compression_tiny_unconditional")]
    do("evaluate", [runs[0], "--num-clips", "2", "--json"])
    capsys.readouterr()
    do("report", [*runs, "--out", str(tmp_path / "page.html"), "--json"])
    printed = _printed(capsys)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert printed["report"] == str(tmp_path / "page.html")
    assert "compression_tiny_unconditional" in page
    assert page.lstrip().lower().startswith("<!doctype html")


def test_a_run_by_another_tokenizer_is_refused(lab: Path, tmp_path: Path) -> None:
    few = _words("--batch-size 2 --validation-clips 2 --steps 1 --seed 9")
    other = tmp_path / "other"
    do("train", ["tokenizer_tiny", "--out", str(other), *SMALL_TOKENIZER, *_on(lab / "raw", lab / "cache"), *few])
    with pytest.raises(UsageError, match="another tokenizer"):
        do("evaluate", [str(lab / "compression_any"), "--tokenizer", str(other), "--out", str(tmp_path / "out")])


def test_a_damaged_run_is_bad_data(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.json").write_text("{}")
    with pytest.raises(DataError, match=r"model\.json"):
        do("evaluate", [str(tmp_path / "run")])


def test_what_is_printed_as_json_is_json_where_a_number_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    show({"low": float("nan"), "high": float("inf"), "path": Path("a")}, text="", as_json=True)
    assert capsys.readouterr().out == '{"low":null,"high":null,"path":"a"}\n'
