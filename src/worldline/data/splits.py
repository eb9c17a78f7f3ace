"""Held out means held out: recordings are recognised by their content, not by their place.

An episode is known by its states: a copy, a link, another path, a second listing, a conversion, tokens or latents of it
are the same recording. Folders that hold parts of episodes (tokens, latents) name the recordings they were made from.

What a whole source holds is known by `content_of`, a hash: of all states, but of the sizes and three samples of video,
token and latent files only, so that 100 GB take seconds. A change in their middle is not seen.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldline.files import reading, while_unchanged
from worldline.formats.source import Source, how_to_leave_out, with_way_out
from worldline.schema import DataError, Episode

_HEAD = 1 << 20
"""Bytes at the beginning of a video by which recordings are told apart where their states never change."""
_SAMPLE = 1 << 16  # bytes hashed at the beginning, in the middle and at the end of a file

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """A set of recordings, as a run stores those it was trained on (`trained_on` in model.json)."""

    contents: tuple[str, ...] = ()
    """Their names by `recording_of`, sorted."""

    def among(self, source: Source, episodes: Sequence[int]) -> list[Episode]:
        """Those of the episodes that show one of these recordings."""
        mine = set(self.contents)
        return [source.episodes[i] for i in dict.fromkeys(episodes) if recording_of(source, i) in mine]


def recordings(source: Source, episodes: Sequence[int], *, also: Recordings | None = None) -> Recordings:
    """The recordings that some episodes show, and others. Reads states, no video; says what cannot be told apart."""
    found = [_identify(source, i) for i in dict.fromkeys(episodes)]
    if still := sum(by_video for _, by_video in found):
        said = "so these are known by their video files alone: the same recording encoded again would not be noticed"
        log.warning("%s: the states of %d episodes never change, %s", source.path, still, said)
    names = {name for name, _ in found}.union(also.contents if also else ())
    return Recordings(contents=tuple(sorted(names)))


def recording_of(source: Source, episode: int) -> str:
    """Name the recording an episode shows by its states, if these never change by its video too: 16 hex digits."""
    return _identify(source, episode)[0]


def repeated(source: Source, episodes: Sequence[int]) -> Iterator[DataError]:
    """Say of how many episodes the recording is there under another number already, and name the first."""
    if source.kind == "1x-tokens":  # they may hold a recording at several start offsets
        return
    own = [i for i in episodes if not source.episodes[i].provenance.get("forecaster")]  # of one start: many futures
    first: dict[str, int] = {}
    if pairs := [(at, i) for i in own if (at := first.setdefault(recording_of(source, i), i)) != i]:
        one, two = (source.episodes[i] for i in pairs[0])
        yield DataError(
            source.path,
            expected="every recording once",
            found=f"the states of {one.name} in {two.name} again ({len(pairs)} such episodes)",
            fix=f"Leave one of them out ({how_to_leave_out(source, two.index)}).",
            kind="duplicate",
        )


def _identify(source: Source, episode: int) -> tuple[str, bool]:
    """The name of a recording, and whether it is known by its video alone."""
    listed = source.episodes[episode]
    if listed.recording is not None:
        return listed.recording, False
    with with_way_out(source, episode):
        states = source.read_states(episode)
    digest = hashlib.sha256(f"{states.shape}".encode() + states.tobytes())
    stands_still = bool((states == states[0]).all())
    if stands_still:
        path, first = source.footage(episode)
        with reading(path, expected="the file that shows an episode"), path.open("rb") as file:
            digest.update(f"{path.stat().st_size} {first}{source.pairing(episode)}".encode() + file.read(_HEAD))
    return digest.hexdigest()[:16], stands_still


def content_of(source: Source, episodes: Sequence[int]) -> str:
    """Hash of the content of some episodes, in their order; 64 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([source.fps, source.layout.names, footage_of(source, episodes)]).encode())
    for episode in episodes:
        with with_way_out(source, episode):
            states = source.read_states(episode)
        digest.update(f"{states.shape}".encode())
        digest.update(states.tobytes())
    return digest.hexdigest()


def footage_of(source: Source, episodes: Sequence[int]) -> str:
    """Hash of lengths and of the files that show some episodes, without their states; 64 hexadecimal digits."""
    digest = hashlib.sha256(source.kind.encode())
    for episode in episodes:
        path, first = source.footage(episode)
        paired = source.pairing(episode)
        digest.update(f" {source.episodes[episode].length} {first} {_sampled(path)}{paired}".encode())
    return digest.hexdigest()


@while_unchanged(1 << 17)
def _sampled(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _SAMPLE)):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
