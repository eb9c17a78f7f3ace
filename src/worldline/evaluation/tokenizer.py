"""What survives a tokenizer: round-trip PSNR and SSIM on held-out blocks, and how its codes or latents are spread."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from worldline.data.clips import Clips
from worldline.evaluation.held_out import spread
from worldline.evaluation.result import DataSummary, Evaluation, Row
from worldline.metrics.bootstrap import interval, intervals
from worldline.metrics.image import MetricUnavailable, psnr, ssim
from worldline.rundir import environment
from worldline.schema import UsageError, stack
from worldline.tokenizers.tokenizer import LatentTokenizer, Tokenizer

ROUND_TRIP = "tokenizer round trip"


def evaluate_tokenizer(
    tokenizer: Tokenizer | LatentTokenizer,
    clips: Clips,
    *,
    run: Path,
    num_clips: int | None,
    batch_size: int,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Encode and decode held-out blocks; write `metrics.json` into `out`.

    Usage is in the settings. Of words: those that occurred, and the perplexity of their frequencies (the number of
    words an evenly used vocabulary of the same entropy would have). Of continuous latents: mean and deviation over
    all channels, which should be about 0 and 1.

    Raises:
        UsageError: the data hold no frames.
    """
    began = time.monotonic()
    chosen = spread(len(clips), num_clips)
    usage = _WordUsage(tokenizer.vocab_size) if isinstance(tokenizer, Tokenizer) else _LatentUsage()
    quality: dict[str, list[torch.Tensor]] = {"psnr_db": [], "ssim": []}
    not_computed: dict[str, str] = {}
    episodes: list[int] = []
    size = (0, 0)
    for begin in range(0, len(chosen), batch_size):
        batch = stack([clips[i] for i in chosen[begin : begin + batch_size]])
        if batch.frames is None:
            raise UsageError(f"{clips.source.path} holds no frames to tokenise")
        size = (batch.frames.shape[-2], batch.frames.shape[-1])
        encoded = tokenizer.encode(batch.frames)
        decoded = tokenizer.decode(encoded)
        usage.add(encoded)
        episodes += [origin.episode for origin in batch.origins]
        quality["psnr_db"].append(psnr(decoded, batch.frames))
        try:
            quality["ssim"].append(ssim(decoded, batch.frames))
        except MetricUnavailable as reason:
            not_computed["ssim"] = str(reason)
        if progress:
            progress(min(begin + batch_size, len(chosen)), len(chosen))
    frames = {metric: torch.cat(parts) for metric, parts in quality.items() if parts}
    which = torch.tensor(episodes)
    metrics = {"roundtrip_psnr_db": interval(frames["psnr_db"].mean(dim=1), which)}
    for metric, values in frames.items():
        metrics[f"{metric}_last"] = interval(values[:, -1], which)
        metrics[f"{metric}_mean"] = interval(values.mean(dim=1), which)
    evaluation = Evaluation(
        protocol="tokenizer",
        run=run.resolve().name,
        data=DataSummary(
            name=clips.source.path.resolve().name,
            kind=clips.source.kind,
            num_clips=len(episodes),
            num_episodes=len(set(episodes)),
            image_size=size,
            horizon_frames=len(clips.pattern.frames),
            fps=clips.source.fps / clips.pattern.stride,
        ),
        rows=(Row(name=ROUND_TRIP, role="ceiling", metrics=metrics),),
        curves={metric: {ROUND_TRIP: intervals(values, which)} for metric, values in frames.items()},
        comparisons=(),
        not_computed=not_computed,
        settings=usage.settings(),
        environment=environment(),
        seconds=time.monotonic() - began,
    )
    evaluation.save(out / "metrics.json")
    return evaluation


class _WordUsage:
    def __init__(self, vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size, np.int64)

    def add(self, tokens: torch.Tensor) -> None:
        self.counts += np.bincount(tokens.flatten().numpy(), minlength=len(self.counts))

    def settings(self) -> dict[str, str | int | float | bool]:
        shares = self.counts[self.counts > 0] / self.counts.sum()
        return {
            "vocabulary": len(self.counts),
            "codes_used": int((self.counts > 0).sum()),
            "code_perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), 1),
        }


class _LatentUsage:
    def __init__(self) -> None:
        self.sums = np.zeros(3)

    def add(self, latents: torch.Tensor) -> None:
        values = latents.double()
        self.sums += (values.numel(), values.sum().item(), values.square().sum().item())

    def settings(self) -> dict[str, str | int | float | bool]:
        count, total, squares = self.sums.tolist()
        mean = total / count
        return {"latent_mean": round(mean, 4), "latent_std": round((squares / count - mean**2) ** 0.5, 4)}
