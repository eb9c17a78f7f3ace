"""The network of FVD: I3D trained on Kinetics-400, in the TorchScript file that published values are computed with.

Unterthiner et al. (2018), "Towards Accurate Generative Models of Video"; the port of StyleGAN-V (Skorokhodov et al.,
2022). A TorchScript file is a program, so only this one file is run: the checksum of its bytes is compared first.
"""

import hashlib
import warnings
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from worldline.files import reading, while_unchanged
from worldline.metrics.table import NotComputed
from worldline.schema import DataError

GIT_BLOB = "93daef59c7ae0e9e8f76225521407e60cbafa6aa"
"""Git's name (SHA-1 of a header and the bytes) of `fvd/styleganv/i3d_torchscript.pt` in
`JunyaoHu/common_metrics_on_video_quality`, commit 5f75173: the only checksum of that file that is public."""
SIZE = 224
FEWEST_FRAMES = 10
"""With fewer the network's poolings over time leave nothing."""
CLIPS_AT_ONCE = 4


class I3d:
    """Its 400 outputs before the softmax, for each video."""

    def __init__(self, program: torch.jit.ScriptModule, device: torch.device) -> None:
        self.program, self.device = program, device

    @torch.no_grad()
    def features(self, videos: UInt8[Tensor, "n f 3 h w"]) -> Float32[Tensor, "n 400"]:
        """Features of videos of any size, resized to 224x224 (bilinear) and scaled to [-1, 1] before.

        Raises:
            NotComputed: videos of fewer than 10 frames.
        """
        if videos.shape[1] < FEWEST_FRAMES:
            raise NotComputed(f"FVD needs videos of at least {FEWEST_FRAMES} frames, these have {videos.shape[1]}")
        found = []
        for some in videos.split(CLIPS_AT_ONCE):
            x = rearrange(some.to(self.device).float() / 127.5 - 1, "n f c h w -> (n f) c h w")
            x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False)
            x = rearrange(x, "(n f) c h w -> n c f h w", n=len(some)).contiguous()
            found.append(self.program(x, rescale=False, resize=False, return_features=True).float().cpu())
        return torch.cat(found)


def git_blob(path: Path) -> str:
    """Git's name of a file's bytes. Raises `DataError` where it cannot be read."""
    with reading(path, expected="a file"), path.open("rb") as file:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@while_unchanged(2)
def load_i3d(path: Path, device: torch.device) -> I3d:
    """Load the network.

    Raises:
        DataError: the file is absent, or any other than the one that published values are computed with. It is not run.
    """
    if (found := git_blob(path)) != GIT_BLOB:
        raise DataError(
            path,
            expected=f"i3d_torchscript.pt as StyleGAN-V uses it (git blob {GIT_BLOB[:12]})",
            found=f"another file ({found[:12]}), which is not run",
            fix="docs/learned_metrics.md says where to get it.",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch wants no new programs; this one is what it is
        return I3d(torch.jit.load(str(path), map_location=device).eval(), device)
