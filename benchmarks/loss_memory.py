"""How much memory a training step of the report's world needs, head and loss above all. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/loss_memory.py [--quick | --cuda] [--batch 160] [--repeats 5]

Three heads: `worldline` is what worldline trains with; `checkpointed` is what it had before, chunks whose logits are
computed again in the backward pass; `naive` has all logits at once. Their memory is counted, nothing is computed: one
step (forward and backward) runs on the `meta` device, where tensors have a shape and no memory, and the bytes of every
tensor storage are added while it lives (`worldline.planning.meter`, which also says what is not counted). Their
seconds are those of one thread of a CPU in float32, in turns.

Two checks are printed. The bytes PyTorch is told to save for the backward pass (`saved_tensors_hooks`), which is
another count of what is alive between forward and backward; and the same count of a small world on real CPU
tensors. With CUDA, the allocator's peaks stand beside the counted ones: of the heads, of whole steps with their weights
and moments, up to the largest piece of the batch that fits.
GB are 10^9 bytes, B in a card's name too.
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    NO_CUDA,
    ONLY_CUDA,
    Parts,
    autocast,
    beside,
    built_on,
    card_wanted,
    fits,
    in_turns,
    options,
    peak_of,
    random_batch,
    ratio,
    spread,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worldline.planning.meter import follow
from worldline.process.categorical import cross_entropy
from worldline.schema import TokenGrid
from worldline.worlds.st_transformer import ONEX_GRID, STTransformerConfig

REPORT = STTransformerConfig()
REPORT_BATCH = 160
PIECES = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 80, 160)
CARDS_GB = (24, 40, 80, 141)
RESERVE = 0.9  # of a card: what is not counted needs room, too
SMALL = STTransformerConfig(width=64, heads=2, layers=2, loss_chunk=200)
SMALL_GRID = TokenGrid(height=8, width=8, vocab_size=1000)

Head = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Features, embedding and true tokens to the mean cost."""


def naive(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), target)


def checkpointed(hidden: Tensor, weight: Tensor, target: Tensor, *, chunk: int) -> Tensor:
    """As worldline had it: all logits of a single chunk stay."""

    def summed(h: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, weight).float(), t, reduction="sum")

    if len(target) <= chunk:
        return summed(hidden, target) / len(target)
    total = hidden.new_zeros((), dtype=torch.float32)
    for h, t in zip(hidden.split(chunk), target.split(chunk), strict=True):
        total = total + checkpoint(summed, h, t, use_reentrant=False, preserve_rng_state=False)
    return total / len(target)


