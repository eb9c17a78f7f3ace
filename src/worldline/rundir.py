"""The run folder: the interface between training, evaluation and report. Knows files, no model.

    run/config.json            complete configuration of the run
    run/identity.json          what the run was made with, a hash for each part
    run/environment.json       versions, commit, machine
    run/metrics.jsonl          one JSON object per logged step
    run/tokenizer/             the tokenizer a token world was trained on: a model folder
    run/checkpoints/step_N/    a model folder, plus the trainer's state to resume from
    run/best.json              which checkpoint is the best by the metric of `keep_best`, and its value
    run/unigram.npy            how often each token occurs in training (worlds over tokens)
    run/kept.npy               how many of each future grid's training tokens are the last context grid's, and not
    run/evaluation/            metrics.json, receipt.json, scores.npz, forecasts.npz
    run/report.html

A model folder is `model.json` (what it is, how to build it, what data it needs, statistics of their states) and
`model.safetensors`. Every write is atomic, so a folder or file that exists is complete.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline.contract import ModelConfig
from worldline.files import atomic, read_json, reading, write_json, writing
from worldline.schema import DataError, UsageError

MODEL_FILES = ("model.json", "model.safetensors")
_LINE = TypeAdapter(dict[str, int | float])
_COPY = "Copy the model folder again, or retrain."


@dataclass(frozen=True, kw_only=True)
class Best:
    """Which checkpoint was best, as `best.json` says it."""

    metric: str
    step: int
    value: float


class RunDir:
    """Paths and small writes of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.identity = path / "config.json", path / "identity.json"
        self.metrics = path / "metrics.jsonl"
        self.evaluation, self.tokenizer = path / "evaluation", path / "tokenizer"

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:07d}"

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, by step; another name, of a copy say, is none."""
        named = (self.path / "checkpoints").glob("step_*")
        # Not by name: from ten million steps on, numbers have more digits than those before them.
        return sorted((folder for folder in named if folder.name.removeprefix("step_").isdigit()), key=_step)

    def latest(self, *, files: Sequence[str] = MODEL_FILES) -> Path | None:
        """The checkpoint of the highest step whose files are whole, or None where there is none at all.

        Warns where a newer one is damaged. Raises `DataError` where all are.
        """
        damage: DataError | None = None
        for folder in reversed(self.checkpoints()):
            try:
                _check_whole(folder, files)
            except DataError as error:
                damage = damage or error
            else:
                if damage:
                    warnings.warn(f"{damage} Going on with {folder}, the newest that is whole.", stacklevel=2)
                return folder
        if damage:
            raise damage
        return None

    def best(self) -> Best | None:
        """The checkpoint that was best by the metric of `keep_best`, or None where none is kept."""
        path = self.path / "best.json"
        return from_json(Best, read_json(path), path) if path.exists() else None

    def log(self, record: Mapping[str, int | float]) -> None:
        """Append one line to metrics.jsonl."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop logged lines of steps after `step`, which a resumed run is about to write again.

        Checkpoints of such steps are damaged, or the run would go on from them: they are put aside.
        """
        for folder in self.checkpoints():
            if _step(folder) > step:
                aside = folder.with_name(f"damaged_{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)
        if self.metrics.exists():
            kept = [json.dumps(line) + "\n" for line in self.logged() if line["step"] <= step]
            with atomic(self.metrics) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")

    def logged(self) -> list[dict[str, int | float]]:
        """The lines of metrics.jsonl, without a last one that was cut short. Raises `DataError` for a damaged one."""
        text, records = self.metrics.read_text(encoding="utf-8") if self.metrics.exists() else "", []
        for number, line in enumerate(text.rpartition("\n")[0].splitlines(), start=1):
            try:
                records.append(_LINE.validate_json(line))
                _ = records[-1]["step"]
            except (ValidationError, KeyError) as error:
                expected, found = "JSON objects of numbers with a `step`, one a line", f"{line[:80]!r} in line {number}"
                raise DataError(self.metrics, expected=expected, found=found, fix="Remove the line.") from error
        return records


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block succeeds; an existing `path` is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    retired = path.with_name(f".{path.name}.{os.getpid()}.old")
    with atomic(path) as temporary:
        temporary.mkdir()
        yield temporary
        if path.exists():
            os.replace(path, retired)
    shutil.rmtree(retired, ignore_errors=True)


ROW_SCALES = ".row_scales"
"""Behind a tensor's name, in a file: that of the scales of its rows (`in_eight_bits`)."""
SMALL = 4096
"""Tensors of no more numbers stay in float16."""


