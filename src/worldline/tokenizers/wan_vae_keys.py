"""The published files of Wan2.2's VAE: where they lie, and their tensors by diffusers' names. Builds no model.

Two layouts are read: diffusers' folder, and the original single file, whose keys are renamed here, because diffusers'
own single-file reader knows only the layout of Wan2.1. Nothing is downloaded.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from worldline.files import read_json
from worldline.nn.weights import (
    HUB_ID,
    ORIGINAL_HUB_ID,
    STEM,
    check_tensors,
    full_config,
    mapped_tensors,
    renamed,
    weight_files,
)
from worldline.rundir import from_json
from worldline.schema import DataError
from worldline.tokenizers.wan_vae import WanVAEConfig, WanVAESizes, autoencoder_class

ORIGINAL_NAME = "Wan2.2_VAE.pth"
_CLASS = "AutoencoderKLWan"
_FIX = f"Give the VAE of {HUB_ID} (folder vae) or {ORIGINAL_NAME} of {ORIGINAL_HUB_ID}, complete."

_RENAMES = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(..coder)\.conv1\.", r"\1.conv_in."),
    (r"^(..coder)\.head\.0\.", r"\1.norm_out."),
    (r"^(..coder)\.head\.2\.", r"\1.conv_out."),
    (r"^(..coder)\.middle\.0\.", r"\1.mid_block.resnets.0."),
    (r"^(..coder)\.middle\.1\.", r"\1.mid_block.attentions.0."),
    (r"^(..coder)\.middle\.2\.", r"\1.mid_block.resnets.1."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.\d+\.(resample|time_conv)\b", r".\1_blocks.\2.\1sampler.\3"),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def vae_files(path: Path) -> list[Path]:
    """Weight files, if any, of a diffusers folder, its `vae/`, `Wan2.2_VAE.pth` (or safetensors) or its folder."""
    if path.is_file():
        return [path] if path.suffix in (".pth", ".safetensors") else []
    if found := weight_files(path / "vae"):
        return found
    # The original transformer's shards are named alike, and lie beside the original VAE.
    if (found := weight_files(path)) and read_json(path / "config.json").get("_class_name") == _CLASS:
        return found
    return [path / ORIGINAL_NAME] if (path / ORIGINAL_NAME).is_file() else []


def read_config(files: list[Path]) -> WanVAEConfig:
    """The configuration beside the weights (Wan2.2's for a single file). Raises `DataError` for another model's."""
    place = files[0].parent / "config.json"
    if not files[0].name.startswith(STEM):
        return WanVAEConfig()
    content = read_json(place)
    if content.get("_class_name") != _CLASS:
        raise DataError(place, expected=f"an {_CLASS}", found=repr(content.get("_class_name")), fix=_FIX)
    # `clip_output` was written by a conversion script; diffusers clips always. `attn_scales` has no effect there.
    unread = ("clip_output", *WanVAESizes().derived)
    fields = {k: v for k, v in full_config(content, autoencoder_class()).items() if k not in unread}
    if fields.pop("attn_scales"):
        raise DataError(place, expected="no attn_scales", found=str(content["attn_scales"]), fix=_FIX)
    fields["temporal_downsample"] = fields.pop("temperal_downsample")
    fields["decoder_base_dim"] = fields["decoder_base_dim"] or fields["base_dim"]
    fields["patch_size"] = fields["patch_size"] or 1
    sizes: WanVAESizes = from_json(WanVAESizes, fields, place)
    for name, value in sizes.derived.items():
        if content.get(name, value) != value:
            raise DataError(place, expected=f"{name} = {value}", found=f"{content[name]}", fix=_FIX)
    return WanVAEConfig(sizes=sizes)


def load_tensors(files: list[Path], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The expected tensors, in float32. Raises `DataError` for a damaged file, or the first tensor that differs."""
    tensors = {diffusers_name(key): value for key, value in mapped_tensors(files).items()}
    check_tensors(tensors, expected, files[0].parent, fix=_FIX)
    if halved := sorted({str(value.dtype) for value in tensors.values()} - {"torch.float32"}):
        said = f"weights are stored as {', '.join(halved)}: they, and so the latents, are not quite those of float32"
        warnings.warn(f"{files[0]}: {said}", stacklevel=2)
    return {name: value.float() for name, value in tensors.items()}


def diffusers_name(key: str) -> str:
    """The name diffusers gives a tensor of the original file; its own names stay as they are."""
    return renamed(key, _RENAMES)
