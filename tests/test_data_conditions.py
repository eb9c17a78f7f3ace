"""Data sets as people really have them: the right frame for every row, or an error that names the cause."""

import json
import os
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from commands import do
from condition_builders import (
    CAMERA,
    encoded,
    film,
    numbers,
    states,
    table_of,
    video_of,
    write,
    write_film,
    write_latents,
)
from data_builders import write_raw, write_tokens
from pyarrow import parquet

from worldline.data.clips import check_episodes
from worldline.data.info import Info, inspect
from worldline.data.splits import content_of, recordings
from worldline.formats.open import OpenOptions, open_source
from worldline.schema import DataError

VERSIONS = ("v2.1", "v3.0")


def _read(root: Path, episode: int, start: int = 0, stop: int | None = None, **options: Any) -> list[int]:
    source = open_source(root, **options)
    frames = source.read(episode, start, source.episodes[episode].length if stop is None else stop).frames
    assert frames is not None
    return numbers(frames)


def _kinds(info: Info) -> dict[str, int]:
    return {problem.kind: problem.count for problem in info.problems}


# --- rate: rows and frames are paired by time ---


def test_a_table_thinned_out_takes_every_third_frame(tmp_path: Path) -> None:
    root = write(tmp_path / "d", lengths=(20, 24), fps=10, videos=False)
    for episode, first, count in ((0, 0, 20), (1, 60, 24)):
        write_film(video_of(root, episode), film(3 * count, first), fps=30)
    assert _read(root, 0) == list(range(0, 60, 3))
    assert _read(root, 1, 5, 9) == [75, 78, 81, 84]
    assert open_source(root).fps == 10


@pytest.mark.parametrize("version", VERSIONS)
def test_a_rate_that_varies_is_read_where_table_and_video_agree(tmp_path: Path, version: str) -> None:
    rng = np.random.default_rng(0)
    times = (np.arange(40) + rng.uniform(-0.33, 0.33, 40)) / 30
    times[0] = 0.0
    times[20:] += 1.5 / 30
    root = write(tmp_path / "d", version, (40,), columns=lambda *_: {"times": times})
    write_film(next(root.rglob("*.mp4")), film(40), times=times.tolist())
    assert _read(root, 0) == list(range(40))
    assert _read(root, 0, 18, 23) == list(range(18, 23))
    assert inspect(root).problems == ()


def test_a_video_of_another_rate_is_refused_with_both_rates(tmp_path: Path) -> None:
    root = write(tmp_path / "d", lengths=(40, 36))
    write_film(video_of(root, 1), film(36, 40), fps=25)
    assert _read(root, 0) == list(range(40))
    with pytest.raises(DataError, match=r"episode_000001\.mp4.* 30 rows/s.* 25 frames/s"):
        _read(root, 1, 0, 2)
    assert _kinds(inspect(root)) == {"rate": 1}


def test_rows_of_another_rate_than_info_says_are_refused_with_both_rates(tmp_path: Path) -> None:
    root = write(tmp_path / "d", fps=10, info={"fps": 30})
    with pytest.raises(DataError, match=r"expected 30 rows per second.*found 10 .*10 frames/s"):
        _read(root, 0)


@pytest.mark.parametrize("drift", [0.012, 0.020, 0.030])
def test_drifting_starts_in_a_shared_video_change_nothing(tmp_path: Path, drift: float) -> None:
    lengths = (20,) * 8

    def shift(rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows):
            row[f"videos/{CAMERA}/from_timestamp"] += drift * i / 7

    root = write(tmp_path / "d", "v3.0", lengths, edit=shift)
    assert [_read(root, i) for i in range(8)] == [list(range(20 * i, 20 * i + 20)) for i in range(8)]


def test_frames_of_discarded_takes_in_a_shared_video_are_skipped(tmp_path: Path) -> None:
    def skip(rows: list[dict[str, Any]]) -> None:
        rows[1][f"videos/{CAMERA}/from_timestamp"] = 29 / 30

    root = write(tmp_path / "d", "v3.0", (20, 30), edit=skip)
    frames = np.concatenate([film(20), film(9, 200), film(30, 20), film(4, 240)])
    write_film(next(root.rglob("*.mp4")), frames)
    assert (_read(root, 0), _read(root, 1)) == (list(range(20)), list(range(20, 50)))
    info = inspect(root)
    assert "frames" not in _kinds(info)
    assert "13 frames of 1 videos belong to no row and are not read" in info.notes


