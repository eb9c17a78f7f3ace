"""The network of FID: Inception v3 as TensorFlow released it on 2015-12-05, which differs from others of that name.

Heusel et al. (2017), "GANs Trained by a Two Time-Scale Update Rule"; Szegedy et al. (2016). Its average poolings do
not count the border, and its last block has a max pooling where the paper has an average. Module names are those of
the weights (`pt_inception-2015-12-05-6726825d.pth`, of pytorch-fid).
"""

from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.files import hash_of_file, while_unchanged
from worldline.metrics.weights import read_state, refuse_other_shapes
from worldline.schema import DataError

SHA256_BEGINS = "6726825d"
"""Of the standard weights, as their file's name says."""
SIZE = 299
"""Height and width of what the network sees: every image is resized."""
IMAGES_AT_ONCE = 16

_average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_largest = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_halved = partial(F.max_pool2d, kernel_size=3, stride=2)


class Conv(nn.Module):
    """A convolution, batch normalisation, and a ReLU. `same` keeps height and width."""

    def __init__(
        self, before: int, after: int, kernel: int | tuple[int, int] = 1, *, stride: int = 1, same: bool = True
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else (0, 0)
        self.conv = nn.Conv2d(before, after, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n d _ _"]:
        return self.bn(self.conv(x)).relu()


_down = partial(Conv, kernel=3, stride=2, same=False)
_wide, _high = (1, 7), (7, 1)


class BlockA(nn.Module):
    """Branches of 1x1, 5x5, twice 3x3, and pooled."""

    def __init__(self, before: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(before, 64)
        self.branch5x5_1, self.branch5x5_2 = Conv(before, 48), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 64), Conv(64, 96, 3)
        self.branch3x3dbl_3, self.branch_pool = Conv(96, 96, 3), Conv(before, pooled)

    def forward(self, x: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n d h w"]:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], dim=1)


class BlockB(nn.Module):
    """Halves height and width."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3 = _down(before, 384)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = Conv(before, 64), Conv(64, 96, 3), _down(96, 96)

    def forward(self, x: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n d _ _"]:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, _halved(x)], dim=1)


class BlockC(nn.Module):
    """Branches of 1x1, 7x7 and twice 7x7 in one direction at a time, and pooled."""

    def __init__(self, before: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(before, 192)
        self.branch7x7_1, self.branch7x7_2 = Conv(before, inner), Conv(inner, inner, _wide)
        self.branch7x7_3 = Conv(inner, 192, _high)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(before, inner), Conv(inner, inner, _high)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(inner, inner, _wide), Conv(inner, inner, _high)
        self.branch7x7dbl_5 = Conv(inner, 192, _wide)
        self.branch_pool = Conv(before, 192)

    def forward(self, x: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n d h w"]:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_average(x))], dim=1)


class BlockD(nn.Module):
    """Halves height and width."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(before, 192), _down(192, 320)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(before, 192), Conv(192, 192, _wide)
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, _high), _down(192, 192)

    def forward(self, x: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n d _ _"]:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, _halved(x)], dim=1)


class BlockE(nn.Module):
    """Branches that end in 1x3 beside 3x1. `largest`: the max pooling of the last block."""

    def __init__(self, before: int, *, largest: bool = False) -> None:
        super().__init__()
        self.pool = _largest if largest else _average
        self.branch1x1 = Conv(before, 320)
        self.branch3x3_1 = Conv(before, 384)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 448), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(before, 192)

    def forward(self, x: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n d h w"]:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        ends = [
            self.branch3x3_2a(once),
            self.branch3x3_2b(once),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
        ]
        return torch.cat([self.branch1x1(x), *ends, self.branch_pool(self.pool(x))], dim=1)


class Inception(nn.Module):
    """Features of the last pooling, 2048 for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _down(3, 32)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280), BlockE(2048, largest=True)
        self.requires_grad_(False).eval()

    def forward(self, x: Float32[Tensor, "n 3 299 299"]) -> Float32[Tensor, "n 2048"]:
        """Features of images in [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x))))
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c):
            x = block(x)
        for block in (self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c):
            x = block(x)
        return x.mean(dim=(2, 3))

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "n 3 h w"]) -> Float32[Tensor, "n 2048"]:
        """Features of images of any size, resized as pytorch-fid does: bilinear, without antialiasing."""
        device, found = self.Conv2d_1a_3x3.conv.weight.device, []
        for some in images.split(IMAGES_AT_ONCE):
            x = F.interpolate(some.to(device).float() / 255, (SIZE, SIZE), mode="bilinear", align_corners=False)
            found.append(self(2 * x - 1).cpu())
        return torch.cat(found)


def inception_of(path: Path) -> Inception:
    """The network with the weights of a file, whichever they are.

    Raises:
        DataError: the file is absent or damaged, or holds another network; it is not run.
    """
    with torch.device("meta"):  # nothing is drawn that is replaced at once
        network = Inception()
    state, what = read_state(path), "weights of FID's Inception network (--fid-weights)"
    # The classifier behind the last pooling is not used, and newer versions of PyTorch count batches.
    unused = ("fc.", "AuxLogits.")
    counted = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    state = {**counted, **{name: value for name, value in state.items() if not name.startswith(unused)}}
    refuse_other_shapes(state, network.state_dict(), path, what)
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False)


@while_unchanged(2)
def load_inception(path: Path, device: torch.device) -> Inception:
    """Read the standard weights.

    Raises:
        DataError: the file is absent or damaged, or holds other weights, be it of the same network: no other number may
            be called FID.
    """
    network, found = inception_of(path), hash_of_file(path)
    if not found.startswith(SHA256_BEGINS):
        raise DataError(
            path,
            expected=f"the standard weights of FID, whose SHA-256 begins with {SHA256_BEGINS}",
            found=f"other weights of the same network, {found[:8]}",
            fix="docs/learned_metrics.md says where to get pt_inception-2015-12-05-6726825d.pth.",
        )
    return network.to(device)
