"""The study of uncertainty: what it measures of both families, and what it says of worlds that know and that boast."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    arrays_in,
    noise_frames,
    write_squares,
)
from latent_builders import PATTERN, of_latents, of_tokens
from tolerances import assert_values_agree
from torch import Tensor

from worldline.contract import FramePattern
from worldline.data.clips import DataConfig, open_clips
from worldline.evaluation.engine import Amount, score
from worldline.evaluation.result import Evaluation, Finding
from worldline.evaluation.rows import Judged
from worldline.evaluation.studies.uncertainty import Uncertainty, _of_samples
from worldline.evaluation.study import Found
from worldline.forecasting.forecaster import CopyLast
from worldline.metrics.table import NotComputed
from worldline.schema import Batch, Origin

# --- what forecasters say ---


def clips_of(frames: int) -> Batch:
    states = torch.randn(2, frames, 2, generator=torch.Generator().manual_seed(0))
    origins = tuple(Origin(source="drawn", episode=i, start=0) for i in range(2))
    return Batch(states=states, fps=30.0, origins=origins, frames=noise_frames(2, frames, 3, 16, 16))


def test_certainty_is_of_the_distributions_whose_costs_are_scored() -> None:
    forecaster, batch = of_tokens(), clips_of(34)
    made = forecaster.forecast_clips(batch, extra=("certainty", "costs", "top"))
    sure = made.certainty
    assert sure is not None
    assert sure.cost is not None
    assert sure.hit is not None
    assert made.top_log_probs is not None
    logs = made.top_log_probs.double()  # all 200 are among the 500 best
    assert_values_agree(sure.entropy.double(), -(logs.exp() * logs).sum(dim=-1))
    assert_values_agree(sure.confidence, made.top_log_probs[..., 0].exp())
    assert_values_agree(sure.cost.mean(dim=(-1, -2)), made.costs["full_ce"])
    assert_values_agree(sure.hit.float().mean(dim=(-1, -2)), made.costs["token_accuracy"])
    assert sure.disagreement is None
    assert forecaster.forecast_clips(batch).certainty is None, "only where it is asked for"
    alone = forecaster.forecast_clips(batch, extra=("certainty",)).certainty
    assert alone is not None
    assert alone.cost is None
    assert_values_agree(alone.entropy, sure.entropy)


def test_an_ensemble_says_what_its_members_disagree_about() -> None:
    ensemble = of_tokens().with_members([of_tokens(1), of_tokens(2)])
    sure = ensemble.forecast_clips(clips_of(34), extra=("certainty",)).certainty
    assert sure is not None
    assert sure.disagreement is not None
    assert sure.disagreement.shape == sure.entropy.shape
    assert (sure.disagreement > 0).all()
    assert (sure.disagreement < sure.entropy).all()


@pytest.mark.parametrize("forecaster", [of_tokens(), of_latents(num_samples=2)], ids=["tokens", "latents"])
def test_a_round_trip_is_of_the_context_alone(forecaster: Any) -> None:
    batch = clips_of(77)
    seen, kept = forecaster.round_trip(forecaster.encoded(batch))
    taken = getattr(forecaster, "context_taken", range(17))
    assert batch.frames is not None
    assert torch.equal(seen, batch.frames[:, list(taken)])
    assert kept.shape == seen.shape
    other = replace(batch, frames=batch.frames.clone())
    assert other.frames is not None
    other.frames[:, 17:] = 0
    assert torch.equal(forecaster.round_trip(other)[1], kept)
    assert CopyLast.beside(forecaster).round_trip(batch) is None


# --- through the engine ---


def evaluated(forecaster: Any, protocol: Any, pattern: FramePattern, folder: Path) -> tuple[Finding, Any]:
    squares = write_squares(folder / "squares", 3, length=2 * pattern.window)
    data = DataConfig(path=squares, pattern=replace(pattern, stride=1, repeat_last=0), window_stride=pattern.window)
    judged = Judged(forecaster=forecaster, protocol=protocol, run="run")
    score(judged, open_clips(data, "val"), Amount(batch_size=4, condition_samples=0), out=folder / "out")
    found = Evaluation.load(folder / "out/metrics.json")
    (finding,) = [one for one in found.findings if one.id == "uncertainty"]
    return finding, arrays_in(folder / "out/forecasts.npz")


def labels(finding: Finding) -> list[str]:
    return [line.label for line in finding.tables[0].lines]


def test_a_world_over_latents_is_judged_by_its_spread_and_all_that_costs_nothing(tmp_path: Path) -> None:
    finding, arrays = evaluated(of_latents(num_samples=2), "sampling", PATTERN, tmp_path)
    raw = [label for label in labels(finding) if not label.endswith(", by motion")]
    assert [label.split(" of ")[0] for label in raw] == [
        *("spread", "disagreement", "instability", "residual", "predicted motion alone")
    ]
    assert [table.title for table in finding.tables[1:]] == ["The ensemble of 2 samples"]
    assert {"Risk and coverage", "Spread and error", "Spread-skill ratio"} <= {chart.title for chart in finding.charts}
    assert "of its error" in finding.sentence
    assert arrays["maps"].tolist() == ["spread"]
    assert arrays["map_units"].tolist() == ["grey levels"]
    frames, context = arrays["real"], int(arrays["context"])
    assert arrays["map_0"].shape == (len(frames), frames.shape[1] - context, 16, 16)


def test_one_sample_is_judged_by_what_needs_no_more_and_says_so(tmp_path: Path) -> None:
    finding, arrays = evaluated(of_latents(num_samples=1), "sampling", PATTERN, tmp_path)
    assert labels(finding)[0] == "disagreement of estimates"
    assert len(finding.tables) == 1
    assert any("--num-samples" in note for note in finding.notes)
    assert "maps" not in arrays


def test_a_world_over_tokens_is_judged_by_its_entropy(tmp_path: Path) -> None:
    ensemble = of_tokens().with_members([of_tokens(1)])
    finding, arrays = evaluated(ensemble, "compression", FramePattern(window=34), tmp_path)
    raw = [label for label in labels(finding) if not label.endswith(", by motion")]
    assert raw == [
        *("entropy of the tokens", "disagreement of the members", "residual of the context", "predicted motion alone")
    ]
    assert finding.tables[1].title == "Calibration of the tokens"
    assert arrays["maps"].tolist() == ["token_entropy", "member_disagreement"]
    assert arrays["map_0"].shape == (6, 17, 2, 2)
    assert (arrays["map_0"][:, 1] == arrays["map_0"][:, 8]).all(), "one grid covers eight frames"
    assert 0 < arrays["map_0"].min() <= arrays["map_0"].max() < np.log(200) + 0.01
    assert "its best tokens" in finding.sentence


# --- what it says ---

EPISODES = torch.arange(120) // 4


def found_of(measured: dict[str, Tensor], quality: Tensor, episodes: Tensor = EPISODES) -> Found:
    still = CopyLast(context_frames=17, times=(20, 24), chunk_frames=0, num_samples=4)
    return Found(
        judged=Judged(forecaster=still, protocol="sampling", run="run"),
        measured=measured,
        scores={},
        numbers={"mean_4": {"psnr_db_last": quality}},
        episodes=episodes,
        forecast="mean_4",
        alike="mean_4",
        fps=30.0,
        state_names=("elbow",),
    )


def drawn(factor: float, *, known: bool = True) -> Finding:
    """Clips with errors of their own sizes, forecast by four samples whose spread is right but for a factor."""
    noise = torch.Generator().manual_seed(0)
    size = 4 + 16 * torch.rand(120, 1, 1, 1, 1, generator=noise)
    told = size if known else size[torch.randperm(120, generator=noise)]
    truth = (128 + size * torch.randn(120, 2, 3, 16, 16, generator=noise)).clamp(0, 255).byte()
    samples = 128 + factor * told[:, None] * torch.randn(120, 4, 2, 3, 16, 16, generator=noise)
    samples = samples.round().clamp(0, 255).byte()
    measured = _of_samples(samples, truth, None)
    measured["signal/spread"] = measured["variance"].mean(dim=1).sqrt()
    return Uncertainty().conclude(found_of(measured, -20 * measured["squared_error"][:, -1].sqrt().log10()))


def ratio_of(finding: Finding) -> float:
    value = finding.tables[1].lines[0].values[1]
    assert value is not None
    return value.mean


def test_a_calibrated_ensemble_scores_calibrated_and_is_trusted() -> None:
    finding = drawn(1.0)
    assert finding.verdict == "yes"
    assert "surest of (spread of the samples) are forecast" in finding.sentence
    assert ratio_of(finding) == pytest.approx(1, abs=0.03)
    reliability = finding.charts[0]
    for x, y in zip(reliability.curves[0].x, reliability.curves[0].y, strict=True):
        assert y.mean == pytest.approx(x, rel=0.2)


def test_an_overconfident_one_sorts_as_well_and_is_called_too_sure() -> None:
    finding = drawn(0.3)
    assert finding.verdict == "yes", "its order is right, its size is not"
    assert ratio_of(finding) < 0.5
    assert "too sure" in finding.sentence


def test_spread_that_knows_nothing_of_the_error_is_not_trusted() -> None:
    finding = drawn(1.0, known=False)
    assert finding.verdict in ("no", "undecided")
    assert "better than all)" in finding.sentence


def test_a_signal_that_is_low_for_bad_forecasts_misleads() -> None:
    quality = torch.linspace(20, 30, 120)[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    finding = Uncertainty().conclude(found_of({"signal/draws": quality.clone()}, quality))
    assert finding.verdict == "misleading"
    gain = finding.tables[0].lines[0].values[4]
    assert gain is not None
    assert gain.high < 0


@pytest.mark.parametrize("sign", [1, -1], ids=["lowest", "highest"])
def test_a_few_clips_decide_nothing_though_every_resample_of_them_agrees(sign: int) -> None:
    quality = torch.tensor([20.0, 22.0, 24.0, 26.0])
    finding = Uncertainty().conclude(found_of({"signal/draws": sign * quality}, quality, torch.arange(4)))
    area = finding.tables[0].lines[0].values[0]
    assert area is not None
    assert area.low == area.high, "the bad clip is one of four, so no resample differs"
    assert finding.verdict == "undecided"
    assert "is not decided by these clips" in finding.sentence


def test_one_clip_has_nothing_to_be_compared_with() -> None:
    found = found_of({"signal/draws": torch.ones(1)}, torch.ones(1), torch.zeros(1).long())
    with pytest.raises(NotComputed, match="two clips"):
        Uncertainty().conclude(found)
