"""Bytes and FLOP of a pass over a model, counted on the `meta` device (tensors with a shape and no memory).

The real code runs, forward and backward, and nothing is computed. Bytes are those of every tensor storage while it
exists; FLOP those of matrix products, convolutions and attention, by PyTorch's formulas (`flop_counter`). Where CUDA
saves other tensors than `meta`, CUDA is imitated. Not counted: memory inside kernels, fragments, the CUDA context.
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules import linear_cross_entropy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

from worldline.process.categorical import cross_entropy

_BFLOAT16 = frozenset({"linear", "conv1d", "conv2d", "conv3d", "matmul", "__matmul__", "mm", "bmm", "addmm", "einsum"})
_BFLOAT16 |= {"scaled_dot_product_attention"}
_FLOAT32 = frozenset({"layer_norm", "rms_norm", "group_norm", "softmax", "log_softmax", "exp", "log", "pow", "rsqrt"})
_FLOAT32 |= {"cross_entropy", "nll_loss", "mse_loss", "l1_loss", "interpolate", "norm", "logsumexp", "softplus"}

_ATEN = torch.ops.aten
_LIKE: dict[Any, Any] = {
    _ATEN.addmm_: _ATEN.addmm,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _ATEN._scaled_dot_product_flash_attention_backward,
}
"""Operations that PyTorch does not count, such as attention on a CPU, and the ones they are counted like."""


class Pass(NamedTuple):
    """Bytes and FLOP of one pass. Tensors from before it (weights, gradients) are not counted."""

    held: int
    """What the forward pass keeps for the backward pass."""
    peak: int
    forward_flop: int
    backward_flop: int
    """Including what is computed a second time, under gradient checkpointing."""


def follow(
    work: Callable[[], Any],
    given: Iterable[Tensor],
    *,
    autocast: bool,
    device: str = "meta",
    native: bool = False,
    backward: bool = True,
) -> Pass:
    """Run `work`, and the backward pass of what it returns, and count what happens on `device`.

    Args:
        given: tensors that are not to be counted, and with them their gradients, into which new ones are added.
        autocast: as under CUDA's bfloat16 autocast.
        device: `meta`; on another one the work is really done.
        native: in the device's own way instead of CUDA's, which `meta` does not have.
    """
    mode, given = None if native else AsOnCuda(autocast=autocast), list(given)
    given += [tensor.grad for tensor in given if tensor.is_leaf and tensor.grad is not None]
    with Meter(given, device) as meter, mode or nullcontext():
        result = work()
        if mode:
            mode.casts = None  # autocast ends: recomputation in the backward pass casts weights again
        held, forward = meter.now, meter.flop
        if backward:  # `result.backward()` would leave function modes, by which recomputation must go too
            engine: Any = torch.autograd.Variable._execution_engine
            engine.run_backward((result,), (torch.ones_like(result),), False, False, (), accumulate_grad=True)
    return Pass(held=held, peak=meter.peak, forward_flop=forward, backward_flop=meter.flop - forward)


class Meter(TorchDispatchMode):
    """Adds the bytes of every storage on a device when it is created, and subtracts them when it is freed."""

    def __init__(self, given: Iterable[Tensor], device: str) -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = self.flop = 0
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "torch_nn":  # the loss in chunks: one operation from outside, made of others
            with self:
                return getattr(linear_cross_entropy, func.__name__.split(".")[0])._init_fn(*args, **kwargs)
        out = func(*args, **kwargs)
        self.flop += _flop(func.overloadpacket, args, kwargs, out)
        for tensor in tree_iter(out):
            if not isinstance(tensor, Tensor) or tensor.device.type != self.device:
                continue
            if (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return out

    def _count(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _flop(operation: Any, args: Any, kwargs: Any, out: Any) -> int:
    if operation is _ATEN.convolution_backward:  # PyTorch's formula forgets the groups
        gradient, weight, wanted = args[0], args[2], args[-1]
        return 2 * gradient.numel() * weight[0].numel() * sum(wanted[:2])
    operation = _LIKE.get(operation, operation)
    return flop_registry[operation](*args, **kwargs, out_val=out) if operation in flop_registry else 0


class AsOnCuda(TorchFunctionMode):
    """CUDA's way of the functions whose memory or type differs there, and an answer where values are asked for.

    Autocast goes by PyTorch's `autocast_mode.h`, as far as models here need it. Attention is flash attention, RMSNorm
    is fused, dropout keeps a byte for each entry of its mask. The loss in chunks is the CPU's, which in bfloat16 casts
    the embedding and also sums its gradient in fp32.
    """

    def __init__(self, *, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast
        self.casts: dict[int, Tensor] | None = {}
        """Trained weights are cast once in the forward pass; after it (None), or without gradients, at every use."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.autocast and name in _BFLOAT16:
            args, kwargs = tree_map(self._low, (args, kwargs))
        elif self.autocast and name in _FLOAT32:
            args, kwargs = tree_map(_high, (args, kwargs))
        if name == "linear_cross_entropy" and self.autocast and args[0].dtype == torch.float32:
            hidden, weight = self._low(args[0]), self._low(args[1])
            return cross_entropy(hidden, weight, args[2], chunk=kwargs["options"].batch_chunk_size)
        return _CUDA.get(name, func)(*args, **kwargs)

    def _low(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if self.casts is None or not torch.is_grad_enabled() or not (x.is_leaf and x.requires_grad):
            return x.bfloat16()
        if id(x) not in self.casts:
            self.casts[id(x)] = x.bfloat16()
        return self.casts[id(x)]


def _high(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Any = None, dropout_p: float = 0, is_causal: bool = False, **_: Any
) -> Tensor:
    del mask  # it takes a kernel that keeps as little
    if query.device.type == "cpu":  # the same tensors are saved, but this kernel has no dropout
        return _ATEN._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal)[0]
    return _ATEN._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)[0]


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, *_: Any, **__: Any) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if p > 0 and training else x


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """LayerNorm, whose kernel saves its input and statistics as well: one number per row more."""
    return torch.nn.functional.layer_norm(x, shape, weight, None, eps or 1e-6)


_CUDA: dict[str, Any] = {"scaled_dot_product_attention": _attention, "dropout": _dropout, "rms_norm": _rms_norm}
_CUDA |= {"item": lambda *_, **__: 0.0, "unique": lambda x, *_, **__: x.flatten()}
