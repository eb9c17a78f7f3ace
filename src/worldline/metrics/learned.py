"""Metrics with learned weights: LPIPS of each image, and Frechet distances of sets of images or videos.

They are computed with the weights that published values were computed with, or not at all (docs/learned_metrics.md).
"""

from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline.metrics.networks import Networks, there
from worldline.metrics.table import Metric


@Metric("lpips", "LPIPS", "", "image", higher_is_better=False, learned=True, costly=True)
def lpips(
    ours: UInt8[Tensor, "b f 3 h w"], real: UInt8[Tensor, "b f 3 h w"], networks: Networks
) -> Float32[Tensor, "b f"]:
    """Distance of two images in the features of AlexNet (or VGG16), weighted as people judged it; 0 for equal ones."""
    return there(networks.lpips).distance(ours, real)


@Metric("fid", "FID", "", "set", higher_is_better=False, learned=True, costly=True)
def fid(ours: UInt8[Tensor, "b f 3 h w"], networks: Networks) -> Float32[Tensor, "b 2048"]:
    """Frechet distance between the last frames of all clips and the true ones, in the standard Inception features."""
    return there(networks.inception).features(ours[:, -1])


@Metric("fvd", "FVD", "", "set", higher_is_better=False, learned=True, costly=True)
def fvd(ours: UInt8[Tensor, "b f 3 h w"], networks: Networks) -> Float32[Tensor, "b 400"]:
    """Frechet distance between the predicted videos of all clips and the true ones, in the features of I3D."""
    return there(networks.i3d).features(ours)


@Metric("fd_alex", "FD-AlexNet", "", "set", higher_is_better=False, learned=True, costly=True)
def fd_alex(ours: UInt8[Tensor, "b f 3 h w"], networks: Networks) -> Float32[Tensor, "b 256"]:
    """Frechet distance as FID's, but in the features of AlexNet: not FID, and comparable with itself only."""
    return there(networks.alex).features(ours[:, -1])
