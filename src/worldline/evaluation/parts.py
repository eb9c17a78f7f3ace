"""Scores of each batch, kept while an evaluation runs, so that an interrupted one can continue.

    OUT/metrics.parts/key_KEY/batch_000008.pt    of the batch that begins with the ninth of the chosen clips

KEY is a hash of everything that decides the numbers (`made_from`). Parts of another key are never read; a new
evaluation removes them. A finished evaluation removes its own.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from worldline.contract import FramePattern
from worldline.data.clips import Clips
from worldline.families.card import describe_model
from worldline.families.family import kind_of
from worldline.families.tokenizers import fingerprint
from worldline.files import atomic, hash_of, remove_temporaries
from worldline.formats.source import content_of
from worldline.progress import say
from worldline.ranks import Ranks
from worldline.rundir import environment, to_json, version_of
from worldline.schema import UsageError

PARTS = "metrics.parts"
_LIBRARIES = ("torch", "numpy", "av", "torchmetrics", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Parts:
    """The folder of one evaluation's parts."""

    folder: Path

    @classmethod
    def begun(cls, out: Path, key: str | None, *, ranks: Ranks) -> "Parts":
        """Find what an evaluation into `out` left, and say how much. Every rank must call this.

        Args:
            key: what `made_from` gave, on rank 0; None where that is not known, and then nothing is taken over.

        Raises:
            UsageError: not all ranks see the folder.
        """
        parts = ranks.agreed(cls(_prepared(out, key)) if ranks.writes else None)
        if not all(ranks.everyones(parts.folder.is_dir())):
            raise UsageError(f"{out} is not seen by all processes; give a folder that all machines share (--out)")
        return parts

    def file(self, begin: int) -> Path:
        """Where the scores lie of the batch that begins there, once they are known."""
        return self.folder / f"batch_{begin:06d}.pt"

    def write(self, begin: int, found: dict[str, Any]) -> None:
        with atomic(self.file(begin)) as temporary:
            torch.save(found, temporary)

    def read(self, begin: int) -> dict[str, Any]:
        return torch.load(self.file(begin), weights_only=True)

    def remove(self) -> None:
        """What they add up to is written."""
        shutil.rmtree(self.folder.parent)


def _prepared(out: Path, key: str | None) -> Path:
    """The folder for parts of this key; those of others are removed, and what was half written."""
    folder = out / PARTS / f"key_{(key or 'unknown')[:16]}"
    others = [other for other in folder.parent.glob("key_*") if other != folder or key is None]
    if any(any(other.glob("batch_*")) for other in others):
        say(f"{out}: removed what was scored by an evaluation that was stopped and differs from this one")
    for other in others:
        shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    for file in folder.glob("batch_*.pt"):
        if not is_zipfile(file):  # a machine that lost its power leaves parts of files; that batch is scored again
            file.unlink()
    if there := len(list(folder.iterdir())):
        say(f"{out}: {there} batches were there already, of this evaluation when it was stopped")
    return folder


def made_from(
    clips: Clips, models: Mapping[Path, str | None], *, weights: Path | None, device: torch.device, **settings: Any
) -> str:
    """Hash of all that decides what is computed: models, data, settings, code, libraries and processor.

    Neither the number of ranks nor any place is part of it.

    Args:
        models: model folders, each with the fingerprint of the tokenizer that it is used with.
        weights: where the pretrained backbone lies, if not where a checkpoint says.
        settings: all else, as JSON can hold it.
    """
    windows = clips.windows
    return hash_of(
        {
            "models": [[*_model(model, weights), tokenizer] for model, tokenizer in models.items()],
            "data": content_of(clips.source, sorted(set(windows.episode.tolist()))),
            "clips": [hashlib.sha256(places.tobytes()).hexdigest() for places in (windows.episode, windows.start)],
            "frames": [to_json(FramePattern, clips.pattern), clips.image_size],
            "settings": settings,
            "code": [_code(), *map(version_of, _LIBRARIES)],
            "processor": environment()["device" if device.type == "cuda" else "cpu"],
        }
    )


def _model(folder: Path, weights: Path | None) -> list[Any]:
    card = describe_model(folder)
    base = card.base
    backbone = None if base is None else kind_of(card.config).backbone_fingerprint(weights or base.path)
    return [replace(card, base=None).to_json(), fingerprint(folder), backbone]


@lru_cache(maxsize=1)
def _code() -> str:
    """Hash of worldline's own source: exact also where it is no release, and no commit is known."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