@pytest.mark.parametrize(
    ("shown", "stamped"),
    [(0.5, 0.0), (0.0, 1_700.25), (0.5, 0.5)],
    ids=["video begins late", "table begins late", "both begin late"],
)
def test_clocks_that_do_not_begin_at_zero(tmp_path: Path, shown: float, stamped: float) -> None:
    root = write(tmp_path / "d", lengths=(40,), columns=lambda *_: {"times": stamped + np.arange(40) / 30})
    write_film(video_of(root, 0), film(40), times=(shown + np.arange(40) / 30).tolist())
    assert _read(root, 0) == list(range(40))


def test_rows_cut_off_the_beginning_keep_their_frames(tmp_path: Path) -> None:
    root = write(tmp_path / "d", lengths=(30,), columns=lambda *_: {"times": (5 + np.arange(30)) / 30})
    write_film(video_of(root, 0), film(40))
    assert _read(root, 0) == list(range(5, 35))


def test_television_rates_are_one_to_one(tmp_path: Path) -> None:
    root = write(tmp_path / "d", lengths=(240,), videos=False)
    write_film(video_of(root, 0), film(240), fps=30_000 / 1001)
    assert _read(root, 0) == list(range(240))


def test_a_video_without_its_last_frame_is_named_and_costs_one_episode(tmp_path: Path) -> None:
    root = write(tmp_path / "d", lengths=(20, 21, 22))
    write_film(video_of(root, 1), film(20, 20))
    with pytest.raises(DataError, match="expected 21 frames, one per row of episode 1, found 20") as caught:
        check_episodes(open_source(root), range(3))
    assert "--exclude-episodes 1 " in caught.value.fix
    source = open_source(root, allow_missing=True)
    assert [episode.name for episode in source.episodes] == ["episode 0", "episode 2"]
    assert [episode.index for episode in source.episodes] == [0, 1]
    assert "episode 1" in source.left_out[0]
    assert _read(root, 1, allow_missing=True) == list(range(41, 63))


def test_a_frame_lost_in_the_middle_is_no_shift(tmp_path: Path) -> None:
    root = write(tmp_path / "d", lengths=(40,))
    kept = [i for i in range(41) if i != 17]
    write_film(video_of(root, 0), film(41)[kept], times=[i / 30 for i in kept])
    with pytest.raises(DataError, match=r"row 17 at 0\.567 s"):
        _read(root, 0, 30, 34)


