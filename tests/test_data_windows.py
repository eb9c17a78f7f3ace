"""Which windows become clips: counts known from the real 1X shard, and laws on random segments."""

from pathlib import Path

import numpy as np
import pytest
from data_builders import write_tokens

from worldline.contract import FramePattern
from worldline.data.clips import Clips, source_windows
from worldline.formats.onex.source import segment_runs
from worldline.formats.open import open_source
from worldline.formats.source import Source
from worldline.formats.states import ONEX_LAYOUT
from worldline.schema import Episode, UsageError

SHARD_0 = Path(__file__).parents[2] / "shared/data/onex_v2_fragments/train_shard0_segments/segment_idx_0.bin"


@pytest.fixture
def shard_0() -> np.ndarray:
    if not SHARD_0.exists():
        pytest.skip(f"no {SHARD_0}")
    return np.fromfile(SHARD_0, np.int32)


def _video(lengths: np.ndarray) -> Source:
    """Episodes of these lengths, of which nothing is read."""
    episodes = tuple(Episode(index=i, length=int(length), name=str(i)) for i, length in enumerate(lengths))
    return Source(kind="1x-raw", path=Path("raw"), fps=30.0, layout=ONEX_LAYOUT, episodes=episodes)


def test_real_shard_gives_the_published_counts(shard_0: np.ndarray, tmp_path: Path) -> None:
    source = open_source(write_tokens(tmp_path / "t", shard_0))
    assert len(source.episodes) == 521
    blocks, disjoint, overlapping = (
        source_windows(source, window=w, stride=s) for w, s in ((17, 17), (34, 34), (34, 17))
    )
    assert len(blocks) == len(shard_0) // 17 - 310, "so many blocks hold two segments"
    assert (len(disjoint), len(overlapping)) == (3_076, 6_006)
    _, lengths = segment_runs(shard_0)
    video = _video(lengths)
    assert len(source_windows(video, window=77, stride=8)) == 11_301
    assert len(source_windows(video, window=78, stride=8)) == 11_266, (
        "the winning team asks for one frame more than needed"
    )


def test_real_shard_with_tokens_gives_whole_samples(shard_0: np.ndarray, tmp_path: Path) -> None:
    source = open_source(write_tokens(tmp_path / "t", shard_0))
    index = source_windows(source, window=34, stride=34)
    clips = Clips(source, index, pattern=FramePattern(window=34))
    assert len(clips) == 3_076
    firsts, _ = segment_runs(shard_0)
    for i in (0, 1_000, 3_075):
        clip = clips[i]
        begin = firsts[index[i, 0]] + index[i, 1]
        assert begin % 17 == 0
        assert len(set(shard_0[begin : begin + 34])) == 1
        assert clip.tokens is not None
        assert clip.tokens[::3, 0, 0].tolist() == [begin // 17 % 64, (begin // 17 + 1) % 64]
        assert clip.states[0, 0] == np.float32(begin / 1000)


@pytest.mark.parametrize("seed", range(5))
def test_token_windows_are_all_there_is(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    segments = np.repeat(np.arange(60, dtype=np.int32), rng.integers(1, 120, 60))
    source, (firsts, _) = open_source(write_tokens(tmp_path, segments)), segment_runs(segments)
    index, disjoint = (source_windows(source, window=34, stride=stride) for stride in (17, 34))
    found = (firsts[index[:, 0]] + index[:, 1]).tolist()
    every = range(0, len(segments) - 33, 17)
    assert found == [begin for begin in every if len(set(segments[begin : begin + 34])) == 1]
    begins = firsts[disjoint[:, 0]] + disjoint[:, 1]
    assert set(begins.tolist()) <= set(found)
    assert (np.diff(begins) >= 34).all()


@pytest.mark.parametrize("seed", range(5))
def test_windows_match_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths, window, stride = rng.integers(0, 200, 30), int(rng.integers(1, 90)), int(rng.integers(1, 20))
    index = source_windows(_video(lengths), window=window, stride=stride)
    expected = [(e, s) for e, n in enumerate(lengths) for s in range(0, n - window + 1, stride)]
    assert list(map(tuple, index.tolist())) == expected


def test_segment_runs_keep_one_frame_segments_and_repeated_numbers() -> None:
    firsts, lengths = segment_runs(np.array([5, 5, 7, 5, 5, 5], np.int32))
    assert firsts.tolist() == [0, 2, 3]
    assert lengths.tolist() == [2, 1, 3]


def test_patterns_take_the_frames_of_the_report() -> None:
    assert FramePattern.report_77().frames == (*range(0, 77, 4), 76)
    assert len(FramePattern.report_77().frames) == 21
    assert FramePattern(window=34).frames == tuple(range(34))
    assert FramePattern(window=9, stride=3).frames == (0, 3, 6)


def test_impossible_windows_are_refused(tmp_path: Path) -> None:
    for changes in ({"window": 0}, {"stride": 0}):
        with pytest.raises(UsageError, match="of at least 1"):
            FramePattern(**changes)
    source = open_source(write_tokens(tmp_path, np.zeros(100, np.int32)))
    with pytest.raises(UsageError, match="17-frame block"):
        source_windows(source, window=34, stride=8)
