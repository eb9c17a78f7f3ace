"""What was scored of each batch, kept while an evaluation runs, so that one that was stopped goes on where it was.

    OUT/metrics.parts/KEY/batch_000008.safetensors    of the batch that begins with the ninth of the chosen clips

KEY is a hash of all that decides the numbers (`made_from`). Parts of another key are never read: they go when an
evaluation begins. A finished evaluation removes its own.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.contract import FramePattern
from worldline.data.clips import Clips
from worldline.evaluation.tally import Tally
from worldline.families.card import describe_model
from worldline.families.tokenizers import fingerprint
from worldline.files import atomic, remove_temporaries
from worldline.formats.content import content_of
from worldline.identity import hash_of
from worldline.ranks import Ranks
from worldline.rundir import check_whole, environment, load_tensors, save_tensors, to_json, version_of
from worldline.schema import DataError, UsageError
from worldline.worlds.wan_weights import fingerprint_backbone

PARTS = "metrics.parts"
_LIBRARIES = ("torch", "numpy", "av", "torchmetrics", "diffusers", "transformers", "peft")
_TENSOR = "number of a tensor"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The folder of one evaluation's parts."""

    folder: Path
    there: frozenset[int] = frozenset()
    """Where the batches begin that were scored before."""
    dropped: bool = False
    """Whether parts of another evaluation were removed."""

    @classmethod
    def begun(cls, out: Path, key: str | None = None, *, ranks: Ranks) -> "Parts":
        """Find what an evaluation into `out` left. Every rank must call this; rank 0 alone needs the key.

        Args:
            key: what `made_from` gave; None where that is not known, and then nothing is taken over.

        Raises:
            UsageError: not all ranks see the folder.
        """
        parts = _found(out, key) if ranks.writes else None
        parts = ranks.agreed(parts)
        if not all(ranks.everyones(parts.folder.is_dir())):
            raise UsageError(f"{out} is not seen by all processes; give a folder that all machines share (--out)")
        return parts

    def write(self, begin: int, tally: Tally) -> None:
        """Keep what was scored of the batch that begins there."""
        tensors: dict[str, Tensor] = {}

        def number(tensor: Tensor) -> dict[str, str]:
            tensors[name := str(len(tensors))] = tensor
            return {_TENSOR: name}

        text = json.dumps(vars(tally), default=number)
        tensors["tally"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        with atomic(self.folder / _name(begin)) as temporary:
            save_tensors(temporary, tensors)

    def read(self, begin: int) -> Tally:
        """What `write` kept. Raises `DataError` where it is missing or damaged."""
        tensors = load_tensors(self.folder / _name(begin))
        text = tensors.pop("tally").numpy().tobytes()
        return Tally(**json.loads(text, object_hook=lambda x: tensors[x[_TENSOR]] if _TENSOR in x else x))

    def remove(self) -> None:
        """What they add up to is written."""
        shutil.rmtree(self.folder)
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def _name(begin: int) -> str:
    return f"batch_{begin:06d}.safetensors"


def _found(out: Path, key: str | None) -> Parts:
    folder = out / PARTS / f"key_{(key or 'unknown')[:16]}"
    others = [other for other in folder.parent.glob("key_*") if other != folder or key is None]
    dropped = any(any(other.glob("batch_*")) for other in others)
    for other in others:
        shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    there = set()
    for file in folder.glob("batch_*.safetensors"):
        try:
            check_whole(folder, (file.name,))
            there.add(int(file.stem.removeprefix("batch_")))
        except DataError:  # a machine that lost its power leaves empty files; that batch is scored again
            file.unlink()
    return Parts(folder=folder, there=frozenset(there), dropped=dropped)


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
    backbone = None if card.base is None else fingerprint_backbone(weights or card.base.path)
    return [replace(card, base=None).to_json(), fingerprint(folder), backbone]


@lru_cache(maxsize=1)
def _code() -> str:
    """Hash of worldline's own source: exact also where it is no release, and no commit is known."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
