"""Video files <-> frames: exact frames from any place, faithful colours, same bytes, useful errors."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from condition_builders import film, write_film
from data_builders import decode, moving_picture

from worldline.formats.video import encode, frame_times, probe, resize, stream_frames
from worldline.schema import DataError, UsageError

SHARED = Path(__file__).parents[2] / "shared/data"


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean()))


def test_round_trip_keeps_size_rate_and_pixels(tmp_path: Path) -> None:
    frames = moving_picture(20, 64)
    encode(tmp_path / "a.mp4", frames, fps=30.0)
    info = probe(tmp_path / "a.mp4")
    assert (info.num_frames, info.size, info.fps) == (20, (64, 64), 30.0)
    decoded = decode(tmp_path / "a.mp4", range(0, 20)).permute(0, 2, 3, 1).numpy()
    assert _psnr(decoded, frames) > 38
    assert np.abs((decoded.astype(float) - frames).mean(axis=(0, 1, 2))).max() < 0.5  # no channel is shifted


def test_saturated_colours_survive(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, 32, 32, 3))
    encode(tmp_path / "a.mp4", frames, fps=30.0, gop=1)
    decoded = decode(tmp_path / "a.mp4", range(0, 5)).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(decoded - frames).max() <= 6


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        encode(tmp_path / name, moving_picture(20), fps=30.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("fps", [10.0, 29.97, 30.0, 50.0])
@pytest.mark.parametrize("gop", [4, 250])
def test_any_window_is_the_same_as_in_a_full_decode(tmp_path: Path, fps: float, gop: int) -> None:
    encode(tmp_path / "a.mp4", moving_picture(60), fps=fps, gop=gop)
    full = decode(tmp_path / "a.mp4", range(0, 60))
    for start, stop in ((0, 1), (1, 18), (15, 17), (16, 33), (43, 60), (59, 60)):
        assert torch.equal(decode(tmp_path / "a.mp4", range(start, stop)), full[start:stop])
    assert torch.equal(torch.cat(list(stream_frames(tmp_path / "a.mp4", range(5, 50), chunk=7))), full[5:50])


@pytest.mark.parametrize(
    "pattern",
    ["g1_pick_bottle_256/videos/*/*/episode_000000.mp4", "g1_pick_bottle_original/videos/*/*/*.mp4"],
)
def test_real_recordings_decode_by_window(pattern: str) -> None:
    path = next(iter(sorted(SHARED.glob(pattern))), None)
    if path is None:
        pytest.skip(f"no {pattern} in {SHARED}")
    full = decode(path, range(0, 90), threads=0)
    assert full.float().std() > 10
    assert torch.equal(decode(path, range(37, 71)), full[37:71])


def test_reading_past_the_end_says_which_frame_is_missing(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", moving_picture(20), fps=30.0)
    with pytest.raises(DataError, match=r"expected frames 10\.\.29 to decode, found no frame 20"):
        decode(tmp_path / "a.mp4", range(10, 30))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_seeking_lands_on_the_keyframe_before_a_frame(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_film(path, film(48), b_frames=3)  # a keyframe every 12 and where scenes change
    times = frame_times(path)
    with av.open(str(path)) as container:
        for number in (0, 11, 12, 30, 36, 47):
            tick = int(times.ticks[number])
            container.seek(times.seeks_for(tick)[0], stream=container.streams.video[0], backward=True)
            first = next(frame for frame in container.decode(video=0) if frame.pts is not None)
            assert first.pts == times.keys[times.keys[:, 0] <= tick][-1, 0]  # and not one whole group earlier


@pytest.mark.parametrize("damage", ["garbage", "truncated", "holed", "absent"])
def test_damaged_video_raises_data_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.mp4"
    encode(path, np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8), fps=30.0)
    data = path.read_bytes()
    hole = len(data) // 3
    contents = {
        "garbage": b"this is no video at all" * 100,
        "truncated": data[: len(data) // 2],
        "holed": data[:hole] + bytes(b ^ 0x5A for b in data[hole : hole + 4000]) + data[hole + 4000 :],
    }
    path.unlink()
    if damage in contents:
        path.write_bytes(contents[damage])
    with pytest.raises(DataError, match=str(path)):
        decode(path, range(0, 40))


def test_odd_sizes_cannot_be_encoded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="31x32"):
        encode(tmp_path / "a.mp4", np.zeros((3, 31, 32, 3), np.uint8), fps=30.0)
    assert list(tmp_path.iterdir()) == []


def test_resize_crops_the_centre_and_keeps_what_fits() -> None:
    frames = torch.zeros(2, 3, 20, 60, dtype=torch.uint8)
    frames[..., 20:40] = 200
    assert (resize(frames, 10) == 200).all()
    fitting = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert resize(fitting, 16) is fitting


def test_resize_is_antialiased() -> None:
    columns = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(1, 3, 64, 64)
    assert (resize(columns.contiguous(), 8).float() - 127.5).abs().max() < 12
