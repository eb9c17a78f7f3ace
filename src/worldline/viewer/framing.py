"""A moment as the binary frame that a page shows: its picture, and what is asked for beside it."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from worldline.schema import DataError, UsageError
from worldline.viewer.pictures import decoded, encoded, heat
from worldline.viewer.player import Player, Shot
from worldline.viewer.protocol import Overlay, OverlayInfo, Picture, PictureKind, Shown, packed
from worldline.viewer.twin import Mirror


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What is shown beside the forecast."""

    overlay: OverlayInfo | None = None
    twin: bool = False
    branches: tuple[str, ...] = ()


@dataclass(kw_only=True, eq=False)
class _Parts:
    header: list[Picture]
    bodies: list[bytes]

    def add(self, kind: PictureKind, media: str, body: bytes, branch: str, frame: int) -> None:
        shape: dict[str, Any] = {"kind": kind, "media": media, "branch": branch, "frame": frame}
        self.header.append(Picture(bytes=len(body), **shape))
        self.bodies.append(body)


def framed(
    player: Player, shot: Shot, beside: Beside, *, seq: int, mirror: Mirror | None = None, looked: bool = False
) -> tuple[bytes, str | None]:
    """The binary frame of a moment, and what went wrong with what is beside it."""
    parts, moment, branch, problem = _Parts(header=[], bodies=[]), shot.moment, shot.branch, None
    began = time.perf_counter()
    parts.add("context" if moment.real else "forecast", moment.media, moment.picture, branch.id, shot.index)
    if not moment.real and (truth := player.truth(shot)) is not None:
        parts.add("truth", *encoded(truth), branch.id, shot.index)
    for name in beside.branches:
        other = player.tree.branches.get(name)
        if other is not None and other is not branch and shot.index < len(other.moments):
            its = other.moments[shot.index]
            parts.add("beside", its.media, its.picture, name, shot.index)
    if beside.overlay is not None and not moment.real and (picture := overlay_of(player, shot, beside.overlay)):
        parts.add("overlay", "image/png", picture, branch.id, shot.index)
    encode, since = 1000 * (time.perf_counter() - began), time.perf_counter()
    if beside.twin and mirror is not None:
        try:
            if (seen := mirror.frame(branch, moment.time)) is not None:
                parts.add("twin", *encoded(seen), branch.id, shot.index)
        except (UsageError, DataError) as error:
            problem = str(error)
    twin = 1000 * (time.perf_counter() - since)
    spent = {"encode": round(shot.timing.encode + encode, 3), "twin": round(twin, 3) if beside.twin else 0.0}
    header = Shown(
        seq=seq,
        branch=branch.id,
        frame=shot.index,
        seconds=round(moment.time / player.stage.fps, 4),
        looked=looked,
        made=shot.made,
        real=moment.real,
        states=states_of(player, branch.rows[moment.time]),
        trust=moment.trust,
        timing_ms=shot.timing.model_copy(update=spent),
        drive=shot.drives,
        pictures=tuple(parts.header),
    )
    return packed(header, tuple(parts.bodies)), problem


def framed_recording(player: Player, picture: UInt8[np.ndarray, "h w 3"], index: int, *, seq: int) -> bytes:
    """The binary frame of what the robot really saw, by the index that a shown frame would have."""
    media, body = encoded(picture)
    moment, states = player.time_of(index), player.recording.states
    header = Shown(
        seq=seq,
        branch="recorded",
        frame=index,
        seconds=round(moment / player.stage.fps, 4),
        looked=True,
        real=True,
        states=states_of(player, states[min(moment, len(states) - 1)]),
        trust=player.branch.moments[0].trust,
        timing_ms=Shot(branch=player.branch, index=0).timing,
        pictures=(Picture(kind="truth", media=media, bytes=len(body), branch="recorded", frame=index),),
    )
    return packed(header, (body,))


def states_of(player: Player, row: np.ndarray) -> dict[str, float]:
    """By name."""
    return {name: round(float(value), 6) for name, value in zip(player.stage.layout.names, row, strict=True)}


def overlay_of(player: Player, shot: Shot, info: OverlayInfo) -> bytes | None:
    """The colours of one overlay, where the moment has it."""
    moment, kind = shot.moment, info.id
    if kind == "difference":
        frame = decoded(moment.picture)
        values = np.abs(frame.astype(np.float32) - player.copied()).mean(axis=-1)
        size = frame.shape[:2]
    elif kind in moment.maps:
        values, size = moment.maps[kind], player.copied().shape[:2]
    else:
        return None
    return heat(values, low=info.low, high=info.high, size=(size[0], size[1]))


def overlay_named(overlays: tuple[OverlayInfo, ...], kind: Overlay) -> OverlayInfo | None:
    """Raises `UsageError` for one that this world does not have."""
    if kind == "none":
        return None
    found = next(one for one in overlays if one.id == kind)
    if not found.available:
        raise UsageError(f"there is no {found.label}: {found.why}")
    return found
