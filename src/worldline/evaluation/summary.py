"""From numbers per clip to an `Evaluation`, and the forecasts that a report shows. Every protocol ends here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int64
from torch import Tensor

from worldline.data.clips import Clips
from worldline.evaluation.result import Comparison, DataSummary, Evaluation, Role, Row, Split
from worldline.evaluation.tally import Tally
from worldline.files import atomic
from worldline.metrics.bootstrap import Interval, interval, intervals, paired_difference
from worldline.metrics.image import psnr
from worldline.metrics.table import METRICS
from worldline.rundir import environment
from worldline.tokenizers.load import TokenizerIdentity


def summarise(
    tally: Tally,
    clips: Clips,
    *,
    protocol: str,
    run: Path,
    split: Split,
    roles: Mapping[str, Role],
    compared: Sequence[tuple[str, str, str]],
    horizon_frames: int,
    tokenizer: TokenizerIdentity | None,
    settings: dict[str, str | int | float | bool],
    seconds: float,
    fps: float | None = None,
) -> Evaluation:
    """Average what was tallied, with intervals over episodes.

    Args:
        roles: the rows in their order, and what each is.
        fps: of the frames that are judged, where these are not all of the video.
        compared: (better, than, metric) claims to check on the same clips, where both rows have the metric.
        tokenizer: whose tokens or latents were scored; None where that is not known.
    """
    episodes = torch.tensor(tally.episodes)
    values = {row: {m: torch.cat(parts) for m, parts in metrics.items()} for row, metrics in tally.values.items()}
    frames = clips[0].frames
    return Evaluation(
        protocol=protocol,
        run=run.resolve().name,
        data=DataSummary(
            name=clips.source.path.resolve().name,
            kind=clips.source.kind,
            num_clips=len(episodes),
            num_episodes=len(episodes.unique()),
            image_size=None if frames is None else (frames.shape[-2], frames.shape[-1]),
            horizon_frames=horizon_frames,
            fps=clips.source.fps if fps is None else fps,
            split=split,
        ),
        tokenizer=tokenizer,
        rows=tuple(
            Row(id=name, role=role, metrics=_intervals(values[name], episodes))
            for name, role in roles.items()
            if name in values
        ),
        curves={
            metric: {row: intervals(torch.cat(parts), episodes) for row, parts in by_row.items()}
            for metric, by_row in tally.curves.items()
        },
        comparisons=tuple(
            Comparison(
                metric=metric,
                better=better,
                than=than,
                difference=paired_difference(values[better][metric], values[than][metric], episodes),
            )
            for better, than, metric in compared
            if metric in values.get(better, {}) and metric in values.get(than, {})
        ),
        not_computed=tally.not_computed,
        settings=settings,
        environment=environment(),
        seconds=seconds,
    )


def _intervals(values: Mapping[str, Tensor], episodes: Int64[Tensor, " n"]) -> dict[str, Interval]:
    """Average each metric over clips; of a sparse one over those that have a number."""
    found = {}
    for metric, numbers in values.items():
        known = ~numbers.isnan() if METRICS[metric].sparse else torch.ones_like(numbers).bool()
        if known.any():
            found[metric] = interval(numbers[known], episodes[known])
    return found


def write_forecasts(path: Path, tally: Tally, *, rows: Sequence[str], context: int) -> None:
    """Keep some clips' frames for the report: real ones, and each row's context + forecast, as `n t h w 3`.

    Args:
        rows: in the order they are shown; the first is the forecast whose PSNR is noted.
        context: frames of each clip that were seen, not predicted.
    """
    if "real" not in tally.shown:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: rearrange(torch.stack(clips), "n t c h w -> n t h w c") for name, clips in tally.shown.items()}
    names = [name for name in rows if name in arrays]
    real = arrays["real"]
    quality = psnr(
        rearrange(arrays[names[0]][:, -1:], "n t h w c -> n t c h w"),
        rearrange(real[:, -1:], "n t h w c -> n t c h w"),
    )
    content = {
        "real": real.numpy(),
        "rows": np.array(names),
        "context": np.array(context),
        "psnr": quality[:, 0].numpy(),
        **{f"forecast_{i}": arrays[name].numpy() for i, name in enumerate(names)},
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **content)
