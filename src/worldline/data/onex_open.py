"""Find out what a 1X v2.0 folder holds and check that its files have the sizes its metadata promise.

Reads JSON, segment numbers and file sizes only. Faults go to a `Report`: opening raises the first, inspection
collects them all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldline.data.checks import Report, raise_problem, summarise
from worldline.data.onex import OnexSource, Shard, segment_runs
from worldline.data.states import ONEX_LAYOUT
from worldline.data.video import probe
from worldline.files import mapped, read_json
from worldline.schema import DataError, Episode, StateLayout, TokenGrid

COSMOS_GRID = TokenGrid(height=32, width=32, vocab_size=64_000)
"""The grid of the challenge's tokens (Cosmos DV8x8x8 at 256x256), where metadata.json does not say otherwise.
"""


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
    if _is_test(folder):
        return _open_test(folder, report)
    metadata = _metadata(folder, report)
    layout, grid = _layout(root, metadata), _grid(root, metadata) if suffix == "bin" else None
    complete, missing = _present(folder, suffix, int(metadata["num_shards"]))
    if missing and not allow_missing:
        report(_missing(root, missing, int(metadata["num_shards"])))
    shards = tuple(s for i in complete if (s := _shard(folder, i, suffix, layout, grid, report)) is not None)
    episodes, places = _episodes(shards, grid, _recordings(metadata))
    return OnexSource(
        kind="1x-raw" if grid is None else "1x-tokens",
        path=root,
        fps=float(metadata["hz"]),
        layout=layout,
        episodes=episodes,
        image_size=_image_size(shards, report) if grid is None else None,
        grid=grid,
        left_out=tuple(missing),
        shards=shards,
        places=places,
    )


def _metadata(folder: _Folder, report: Report) -> dict[str, Any]:
    """Read metadata.json; after a reported fault, take the number of shards from the folder and 1X's rate."""
    path = folder.root / "metadata.json"
    metadata: dict[str, Any] = {}
    if path.exists():
        metadata = read_json(path)
        absent = [key for key in ("num_shards", "hz") if not isinstance(metadata.get(key), int | float)]
        if absent:
            report(DataError(path, expected="numbers num_shards and hz", found=f"no {absent}", fix="Restore it."))
    else:
        report(
            DataError(
                path,
                expected="a finished 1X v2.0 folder",
                found="no metadata.json, which is written last",
                fix="Let the writer or the download finish, or start it again: it resumes.",
            )
        )
    return {"num_shards": len(list(folder.file("metadata", "").glob("metadata_*.json"))), "hz": 30} | metadata


def _layout(root: Path, metadata: dict[str, Any]) -> StateLayout:
    if "state_names" not in metadata:
        return ONEX_LAYOUT
    names, kinds = tuple(metadata["state_names"]), tuple(metadata.get("state_kinds", ()))
    if len(names) != len(kinds) or not set(kinds) <= {"angle", "velocity", "binary", "other"}:
        raise DataError(
            root / "metadata.json",
            expected="one kind (angle, velocity, binary or other) for every state name",
            found=f"{len(names)} names and kinds {kinds}",
            fix="Correct state_kinds.",
        )
    return StateLayout(names=names, kinds=kinds)


