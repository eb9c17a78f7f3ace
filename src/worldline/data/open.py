"""`open_source`: say what a folder is and open it. The only place that knows all formats."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from worldline.data.checks import Report, raise_problem
from worldline.data.choose import join
from worldline.data.latents import looks_like_latents, open_latents
from worldline.data.lerobot import LerobotSource
from worldline.data.lerobot_open import looks_like_lerobot, open_lerobot
from worldline.data.onex_open import looks_like_onex, open_onex
from worldline.data.source import Conditioning, Source
from worldline.data.states import Kind, override_kinds
from worldline.schema import DataError, UsageError

_USUAL: dict[Conditioning, tuple[str, ...]] = {
    "state": ("observation.state",),
    "action": ("action",),
    "state+action": ("observation.state", "action"),
}
"""LeRobot's own names of columns."""


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a data set is read: the choices that every verb and every recipe shares."""

    camera: str | None = None
    """LeRobot camera key, or its last part. If not given: the only one, or the only colour camera that has files."""
    conditioning: Conditioning = "state"
    """What LeRobot's tables give as states, by the usual names of columns: `observation.state`, `action` or both."""
    state_keys: tuple[str, ...] = ()
    """Columns of LeRobot's tables by any names, joined in this order, in place of `conditioning`."""
    state_kinds: dict[str, Kind] = field(default_factory=dict)
    """Kinds that override the guess, by state name."""
    allow_missing: bool = False
    """Use what is there where listed episodes are absent."""

    def open(self, path: Path | Sequence[Path], *, report: Report = raise_problem) -> Source:
        """Open a data set, or several as one. Raises what `open_source` raises."""
        if not isinstance(path, Path):
            return join([self.open(one, report=report) for one in path])
        if looks_like_latents(path):
            return open_latents(path)
        if looks_like_lerobot(path):
            source = self._lerobot(path, report)
        elif looks_like_onex(path):
            if self.camera is not None or self.conditioning != "state" or self.state_keys:
                raise UsageError(
                    f"{path}: a 1X data set has one camera and states only; leave out camera, conditioning and state "
                    "keys"
                )
            source = open_onex(path, allow_missing=self.allow_missing, report=report)
        else:
            raise _unknown(path)
        kinds = dict(self.state_kinds)
        return replace(source, layout=override_kinds(source.layout, kinds)) if kinds else source

    def _lerobot(self, path: Path, report: Report) -> LerobotSource:
        if self.state_keys and self.conditioning != "state":
            raise UsageError("state keys are given in place of the conditioning; give one of the two")
        columns = self.state_keys or _USUAL[self.conditioning]
        return open_lerobot(path, camera=self.camera, columns=columns, allow_missing=self.allow_missing, report=report)


def reading(options: OpenOptions, image_size: int | None) -> dict[str, Any]:
    """What a model must know of how its data were read, for its contract."""
    return {
        "image_size": image_size,
        "conditioning": options.conditioning,
        "camera": options.camera,
        "state_keys": list(options.state_keys),
    }


def open_source(
    path: Path | Sequence[Path],
    *,
    camera: str | None = None,
    conditioning: Conditioning = "state",
    state_keys: Sequence[str] = (),
    state_kinds: dict[str, Kind] | None = None,
    allow_missing: bool = False,
) -> Source:
    """Open a data set on disk; `Source.kind` says which format was found. Decodes nothing and asks no server.

    Args:
        path: its folder; of several, all episodes are read as of one data set.
        camera: key of a LeRobot camera, or its last part; needed where several could be meant.
        conditioning: columns of a LeRobot table that make up the states, by their usual names.
        state_keys: such columns by any names, joined in this order, in place of `conditioning`.
        state_kinds: kinds that override the guess, by state name.
        allow_missing: leave out listed episodes whose files are absent, and name them in `Source.left_out`.

    Encoded latents have chosen their camera, columns and kinds already; the arguments do not concern them.

    Raises:
        DataError: no known format, or an unfinished, incomplete or inconsistent folder.
        UsageError: a camera, column or state name that the data set does not have, or data sets that differ.
    """
    options = OpenOptions(
        camera=camera,
        conditioning=conditioning,
        state_keys=tuple(state_keys),
        state_kinds=state_kinds or {},
        allow_missing=allow_missing,
    )
    return options.open(path)


def _unknown(path: Path) -> DataError:
    if not path.is_dir():
        return DataError(path, expected="a folder", found="no folder", fix="Check the path.")
    inside = sorted(p.name for p in path.iterdir() if p.is_dir() and (looks_like_lerobot(p) or looks_like_onex(p)))
    return DataError(
        path,
        expected="meta/info.json (LeRobot), or metadata.json, robot_states/ or states_0.bin (1X v2.0)",
        found=f"none of them, but {', '.join(inside)} inside" if inside else "none of them",
        fix="Give one of those folders." if inside else "Give the folder that holds these files.",
    )
