"""`open_source`: say what a folder is and open it. The only place that knows all formats.

To add one, append a `Format` to `FORMATS`; everything after it only knows `Source`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from worldline import builtin
from worldline.contract import Conditioning, Reading
from worldline.formats.checks import LeavingOut, Report, summarise
from worldline.formats.choose import join
from worldline.formats.encoded import CLAIM, open_latents
from worldline.formats.lerobot.metadata import INFO, Meta
from worldline.formats.lerobot.source import open_lerobot
from worldline.formats.onex.source import open_onex
from worldline.formats.source import Source
from worldline.schema import DataError, StateKind, UsageError

Roots = Path | tuple[Path, ...]
"""A data set, or several that are read as one."""
_COLUMNS = {"state": "observation.state", "action": "action"}  # LeRobot's own names
_LOOKED_AT = 2_000  # folders at most that are looked into for a data set, where the one given is none
_FOREIGN = {
    "a LeRobot v1.x data set": ("meta_data/info.json",),
    "1X World Model Challenge v1.x": ("video.bin", "segment_ids.bin"),
    "RLDS (TensorFlow Datasets)": ("dataset_info.json", "*/dataset_info.json", "*.tfrecord*", "*/*.tfrecord*"),
    "zarr": (".zgroup", ".zarray", "zarr.json", "*.zarr", "*.zarr.zip"),
    "HDF5": ("*.hdf5", "*.h5", "*/*.hdf5", "*/*.h5"),
    "ROS bags": ("*.bag", "*.mcap", "*.db3", "*/*.mcap", "*/*.db3"),
    "a Hugging Face `datasets` folder": ("dataset_dict.json", "state.json", "*.arrow", "*/*.arrow"),
    "WebDataset shards": ("*.tar",),
}
"""Other formats, and the files by which they are known."""


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """How a data set is read: the choices that every verb and every recipe shares."""

    camera: str | None = None
    """LeRobot camera key, or its last part. If not given: the only one, or the only colour camera that has files."""
    conditioning: Conditioning = "state"
    """LeRobot's columns that are used as states, by their usual names: `observation.state`, `action` or both."""
    state_keys: tuple[str, ...] = ()
    """Columns of LeRobot's tables by any name, joined in this order, instead of `conditioning`."""
    state_kinds: dict[str, StateKind] = field(default_factory=dict)
    """Kinds that override the guess, by state name."""
    allow_missing: bool = False
    """Leave out episodes that are missing or damaged, and use the others."""

    def open(self, path: Path | Sequence[Path], *, report: Report | None = None) -> Source:
        """Open a data set, or several as one; faults go to a `report`, if given. Raises what `open_source` raises."""
        if not isinstance(path, Path):
            return join([self.open(one, report=report) for one in path])
        source = format_of(path).open(path, self, LeavingOut(allowed=self.allow_missing, report=report))
        if source.left_out and not source.episodes and report is None:
            expected, found = "episodes that can be used", f"all left out: {summarise(source.left_out)}"
            fix = "`worldline data info` says what is wrong with each."
            raise DataError(path, expected=expected, found=found, fix=fix, kind="missing_files")
        layout, known = source.layout, get_args(StateKind)
        if not (set(self.state_kinds) <= set(layout.names) and set(self.state_kinds.values()) <= set(known)):
            raise UsageError(f"{self.state_kinds}: states are {list(layout.names)}, their kinds {list(known)}")
        kinds = [self.state_kinds.get(name, kind) for name, kind in zip(layout.names, layout.kinds, strict=True)]
        return replace(source, layout=replace(layout, kinds=tuple(kinds)))


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format on disk: how a folder of it is recognised and opened."""

    name: str
    signs: tuple[str, ...]
    """Files by any of which a folder is known, as patterns."""
    open: Callable[[Path, OpenOptions, LeavingOut], Source]
    cameras: Callable[[Path], dict[str, str]] | None = None
    """The cameras of a folder, each with the reason why it is not used by default (or nothing); None of a format
    without cameras and columns to choose."""

    def matches(self, path: Path) -> bool:
        return any(next(path.glob(sign), None) for sign in self.signs)


def _open_lerobot(path: Path, options: OpenOptions, leaving: LeavingOut) -> Source:
    if options.state_keys and options.conditioning != "state":
        raise UsageError("state keys are given in place of the conditioning; give one of the two")
    columns = tuple(options.state_keys) or tuple(_COLUMNS[part] for part in options.conditioning.split("+"))
    return open_lerobot(path, camera=options.camera, columns=columns, leaving=leaving)


def _open_onex(path: Path, options: OpenOptions, leaving: LeavingOut) -> Source:
    if options.camera is not None or options.conditioning != "state" or options.state_keys:
        problem = "a 1X data set has one camera and states only; leave out camera, conditioning and state keys"
        raise UsageError(f"{path}: {problem}")
    return open_onex(path, leaving)


FORMATS = [
    Format(name="latents", signs=(CLAIM,), open=lambda path, *_: open_latents(path)),
    Format(name="LeRobot", signs=(INFO,), open=_open_lerobot, cameras=lambda path: Meta.read(path).cameras()),
    Format(name="1X v2.0", signs=("metadata.json", "robot_states", "states_0.bin", "metadata_0.json"), open=_open_onex),
]
"""Every format there is. The first that matches is taken."""


def format_of(path: Path) -> Format:
    """The format of a folder. Raises `DataError` where it is of none that is known."""
    found = next((one for one in FORMATS if one.matches(path)), None)
    if found is None:
        raise _unknown(path)
    return found


def has_choices(path: Roots) -> bool:
    """Whether a data set is of a format whose camera and columns can be chosen."""
    roots = [path] if isinstance(path, Path) else path
    return all(any(one.cameras and one.matches(root) for one in FORMATS) for root in roots)


def reading_of(source: Source, options: OpenOptions, path: Roots, image_size: int | None) -> Reading:
    """What a model must know of how its data at `path` were read; where these were made from others, of how those were.

    Where there is a choice, the choice is kept, not what came of it: other data may have another only camera.
    """
    if not has_choices(path):
        return source.read_at(image_size)
    asked = {"conditioning": options.conditioning, "camera": options.camera, "state_keys": options.state_keys}
    return Reading(image_size=image_size, **asked)


def opened(path: str | Path | Sequence[str | Path], options: OpenOptions) -> Source:
    """Open a data set on disk, 1X v2.0 or LeRobot, or several of one layout as one; names of built-ins do too.

    `data.kind` says which format was found, `data.episodes` lists the episodes, `data.read(episode, start, stop)` gives
    a `Clip` with frames (uint8 `f 3 h w`) or tokens (int64 `l h w`), and states (float32 `t s`, raw units). Decodes
    nothing yet and asks no server; with `allow_missing`, all states and the headers of all videos are read.

    Raises:
        DataError: no known format, or an unfinished, incomplete or inconsistent folder.
        UsageError: a camera, column or state name that the data set does not have, or data sets that differ.
    """
    return options.open(builtin.resolve_all(path))


def open_source(path: Path | Sequence[Path], **choices: Any) -> Source:
    """The same of paths alone; `choices` are fields of `OpenOptions`."""
    return OpenOptions(**choices).open(path)


def _unknown(path: Path) -> DataError:
    expected, found, fix = "a folder", "a file" if path.is_file() else "no folder", "Check the path."
    if path.is_dir():
        expected = " or ".join(f"{', '.join(one.signs)} ({one.name})" for one in FORMATS)
        found, fix = "none of them", "Give the folder that holds these files."
        inside = _inside(path, "*") or _inside(path, "*/*")
        looks = [name for name, signs in _FOREIGN.items() for sign in signs if next(path.glob(sign), None)]
        if inside:
            found, fix = f"none of them, but {summarise(inside)} inside", "Give one of those folders."
        elif looks:
            fix = "Convert it to LeRobot v2.1 or v3.0, with its own project's converter or any4lerobot, and give that."
            found = f"what looks like {looks[0]}"
    return DataError(path, expected=expected, found=found, fix=fix, kind="format")


def _inside(path: Path, pattern: str) -> list[str]:
    """Data sets below a folder that is none itself."""
    folders = (p for p in islice(path.glob(pattern), _LOOKED_AT) if p.is_dir())
    return sorted(str(p.relative_to(path)) for p in folders if any(one.matches(p) for one in FORMATS))