@pytest.mark.parametrize("row", [9, 39])
@pytest.mark.parametrize("times", ["falling", "equal", "no number", "infinite"])
def test_timestamps_that_do_not_rise_are_named(tmp_path: Path, times: str, row: int) -> None:
    stamps = np.arange(40) / 30
    stamps[row] = {"falling": 0.1, "equal": stamps[row - 1], "no number": np.nan, "infinite": np.inf}[times]
    root = write(tmp_path / "d", lengths=(40,), columns=lambda *_: {"times": stamps})
    with pytest.raises(DataError, match=rf"rise from row to row.*in row {row},"):
        _read(root, 0)


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.duration("ms")])
def test_times_of_arrows_own_types_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    per_second = {"ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
    stamps = pa.array(((1_700_000_000 + np.arange(40) / 30) * per_second).astype(np.int64)).cast(kind)
    assert _read(write(tmp_path / "d", lengths=(40,), columns=lambda *_: {"timestamp": stamps}), 0) == list(range(40))


def test_without_timestamps_rows_follow_one_another(tmp_path: Path) -> None:
    for name, columns in (("a", {"timestamp": None}), ("b", {"timestamp": None, "frame_index": None})):
        for version in VERSIONS:
            root = write(tmp_path / name / version, version, columns=lambda *_, columns=columns: columns)
            assert _read(root, 1) == list(range(40, 76))


@pytest.mark.parametrize(("codec", "b_frames"), [("libx264", 3), ("libx265", 2), ("libsvtav1", 0), ("mpeg4", 2)])
def test_every_window_of_every_coding_is_right(tmp_path: Path, codec: str, b_frames: int) -> None:
    root = write(tmp_path / "d", lengths=(40,), videos=False)
    os.environ["SVT_LOG"] = "0"
    write_film(video_of(root, 0), np.repeat(np.repeat(film(40), 2, 1), 2, 2), codec=codec, b_frames=b_frames)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "all tests after it would run before any other process"
    source = open_source(root)
    for start, stop in ((0, 40), (11, 13), (12, 14), (23, 25), (39, 40)):
        frames = source.read(0, start, stop).frames
        assert frames is not None
        assert numbers(frames[:, :, ::2, ::2]) == list(range(start, stop))


# --- numbers however they are nested ---


def _nested(kind: str, rows: np.ndarray) -> Any:
    values = rows.tolist()
    flat = pa.array(rows.ravel())
    offsets = pa.array(np.arange(0, rows.size + 1, 2), pa.int32())
    match kind:
        case "large_list":
            return pa.array(values, pa.large_list(pa.float32()))
        case "fixed_size_list":
            return pa.FixedSizeListArray.from_arrays(flat, 2)
        case "list_view":
            return pa.ListViewArray.from_arrays(offsets[:-1], pa.array([2] * len(rows), pa.int32()), flat)
        case "list of lists":
            return pa.array([[[a], [b]] for a, b in values], pa.list_(pa.large_list(pa.float64())))
        case "tensor":
            storage = pa.FixedSizeListArray.from_arrays(flat, 2)
            return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), storage)
        case "float16":
            return pa.array([[np.float16(a), np.float16(b)] for a, b in values], pa.list_(pa.float16()))
        case "float64":
            return pa.array(values, pa.list_(pa.float64()))
        case "integers":
            return pa.array([[round(a), round(b)] for a, b in values], pa.list_(pa.int16()))
        case "unsigned":
            return pa.array([[round(a), round(b)] for a, b in values], pa.list_(pa.uint64()))
        case "truth":
            return pa.array([[a > 0.5, b > 0.5] for a, b in values], pa.list_(pa.bool_()))
        case "decimal":
            exact = [[Decimal(f"{a:.3f}"), Decimal(f"{b:.3f}")] for a, b in values]
            return pa.array(exact, pa.list_(pa.decimal128(10, 3)))
        case "chunks":
            half = len(rows) // 2
            return pa.chunked_array([pa.array(values[:half]), pa.array(values[half:])])
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *("large_list", "fixed_size_list", "list_view", "list of lists", "tensor", "float16", "float64"),
        *("integers", "unsigned", "truth", "decimal", "chunks"),
    ],
)
def test_any_nesting_and_type_of_numbers_is_read(tmp_path: Path, kind: str) -> None:
    shape = [2, 1] if kind == "list of lists" else [2]
    features = {"observation.state": {"dtype": "float32", "shape": shape, "names": None}}
    rows = np.stack([np.arange(36) % 2, np.arange(36) // 7 % 2], axis=1).astype(np.float32)
    root = write(
        tmp_path / "d",
        lengths=(36,),
        features=features,
        columns=lambda *_: {"state": _nested(kind, rows)},
        videos=False,
    )
    write_film(video_of(root, 0), film(2))
    np.testing.assert_array_equal(open_source(root).read_states(0, 0, 36), rows)
    np.testing.assert_array_equal(open_source(root).read_states(0, 30, 33), rows[30:33])


@pytest.mark.parametrize("shape", [[1], []])
@pytest.mark.parametrize("kind", [pa.int64(), pa.bool_(), pa.float16(), pa.decimal128(5, 1)])
def test_a_single_number_per_row_is_read(tmp_path: Path, shape: list[int], kind: pa.DataType) -> None:
    values = (np.arange(36) // 7 % 2).tolist()
    cells = [{pa.int64(): v, pa.bool_(): bool(v), pa.float16(): np.float16(v)}.get(kind, Decimal(v)) for v in values]
    features = {"observation.state": {"dtype": "int64", "shape": shape, "names": ["gripper"]}}
    root = write(tmp_path / "d", lengths=(36,), features=features, columns=lambda *_: {"state": pa.array(cells, kind)})
    source = open_source(root)
    assert source.read_states(0, 0, 36)[:, 0].tolist() == values
    assert source.layout.names == ("gripper",)


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (
            lambda rows: [None if i == 7 else row for i, row in enumerate(rows)],
            "found nan in row 7, elbow, of episode 0 .2 such values",
        ),
        (lambda rows: [[None, 1.0] if i == 7 else row for i, row in enumerate(rows)], "found nan in row 7, elbow"),
        (lambda rows: [["a", "b"] for _ in rows], "values of type string"),
        (
            lambda rows: [[1.0] if i == 7 else row for i, row in enumerate(rows)],
            "expected 2 finite numbers in every row, found nan in row 7",
        ),
        (lambda rows: [{"x": 1.0, "y": 2.0} for _ in rows], "values of type struct"),
        (lambda rows: [[] for _ in rows], "values of type null"),
    ],
)
def test_what_is_no_row_of_numbers_is_named(tmp_path: Path, cells: Callable[[Any], Any], found: str) -> None:
    def columns(_episode: int, count: int, first: int) -> dict[str, Any]:
        return {"state": pa.array(cells(states(count, first).tolist()))}

    root = write(tmp_path / "d", lengths=(36,), columns=columns)
    with pytest.raises(DataError, match=found) as caught:
        open_source(root).read_states(0, 0, 36)
    assert caught.value.path == table_of(root, 0)
    for look in (content_of, recordings):  # what a training asks of the states first
        with pytest.raises(DataError, match=r"leave episode 0 out: --exclude-episodes 0 .* --allow-missing"):
            look(open_source(root), [0])


def test_a_bad_row_in_a_shared_table_costs_its_own_episode(tmp_path: Path) -> None:
    def columns(episode: int, count: int, first: int) -> dict[str, Any]:
        cells: list[Any] = states(count, first).tolist()
        times: list[Any] = (np.arange(count) / 30).tolist()
        if episode == 1:
            cells[3], cells[5] = None, [1.0, 2.0, 3.0]
        if episode == 2:
            times[4] = np.nan
        return {"state": pa.array(cells, pa.list_(pa.float32())), "times": times}

    root = write(tmp_path / "d", "v3.0", (20, 21, 22, 23), columns=columns)
    source = open_source(root)
    with pytest.raises(DataError, match=r"found nan in row 3, elbow, of episode 1 \(4 such values\)"):
        source.read_states(1, 0, 21)
    np.testing.assert_array_equal(source.read_states(1, 6, 21), states(21, 20)[6:])
    np.testing.assert_array_equal(source.read_states(3, 0, 23), states(23, 63))
    kept = open_source(root, allow_missing=True)
    assert [episode.name for episode in kept.episodes] == ["episode 0", "episode 3"]
    assert _read(root, 1, allow_missing=True) == list(range(63, 86))


def test_marks_of_encoding_and_line_ends_of_other_systems_are_read(tmp_path: Path) -> None:
    root = write(tmp_path / "d")
    for name in ("info.json", "episodes.jsonl"):
        path = root / "meta" / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert inspect(root).problems == ()


@pytest.mark.parametrize("hidden", ["chunk-000/._file-000.parquet", ".ipynb_checkpoints/file-000-checkpoint.parquet"])
def test_hidden_files_list_no_episodes(tmp_path: Path, hidden: str) -> None:
    root = write(tmp_path / "d", "v3.0")
    listed = next((root / "meta/episodes").rglob("*.parquet"))
    copy = root / "meta/episodes" / hidden
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(b"\0\5\26\7" if "._" in hidden else listed.read_bytes())
    assert inspect(root).problems == ()
    assert (_read(root, 1, 0, 2), open_source(root).left_out) == ([40, 41], ())


# --- images in tables ---


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stored", ["png", "mjpeg", "plain bytes", "files"])
def test_images_in_tables_are_a_camera(tmp_path: Path, version: str, stored: str) -> None:
    codec = "mjpeg" if stored == "mjpeg" else "png"

    def columns(episode: int, count: int, first: int) -> dict[str, Any]:
        images = [encoded(image, codec) for image in film(count, first)]
        if stored == "plain bytes":
            return {CAMERA: pa.array(images)}
        cells: list[dict[str, Any]] = [{"bytes": data, "path": "x.png"} for data in images]
        if stored == "files":
            cells = [{"bytes": None, "path": f"images/{episode}_{i}.png"} for i in range(count)]
            (tmp_path / "d/images").mkdir(parents=True, exist_ok=True)
            for cell, data in zip(cells, images, strict=True):
                (tmp_path / "d" / cell["path"]).write_bytes(data)
        return {CAMERA: pa.array(cells)}

    features = {CAMERA: {"dtype": "image", "shape": [32, 32, 3], "names": None}}
    root = write(
        tmp_path / "d", version, (36, 20), features=features, columns=columns, videos=False, info={"video_path": None}
    )
    source = open_source(root)
    assert (source.image_size, _read(root, 0), _read(root, 1, 3, 19)) == (
        (32, 32),
        list(range(36)),
        list(range(39, 55)),
    )
    assert inspect(root, thorough=True).problems == ()


@pytest.mark.parametrize(("fps", "kind"), [(10.0, "rate"), (-30.0, "timestamps")])
def test_times_of_images_in_tables_are_checked_like_those_of_video(tmp_path: Path, fps: float, kind: str) -> None:
    def columns(_episode: int, count: int, first: int) -> dict[str, Any]:
        images = [{"bytes": encoded(image), "path": None} for image in film(count, first)]
        return {CAMERA: pa.array(images), "times": np.arange(count) / fps}

    features = {CAMERA: {"dtype": "image", "shape": [32, 32, 3], "names": None}}
    root = write(tmp_path / "d", features=features, columns=columns, videos=False)
    assert _kinds(inspect(root)) == {kind: 2}
    with pytest.raises(DataError, match="timestamps of episode 0"):
        check_episodes(open_source(root), [0])


def test_a_damaged_image_is_named_by_its_row(tmp_path: Path) -> None:
    def columns(_episode: int, count: int, first: int) -> dict[str, Any]:
        images = [encoded(image, "png") for image in film(count, first)]
        images[9], images[12] = b"\x89PNG nothing", b""
        return {CAMERA: pa.array([{"bytes": data, "path": None} for data in images])}

    features = {CAMERA: {"dtype": "image", "shape": [32, 32, 3], "names": None}}
    root = write(tmp_path / "d", lengths=(20,), features=features, columns=columns, videos=False)
    assert _read(root, 0, 0, 9) == list(range(9))
    for row in (9, 12):
        with pytest.raises(DataError, match=rf"row {row} of {CAMERA}"):
            _read(root, 0, row, row + 1)


# --- episodes that are empty, short, listed twice or damaged ---


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stray", [False, True])
def test_episodes_of_no_frame_are_left_out_with_a_word(tmp_path: Path, version: str, stray: bool) -> None:
    root = write(tmp_path / "d", version, (36, 0, 1, 20))
    if stray and version == "v2.1":
        write_film(video_of(root, 1), film(1, 200))
    source = open_source(root)
    assert [episode.length for episode in source.episodes] == [36, 1, 20]
    assert source.left_out == ("episode 1 (of no frame)",)
    assert (_read(root, 1), _read(root, 2)) == ([36], list(range(37, 57)))
    assert _kinds(inspect(root)) == {"empty_episode": 1}


def test_episodes_shorter_than_a_sample_say_how_long_they_are(tmp_path: Path) -> None:
    problems = inspect(write(tmp_path / "d", lengths=(25, 20))).problems
    assert [problem.kind for problem in problems] == ["too_short"]
    assert "34" in problems[0].examples[0]
    assert "lengths of 20 to 25" in problems[0].examples[0]
    assert "found lengths of 25" in inspect(write(tmp_path / "one", lengths=(25,))).problems[0].examples[0]


@pytest.mark.parametrize("imagined", [1, 2])
def test_forecasts_shorter_than_a_sample_are_no_fault(tmp_path: Path, imagined: int) -> None:
    root = write(tmp_path / "d", lengths=(20, 20))
    listing = root / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    for line in lines[:imagined]:
        line["worldline/forecaster"] = "a hash"
    listing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = inspect(root)
    assert _kinds(info) == ({} if imagined == 2 else {"too_short": 1})
    assert any("2 of 2 episodes are shorter than the 34 frames" in note for note in info.notes)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tasks", ["wipe", ["wipe", "fold"]])
def test_a_task_may_stand_alone_or_in_a_list(tmp_path: Path, version: str, tasks: str | list[str]) -> None:
    root = write(tmp_path / "d", version, edit=lambda rows: [row.update(tasks=tasks) for row in rows])
    assert [one.task for one in open_source(root).episodes] == ["wipe", "wipe"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("earlier", [40, 31])
def test_an_episode_listed_twice_is_used_once_as_listed_last(tmp_path: Path, version: str, earlier: int) -> None:
    root = write(tmp_path / "d", version, edit=lambda rows: rows.insert(0, rows[0] | {"length": earlier}))
    source = open_source(root)
    assert [(episode.name, episode.length) for episode in source.episodes] == [("episode 0", 40), ("episode 1", 36)]
    assert _kinds(inspect(root)) == {"duplicate": 1}
    assert (_read(root, 0), _read(root, 1)) == (list(range(40)), list(range(40, 76)))


@pytest.mark.parametrize("damage", ["video", "table", "rows", "no rows", "nan", "line"])
def test_one_damaged_episode_costs_one_episode(tmp_path: Path, damage: str) -> None:
    root = write(tmp_path / "d", lengths=(20, 21, 22))
    match damage:
        case "video":
            video_of(root, 1).write_bytes(b"x" * 500)
        case "table":
            table_of(root, 1).write_bytes(table_of(root, 1).read_bytes()[:-300])
        case "rows":
            parquet.write_table(parquet.read_table(table_of(root, 1)).slice(0, 15), table_of(root, 1))
        case "no rows":
            parquet.write_table(parquet.read_table(table_of(root, 1)).slice(0, 0), table_of(root, 1))
        case "nan":
            rows = parquet.read_table(table_of(root, 1))
            cells = pa.array([[float("nan"), 0.0]] * 21, pa.list_(pa.float32()))
            parquet.write_table(rows.set_column(0, "observation.state", cells), table_of(root, 1))
        case _:
            lines = (root / "meta/episodes.jsonl").read_bytes().split(b"\n")
            lines[1] = lines[1].replace(b'"length": 21', b'"length": -3')
            (root / "meta/episodes.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"episode_000001|line 2"):
        check_episodes(open_source(root), range(3))
    source = open_source(root, allow_missing=True)
    assert [episode.name for episode in source.episodes] == ["episode 0", "episode 2"]
    assert len(source.left_out) == 1
    assert _read(root, 1, allow_missing=True) == list(range(41, 63))


def test_when_nothing_is_left_the_cause_is_said(tmp_path: Path) -> None:
    root = write(tmp_path / "d")
    for path in root.rglob("*.mp4"):
        path.write_text(_POINTER)
    with pytest.raises(DataError, match=r"all left out: 2: episode 0 \(a Git LFS pointer"):
        open_source(root, allow_missing=True)


# --- what metadata claim ---


@pytest.mark.parametrize("stated", [[24, 32, 3], [48, 32, 3], [3, 32, 48]])
def test_the_size_of_frames_is_the_videos(tmp_path: Path, stated: list[int]) -> None:
    features = {CAMERA: {"dtype": "video", "shape": stated, "names": None}}
    root = write(tmp_path / "d", features=features)
    source = open_source(root)
    assert source.image_size == (32, 32)
    check_episodes(source, range(2))
    assert _kinds(inspect(root)) == {"image_size": 1}


def test_sizes_that_differ_between_episodes_are_named_unless_a_size_is_given(tmp_path: Path) -> None:
    root = write(tmp_path / "d")
    write_film(video_of(root, 1), film(36, 40, 48, 64))
    with pytest.raises(DataError, match="frames of 32x32, as other episodes have, found 48x64"):
        check_episodes(open_source(root), range(2))
    check_episodes(open_source(root), range(2), size=16)
    assert _kinds(inspect(root)) == {"image_size": 1}


@pytest.mark.parametrize(
    "stats",
    [
        '{"observation.state": {"min": [NaN, -1.0], "max": [NaN, Infinity]}}',
        '{"observation.state": {"min": [-180, -180], "max": [180, 180]}}',
        '{"observation.state": {"min": [0], "max": "x"}}',
        "[1",
    ],
)
def test_statistics_of_something_else_decide_nothing(tmp_path: Path, stats: str) -> None:
    root = write(tmp_path / "d")
    (root / "meta/stats.json").write_text(stats)
    assert open_source(root).layout.kinds == ("angle", "binary")
    assert sum(_kinds(inspect(root)).values()) == 1


def test_names_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    features = {"observation.state": {"dtype": "float32", "shape": [2], "names": ["a", "b", "c"]}}
    root = write(tmp_path / "d", features=features)
    assert open_source(root).layout.names == ("state.0", "state.1")
    assert _kinds(inspect(root)) == {"names": 1}


def test_rows_in_another_table_than_listed_are_found(tmp_path: Path) -> None:
    def stale(rows: list[dict[str, Any]]) -> None:
        rows[1]["data/file_index"] = 0

    root = write(tmp_path / "d", "v3.0", (36, 20, 22), edit=stale, file_of=lambda episode: min(episode, 1))
    source = open_source(root)
    for episode, first in ((0, 0), (1, 36), (2, 56)):
        count = source.episodes[episode].length
        np.testing.assert_array_equal(source.read_states(episode, 0, count), states(count, first))
        assert _read(root, episode) == list(range(first, first + count))
    assert _kinds(inspect(root)) == {"stale_pointer": 1}


# --- cameras ---


def test_a_camera_without_files_is_not_taken_and_named(tmp_path: Path) -> None:
    phantom = {"dtype": "video", "shape": [80, 128, 3], "names": None}
    features = {"observation.images.a": phantom, CAMERA: None}
    for version in VERSIONS:
        camera = {"dtype": "video", "shape": [32, 32, 3], "names": None}
        root = write(tmp_path / version, version, features=features | {"observation.images.head": camera})
        assert _read(root, 0, 0, 3) == [0, 1, 2]
        info = inspect(root)
        assert info.camera == CAMERA
        assert _kinds(info) == {"camera": 1}
        assert "observation.images.a" in info.problems[0].examples[0]


def test_a_depth_map_is_not_taken_unasked_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depth = {"dtype": "video", "shape": [32, 32, 1], "names": None, "info": {"video.is_depth_map": True}}
    root = write(tmp_path / "d", features={"observation.images.a_depth": depth})
    write_film(root / "videos/chunk-000/observation.images.a_depth/episode_000000.mp4", film(40, 100))
    assert _read(root, 0, 0, 3) == [0, 1, 2]
    said = capsys.readouterr().err
    assert said.count(f"reading {CAMERA}, not observation.images.a_depth (a depth map); --camera,") == 1
    open_source(root)
    info = inspect(root)
    assert capsys.readouterr().err == "", "said once"
    assert "observation.images.a_depth is not used by default: a depth map" in info.notes
    assert f"  camera       {CAMERA}; not read: observation.images.a_depth (choose with --camera)\n" in str(info)
    assert f"  camera       {CAMERA}\n" in str(inspect(write(tmp_path / "one")))


def test_of_several_cameras_an_inspection_names_the_one_it_reads(tmp_path: Path) -> None:
    wrist = {"dtype": "video", "shape": [32, 32, 3], "names": None}
    root = write(tmp_path / "d", features={"observation.images.a_wrist": wrist})
    shutil.copytree(root / "videos/chunk-000" / CAMERA, root / "videos/chunk-000/observation.images.a_wrist")
    names = {CAMERA, "observation.images.a_wrist"}
    (other,) = names - {camera := inspect(root).camera}
    assert f"  camera       {camera}; not read: {other} (choose with --camera)\n" in str(inspect(root))
    assert f"  camera       {other}; not read: {camera} " in str(inspect(root, OpenOptions(camera=other)))


# --- files that are not what they should be ---

_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 99\n"


@pytest.mark.parametrize("suffix", ["parquet", "mp4", "json", "jsonl"])
def test_git_lfs_pointers_are_called_so(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "d")
    for path in root.rglob(f"*.{suffix}"):
        path.write_text(_POINTER)
    with pytest.raises(DataError, match="git lfs pull") as caught:
        check_episodes(open_source(root), range(2))
    assert caught.value.kind == "git_lfs_pointer"


@pytest.mark.parametrize("name", ["videos/video_0.{}", "robot_states/states_0.bin", "metadata/metadata_0.json"])
@pytest.mark.parametrize("kind", ["raw", "tokens"])
def test_git_lfs_pointers_in_1x_folders_are_called_so(tmp_path: Path, name: str, kind: str) -> None:
    root = write_raw(tmp_path) if kind == "raw" else write_tokens(tmp_path, np.zeros(40, np.int32))
    (root / name.format("mp4" if kind == "raw" else "bin")).write_text(_POINTER)
    with pytest.raises(DataError, match="git lfs pull"):
        check_episodes(open_source(root), range(1))


def test_problems_of_one_kind_are_one_line_with_a_count(tmp_path: Path) -> None:
    root = write(tmp_path / "d", lengths=(36, *(3,) * 20))
    for episode in range(1, 21):
        video_of(root, episode).unlink()
    (problem,) = inspect(root).problems
    assert (problem.kind, problem.count, len(problem.examples)) == ("missing_files", 20, 4)
    assert "and 19 more" in str(problem)
    assert "\n" not in str(problem)


# --- 1X ---


def test_1x_shards_are_left_out_one_by_one(tmp_path: Path) -> None:
    root = write_raw(tmp_path / "raw")
    for folder in ("videos", "robot_states", "segment_indices", "metadata"):
        for path in list((root / folder).iterdir()):
            for shard in (1, 2, 3):
                (path.parent / path.name.replace("_0.", f"_{shard}.")).write_bytes(path.read_bytes())
    metadata = json.loads((root / "metadata.json").read_text()) | {"num_shards": 4}
    (root / "metadata.json").write_text(json.dumps(metadata))
    markers = [root / f"metadata/metadata_{i}.json" for i in range(4)]
    markers[1].write_text('{"shard_num_frames": 71, "shard_ind": 1}')
    markers[2].write_text('{"shard_num_frames": 0, "shard_ind": 2}')
    for name in ("robot_states/states_2.bin", "segment_indices/segment_idx_2.bin"):
        (root / name).write_bytes(b"")
    with pytest.raises(DataError, match="expected shard_ind 3, found 0"):
        open_source(root)
    source = open_source(root, allow_missing=True)
    assert [episode.name[:7] for episode in source.episodes] == ["shard 0"] * 3 + ["shard 1"] * 3
    assert [line[:7] for line in source.left_out] == ["shard 2", "shard 3"]
    assert _kinds(inspect(root)) == {"empty_episode": 1, "duplicate": 1}


def test_a_1x_video_of_another_rate_is_refused_with_both_rates(tmp_path: Path) -> None:
    root = write_raw(tmp_path)
    write_film(root / "videos/video_0.mp4", film(71), fps=25)
    with pytest.raises(DataError, match=r"expected 30 frames per second.*found 25"):
        open_source(root).read(0, 0, 3)


@pytest.mark.parametrize(
    "change",
    [{"hz": 0}, {"hz": "x"}, {"num_shards": -1}, {"state_names": 3}, {"state_kinds": ["x", "y"]}, {"hz": None}],
)
def test_1x_metadata_of_wrong_values_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    root = write_raw(tmp_path)
    metadata = json.loads((root / "metadata.json").read_text()) | change
    (root / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=next(iter(change))):
        open_source(root)


# --- other formats ---


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("meta_data/info.json", "LeRobot v1"),
        ("1.0.0/dataset_info.json", "RLDS"),
        ("episode_0.hdf5", "HDF5"),
        (".zgroup", "zarr"),
        ("a.mcap", "ROS"),
        ("train/state.json", "1: b/c inside"),
    ],
)
def test_other_formats_are_called_by_name(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    if "inside" in found:  # as the Hub's cache, with its snapshots
        write(tmp_path / "b/c")
    with pytest.raises(DataError, match=found) as caught:
        open_source(tmp_path)
    assert caught.value.kind == "format"


def test_versions_that_are_not_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found 'v1\.6'.*convert_dataset"):
        open_source(write(tmp_path / "d", info={"codebase_version": "v1.6"}))
    (write_tokens(tmp_path / "t", np.zeros(40, np.int32)) / "metadata.json").write_text('{"token_dtype": "uint32"}')
    with pytest.raises(DataError, match=r"v1\.x"):
        open_source(tmp_path / "t")


# --- latents ---


@pytest.mark.parametrize(
    "content", [{"lengths": "x"}, {"fps": 0}, {"latent_grid": {}}, {"names": []}, {"state_kinds": [1]}]
)
def test_metadata_of_latents_are_checked(tmp_path: Path, content: dict[str, Any]) -> None:
    root = write_latents(tmp_path / "l")
    metadata = json.loads((root / "metadata.json").read_text()) | content
    (root / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=r"metadata\.json"):
        open_source(root)


def test_arrays_of_latents_of_another_shape_are_named(tmp_path: Path) -> None:
    root = write_latents(tmp_path / "l")
    source = open_source(root)
    assert source.read(0, 0, 5).latents is not None
    for name, shape in (("latents_0", (4, 2, 4, 2, 3)), ("states_0", (9, 2))):
        kept = (root / f"{name}.npy").read_bytes()
        np.save(root / f"{name}.npy", np.zeros(shape, np.float32))
        with pytest.raises(DataError, match=rf"{name}\.npy.*numbers of shape"):
            source.read(0, 0, 5)
        (root / f"{name}.npy").write_text(_POINTER)
        with pytest.raises(DataError, match="git lfs pull"):
            source.read(0, 0, 5)
        (root / f"{name}.npy").write_bytes(kept)


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "d", lengths=(20, 0, 20), edit=lambda rows: rows.append(rows[0]))
    do("data", ["convert", str(root), str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert "left out 2: episode 0 (listed 2 times, used once), episode 1 (of no frame)" in shown.err
    assert "2 left out" in shown.out
