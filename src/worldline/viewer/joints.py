"""The numbers of a state as sliders: to which limb each belongs, its unit, and what the data do with it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from worldline.data.clips import evenly
from worldline.formats.source import Source
from worldline.schema import StateKind, StateLayout
from worldline.viewer.protocol import Joint

FASTEST = 0.999
"""Quantile of the data's own changes from frame to frame, faster than which nothing is driven."""
_EPISODES = 400
"""At most so many are looked at, at even distances: a data set may have thousands."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}
_HAND = {"hand", "hands", "gripper", "finger", "fingers", "thumb", "index", "middle", "ring", "pinky", "little", "claw"}
_HAND |= {"closure", "palm"}
_PARTS: tuple[tuple[str, set[str]], ...] = (
    ("hand", _HAND),
    ("arm", {"arm", "arms", "shoulder", "elbow", "wrist", "forearm"}),
    ("leg", {"leg", "legs", "hip", "knee", "ankle", "thigh", "calf", "foot", "toe"}),
    ("head", {"head", "neck", "eye", "camera"}),
    ("trunk", {"trunk", "torso", "waist", "spine", "chest", "pelvis", "abdomen"}),
    ("base", {"base", "wheel", "wheels", "linear", "angular", "odom", "mobile", "chassis", "vx", "vy", "wz", "drive"}),
)
"""Words of a limb; the first that has one of a name's words is its limb (a gripper of an arm is a hand)."""
_LEFT_OUT = {"joint", "pos", "position", "k", "q", "qpos", "state", "observation", "motor", "main", "j"}
"""Words that say nothing beside the others."""
_TURNS = {"angular", "turn", "yaw", "pitch", "roll", "wz", "rotation", "theta", "omega"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranges:
    """What the data do: over some of their episodes."""

    low: Float32[np.ndarray, " s"]
    high: Float32[np.ndarray, " s"]
    step: Float32[np.ndarray, " s"]
    """The quantile `FASTEST` of changes from one video frame to the next; the largest where that is 0."""


def ranges_of(source: Source, episodes: Sequence[int]) -> Ranges:
    """Read the states of at most 400 of the episodes. Raises what `Source.read_states` raises."""
    chosen = [episodes[i] for i in evenly(len(episodes), _EPISODES)]
    parts = [source.read_states(episode) for episode in chosen]
    rows, changes = np.concatenate(parts), np.concatenate([np.abs(np.diff(part, axis=0)) for part in parts])
    largest = changes.max(axis=0, initial=0.0)
    usual = np.quantile(changes, FASTEST, axis=0) if len(changes) else largest
    step = np.where(usual > 0, usual, largest).astype(np.float32)
    return Ranges(low=rows.min(axis=0), high=rows.max(axis=0), step=step)


def joints_of(layout: StateLayout, ranges: Ranges, values: Float32[np.ndarray, " s"], *, pace: int) -> list[Joint]:
    """A slider for each number of a state; `values` are those to begin with, `pace` video frames lie between shown."""
    found, labels = [], [label_of(name) for name in layout.names]
    limbs = [limb_of(name) for name in layout.names]
    twice = {key for key, count in Counter(zip(limbs, labels, strict=True)).items() if count > 1}
    for i, (name, kind) in enumerate(zip(layout.names, layout.kinds, strict=True)):
        key = limbs[i], labels[i]
        found.append(
            Joint(
                name=name,
                label=name if key in twice else labels[i],
                limb=limbs[i],
                unit=unit_of(name, kind),
                low=float(ranges.low[i]),
                high=float(ranges.high[i]),
                step=float(ranges.step[i]) * pace,
                value=float(values[i]),
                returns=returns(name, kind),
            )
        )
    return found


def limb_of(name: str) -> str:
    """`left arm`, `right hand`, `legs`, `head`, `base`, ... by the words of a name; `other` where none says it."""
    words = words_of(name)
    side = next((_SIDES[word] for word in words if word in _SIDES), None)
    part = next((part for part, known in _PARTS if known & set(words)), None)
    if part is None:
        return "base" if _is_speed(words) else "other"
    if part in ("head", "trunk", "base"):
        return part
    return f"{side} {part}" if side else f"{part}s"


def label_of(name: str) -> str:
    """A name in words, without what its limb says anyway."""
    words = [word for word in words_of(name) if word not in _SIDES and word not in _LEFT_OUT]
    whole = [word for word in words if word not in ("arm", "leg")] if len(words) > 1 else words
    return " ".join(whole) or name


def unit_of(name: str, kind: StateKind) -> str:
    """By the kind of a state (`StateKind`); of velocities, whether it is a turn."""
    if kind == "velocity":
        base = limb_of(name) in ("base", "other")
        return "m/s" if base and not _TURNS & set(words_of(name)) else "rad/s"
    return {"angle": "rad", "binary": "0..1"}.get(kind, "")


def returns(name: str, kind: StateKind) -> bool:
    """Whether it goes back to 0 when nobody asks for it: a velocity of the base."""
    return kind == "velocity" and limb_of(name) in ("base", "other")


def words_of(name: str) -> list[str]:
    """`left_arm.shoulder.pos`, `LEFT_SHOULDER_PITCH` and `kLeftShoulderPitch` in small words."""
    return [word.lower() for word in _WORD.findall(name)]


def _is_speed(words: Sequence[str]) -> bool:
    return bool({"velocity", "speed", "vel"} & set(words))
