"""What survives a tokenizer: round-trip PSNR and SSIM on held-out blocks, and how its tokens or latents are spread.

Blocks are encoded by themselves, as they are wherever else tokens are made.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldline.data.clips import Clips
from worldline.evaluation.batches import Progress, check_sizes, tallied
from worldline.evaluation.held_out import spread
from worldline.evaluation.parts import Parts
from worldline.evaluation.result import Evaluation, Split
from worldline.evaluation.summary import summarise
from worldline.evaluation.tally import Tally
from worldline.ranks import Ranks
from worldline.schema import Batch, UsageError
from worldline.tokenizers.load import TokenizerIdentity
from worldline.tokenizers.tokenizer import LatentTokenizer, Tokenizer

RECONSTRUCTION = "reconstruction"


def evaluate_tokenizer(
    tokenizer: Tokenizer | LatentTokenizer,
    clips: Clips,
    *,
    run: Path,
    num_clips: int | None,
    batch_size: int,
    out: Path,
    split: Split = "not checked",
    identity: TokenizerIdentity | None = None,
    checkpoint: str | None = None,
    device: torch.device | None = None,
    parts: Parts | None = None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Encode and decode held-out blocks; write `metrics.json` into `out`.

    Usage is in the settings. Of tokens: those that occurred, and the perplexity of their frequencies (the number of
    tokens an evenly used vocabulary of the same entropy would have). Of continuous latents: mean and deviation over
    all channels, which should be about 0 and 1.

    Args:
        split: what `split_of` said of the clips, for the record.
        checkpoint: which one of a run folder this is, for the record.
        device: where the tokenizer is; the CPU if not given.
        parts: what an evaluation by the very same left that was stopped; None begins from nothing.
        ranks: processes that share the clips; each returns the whole evaluation, and the first one writes it.

    Raises:
        UsageError: the data hold no frames, or the numbers are such that nothing can be evaluated.
    """
    check_sizes(num_clips=num_clips, batch_size=batch_size)
    if clips.source.image_size is None:
        raise UsageError(f"{clips.source.path} holds no frames to tokenize")
    began, ranks = time.monotonic(), ranks or Ranks()
    scorer = _Scorer(tokenizer=tokenizer, device=device or torch.device("cpu"))
    chosen = spread(len(clips), num_clips)
    parts = parts or Parts.begun(out, ranks=ranks)
    tally = tallied(clips, chosen, scorer, batch_size=batch_size, parts=parts, ranks=ranks, progress=progress)
    if tally is None:
        return ranks.agreed(None)
    evaluation = summarise(
        tally,
        clips,
        protocol="tokenizer",
        run=run,
        split=split,
        roles={RECONSTRUCTION: "ceiling"},
        compared=(),
        horizon_frames=len(clips.pattern.frames),
        fps=clips.source.fps / clips.pattern.stride,
        tokenizer=identity,
        settings=({"checkpoint": checkpoint} if checkpoint else {}) | _usage(tally.totals),
        seconds=time.monotonic() - began,
    )
    evaluation.save(out / "metrics.json")
    parts.remove()
    return ranks.agreed(evaluation)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scorer:
    """Scores the round trip of one batch of clips, and counts what was in the middle."""

    tokenizer: Tokenizer | LatentTokenizer
    device: torch.device

    def __call__(self, batch: Batch, now: range) -> Tally:
        del now  # every clip is treated alike
        assert batch.frames is not None, "the caller checked for frames"
        tally = Tally(episodes=[origin.episode for origin in batch.origins])
        encoded = self.tokenizer.encode(batch.frames.to(self.device))
        tally.add_frames(RECONSTRUCTION, self.tokenizer.decode(encoded).cpu(), batch.frames)
        if isinstance(self.tokenizer, Tokenizer):
            tally.totals["tokens"] = torch.bincount(encoded.flatten().cpu(), minlength=self.tokenizer.vocab_size)
        else:
            values = encoded.cpu().double()
            tally.totals["latents"] = torch.stack(
                [values.new_tensor(values.numel()), values.sum(), values.square().sum()]
            )
        return tally


def _usage(totals: dict[str, Tensor]) -> dict[str, str | int | float | bool]:
    if "tokens" in totals:
        counts = totals["tokens"].double()
        shares = counts[counts > 0] / counts.sum()
        return {
            "vocabulary": len(counts),
            "tokens_used": len(shares),
            "token_perplexity": round(float((-(shares * shares.log()).sum()).exp()), 1),
        }
    count, total, squares = totals["latents"].tolist()
    mean = total / count
    return {"latent_mean": round(mean, 4), "latent_std": round((squares / count - mean**2) ** 0.5, 4)}
