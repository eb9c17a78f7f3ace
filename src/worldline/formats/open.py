"""Say what a folder is and open it, several data sets as one; choose some of its episodes.

The only place that knows all formats. To add one, append a `Format` to `FORMATS`; all else only knows `Source`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from worldline import builtin
from worldline.contract import Conditioning, Reading
from worldline.formats.encoded import CLAIM, open_latents
from worldline.formats.lerobot.metadata import INFO, Meta
from worldline.formats.lerobot.source import open_lerobot
from worldline.formats.onex.source import open_onex
from worldline.formats.source import JOINED, LeavingOut, Report, Source, how_to_leave_out, own_number, summarise
from worldline.schema import DataError, Episode, StateKind, UsageError

Roots = Path | tuple[Path, ...]
"""A data set, or several that are read as one."""
_FOREIGN = {  # other formats, and the files by which they are known
    "a LeRobot v1.x data set": ("meta_data/info.json",),
    "1X World Model Challenge v1.x": ("video.bin", "segment_ids.bin"),
    "RLDS (TensorFlow Datasets)": ("dataset_info.json", "*/dataset_info.json", "*.tfrecord*", "*/*.tfrecord*"),
    "zarr": (".zgroup", ".zarray", "zarr.json", "*.zarr", "*.zarr.zip"),
    "HDF5": ("*.hdf5", "*.h5", "*/*.hdf5", "*/*.h5"),
    "ROS bags": ("*.bag", "*.mcap", "*.db3", "*/*.mcap", "*/*.db3"),
    "a Hugging Face `datasets` folder": ("dataset_dict.json", "state.json", "*.arrow", "*/*.arrow"),
    "WebDataset shards": ("*.tar",),
}
_REMEDIES = {  # what to do where data sets differ in a property
    "format": "Bring both to one (worldline data convert)",
    "picture size": "Convert one of them (worldline data convert --size)",
    "cameras": "Name the one to take (--data.camera)",
    "state names": "Choose columns that both have (--data.state-keys)",
    "columns of states": "Choose columns that both have (--data.state-keys)",
    "state kinds": "Say what the states are (--data.state-kinds)",
}


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
    """The cameras of a folder, each with why it is not used by default (or nothing); None where there is no choice."""

    def matches(self, path: Path) -> bool:
        return any(next(path.glob(sign), None) for sign in self.signs)


def _open_lerobot(path: Path, options: OpenOptions, leaving: LeavingOut) -> Source:
    if options.state_keys and options.conditioning != "state":
        raise UsageError("state keys are given in place of the conditioning; give one of the two")
    names = {"state": "observation.state", "action": "action"}
    columns = tuple(options.state_keys) or tuple(names[part] for part in options.conditioning.split("+"))
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
    for one in FORMATS:
        if one.matches(path):
            return one
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
    raise DataError(path, expected=expected, found=found, fix=fix, kind="format")


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


def open_source(path: str | Path | Sequence[str | Path], options: OpenOptions | None = None, **choices: Any) -> Source:
    """Open a data set on disk, 1X v2.0 or LeRobot, or several of one layout as one; names of built-ins do too.

    `data.kind` says which format was found, `data.episodes` lists the episodes, `data.read(episode, start, stop)` gives
    a `Clip` with frames (uint8 `f 3 h w`) or tokens (int64 `l h w`), and states (float32 `t s`, raw units). Decodes
    nothing yet and asks no server; with `allow_missing`, all states and the headers of all videos are read. The
    choices are those of `OpenOptions`.

    Raises:
        DataError: no known format, or an unfinished, incomplete or inconsistent folder.
        UsageError: a camera, column or state name that the data set does not have, or data sets that differ.
    """
    return replace(options or OpenOptions(), **choices).open(builtin.resolve_all(path))


def _inside(path: Path, pattern: str) -> list[str]:
    """Data sets below a folder that is none itself, among its first 2,000 entries."""
    folders = (p for p in islice(path.glob(pattern), 2_000) if p.is_dir())
    return sorted(str(p.relative_to(path)) for p in folders if any(one.matches(p) for one in FORMATS))


def choose_episodes(source: Source, text: str = ":", *, exclude: Sequence[int] = ()) -> tuple[int, ...]:
    """Positions of the chosen episodes, each once, in the order in which they are named.

    Args:
        text: Python slices and numbers, joined by commas (`:40,45,50:60`), over all episodes of the source, whether or
            not some are excluded.
        exclude: episodes to leave out by their own numbers (`Episode.number`). Nothing left is a `UsageError`, too.
    """
    left_out = {_position(source, number) for number in exclude}
    chosen = dict.fromkeys(i for part in text.split(",") for i in _part(source, part, text))
    kept = tuple(i for i in chosen if i not in left_out)
    if not kept:
        raise UsageError(f"{source.path}: all of the episodes {text!r} are excluded; nothing is left")
    return kept


def _part(source: Source, part: str, text: str) -> range:
    every = range(len(source.episodes))
    try:
        numbers = [int(number) if number.strip() else None for number in part.split(":")]
        one = int(part) if len(numbers) == 1 else 0
        found = every[one : one + 1 or None] if len(numbers) == 1 else every[slice(*numbers)]
    except (ValueError, TypeError):  # a step of 0, more than three numbers
        raise UsageError(
            f"{text!r} is no choice of episodes; write slices and numbers, for example ':-10' or ':40,45,50:60'"
        ) from None
    if not found:
        raise UsageError(f"{source.path}: {part!r} selects none of its {len(every)} episodes")
    return found


def _position(source: Source, number: int) -> int | None:
    """Position of an episode by its own number; None for one that is left out already."""
    numbers = [own_number(episode) for episode in source.episodes]
    found = [i for i, own in enumerate(numbers) if own == number]
    if len(found) > 1:
        names, way = " and ".join(source.episodes[i].name for i in found), how_to_leave_out(source, found[0])
        raise UsageError(f"{source.path}: {number} is the number of {names}; choose by position, for example {way}")
    if not found and not any(line.startswith(f"episode {number} ") for line in source.left_out):
        span = f"{min(numbers, default=0)} to {max(numbers, default=0)}"
        raise UsageError(f"{source.path}: there is no episode {number} to exclude; numbers are {span}")
    return found[0] if found else None


def only(source: Source, episodes: Sequence[int]) -> Source:
    """A source of some episodes of another; the others count as left out."""
    others = set(range(len(source.episodes))) - set(episodes)
    return replace(
        source,
        episodes=_numbered(source.episodes[i] for i in episodes),
        left_out=(*source.left_out, *(f"{source.episodes[i].name} (not chosen)" for i in sorted(others))),
    )


def join(sources: Sequence[Source]) -> Source:
    """Several data sets as one, whose path names them all. Raises `UsageError` where they are not `alike`."""
    first, *others = sources
    for other in others:
        for what, one in first.alike.items():
            if one != (two := other.alike.get(what)):
                raise UsageError(
                    f"{first.path} and {other.path} cannot be joined, they differ in {what}: {one} and {two}. "
                    f"{_REMEDIES.get(what, 'Leave one of them out')}"
                )
    if not others:
        return first
    return replace(
        first,
        path=Path(JOINED.join(str(source.path) for source in sources)),
        episodes=_numbered(
            replace(episode, name=f"{source.path.name}: {episode.name}")
            for source in sources
            for episode in source.episodes
        ),
        left_out=tuple(f"{source.path.name}: {line}" for source in sources for line in source.left_out),
    )


def _numbered(episodes: Iterable[Episode]) -> tuple[Episode, ...]:
    return tuple(replace(one, index=index, number=own_number(one)) for index, one in enumerate(episodes))
