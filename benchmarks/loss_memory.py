"""How much memory a training step of the report's world needs, head and loss above all. Prints JSON.

    python benchmarks/loss_memory.py [--quick] [--batch 160]

Nothing is computed: one step (forward and backward) runs on the `meta` device, where tensors have a shape and no
memory, and the bytes of every tensor storage are added while it lives. What CUDA would do otherwise than `meta` is
put in its place (`AsOnCuda`): bfloat16 autocast, flash attention, dropout with one byte per mask entry. Not
counted: memory inside kernels, the allocator's rounding and fragments, the CUDA context (about 0.5 GB).

Two checks are printed. The bytes PyTorch is told to save for the backward pass (`saved_tensors_hooks`), which is
another count of what is alive between forward and backward; and the same count of a small world on real CPU
tensors. With CUDA, the largest batch that fits is also measured.
GB are 10^9 bytes, B in a card's name too.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from common import options, publish, random_batch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from worldline.process.categorical import cross_entropy
from worldline.worlds.st_transformer import STTransformer, STTransformerConfig

REPORT = STTransformerConfig()
REPORT_BATCH = 160
PIECES = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 80, 160)
CARDS_GB = (24, 40, 80, 141)
RESERVE = 0.9  # of a card: what is not counted needs room, too
SMALL = STTransformerConfig(grid_height=8, grid_width=8, vocab_size=1000, width=64, heads=2, layers=2, loss_chunk=200)


class LiveBytes(TorchDispatchMode):
    """Adds the bytes of every storage that comes to life inside it, and takes them off when it dies."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return out

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        self.known.add(storage)
        weakref.finalize(storage, self._remove, storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _remove(self, size: int) -> None:
        self.now -= size


class AsOnCuda:
    """CUDA's way of the operations whose memory differs there, under bfloat16 autocast: weights are cast once."""

    def __init__(self) -> None:
        self.cast: dict[int, Tensor] | None = {}
        self.plain_linear, self.plain_conv1d, self.plain_layer_norm = F.linear, F.conv1d, F.layer_norm

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Put these functions in the place of PyTorch's. Autograd then differentiates what they are made of."""
        with patch.multiple(
            F,
            linear=self.linear,
            conv1d=self.conv1d,
            layer_norm=self.layer_norm,
            dropout=self.dropout,
            scaled_dot_product_attention=self.attention,
        ):
            yield

    def leave_autocast(self) -> None:
        """Drop the cast weights; from now on (recomputation in the backward pass) every use casts anew."""
        self.cast = None

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.plain_linear(self._low(x), self._low(weight), None if bias is None else self._low(bias))

    def conv1d(self, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        return self.plain_conv1d(self._low(x), self._low(weight), self._low(bias), *rest)

    def layer_norm(self, x: Tensor, *shape_and_weights: Any) -> Tensor:
        return self.plain_layer_norm(x.float(), *shape_and_weights)

    def dropout(self, x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
        assert not inplace
        return torch.native_dropout(x, p, training)[0] if p > 0 and training else x

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: None, *, dropout_p: float, is_causal: bool) -> Tensor:
        assert mask is None, "training has no past, so no mask"
        if q.device.type == "cpu":  # the same tensors are saved, but this kernel has no dropout
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]

    def _low(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return x
        if not x.is_leaf or not x.requires_grad or self.cast is None:
            return x.bfloat16()
        if id(x) not in self.cast:
            self.cast[id(x)] = x.bfloat16()
        return self.cast[id(x)]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one forward and backward pass, in bytes. Weights are not in it; their gradients are in `peak`."""

    saved: int
    """What autograd saved for the backward pass."""
    held: int
    """What came to life in the forward pass and still lives after it."""
    peak: int
    """The most that was alive at once."""


def measure(loss: Callable[[], Tensor], given: list[Tensor]) -> Memory:
    """Follow the forward and the backward pass of a loss. What is given (weights, inputs) is not counted."""
    mine = {tensor.untyped_storage()._cdata for tensor in given}
    saved: dict[int, Tensor] = {}  # one tensor per storage; keeping it keeps the address from being used again

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in mine:
            saved[tensor.untyped_storage()._cdata] = tensor.detach()
        return tensor

    cuda = AsOnCuda()
    with LiveBytes(given) as live, cuda.instead():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = loss()
        cuda.leave_autocast()
        size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
        saved.clear()
        held = live.now
        value.backward()
    return Memory(saved=size, held=held, peak=live.peak)


def world_memory(config: STTransformerConfig, batch: int, device: str = "meta") -> tuple[Memory, int]:
    """A training step of a world without its optimizer, and the bytes of its weights."""
    with torch.device(device):
        world = STTransformer(config).train()
    data, generator = random_batch(config, batch, device), torch.Generator()
    assert data.tokens is not None
    weights = list(world.parameters())
    given = [*world.state_dict().values(), *weights, data.tokens, data.states]
    return measure(lambda: world.loss(data, generator)[0], given), sum(weight.nbytes for weight in weights)


def head_memory(config: STTransformerConfig, batch: int, *, chunk: int | None) -> Memory:
    """Head and loss alone, from the last features (not counted) on. No chunk: all logits at once."""
    tokens = batch * config.horizon_grids * config.grid_height * config.grid_width
    with torch.device("meta"):
        hidden = torch.empty(tokens, config.width, requires_grad=True)
        weight = nn.Parameter(torch.empty(config.vocab_size, config.width))
        target = torch.empty(tokens, dtype=torch.int64)
    return measure(lambda: cross_entropy(hidden, weight, target, chunk=chunk or tokens), [hidden, weight, target])


def gigabytes(found: Memory) -> dict[str, float]:
    return {f"{name}_gb": gb(size) for name, size in asdict(found).items()}


def gb(size: float) -> float:
    return round(size / 1e9, 3)


def head(batch: int) -> dict[str, object]:
    """Chunked against naive, at a batch in one piece."""
    logits = batch * REPORT.horizon_grids * REPORT.grid_height * REPORT.grid_width * REPORT.vocab_size
    return {
        "logits_bf16_gb": gb(2 * logits),
        "logits_fp32_gb": gb(4 * logits),
        "logits_of_a_chunk_fp32_gb": gb(4 * REPORT.loss_chunk * REPORT.vocab_size),
        "chunked": {
            "chunk_tokens": REPORT.loss_chunk,
            **gigabytes(head_memory(REPORT, batch, chunk=REPORT.loss_chunk)),
        },
        "naive": gigabytes(head_memory(REPORT, batch, chunk=None)),
    }


def step(batch: int, pieces: tuple[int, ...]) -> dict[str, object]:
    """A whole step by the number of pieces the batch is cut into, and which cards hold it."""
    table, totals = [], {}
    naive = replace(REPORT, loss_chunk=batch * REPORT.horizon_grids * REPORT.grid_height * REPORT.grid_width)
    for accumulate in pieces:
        piece = batch // accumulate
        found, weights = world_memory(REPORT, piece)
        # Gradients are in the peak; weights and AdamW's two moments are not.
        totals[piece] = found.peak + 3 * weights
        whole = world_memory(naive, piece)[0].peak + 3 * weights
        row = {"accumulate": accumulate, "piece": piece, **gigabytes(found)}
        table.append({**row, "total_gb": gb(totals[piece]), "total_with_naive_head_gb": gb(whole)})
    cards = {
        f"{card}_gb": max((piece for piece, total in totals.items() if total <= RESERVE * card * 1e9), default=None)
        for card in CARDS_GB
    }
    return {"weights_gb": gb(weights), "adamw_moments_gb": gb(2 * weights), "steps": table, "largest_piece_on": cards}


def checks() -> dict[str, object]:
    """The same count of a small world on `meta` and on real tensors."""
    meta, real = world_memory(SMALL, 4)[0], world_memory(SMALL, 4, "cpu")[0]
    return {"small_world_on_meta_bytes": asdict(meta), "small_world_on_cpu_bytes": asdict(real)}


def measured(batch: int, pieces: tuple[int, ...]) -> dict[str, object]:
    """On CUDA: the largest piece that fits, by the allocator's own count."""
    for accumulate in pieces:
        piece = batch // accumulate
        peak = _fits(piece)
        torch.cuda.empty_cache()
        if peak is not None:
            card = torch.cuda.get_device_properties(0).total_memory
            return {"piece": piece, "total_gb": gb(peak), "card_gb": gb(card)}
    return {"piece": None}


def _fits(piece: int) -> int | None:
    try:
        return _allocated(piece)
    except torch.cuda.OutOfMemoryError:
        return None


def _allocated(piece: int) -> int:
    world = STTransformer(REPORT).cuda().train()
    optimizer = torch.optim.AdamW(world.parameters(), fused=True)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # the moments exist from the first step on
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss, _ = world.loss(random_batch(REPORT, piece, "cuda"), torch.Generator())
        loss.backward()
        optimizer.step()
    return torch.cuda.max_memory_allocated()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=REPORT_BATCH)
    arguments = parser.parse_args()
    batch = arguments.batch
    pieces = (batch,) if arguments.quick else tuple(n for n in PIECES if batch % n == 0)
    figures = {
        "shape": f"{batch} clips x {REPORT.horizon_grids * 1024} future tokens, {REPORT.vocab_size} words, "
        f"width {REPORT.width}, {REPORT.layers} layers, bfloat16 autocast, dropout {REPORT.dropout}",
        "head": head(batch),
        "step": step(batch, pieces),
        "checks": checks(),
        "measured_on_cuda": None,
    }
    if torch.cuda.is_available() and not arguments.quick:
        figures["measured_on_cuda"] = measured(batch, pieces)
    publish(figures, quick=arguments.quick)


if __name__ == "__main__":
    main()
