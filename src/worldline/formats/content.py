"""A hash of a data set's content: a copied or moved folder has the same hash, a folder with a changed file does not.

States are hashed completely. Of video, token and latent files, which are too large, only sizes and three samples are
hashed, so that 100 GB take seconds. A change in the middle of a large file of the same size is not seen.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from worldline.files import while_unchanged
from worldline.formats.source import Source

SAMPLE = 1 << 16
"""Bytes read at the beginning, in the middle and at the end of a file."""


def content_of(source: Source, episodes: Sequence[int]) -> str:
    """Hash of the content of some episodes, in their order; 64 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([source.fps, source.layout.names, footage_of(source, episodes)]).encode())
    for episode in episodes:
        states = source.read_states(episode, 0, source.episodes[episode].length)
        digest.update(f"{states.shape}".encode())
        digest.update(states.tobytes())
    return digest.hexdigest()


def footage_of(source: Source, episodes: Sequence[int]) -> str:
    """Hash of lengths and of the files that show some episodes, without their states; 64 hexadecimal digits."""
    digest = hashlib.sha256(source.kind.encode())
    for episode in episodes:
        digest.update(f" {source.episodes[episode].length}".encode())
        path, first = source.footage(episode)
        digest.update(f" {first} {_sampled(path)}".encode())
    return digest.hexdigest()


@while_unchanged(1 << 17)
def _sampled(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - SAMPLE)):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()
