"""The processes of one run (torchrun's), and how a model, its optimizer and its average are sharded over them (FSDP2).

With one process there are no collectives and the model stays as it is. With several, every rank holds a share of each
parameter and gathers a block only while it computes with it.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worldline.owner import Claim, owned
from worldline.progress import watched
from worldline.schema import UsageError

ENTRIES = ("loss", "own_loss", "roll_out", "encode", "decode", "forecast", "teacher_forced", "measure_statistics")
"""Methods of a model that are called in place of `forward`: they gather what the model holds outside its blocks. A loss
that rolls out first calls `forward` by its name: calling the model would enter again, and free its shares too soon."""


class OtherRankError(RuntimeError):
    """Another rank stopped, so this one stops too; carries rank 0's message."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16; PyTorch's own answer counts cards that only emulate it. On a CPU exactness is
    worth more, and without units for it autocast is slower."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= 8


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. By default it is the only one and never waits."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Number of this process on its machine, and of the GPU it takes there."""
    patient: dist.ProcessGroup | None = None
    """Limit for work that may take rank 0 hours, such as filling a cache."""

    @classmethod
    @contextmanager
    def start(cls, device: str = "auto") -> Iterator["Ranks"]:
        """Join the processes torchrun started. Raises `UsageError` for more of them than GPUs, or without torchrun."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            yield cls()
            return
        if not {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise UsageError(f"WORLD_SIZE is {world_size}, but torchrun did not start this process; unset it, or do so")
        rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        if on_gpu := cls().device(device).type == "cuda":
            if local_rank >= (gpus := torch.cuda.device_count()):
                raise UsageError(f"more processes than this machine's {gpus} GPUs; lower torchrun --nproc-per-node")
            torch.cuda.set_device(local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        assert isinstance(patient, dist.ProcessGroup), "every rank is a member"
        yield cls(rank, world_size, local_rank, patient)
        # Not after an error: other ranks may be in a collective that this one will never join, and torchrun ends them.
        dist.destroy_process_group()

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device a name means for this rank, of several its own GPU; `auto` takes CUDA where there is some.

        Raises `UsageError` where there is no such device.
        """
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError("CUDA was asked for, but PyTorch finds no CUDA device here; use --device cpu")
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UsageError(f"there is no device {name!r}; give auto, cpu, cuda or cuda:N") from error
        return torch.device("cuda", self.local_rank) if self.world_size > 1 and device.type == "cuda" else device

    def autocast(self, device: torch.device, *, enabled: bool) -> torch.autocast:
        """bfloat16. Sharded weights are cast at each use: were a cast of a pass without gradients still in the cache,
        its gradient would come only after those of its block had been summed over the ranks."""
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=self.world_size == 1)

    def share(self, batch_size: int, pieces: int = 1) -> int:
        """Clips of a batch that fall to each rank. Raises `UsageError` if they do not divide so, or into pieces."""
        share, rest = divmod(batch_size, self.world_size)
        if rest:
            fits = f"give for example --batch-size {max(1, share) * self.world_size}"
            raise UsageError(f"a batch of {batch_size} clips does not divide among {self.world_size} processes; {fits}")
        if not 1 <= pieces <= share:
            raise UsageError(f"{share} clips on each rank cannot be cut into {pieces} pieces; lower --accumulate")
        return share

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 runs the block before the others, who find its caches, or raise `OtherRankError` where it failed."""
        failure = None
        try:
            if self.rank > 0 and (told := self.agreed(None)) is not None:
                raise OtherRankError(f"rank 0 stopped: {told}")
            yield
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            if self.writes:
                self.agreed(failure)

    @contextmanager
    def owning(self, folder: Path, *, claim: Claim | None = None, wait: bool = False) -> Iterator[None]:
        """Inside, the ranks of this job alone write into the folder: rank 0 owns it (`owned`) until all are done."""
        with ExitStack() as stack:
            with self.first():
                if self.writes:
                    stack.enter_context(owned(folder, claim=claim, wait=wait))
            yield
            self.everyones(None)

    def made(self, items: Sequence[int], make: Callable[[int], None], *, done: Callable[[int], bool], what: str) -> int:
        """Make those of some items that are not done, each rank its share; returns how many were done, over all ranks.

        What is made must not depend on who makes it. The first process shows the progress of its share of `what`.
        """
        before = 0
        for item in watched(items[self.rank :: self.world_size], what):
            if done(item):
                before += 1
            else:
                make(item)
        return sum(self.everyones(before))

    def agreed(self, value: Any) -> Any:
        """Rank 0's value, on every rank; waits for all. Raises `OtherRankError` where one has ended."""
        return self.everyones(value)[0]

    def everyones(self, value: Any) -> list[Any]:
        """Every rank's value, in order of rank. Raises `OtherRankError` where one has ended."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(values, value, group=self.patient)
        except RuntimeError as error:  # a collective that lost a connection
            said = str(error).splitlines()[0]
            raise OtherRankError(f"another process of this job has ended, see its own message ({said})") from error
        return values

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Move a model that is whole and the same on every rank to the device, block by block where it is sharded.

        Trainable parameters of one block must be of one type, none a scalar; frozen ones may be of another.
        """
        if self.world_size == 1:
            return model.to(device)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP takes no other layout; a VAE may lie channels last
        # FSDP cannot reduce parameters without elements: they stay as they are.
        empty = {parameter for parameter in model.parameters() if parameter.numel() == 0}
        for parameter in empty:
            parameter.data = parameter.data.to(device)
            if parameter.requires_grad:  # a plain gradient among sharded ones would be refused by the optimizer
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        how: dict[str, Any] = {"mesh": init_device_mesh(device.type, (self.world_size,)), "ignored_params": empty}
        for block in shards_of(model):
            fully_shard(block, **how)
        # The root stays gathered between an entry's return and its backward pass, or the next step of a generator.
        root = fully_shard(model, reshard_after_forward=False, **how)
        # A parameter that one rank's clips did not touch must not leave the others waiting for its gradient.
        root.set_reduce_scatter_unused_params(True)
        for entry in ENTRIES:
            if hasattr(model, entry):
                register_fsdp_forward_method(model, entry)
        return model


@runtime_checkable
class Sharded(Protocol):
    """A model that names the blocks that are gathered one at a time."""

    @property
    def shards(self) -> Sequence[nn.Module]: ...


def shards_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model that are gathered one at a time; all outside them is gathered together.

    They are what the model names in `shards` (inner blocks before those that hold them), or the elements of its own
    `nn.ModuleList`s of two and more. A block must be run by calling it, and must not write into lists it is given,
    since gradients are tracked through copies of these: diffusers' VAE does, so lists further in are left alone.
    """
    if isinstance(model, Sharded):
        return list(model.shards)
    lists = (child for child in model.children() if isinstance(child, nn.ModuleList) and len(child) > 1)
    return [block for blocks in lists for block in blocks]


def gathered(tensor: Tensor) -> Tensor:
    """A complete tensor on this rank; every rank must call this. An unsharded tensor is returned as it is."""
    gather = getattr(tensor, "full_tensor", None)  # DTensor has it, but importing that class takes a second
    return tensor if gather is None else gather()


def whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather tensors on the CPU one by one. Every rank must call it; those with `keep` False get nothing."""
    kept = {}
    for name, tensor in tensors.items():
        value = gathered(tensor)
        if keep:
            kept[name] = value if value is tensor else value.cpu()
    return kept


def laid(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has read for itself, put on the device and over the ranks as `like` is."""
    if not hasattr(like, "full_tensor"):
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
