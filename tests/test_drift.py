"""How far ahead a forecast is right: stretches of time, and sentences that follow from known numbers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from worldline.evaluation.result import Finding
from worldline.evaluation.rows import Judged
from worldline.evaluation.studies.drift import Drift, Stretches
from worldline.evaluation.study import Found
from worldline.forecasting.forecaster import CopyLast
from worldline.metrics.bootstrap import Interval

SECONDS = torch.arange(1, 301) / 30
CLIPS = 6


def curve(*, begins: float, loses: float, spread: float = 1.0) -> Tensor:
    """PSNR of clips that lie evenly about a line: `n f`."""
    offsets = torch.linspace(-spread, spread, CLIPS)[:, None]
    return begins + offsets - loses * SECONDS


def concluded(episodes: int = CLIPS, motion: float = 1.0, **psnr: Tensor) -> Finding:
    copy = CopyLast(context_frames=17, times=tuple(range(17, 317)), chunk_frames=17)
    rows = {"copy_last": curve(begins=20, loses=0), **psnr}
    moved = {"forecast": motion, "copy_last": 0.0, "truth": 1.0}
    found = Found(
        judged=Judged(forecaster=copy, protocol="compression", run="run"),
        measured={row: torch.full((CLIPS, 300), 3 * moved.get(row, 1.0)) for row in ("truth", *rows)},
        scores={(row, "psnr_db"): values for row, values in rows.items()},
        numbers={row: {"motion": torch.full((CLIPS,), moved.get(row, 1.0))} for row in rows},
        episodes=torch.arange(CLIPS) % episodes,
        forecast="forecast",
        alike="forecast",
        fps=30.0,
        state_names=(),
    )
    return Drift().conclude(found)


def test_stretches_hold_every_frame_once_and_seconds_end_with_their_last_frame() -> None:
    whole = Stretches.of(SECONDS.tolist())
    assert [len(places) for places in whole.places] == [30] * 10
    assert whole.places[0][-1] == 29, "frame 30 is at exactly one second"
    assert whole.names[::9] == ["0 to 1 s", "9 to 10 s"]
    assert whole.middles[0] == pytest.approx(15.5 / 30)
    paced = Stretches.of([(4 * i) / 30 for i in range(1, 16)])
    assert (len(paced.places), paced.names[-1]) == (4, "1.5 to 2 s")
    short = Stretches.of([i / 30 for i in range(1, 18)])
    assert [len(places) for places in short.places] == [3, 3, 3, 3, 3, 2]
    assert short.names[-1] == "0.5 to 0.567 s"
    assert Stretches.of([1 / 30]).places == ((0,),)


def test_means_slopes_and_motion_of_stretches() -> None:
    whole, values = Stretches.of(SECONDS.tolist()), curve(begins=30, loses=0.25)
    assert whole.slope(whole.means(values)).tolist() == pytest.approx([-0.25] * CLIPS, abs=1e-6)
    assert whole.means(values)[0, 0].item() == pytest.approx(29 - 0.25 * 15.5 / 30, abs=1e-5)
    real = torch.ones(1, 300)
    real[:, 30:60] = 0  # the second second stands still
    motion = whole.motion(2 * torch.ones(1, 300), real)
    assert motion[0, 0] == 2
    assert motion.isnan().tolist() == [[stretch == 1 for stretch in range(10)]]
    one = Stretches.of([1 / 30])
    assert one.slope(one.means(values[:, :1])).isnan().all()


def _interval(low: float) -> Interval:
    return Interval(mean=low + 1, low=low, high=low + 2, num_clips=1, num_episodes=9)


def test_spans_of_time_in_words() -> None:
    whole = Stretches.of(SECONDS.tolist())
    for good, words in (
        ("1111111111", "for all 10 s"),
        ("1110000000", "for the first 3 of 10 s"),
        ("0011111111", "from 2 s on, of 10 s"),
        ("0110000100", "in 3 of 10 stretches, the last of which ends after 8 s"),
        ("0000000000", None),
    ):
        assert whole.span([_interval(1.0 if one == "1" else -1.0) for one in good]) == words
    assert whole.span([None] * 10) is None


@pytest.mark.parametrize(
    ("more", "verdict", "sentence"),
    [
        (
            {"forecast": curve(begins=25, loses=0.2), "motion": 0.9},
            "beats a copy",
            "Beats a copy of the last frame for all 10 s; loses 0.20 dB a second; moves 0.90x as much as the truth.",
        ),
        (
            {"forecast": curve(begins=22, loses=0.5), "shuffled_states": curve(begins=22, loses=0.5)},
            "beats it in part",
            "Beats a copy of the last frame for the first 4 of 10 s; loses 0.50 dB a second; moves 1.00x as much as "
            "the truth; another clip's states do as well.",
        ),
        (
            {"forecast": curve(begins=19, loses=-0.3), "shuffled_states": curve(begins=18, loses=0)},
            "beats it in part",
            "Beats a copy of the last frame from 3 s on, of 10 s; gains 0.30 dB a second; moves 1.00x as much as the "
            "truth; better than with another clip's states for all 10 s.",
        ),
        (
            {"forecast": curve(begins=18, loses=0), "motion": 0.0},
            "worse",
            "A copy of the last frame is better throughout; loses 0.00 dB a second; moves 0.00x as much as the truth.",
        ),
        (
            {"forecast": curve(begins=20, loses=0, spread=-4)},
            "no better",
            "Beats no copy of the last frame; loses 0.00 dB a second; moves 1.00x as much as the truth.",
        ),
        (
            {"forecast": curve(begins=25, loses=0.2), "shuffled_states": curve(begins=18, loses=0), "episodes": 1},
            "undecided",
            "One episode does not tell how far ahead the forecast beats a copy of the last frame; loses 0.20 dB a "
            "second; moves 1.00x as much as the truth.",
        ),
    ],
)
def test_the_sentence_says_what_the_numbers_say(more: dict[str, Any], verdict: str, sentence: str) -> None:
    finding = concluded(**more)
    assert (finding.verdict, finding.sentence) == (verdict, sentence)
    in_all, over_time = finding.tables
    by_row = {line.label: [one and round(one.mean, 2) for one in line.values] for line in in_all.lines}
    assert by_row["copy-last"][2:] == [0, 0]
    assert len(over_time.lines) == 10
    assert [chart.title for chart in finding.charts] == ["PSNR over time", "Motion over time"]
    assert all(not math.isnan(one.mean) for chart in finding.charts for line in chart.curves for one in line.y)
