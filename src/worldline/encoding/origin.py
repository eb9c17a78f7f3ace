"""A folder that was made of a source, and what is noted of the source in it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldline.data.splits import recording_of
from worldline.formats.content import content_of
from worldline.formats.open import open_source
from worldline.formats.source import Source


@dataclass(frozen=True, kw_only=True)
class Made:
    """A folder that was made of a source."""

    folder: Path
    episodes: int
    reused: int
    """Episodes that were there already."""

    def open(self) -> Source:
        """The result, to train on."""
        return open_source(self.folder)


def source_key(source: Source, episodes: Sequence[int], *, size: int | None, tokenizer: str = "") -> dict[str, Any]:
    """Everything that decides what is made from some episodes: the data, the frame size and the tokenizer, if any."""
    key = {
        "source_kind": source.kind,
        "content": content_of(source, episodes),
        "states": list(source.layout.names),
        "episodes": list(episodes),
        "size": size,
    }
    return key | {"tokenizer": tokenizer} if tokenizer else key


def origin_of(source: Source, episodes: Sequence[int], *, size: int | None) -> dict[str, Any]:
    """Its origin: which recordings, how they were read, and what was missing."""
    return {
        "made_from": str(source.path),
        "recordings": [recording_of(source, episode) for episode in episodes],
        "reading": asdict(source.read_at(size)),
        "left_out": list(source.left_out),
    }
