"""How many frames of driven worlds a second, one and many at once, and whether a card computes what a CPU does.

    OMP_NUM_THREADS=1 python benchmarks/driven_world.py [--quick | --cuda] [--repeats 3] [--world driven-tiny]

`session` is what `worldline.load(...).start(...)` gives, as policies are evaluated: after every step frames and tokens
of all clips are in main memory (up to commit 1ae6a23 their past, too). `kept` is the world and its decoder alone, in
the same order, with the frames left on the device: the distance between the two is what moving them costs. Both are
greedy, decode every frame and go on `STEPS` frames a round. Clips that exceed the data's are repeated: what is in them
changes no timing.

`agreement` forecasts the same clips of the built-in data on the CPU and on the card, in fp32: the share of equal tokens
and of equal pixels, and PSNR between both (`null`: no pixel differs). The card's convolutions are rounded to TF32 if
PyTorch is left as it is (`tf32`), which `exact` forbids. A world that goes on from its own tokens carries a difference
in one of them on: the share of the first grid is before that.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import NO_CUDA, ONLY_CUDA, Parts, card_wanted, in_turns, options, ratio, spread

from worldline import builtin
from worldline.families.load import load_forecaster
from worldline.forecasting.causal import CausalForecaster
from worldline.formats.open import open_source
from worldline.metrics.image import psnr

Shown = tuple[torch.Tensor, torch.Tensor | None]
"""Frames `b k t 3 h w`, and tokens `b k l h w` of a world that has some."""
STEPS = 8
AGREEING = ("compression-tiny", "sampling-tiny", "driven-tiny")
AHEAD = 16
"""Frames that a driven world forecasts for `agreement`."""


def clips_of(world: str, count: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """So many windows of the world's held-out data, repeated where these have fewer episodes: frames and states."""
    source = open_source(builtin.held_out(builtin.resolve(world)))
    long = [episode.index for episode in source.episodes if episode.length >= frames]
    each = [source.read(episode, 0, frames) for episode in long[:count]]
    rows = [each[i % len(each)] for i in range(count)]
    return torch.stack([clip.frames for clip in rows]), torch.stack([clip.states for clip in rows])


def driven(world: str, counts: tuple[int, ...], repeats: int, device: str, steps: int = STEPS) -> dict[str, Any]:
    """Frames a second of each number of clips, in both ways."""
    forecaster = load_forecaster(world, device=torch.device(device)).forecaster
    assert isinstance(forecaster, CausalForecaster), "a driven world over tokens"
    figures: dict[str, Any] = {"steps": steps, "rows_at_once_by_default": forecaster.rows_at_once}
    for count in counts:
        calls = ways(replace(forecaster, rows=count), world, count, steps)
        seconds = in_turns(calls, repeats=repeats)
        made = {name: spread([count * steps / s for s in times]) for name, times in seconds.items()}
        figures[f"{count}_clips"] = {
            "frames_per_second": made,
            "ms_per_step": {name: spread([1000 * s / steps for s in times]) for name, times in seconds.items()},
            "session_to_kept_ratio": ratio(seconds, "session", "kept"),
        }
    return figures


def ways(forecaster: CausalForecaster, world: str, count: int, steps: int) -> dict[str, Callable[[], object]]:
    """Calls that go on by so many frames: a session, and its world and decoder alone."""
    context, device, tokenizer = forecaster.context_frames, forecaster.device, forecaster.tokenizer
    assert tokenizer is not None, "a world that shows frames"
    frames, states = clips_of(world, count, context + 1)
    held, ahead = states[:, :context], states[:, context:]
    session = forecaster.start(frames[:, :context], held)
    begin = session.snapshot()
    grid, past = (part.to(device) for part in begin.context)
    way = states[:, context - 1 : context + 1].to(device)

    def advance() -> None:
        session.restore(begin)
        for _ in range(steps):
            assert session.advance(ahead).video.device.type == "cpu"

    @torch.no_grad()
    def keep() -> None:
        now, then = grid[:, None], past
        drawn = [torch.Generator().manual_seed(row) for row in range(count)]
        for _ in range(steps):
            logits, then = forecaster.world(now, forecaster.world.conditions(way), then)
            now = forecaster.world.chosen(logits[:, 0], forecaster.sampling, drawn)[:, None]
            tokenizer.decode(now)

    return {"session": advance, "kept": keep}


def agreement(world: str, count: int, device: str) -> dict[str, Any]:
    """The same forecast here and there."""
    here = forecast(world, count, "cpu")
    found: dict[str, Any] = {"clips": count, "frames": here[0].shape[2]}
    for name, allowed in (("tf32", True), ("exact", False)):
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, allowed
        try:
            found[name] = compared(here, forecast(world, count, device))
        finally:
            torch.backends.cudnn.allow_tf32 = before
    return found


def forecast(world: str, count: int, device: str) -> Shown:
    """Of the world's window, or `AHEAD` frames of a driven world; noise is drawn on the CPU, alike everywhere."""
    one = load_forecaster(world, device=torch.device(device)).forecaster
    window = one.times[-1] + 1
    if not isinstance(one, CausalForecaster):
        frames, states = clips_of(world, count, window)
        made = one.forecast(frames[:, : one.context_frames], states, seeds=range(count))
        return made.video, made.tokens
    context = one.context_frames
    frames, states = clips_of(world, count, context + AHEAD)
    session = one.start(frames[:, :context], states[:, :context])
    steps = [session.advance(states[:, t : t + 1]) for t in range(context, context + AHEAD)]
    tokens = [step.tokens for step in steps if step.tokens is not None]
    return torch.cat([step.video for step in steps], dim=2), torch.cat(tokens, dim=2)


def compared(here: Shown, there: Shown) -> dict[str, float | None]:
    """How alike two forecasts are."""
    (ours, tokens), (theirs, others) = here, there
    off = (ours.int() - theirs.int()).abs()
    found: dict[str, float | None] = {
        "equal_pixels_share": round((off == 0).double().mean().item(), 6),
        "largest_pixel_difference": off.max().item(),
        "psnr_between_db": round(psnr(theirs, ours).mean().item(), 2) if off.any() else None,
        "psnr_between_last_frames_db": round(psnr(theirs[:, :, -1], ours[:, :, -1]).mean().item(), 2),
    }
    if tokens is not None and others is not None:
        same = (tokens == others).double()
        found["equal_tokens_share"] = round(same.mean().item(), 6)
        found["equal_tokens_of_first_grid_share"] = round(same[:, :, 0].mean().item(), 6)
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--world", default="driven-tiny")
    parser.add_argument("--clips", type=int, default=4, help="that are forecast on both devices")
    given = parser.parse_args()
    card, parts, world = card_wanted(given), Parts(), given.world
    if given.cuda:
        parts.leave_out(f"{world}_on_cpu", why=ONLY_CUDA)
    elif given.quick:
        parts.add(f"{world}_on_cpu", lambda: driven(world, (1, 2), 1, "cpu", 2))
    else:
        parts.add(f"{world}_on_cpu", lambda: driven(world, (1, 4, 16), given.repeats, "cpu"))
    if card:
        parts.add(f"{world}_on_cuda", lambda: driven(world, (1, 16, 256), given.repeats, "cuda"))
        for name in AGREEING:
            parts.add(f"agreement_{name}", lambda name=name: agreement(name, given.clips, "cuda"))
    else:
        parts.leave_out(f"{world}_on_cuda", *(f"agreement_{name}" for name in AGREEING), why=NO_CUDA)
    parts.finish(quick=given.quick, torch_threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
