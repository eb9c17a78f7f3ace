"""Find out what a 1X v2.0 folder holds and check that its files have the sizes its metadata promise.

Reads JSON, segment numbers and file sizes only. Faults go to a `Report`: opening raises the first, inspection
collects them all.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from worldline.files import mapped, read_json, unreadable
from worldline.formats.checks import LeavingOut, Report, raise_problem, sound_episodes, summarise, validated
from worldline.formats.onex.source import OnexSource, Place, Shard, segment_runs
from worldline.formats.reading import noted
from worldline.formats.states import ONEX_LAYOUT, Kind
from worldline.formats.video import probe
from worldline.schema import DataError, Episode, StateLayout, TokenGrid

COSMOS_GRID = TokenGrid(height=32, width=32, vocab_size=64_000)
"""The grid of the challenge's tokens (Cosmos DV8x8x8 at 256x256), where metadata.json does not say otherwise.
"""


_Count = Annotated[int, Field(gt=0, le=10**6)]


@dataclass(frozen=True, kw_only=True)
class _Meta:
    """What is used of metadata.json."""

    num_shards: Annotated[int, Field(ge=0, le=10**6)]
    hz: Annotated[float, Field(ge=0.01, le=10_000, allow_inf_nan=False)]
    state_names: tuple[str, ...] | None = None
    state_kinds: tuple[Kind, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """How metadata.json describes a token grid."""

    token_grid: tuple[_Count, _Count, _Count]
    vocab_size: Annotated[int, Field(gt=0, le=2**31)]
    block: _Count
    temporal_stride: _Count


@dataclass(frozen=True, kw_only=True)
class _Marker:
    """metadata_{r}.json."""

    shard_num_frames: Annotated[int, Field(ge=0, le=10**9)]
    shard_ind: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """Where the files of shard r lie: nested (training) or flat (validation)."""

    root: Path
    nested: bool

    def file(self, kind: str, name: str) -> Path:
        return self.root / kind / name if self.nested else self.root / name

    def suffix(self) -> str:
        """What the video files end in; where there are none, both possibilities, for messages to name."""
        found = {path.suffix for path in self.file("videos", "").glob("video_*.*")}
        return "mp4" if ".mp4" in found else "bin" if ".bin" in found else "mp4|bin"

    def shard(self, index: int, suffix: str) -> tuple[Path, Path, Path, Path]:
        return (
            self.file("metadata", f"metadata_{index}.json"),
            self.file("videos", f"video_{index}.{suffix}"),
            self.file("robot_states", f"states_{index}.bin"),
            self.file("segment_indices", f"segment_idx_{index}.bin"),
        )


def looks_like_onex(root: Path) -> bool:
    """Tell whether a folder has any of the files by which a 1X v2.0 folder is known."""
    return any((root / name).exists() for name in ("metadata.json", "robot_states", "states_0.bin", "metadata_0.json"))


def open_onex(root: Path, *, allow_missing: bool = False, report: Report = raise_problem) -> OnexSource:
    """Open a 1X v2.0 folder. Raises `DataError` for an unfinished, incomplete or inconsistent one."""
    folder = _Folder(root=root, nested=(root / "videos").is_dir() or (root / "robot_states").is_dir())
    suffix = folder.suffix()
    leaving = LeavingOut(allowed=allow_missing, report=report)
    if _is_test(folder):
        return _open_test(folder, suffix, leaving)
    metadata = _metadata(folder, report)
    meta = validated(root / "metadata.json", _Meta, metadata)
    layout, grid = _layout(root, meta), _grid(root, metadata) if suffix == "bin" else None
    complete = _present(folder, suffix, meta.num_shards, leaving)
    shards = tuple(s for i in complete if (s := _shard(folder, i, suffix, layout, grid, leaving)) is not None)
    episodes, places = _episodes(shards, grid, _recordings(metadata))
    source = OnexSource(
        kind="1x-raw" if grid is None else "1x-tokens",
        path=root,
        fps=meta.hz,
        layout=layout,
        episodes=episodes,
        image_size=_image_size(shards) if grid is None else None,
        grid=grid,
        left_out=tuple(leaving.lines),
        places=places,
        tokenizer=_made_by(metadata) if grid is not None else None,
        made_from=noted(metadata),
    )
    kept = sound_episodes(source.episodes, source.check, leaving)
    return replace(
        source,
        episodes=tuple(replace(episodes[i], index=new) for new, i in enumerate(kept)),
        places=tuple(places[i] for i in kept),
        left_out=tuple(leaving.lines),
    )


def _made_by(metadata: dict[str, Any]) -> str | None:
    """Fingerprint of the tokenizer that made the tokens, where a writer of ours noted it."""
    provenance = metadata.get("provenance")
    noted = provenance.get("tokenizer") if isinstance(provenance, dict) else None
    return noted if isinstance(noted, str) else None


def _metadata(folder: _Folder, report: Report) -> dict[str, Any]:
    """Read metadata.json; after a reported fault, take the number of shards from the folder and 1X's rate."""
    path = folder.root / "metadata.json"
    metadata: dict[str, Any] = {}
    if path.exists():
        metadata = read_json(path)
        if "token_dtype" in metadata:
            raise DataError(
                path,
                expected="1X World Model Challenge v2.0",
                found="its v1.x (one video.bin of tokens per folder)",
                fix="Download the v2.0 data set.",
                kind="format",
            )
        absent = [key for key in ("num_shards", "hz") if key not in metadata]
        if absent:
            expected = "numbers num_shards and hz"
            report(DataError(path, expected=expected, found=f"no {absent}", fix="Restore it.", kind="metadata"))
    else:
        report(
            DataError(
                path,
                expected="a finished 1X v2.0 folder",
                found="no metadata.json, which is written last",
                fix="Let the writer or the download finish, or start it again: it resumes.",
                kind="unfinished",
            )
        )
    return {"num_shards": len(list(folder.file("metadata", "").glob("metadata_*.json"))), "hz": 30} | metadata