def _grid(root: Path, metadata: dict[str, Any]) -> TokenGrid:
    if "token_grid" not in metadata:
        return COSMOS_GRID
    try:
        latents, height, width = (int(n) for n in metadata["token_grid"])
        grid = TokenGrid(
            height=height,
            width=width,
            vocab_size=int(metadata["vocab_size"]),
            block=int(metadata["block"]),
            temporal_stride=int(metadata["temporal_stride"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError(
            root / "metadata.json",
            expected="token_grid [l, h, w], vocab_size, block, temporal_stride",
            found=found,
            fix="Restore the file.",
        ) from error
    if grid.latents_per_block != latents:
        raise DataError(
            root / "metadata.json",
            expected=f"{grid.latents_per_block} latent frames per block of {grid.block}",
            found=f"token_grid says {latents}",
            fix="Correct block, temporal_stride or token_grid.",
        )
    return grid


def _present(folder: _Folder, suffix: str, num_shards: int) -> tuple[list[int], list[str]]:
    complete: list[int] = []
    missing: list[str] = []
    for index in range(num_shards):
        absent = [path.name for path in folder.shard(index, suffix) if not path.exists()]
        if absent:
            missing.append(f"shard {index} ({' '.join(absent)})")
        else:
            complete.append(index)
    return complete, missing


def _missing(root: Path, missing: list[str], num_shards: int) -> DataError:
    return DataError(
        root,
        expected=f"all files of {num_shards} shards",
        found=f"missing {summarise(missing)}",
        fix="Fetch the rest, or open with allow_missing to use what is there.",
    )


def _shard(
    folder: _Folder, index: int, suffix: str, layout: StateLayout, grid: TokenGrid | None, report: Report
) -> Shard | None:
    marker, video, states, segments = folder.shard(index, suffix)
    try:
        num_frames = int(read_json(marker).get("shard_num_frames", -1))
    except DataError as problem:
        report(problem)
        return None
    if num_frames < 0:
        report(DataError(marker, expected="shard_num_frames", found="no such key", fix="Restore the file."))
        return None
    problems = [
        _size_problem(states, num_frames, layout.dim, f"{num_frames} x {layout.dim} float32"),
        _size_problem(segments, num_frames, 1, f"{num_frames} int32"),
        None if grid is None else _blocks_problem(video, num_frames, grid),
    ]
    for problem in problems:
        if problem is not None:
            report(problem)
    if any(problems):
        return None
    return Shard(index=index, num_frames=num_frames, video=video, states=states, segments=segments)


def _size_problem(path: Path, rows: int, columns: int, shape: str) -> DataError | None:
    size = path.stat().st_size
    if size == 4 * rows * columns:
        return None
    other = f", which would be {size // (4 * rows)} columns" if rows and size % (4 * rows) == 0 else ""
    return DataError(
        path,
        expected=f"{shape} = {4 * rows * columns} bytes",
        found=f"{size} bytes{other}",
        fix="Download or write the shard again, or correct its metadata.",
    )


def _blocks_problem(path: Path, num_frames: int, grid: TokenGrid) -> DataError | None:
    block = 4 * grid.latents_per_block * grid.height * grid.width
    whole, size = num_frames // grid.block, path.stat().st_size
    allowed = {whole, -(-num_frames // grid.block)}
    if size % block == 0 and size // block in allowed:
        return None
    shape = f"[{grid.latents_per_block}, {grid.height}, {grid.width}]"
    return DataError(
        path,
        expected=f"{max(allowed)} blocks of {shape} int32 ({block} bytes each) for {num_frames} frames",
        found=f"{size} bytes = {size / block:.3f} blocks",
        fix="Download or tokenise the shard again, or correct the token grid in metadata.json.",
    )


def _recordings(metadata: dict[str, Any]) -> dict[int, str]:
    """Which recording each shard was made from, where a writer of ours noted it."""
    provenance = metadata.get("provenance")
    noted = provenance.get("recordings") if isinstance(provenance, dict) else None
    return {i: str(name) for i, name in enumerate(noted)} if isinstance(noted, list) else {}


def _episodes(
    shards: tuple[Shard, ...], grid: TokenGrid | None, recordings: dict[int, str]
) -> tuple[tuple[Episode, ...], np.ndarray]:
    episodes: list[Episode] = []
    places: list[np.ndarray] = []
    for position, shard in enumerate(shards):
        assert shard.segments is not None
        segments = mapped(shard.segments, "int32", (shard.num_frames,))
        firsts, lengths = segment_runs(segments)
        places.append(np.stack([np.full(len(firsts), position), firsts], axis=1))
        for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
            name = f"shard {shard.index}, segment {segments[first]}"
            phase = 0 if grid is None else first % grid.block
            recording = recordings.get(shard.index)
            episodes.append(Episode(index=len(episodes), length=length, name=name, phase=phase, recording=recording))
    return tuple(episodes), np.concatenate(places).astype(np.int64) if places else np.zeros((0, 2), np.int64)


def _image_size(shards: tuple[Shard, ...], report: Report) -> tuple[int, int] | None:
    for shard in shards:
        try:
            info = probe(shard.video)
        except DataError as problem:
            report(problem)
            continue
        return info.height, info.width
    return None


def _is_test(folder: _Folder) -> bool:
    """Samples without segment numbers: the test set.

    A training folder being written has its folders already.
    """
    segments = folder.root / "segment_indices" if folder.nested else folder.root / "segment_idx_0.bin"
    return not segments.exists() and folder.file("videos", "video_0.bin").exists()


def _open_test(folder: _Folder, report: Report) -> OnexSource:
    metadata = read_json(folder.root / "metadata.json") if (folder.root / "metadata.json").exists() else {}
    layout, grid = _layout(folder.root, metadata), _grid(folder.root, metadata)
    shards: list[Shard] = []
    count = len(list(folder.file("videos", "").glob("video_*.bin")))
    for index in range(count):
        video, states = folder.shard(index, "bin")[1:3]
        problem = next((_absent(path) for path in (video, states) if not path.exists()), None)
        problem = problem or _size_problem(video, 1, _block_size(grid), f"one block of {_block_size(grid)} int32")
        rows, rest = divmod(states.stat().st_size, 4 * layout.dim) if problem is None else (0, 0)
        if problem is None and (rest or rows < grid.block):
            problem = _size_problem(states, 64, layout.dim, f"64 x {layout.dim} float32")
        if problem is not None:
            report(problem)
            continue
        shards.append(Shard(index=index, num_frames=rows, video=video, states=states, segments=None))
    return OnexSource(
        kind="1x-test",
        path=folder.root,
        fps=float(metadata.get("hz", 30)),
        layout=layout,
        episodes=tuple(Episode(index=i, length=s.num_frames, name=f"sample {s.index}") for i, s in enumerate(shards)),
        image_size=None,
        grid=grid,
        left_out=(),
        shards=tuple(shards),
        places=np.stack([np.arange(len(shards)), np.zeros(len(shards), int)], axis=1).astype(np.int64),
    )


def _block_size(grid: TokenGrid) -> int:
    return grid.latents_per_block * grid.height * grid.width


def _absent(path: Path) -> DataError:
    return DataError(path, expected="one file per sample", found="no file", fix="Fetch the sample again.")
