"""`open_source`: say what a folder is and open it. The only place that knows all formats."""

from dataclasses import replace
from pathlib import Path

from worldline.data.checks import Report, raise_problem
from worldline.data.latents import looks_like_latents, open_latents
from worldline.data.lerobot import LerobotSource
from worldline.data.lerobot_open import looks_like_lerobot, open_lerobot
from worldline.data.onex import OnexSource
from worldline.data.onex_open import looks_like_onex, open_onex
from worldline.data.source import Conditioning, Source
from worldline.data.states import override_kinds
from worldline.schema import DataError, UsageError


def open_source(
    path: Path,
    *,
    camera: str | None = None,
    conditioning: Conditioning = "state",
    layout: dict[str, str] | None = None,
    allow_missing: bool = False,
) -> Source:
    """Open a data set on disk; `Source.kind` says which format was found. Decodes nothing and asks no server.

    Args:
        camera: key of a LeRobot camera, or its last part; needed where there are several.
        layout: kinds that override the guess, by state name (`angle`, `velocity`, `binary`, `other`).
        allow_missing: leave out listed episodes whose files are absent, and name them in `Source.left_out`.

    Encoded latents have chosen their camera, conditioning and kinds already; the arguments do not concern them.

    Raises:
        DataError: no known format, or an unfinished, incomplete or inconsistent folder.
        UsageError: a camera, conditioning or state name that the data set does not have.
    """
    if looks_like_latents(path):
        return open_latents(path)
    return open_reporting(
        path,
        camera=camera,
        conditioning=conditioning,
        layout=layout,
        allow_missing=allow_missing,
        report=raise_problem,
    )


def open_reporting(
    path: Path,
    *,
    camera: str | None = None,
    conditioning: Conditioning = "state",
    layout: dict[str, str] | None = None,
    allow_missing: bool = False,
    report: Report,
) -> OnexSource | LerobotSource:
    """Open as `open_source`, but hand faults to `report`; where it returns, what is faulty is left out."""
    if looks_like_lerobot(path):
        source = open_lerobot(
            path, camera=camera, conditioning=conditioning, allow_missing=allow_missing, report=report
        )
    elif looks_like_onex(path):
        if camera is not None or conditioning != "state":
            raise UsageError(f"{path}: a 1X data set has one camera and states only; leave out camera and conditioning")
        source = open_onex(path, allow_missing=allow_missing, report=report)
    else:
        raise _unknown(path)
    return _with_kinds(source, layout) if layout else source


def _with_kinds(source: OnexSource | LerobotSource, kinds: dict[str, str]) -> OnexSource | LerobotSource:
    return replace(source, layout=override_kinds(source.layout, kinds))


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