def _layout(root: Path, meta: _Meta) -> StateLayout:
    if meta.state_names is None:
        return ONEX_LAYOUT
    names, kinds = meta.state_names, meta.state_kinds
    if len(names) != len(kinds) or len(set(names)) != len(names) or not names:
        raise DataError(
            root / "metadata.json",
            expected="different state names, and one kind for each",
            found=f"{len(set(names))} different names of {len(names)}, and {len(kinds)} kinds",
            fix="Correct state_names and state_kinds.",
            kind="names",
        )
    return StateLayout(names=names, kinds=kinds)


def _grid(root: Path, metadata: dict[str, Any]) -> TokenGrid:
    if "token_grid" not in metadata:
        return COSMOS_GRID
    stated = validated(root / "metadata.json", _Grid, metadata)
    latents, height, width = stated.token_grid
    grid = TokenGrid(
        height=height,
        width=width,
        vocab_size=stated.vocab_size,
        block=stated.block,
        temporal_stride=stated.temporal_stride,
    )
    if grid.latents_per_block != latents:
        raise DataError(
            root / "metadata.json",
            expected=f"{grid.latents_per_block} latent frames per block of {grid.block}",
            found=f"token_grid says {latents}",
            fix="Correct block, temporal_stride or token_grid.",
            kind="metadata",
        )
    return grid


def _present(folder: _Folder, suffix: str, num_shards: int, leaving: LeavingOut) -> list[int]:
    """Leave out shards of which a file is absent."""
    absent = {i: [path.name for path in folder.shard(i, suffix) if not path.exists()] for i in range(num_shards)}
    missing = [f"shard {i} ({' '.join(names)})" for i, names in absent.items() if names]
    if missing and not leaving.allowed:
        raise _missing(folder.root, f"{num_shards} shards", summarise(missing))
    for what in missing:
        leaving.leave(what, _missing(folder.root, "every listed shard", what))
    return [i for i, names in absent.items() if not names]