def write_model(folder: Path, description: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write `model.json` and `model.safetensors` into an existing folder (see `new_folder` for atomicity)."""
    save_tensors(folder / "model.safetensors", weights)
    write_json(folder / "model.json", description)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, each on its own memory."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors, those `in_eight_bits` in float32. Raises `DataError` where the file is missing or damaged."""
    with reading(path, SafetensorError, expected="a safetensors file", fix=_COPY):
        found = load_file(path)
    for name in [name for name in found if name.endswith(ROW_SCALES)]:
        scales, whole = found.pop(name), name.removesuffix(ROW_SCALES)
        found[whole] = found[whole].float() * scales.view(-1, *[1] * (found[whole].dim() - 1))
    return found


def in_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Half of float16's size, for what is shipped: matrices as whole numbers and a scale for each row.

    A number is off by at most 1/254 of the largest of its row. What is no matrix, or small, becomes float16.
    """
    found = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and value.dim() > 1 and value.numel() > SMALL:
            rows = value.float().flatten(1)
            scales = (rows.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
            found[name] = (rows / scales[:, None]).round().to(torch.int8).view(value.shape)
            found[name + ROW_SCALES] = scales
    return found


def _check_whole(folder: Path, files: Sequence[str]) -> None:
    """Read the JSON and the headers of safetensors. Raises `DataError` where a file is absent or cut short."""
    for path in (folder / name for name in files):
        if path.suffix == ".json":
            read_json(path)
        else:
            with reading(path, SafetensorError, expected="a safetensors file", fix=_COPY), safe_open(path, "pt"):
                pass  # it compares the file's size with what the header promises


def model_folder(path: Path, checkpoint: str = "latest") -> Path:
    """The model folder meant by a path: itself, or a checkpoint of a run folder.

    Args:
        checkpoint: `latest`, `best` (by the metric of `keep_best`) or a step.

    Raises:
        UsageError: the path is neither, or the run has no such checkpoint.
        DataError: no checkpoint is whole.
    """
    run, is_model = RunDir(path), (path / "model.json").is_file()
    if checkpoint == "latest":
        if found := path if is_model else run.latest():
            return found
        raise UsageError(f"{path} is neither a run folder with checkpoints nor a model folder (no model.json)")
    if is_model:
        raise UsageError(f"{path} is one model and no run, so it has no checkpoint {checkpoint!r}")
    there = {str(_step(folder)): folder for folder in run.checkpoints()}
    if checkpoint == "best":
        if (best := run.best()) is None:
            raise UsageError(f"{path} kept no best checkpoint: that is what training with --keep-best METRIC does")
        checkpoint = str(best.step)
    if checkpoint not in there:
        raise UsageError(
            f"{path} has no checkpoint {checkpoint!r}; there are latest, best and steps {', '.join(there)}"
        )
    return there[checkpoint]


def of_run(model: Path, name: str) -> Path | None:
    """A file or folder of a run, which is given itself or as a model folder in it; None where it is not there."""
    return next((found for run in (model, model.parent.parent) if (found := run / name).exists()), None)


def to_json(kind: Any, config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain JSON values; `from_json` is its exact inverse."""
    return _adapter(kind, tuple(ModelConfig.__subclasses__())).dump_python((config,), mode="json")[0]


def built(kind: Any, given: Any) -> Any:
    """A configuration of plain values: paths as text, lists, parts as dictionaries.

    Raises:
        UsageError: an unknown or missing key, or a value that cannot be; names it.
    """
    try:
        return _adapter(kind, tuple(ModelConfig.__subclasses__())).validate_python((given,))[0]
    except ValidationError as error:
        first, others = error.errors()[0], error.error_count() - 1
        where = ".".join(str(part) for part in first["loc"][1:])
        found = "" if first["type"] == "missing" else f" (found {first['input']!r:.80})"
        raise UsageError(f"{where}: {first['msg']}{found}{f' (and {others} more)' if others else ''}") from error


@lru_cache(maxsize=64)
def _adapter(kind: Any, models: tuple[type[ModelConfig], ...]) -> Any:
    """Reads and writes a configuration, of which a part may be any of `models`; it is made once, in 20 ms."""
    del models
    # pydantic takes no `config` for a bare dataclass, but a container of one hands it down to every level.
    return TypeAdapter(tuple[kind], config=ConfigDict(extra="forbid"))  # pyright: ignore[reportInvalidTypeForm]


def from_json(kind: Any, content: Any, path: Path) -> Any:
    """Rebuild a configuration from the content of a file. Raises `DataError` where `built` refuses it."""
    try:
        return built(kind, content)
    except UsageError as error:
        expected = "a configuration this version of worldline knows"
        fix = "Correct the entry, or use the version of worldline that wrote the file."
        raise DataError(path, expected=expected, found=str(error), fix=fix) from error


def environment() -> dict[str, str]:
    """Software and machine: versions, commit, processor, accelerator. Written into every run folder."""
    return {
        "worldline": version_of("worldline"),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": f"{processor_name()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cuda": f"{torch.version.cuda}, driver {driver()}" if torch.cuda.is_available() else "none",
        "threads": str(torch.get_num_threads()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def processor_name() -> str:
    """Model of this machine's processor."""
    about = Path("/proc/cpuinfo")
    told = re.search(r"^model name\s*: (.+)", about.read_text("utf-8") if about.exists() else "", re.MULTILINE)
    return told[1].strip() if told else platform.processor() or "unknown processor"


def driver() -> str:
    """Version of NVIDIA's driver, as the system has it, or else as its own program says."""
    about = Path("/proc/driver/nvidia/version")
    if about.exists() and (told := re.search(r"Kernel Module.*?(\d+\.[\d.]+)", about.read_text("utf-8"))):
        return told[1]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def version_of(package: str) -> str:
    """Version of an installed package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Commit of the source tree this package runs from, with a `+` where files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
