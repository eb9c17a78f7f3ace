"""Any source of frames as a LeRobot data set: recordings with their own actions, and what is said of them kept."""

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import UInt8

from worldline.data.cache import frame_chunks
from worldline.data.clips import check_episodes
from worldline.data.splits import recording_of
from worldline.encoding.encode import Made
from worldline.formats.lerobot import write
from worldline.formats.lerobot.write import (
    NO_TASK,
    Actions,
    Export,
    Provenance,
    Recorded,
    Version,
    add_episodes,
    camera_of,
    next_states,
)
from worldline.formats.source import Source, validated
from worldline.ranks import Ranks
from worldline.schema import UsageError


def to_lerobot(
    source: Source,
    out: Path,
    *,
    version: Version,
    size: int | None = None,
    task: str | None = None,
    actions: Actions | None = None,
    append: bool = False,
    ranks: Ranks | None = None,
) -> Made:
    """Write every episode of a source to `out` as LeRobot; the same call again goes on where it was stopped.

    Args:
        size: centre-crop and resize frames to this square first; None keeps them.
        task: what the robot was told to do; None takes the source's own words, or `unknown`.
        actions: what `action` holds; None takes the source's own, where it has some, else the next state.
        append: whether `out` may hold other episodes of the same features; those that are there are not added twice.

    Raises what `add_episodes` raises, `UsageError` where the source has no video or not the actions, and `DataError`
    where a video does not decode or states are not as the metadata say.
    """
    if source.context_only:
        raise UsageError(f"{source.path}: test samples have frames of a context alone, and make no episodes")
    height, width = source.video_size(size)
    own, *others = dict.fromkeys(source.action_names(i) for i in range(len(source.episodes))) or ((),)
    if actions == "recorded" and not own and not others:
        raise UsageError(f"{source.path} has no actions of its own; leave out --actions, or give next_state")
    if actions != "next_state" and others:
        found = f"{list(own)} and {list(others[0])}"
        raise UsageError(f"{source.path}: the joined data sets have other actions, {found}; take --actions next_state")
    actions = actions or ("recorded" if own else "next_state")
    export = Export(
        version=version,
        fps=source.fps,
        size=(height, width),
        state_names=source.layout.names,
        state_kinds=source.layout.kinds,
        action_names=own if actions == "recorded" else source.layout.names,
        actions=actions,
        camera=camera_of(source),
    )
    check_episodes(source, range(len(source.episodes)), size=size)
    episodes = [_recorded(source, i, export, size=size, task=task) for i in range(len(source.episodes))]
    made = add_episodes(out, export, episodes, append=append, ranks=ranks)
    counts = {"episodes": made.episodes, "reused": made.reused, "frames": sum(len(one.states) for one in episodes)}
    return Made(folder=out, counts=counts | {"left_out": len(source.left_out)}, psnr=made.psnr)


def _recorded(source: Source, episode: int, export: Export, *, size: int | None, task: str | None) -> Recorded:
    of, states = source.episodes[episode], source.read_states(episode)
    actions = _column(source, episode, "action") if export.actions == "recorded" else next_states(states)
    # Of an export, which frames are real is kept, and where they come from.
    known = {field.name: of.provenance[field.name] for field in fields(Provenance) if field.name in of.provenance}
    here: dict[str, Any] = {"source": source.name, "episode": of.name, "recording": recording_of(source, episode)}
    flags = {name: _column(source, episode, name) for name in (write.REAL, write.SOURCE_FRAME, write.UNCERTAINTY)}
    usual = {write.REAL: np.ones(of.length), write.SOURCE_FRAME: np.arange(of.length)}
    real, frames, uncertainty = (
        (usual.get(name, np.zeros(of.length)) if found is None else found[:, 0]) for name, found in flags.items()
    )
    return Recorded(
        frames=partial(_frames, source, episode, size),
        states=states,
        actions=states if actions is None else actions.astype(np.float32),
        real=real.astype(bool),
        source_frames=frames.astype(np.int64),
        uncertainty=partial(uncertainty.astype, np.float32),
        task=task or of.task or NO_TASK,
        provenance=validated(source.path, Provenance, here | known),
    )


def _column(source: Source, episode: int, name: str) -> np.ndarray | None:
    found = source.column(episode, name)
    if found is not None and not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        what = f"{source.episodes[episode].name} holds no finite number in row {row} of {name}"
        raise UsageError(f"{source.path}: {what}; leave the episode out, or take --actions next_state")
    return found


def _frames(source: Source, episode: int, size: int | None) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    for chunk in frame_chunks(source, episode, size=size):
        yield rearrange(chunk, "f c h w -> f h w c").numpy()