def _missing(root: Path, of: str, missing: str) -> DataError:
    return DataError(
        root,
        expected=f"all files of {of}",
        found=f"missing {missing}",
        fix="Fetch the rest, or leave them out with --allow-missing (in recipes --data.allow-missing).",
        kind="missing_files",
    )


def _shard(
    folder: _Folder, index: int, suffix: str, layout: StateLayout, grid: TokenGrid | None, leaving: LeavingOut
) -> Shard | None:
    marker, video, states, segments = folder.shard(index, suffix)
    try:
        stated = validated(marker, _Marker, read_json(marker))
    except DataError as problem:
        leaving.leave(f"shard {index} ({problem.found})", problem)
        return None
    num_frames = stated.shard_num_frames
    problems = [
        _number_problem(marker, index, stated.shard_ind),
        _size_problem(states, num_frames, layout.dim, f"{num_frames} x {layout.dim} float32"),
        _size_problem(segments, num_frames, 1, f"{num_frames} int32"),
        None if grid is None else _blocks_problem(video, num_frames, grid),
    ]
    found = [problem for problem in problems if problem is not None]
    if num_frames == 0 and not found:
        fix = "Take the shard out of the data set; it is left out here."
        empty = DataError(marker, expected="frames", found="a shard of none", fix=fix, kind="empty_episode")
        leaving.leave(f"shard {index} (of no frame)", empty, harmless=True)
        return None
    for problem in found:
        leaving.leave(f"shard {index} ({problem.path.name}: {problem.found})", problem)
    if found:
        return None
    return Shard(index=index, num_frames=num_frames, video=video, states=states, segments=segments)


def _number_problem(marker: Path, index: int, stated: int | None) -> DataError | None:
    if stated in (None, index):
        return None
    fix = "A shard may be there twice under two names: download them again, or correct shard_ind."
    return DataError(marker, expected=f"shard_ind {index}", found=f"{stated}", fix=fix, kind="duplicate")


def _size_problem(path: Path, rows: int, columns: int, shape: str) -> DataError | None:
    size = path.stat().st_size
    if size == 4 * rows * columns and path.is_file():
        return None
    other = f", which would be {size // (4 * rows)} columns" if rows and size % (4 * rows) == 0 else ""
    return unreadable(
        path,
        expected=f"{shape} = {4 * rows * columns} bytes",
        found=f"{size} bytes{other}",
        fix="Download or write the shard again, or correct its metadata.",
    )


