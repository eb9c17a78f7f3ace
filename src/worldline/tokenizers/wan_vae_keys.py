"""The published files of Wan2.2's VAE: where they lie, and their tensors by diffusers' names. Builds no model.

Two layouts are read: diffusers' folder, and the original single file `Wan2.2_VAE.pth`. diffusers' own single-file
reader knows only the layout of Wan2.1 and fails on the latter, so its keys are renamed here. Nothing is downloaded.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.files import read_json
from worldline.rundir import from_json, load_tensors
from worldline.schema import DataError
from worldline.tokenizers.wan_vae import WanVAEConfig, WanVAESizes

HUB_ID = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
ORIGINAL_HUB_ID = "Wan-AI/Wan2.2-TI2V-5B"
ORIGINAL_NAME = "Wan2.2_VAE.pth"

_CLASS = "AutoencoderKLWan"
_STEM = "diffusion_pytorch_model"
_FIX = f"Give the VAE of {HUB_ID} (folder vae) or {ORIGINAL_NAME} of {ORIGINAL_HUB_ID}, complete."
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What weights may be stored as. Quantised ones (float8, int8) give other latents than those the world learnt on."""

_RENAMES = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"^(encoder|decoder)\.middle\.0\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.middle\.1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.middle\.2\.", r"\1.mid_block.resnets.1."),
    (
        r"^encoder\.downsamples\.(\d+)\.downsamples\.\d+\.(resample|time_conv)\b",
        r"encoder.down_blocks.\1.downsampler.\2",
    ),
    (r"^encoder\.downsamples\.(\d+)\.downsamples\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^decoder\.upsamples\.(\d+)\.upsamples\.\d+\.(resample|time_conv)\b", r"decoder.up_blocks.\1.upsampler.\2"),
    (r"^decoder\.upsamples\.(\d+)\.upsamples\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def vae_files(path: Path) -> list[Path]:
    """The published weight files meant by a path; empty where there are none.

    Args:
        path: a diffusers folder, its `vae/`, `Wan2.2_VAE.pth` (or its tensors as safetensors), or a folder with it.
    """
    if path.is_file():
        return [path] if path.suffix in (".pth", ".safetensors") else []
    if found := _weights_in(path / "vae"):
        return found
    # The original transformer's shards are named alike, and lie beside the original VAE.
    if (found := _weights_in(path)) and read_json(path / "config.json").get("_class_name") == _CLASS:
        return found
    return [path / ORIGINAL_NAME] if (path / ORIGINAL_NAME).is_file() else []


def read_config(files: list[Path]) -> WanVAEConfig:
    """The configuration beside the weights; Wan2.2's for a single file, which comes without one.

    Raises:
        DataError: a `config.json` of another model, or with entries that no Wan VAE here has.
    """
    place = files[0].parent / "config.json"
    if not files[0].name.startswith(_STEM):
        return WanVAEConfig()
    content = read_json(place)
    if content.get("_class_name") != _CLASS:
        raise DataError(place, expected=f"an {_CLASS}", found=repr(content.get("_class_name")), fix=_FIX)
    # `clip_output` was written by a conversion script; diffusers clips always. `attn_scales` has no effect there.
    fields = {k: v for k, v in content.items() if not k.startswith("_") and k != "clip_output"}
    if fields.pop("attn_scales", None):
        raise DataError(place, expected="no attn_scales", found=str(content["attn_scales"]), fix=_FIX)
    if "temperal_downsample" in fields:
        fields["temporal_downsample"] = fields.pop("temperal_downsample")
    for name, default in (("decoder_base_dim", fields.get("base_dim")), ("patch_size", 1)):
        if fields.get(name, ...) is None:
            fields[name] = default
    derived = {name: fields.pop(name) for name in WanVAESizes().derived if name in fields}
    sizes: WanVAESizes = from_json(WanVAESizes, fields, place)
    for name, value in sizes.derived.items():
        if derived.get(name, value) != value:
            raise DataError(place, expected=f"{name} = {value}", found=f"{derived[name]}", fix=_FIX)
    return WanVAEConfig(sizes=sizes)


def read_tensors(files: list[Path], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the files by diffusers' names, in float32, exactly those expected.

    Args:
        expected: tensors of the right shapes, for example a state dict on the meta device.

    Raises:
        DataError: a file is damaged, or a key or shape differs; names the first.
    """
    stored: dict[str, tuple[str, Tensor]] = {}
    for file in files:
        for key, value in _read(file).items():
            stored[diffusers_name(key)] = (key, value)
    for name, value in expected.items():
        if name not in stored:
            raise DataError(files[0], expected=f"a tensor {name}", found="none of that name", fix=_FIX)
        key, found = stored[name]
        if found.shape != value.shape:
            shapes = tuple(value.shape), tuple(found.shape)
            raise DataError(files[0], expected=f"{key} of shape {shapes[0]}", found=f"{shapes[1]}", fix=_FIX)
    kinds = {value.dtype for _, value in stored.values()}
    if quantised := sorted(str(kind) for kind in kinds - set(_DTYPES)):
        found = f"{', '.join(quantised)}: quantised weights, whose latents are others"
        raise DataError(files[0], expected=f"tensors in {', '.join(map(str, _DTYPES))}", found=found, fix=_FIX)
    if halved := sorted(str(kind) for kind in kinds - {torch.float32}):
        warnings.warn(
            f"{files[0]}: weights are stored as {', '.join(halved)}; they are computed with in float32, but are not "
            "quite those of the float32 file, and neither are the latents",
            stacklevel=2,
        )
    for name in sorted(stored.keys() - expected.keys()):
        raise DataError(files[0], expected="the tensors of this VAE only", found=f"{stored[name][0]} besides", fix=_FIX)
    return {name: value.float() for name, (_, value) in stored.items()}


def diffusers_name(key: str) -> str:
    """The name diffusers gives a tensor of the original file; its own names stay as they are."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _weights_in(folder: Path) -> list[Path]:
    whole = folder / f"{_STEM}.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob(f"{_STEM}-*-of-*.safetensors"))


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_tensors(file)
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        found = str(error).splitlines()[0][:200]
        raise DataError(file, expected="tensors saved by torch.save", found=found, fix=_FIX) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(file, expected="named tensors", found=type(content).__name__, fix=_FIX)
    return content