def heads(chunk: int) -> dict[str, Head]:
    return {
        "worldline": partial(cross_entropy, chunk=chunk),
        "checkpointed": partial(checkpointed, chunk=chunk),
        "naive": naive,
    }


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one forward and backward pass, in bytes. Weights are not in it; their gradients are in `peak`."""

    saved: int
    """What autograd saved for the backward pass."""
    held: int
    """What came to life in the forward pass and still lives after it."""
    peak: int
    """The most that was alive at once."""


def measure(loss: Callable[[], Tensor], given: list[Tensor], device: str = "meta") -> Memory:
    """Follow the forward and the backward pass of a loss. What is given (weights, inputs) is not counted."""
    mine = {tensor.untyped_storage()._cdata for tensor in given}
    saved: dict[int, Tensor] = {}  # one tensor per storage; keeping it keeps the address from being used again
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in mine:
            saved[tensor.untyped_storage()._cdata] = tensor.detach()
        return tensor

    def forward() -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = loss()
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
        saved.clear()
        return value

    found = follow(forward, given, autocast=True, device=device)
    return Memory(saved=sizes[0], held=found.held, peak=found.peak)


def world_memory(
    config: STTransformerConfig, batch: int, device: str = "meta", *, head: str = "worldline"
) -> tuple[Memory, int]:
    """A training step of a world without its optimizer, and the bytes of its weights."""
    grid = SMALL_GRID if config.width == SMALL.width else ONEX_GRID
    with torch.device(device):
        world = config.build(grid).train()
    data, scored = random_batch(config, batch, device, grid), heads(config.loss_chunk)[head]
    assert data.tokens is not None
    tokens, context = data.tokens, config.context_grids
    weights = list(world.parameters())
    given = [*world.state_dict().values(), *weights, tokens, data.states]

    def loss() -> Tensor:  # as the world's own, but for the head
        hidden = world.hidden(tokens[:, :-1], world.state_codes(data.states))[:, context - 1 :]
        return scored(hidden.flatten(0, 2), world.embedding.weight, tokens[:, context:].flatten())

    return measure(loss, given, device), sum(weight.nbytes for weight in weights)


def head_memory(config: STTransformerConfig, batch: int, head: str) -> Memory:
    """Head and loss alone, from the last features (not counted) on."""
    grid = SMALL_GRID if config.width == SMALL.width else ONEX_GRID
    tokens = batch * config.horizon_grids * grid.height * grid.width
    with torch.device("meta"):
        hidden = torch.empty(tokens, config.width, requires_grad=True)
        weight = nn.Parameter(torch.empty(grid.vocab_size, config.width))
        target = torch.empty(tokens, dtype=torch.int64)
    given = [hidden, weight, target]
    return measure(lambda: heads(config.loss_chunk)[head](*given), given)


def gigabytes(found: Memory) -> dict[str, float]:
    return {f"{name}_gb": gb(size) for name, size in asdict(found).items()}


def gb(size: float) -> float:
    return round(size / 1e9, 3)


def head(batch: int) -> dict[str, Any]:
    """The three of them, at a batch in one piece."""
    logits = batch * REPORT.horizon_grids * ONEX_GRID.height * ONEX_GRID.width * ONEX_GRID.vocab_size
    found = {name: head_memory(REPORT, batch, name) for name in heads(REPORT.loss_chunk)}
    return {
        "logits_bf16_gb": gb(2 * logits),
        "logits_fp32_gb": gb(4 * logits),
        "chunk_tokens": REPORT.loss_chunk,
        "logits_of_a_chunk_fp32_gb": gb(4 * REPORT.loss_chunk * ONEX_GRID.vocab_size),
        **{name: gigabytes(memory) for name, memory in found.items()},
        "peak_checkpointed_to_worldline_ratio": round(found["checkpointed"].peak / found["worldline"].peak, 2),
    }


def seconds(repeats: int, *, quick: bool) -> dict[str, Any]:
    """Forward and backward pass of the three on a CPU, in float32: 512 tokens, in chunks of 128 and in one."""
    tokens, width, vocabulary = (64, 32, 500) if quick else (512, REPORT.width, ONEX_GRID.vocab_size)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, width, generator=generator)).requires_grad_()
    target = torch.randint(vocabulary, (tokens,), generator=generator)

    def call(head: Head) -> tuple[Tensor, ...]:
        return torch.autograd.grad(head(hidden, weight, target), (hidden, weight))

    chunks = {"chunks": tokens // 4, "one_chunk": tokens}
    calls = {f"{name}_{chunk}": partial(call, h) for chunk, n in chunks.items() for name, h in heads(n).items()}
    found = in_turns(calls, repeats=repeats, clock=time.process_time)
    ratios = {
        f"{other}_to_worldline_ratio_{chunk}": ratio(found, f"{other}_{chunk}", f"worldline_{chunk}")
        for chunk in chunks
        for other in ("checkpointed", "naive")
    }
    return {
        "shape": [tokens, width, vocabulary],
        "cpu_seconds": {name: spread(s) for name, s in found.items()},
        **ratios,
    }


def step(batch: int, pieces: tuple[int, ...], config: STTransformerConfig = REPORT) -> dict[str, Any]:
    """A whole step by the number of pieces the batch is cut into, and which cards hold it."""
    table, totals = [], {}
    for accumulate in pieces:
        piece = batch // accumulate
        found, weights = world_memory(config, piece)
        # Gradients are in the peak; weights and AdamW's two moments are not.
        totals[piece] = found.peak + 3 * weights
        others = {
            f"total_with_{name}_head_gb": gb(world_memory(config, piece, head=name)[0].peak + 3 * weights)
            for name in ("checkpointed", "naive")
        }
        row = {"accumulate": accumulate, "piece": piece, **gigabytes(found)}
        table.append({**row, "total_gb": gb(totals[piece]), **others})
    cards = {
        f"{card}_gb": max((piece for piece, total in totals.items() if total <= RESERVE * card * 1e9), default=None)
        for card in CARDS_GB
    }
    return {"weights_gb": gb(weights), "adamw_moments_gb": gb(2 * weights), "steps": table, "largest_piece_on": cards}


def checks() -> dict[str, Any]:
    """The same count of a small world on `meta` and on real tensors."""
    meta, real = world_memory(SMALL, 4)[0], world_memory(SMALL, 4, "cpu")[0]
    return {"small_world_on_meta_bytes": asdict(meta), "small_world_on_cpu_bytes": asdict(real)}


def measured(
    batch: int, pieces: tuple[int, ...], room: int, config: STTransformerConfig = REPORT, device: str = "cuda"
) -> dict[str, Any]:
    """Whole steps with weights and moments: of a small piece, then up or down from the piece that is counted to fit.

    `room`: bytes of the card.
    """
    sizes = sorted({batch // accumulate for accumulate in pieces})
    tried: dict[int, dict[str, Any]] = {}

    def attempt(size: int) -> bool:
        fitted, peak = fits(lambda: two_steps(config, size, device), device)
        tried[size] = {"fits": fitted, **beside(peak, sum_of(config, size))}
        return fitted

    at = max(0, bisect_right(sizes, RESERVE * room, key=lambda size: sum_of(config, size)) - 1)
    attempt(sizes[min(1, at)])
    if attempt(sizes[at]):
        while at + 1 < len(sizes) and attempt(sizes[at + 1]):
            at += 1
    else:
        while at > 0 and not attempt(sizes[at - 1]):
            at -= 1
    largest = max((size for size, found in tried.items() if found["fits"]), default=None)
    return {"largest_piece_that_fits": largest, "card_gb": gb(room), "pieces": tried}


@cache
def sum_of(config: STTransformerConfig, piece: int) -> int:
    """Bytes that are counted of a step with weights and moments."""
    found, weights = world_memory(config, piece)
    return found.peak + 3 * weights


def two_steps(config: STTransformerConfig, piece: int, device: str) -> None:
    """A world, its optimizer and two steps: the moments exist from the first step on."""
    grid = SMALL_GRID if config.width == SMALL.width else ONEX_GRID
    world = built_on(device, lambda: config.build(grid)).train()
    optimizer = torch.optim.AdamW(world.parameters(), fused=True)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            loss, _ = world.loss(random_batch(config, piece, device, grid), torch.Generator())
        loss.backward()
        optimizer.step()


def heads_on(
    device: str, repeats: int, clips: int = 8, config: STTransformerConfig = REPORT
) -> dict[str, dict[str, Any]]:
    """Forward and backward pass of the three heads in bfloat16: seconds in turns, and their memory."""
    grid = SMALL_GRID if config.width == SMALL.width else ONEX_GRID
    tokens = clips * config.horizon_grids * grid.height * grid.width
    hidden = torch.randn(tokens, config.width, device=device, requires_grad=True)
    weight = (0.02 * torch.randn(grid.vocab_size, config.width, device=device)).requires_grad_()
    target = torch.randint(grid.vocab_size, (tokens,), device=device)

    def call(head: Head) -> None:
        with autocast(device):
            loss = head(hidden, weight, target)
        torch.autograd.grad(loss, (hidden, weight))

    given = hidden.nbytes + weight.nbytes + target.nbytes
    calls = {name: partial(call, one) for name, one in heads(config.loss_chunk).items()}
    took = in_turns(calls, repeats=repeats)
    return {
        "tokens": {"in_all": tokens, "in_a_chunk": config.loss_chunk},
        **{
            name: {
                "seconds": spread(took[name]),
                **beside(peak_of(one, device), given + head_memory(config, clips, name).peak),
            }
            for name, one in calls.items()
        },
        "seconds_to_worldline_ratio": {name: ratio(took, name, "worldline") for name in calls if name != "worldline"},
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=REPORT_BATCH)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    card, parts, batch = card_wanted(given), Parts(), given.batch
    pieces = (batch,) if given.quick else tuple(n for n in PIECES if batch % n == 0)
    config = replace(REPORT, layers=2) if given.quick else REPORT
    shape = (
        f"{batch} clips x {REPORT.horizon_grids * 1024} future tokens, vocabulary {ONEX_GRID.vocab_size}, "
        f"width {config.width}, {config.layers} layers, bfloat16 autocast, dropout {config.dropout}"
    )
    if given.cuda:
        parts.leave_out("head", "head_on_cpu", "step", "checks", why=ONLY_CUDA)
    else:
        parts.add("head", lambda: head(batch))
        parts.add("head_on_cpu", lambda: seconds(1 if given.quick else given.repeats, quick=given.quick))
        parts.add("step", lambda: step(batch, pieces, config))
        parts.add("checks", checks)
    if card:
        room = torch.cuda.get_device_properties(0).total_memory
        parts.add("head_on_cuda", lambda: heads_on("cuda", given.repeats))
        parts.add("measured_on_cuda", lambda: measured(batch, pieces, room))
    else:
        parts.leave_out("head_on_cuda", "measured_on_cuda", why=NO_CUDA)
    parts.finish(quick=given.quick, shape=shape)


if __name__ == "__main__":
    main()