def _blocks_problem(path: Path, num_frames: int, grid: TokenGrid) -> DataError | None:
    block = 4 * grid.latents_per_block * grid.height * grid.width
    whole, size = num_frames // grid.block, path.stat().st_size
    allowed = {whole, -(-num_frames // grid.block)}
    if size % block == 0 and size // block in allowed and path.is_file():
        return None
    shape = f"[{grid.latents_per_block}, {grid.height}, {grid.width}]"
    return unreadable(
        path,
        expected=f"{max(allowed)} blocks of {shape} int32 ({block} bytes each) for {num_frames} frames",
        found=f"{size} bytes = {size / block:.3f} blocks",
        fix="Download or tokenize the shard again, or correct the token grid in metadata.json.",
    )


def _recordings(metadata: dict[str, Any]) -> dict[int, str]:
    """Which recording each shard was made from, where a writer of ours noted it."""
    provenance = metadata.get("provenance")
    noted = provenance.get("recordings") if isinstance(provenance, dict) else None
    return {i: str(name) for i, name in enumerate(noted)} if isinstance(noted, list) else {}


def _episodes(
    shards: tuple[Shard, ...], grid: TokenGrid | None, recordings: dict[int, str]
) -> tuple[tuple[Episode, ...], tuple[Place, ...]]:
    episodes: list[Episode] = []
    places: list[Place] = []
    for shard in shards:
        assert shard.segments is not None
        segments = mapped(shard.segments, "int32", (shard.num_frames,))
        firsts, lengths = segment_runs(segments)
        places += [Place(shard, first) for first in firsts.tolist()]
        for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
            name = f"shard {shard.index}, segment {segments[first]}"
            block_offset = 0 if grid is None else first % grid.block
            recording = recordings.get(shard.index)
            episodes.append(
                Episode(index=len(episodes), length=length, name=name, block_offset=block_offset, recording=recording)
            )
    return tuple(episodes), tuple(places)


def _image_size(shards: tuple[Shard, ...]) -> tuple[int, int] | None:
    """Height and width of the first video that can be opened; what is wrong with one is said when it is read."""
    for shard in shards:
        try:
            info = probe(shard.video)
        except DataError:
            continue
        return info.height, info.width
    return None


def _is_test(folder: _Folder) -> bool:
    """Samples without segment numbers: the test set.

    A training folder being written has its folders already, and a shard of video its own metadata.
    """
    segments = folder.root / "segment_indices" if folder.nested else folder.root / "segment_idx_0.bin"
    if segments.exists():
        return False
    marked = any(folder.file("metadata", "").glob("metadata_*.json"))
    return bool(_samples(folder, "bin")) or (bool(_samples(folder, "mp4")) and not marked)


def _samples(folder: _Folder, suffix: str) -> list[int]:
    """Numbers of the samples that have a video or states."""
    names = [*folder.file("videos", "").glob(f"video_*.{suffix}")]
    numbers = [path.stem.removeprefix("video_") for path in names]
    if names:
        numbers += [path.stem.removeprefix("states_") for path in folder.file("robot_states", "").glob("states_*.bin")]
    return sorted({int(number) for number in numbers if number.isdecimal()})


def _open_test(folder: _Folder, suffix: str, leaving: LeavingOut) -> OnexSource:
    path = folder.root / "metadata.json"
    metadata = {"num_shards": 0, "hz": 30} | (read_json(path) if path.exists() else {})
    meta = validated(path, _Meta, metadata)
    layout, grid = _layout(folder.root, meta), _grid(folder.root, metadata) if suffix == "bin" else None
    shards: list[Shard] = []
    for index in _samples(folder, suffix):
        with leaving.around(f"sample {index}"):
            shards.append(_sample(folder, index, suffix, layout, grid))
    return OnexSource(
        kind="1x-test",
        context_only=True,
        path=folder.root,
        fps=meta.hz,
        layout=layout,
        episodes=tuple(Episode(index=i, length=s.num_frames, name=f"sample {s.index}") for i, s in enumerate(shards)),
        image_size=_image_size(tuple(shards)) if grid is None else None,
        grid=grid,
        left_out=tuple(leaving.lines),
        places=tuple(Place(shard, 0) for shard in shards),
    )


def _sample(folder: _Folder, index: int, suffix: str, layout: StateLayout, grid: TokenGrid | None) -> Shard:
    """A sample of the test set: frames or tokens of its context, and states of this and of what is to be forecast."""
    video, states = folder.shard(index, suffix)[1:3]
    problem = next((_absent(path) for path in (video, states) if not path.exists()), None)
    if problem is None and grid is not None:
        problem = _size_problem(video, 1, _block_size(grid), f"one block of {_block_size(grid)} int32")
    if problem is not None:
        raise problem
    rows, rest = divmod(states.stat().st_size, 4 * layout.dim)
    context = probe(video).num_frames if grid is None else grid.block
    if rest or rows < context:
        raise DataError(
            states,
            expected=f"rows of {layout.dim} float32, at least the {context} of the context",
            found=f"{states.stat().st_size} bytes, {rows} rows and {rest} bytes over",
            fix="Fetch the sample again.",
        )
    return Shard(index=index, num_frames=rows, video=video, states=states, segments=None)


def _block_size(grid: TokenGrid) -> int:
    return grid.latents_per_block * grid.height * grid.width


def _absent(path: Path) -> DataError:
    return DataError(path, expected="one file per sample", found="no file", fix="Fetch the sample again.")
