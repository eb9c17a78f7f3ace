"""The pretrained Wan2.2 TI2V-5B transformer: its sizes, and its files in both published layouts (`nn/weights.py`).

Knows no robot states and no training. Needs the extra `wan`, imported only when a model is built.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from worldline.checks import Checked, Positive, refuse
from worldline.files import read_json
from worldline.nn import weights
from worldline.nn.weights import HUB_ID, ORIGINAL_HUB_ID, STEM
from worldline.schema import DataError, UsageError

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Types of stored weights, and their names in fingerprints."""
_FIX = f"Give the transformer of {HUB_ID} or {ORIGINAL_HUB_ID}, complete, or configure the backbone like these."


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Checked):
    """Sizes of diffusers' `WanTransformer3DModel`, under its names; the defaults are Wan2.2 TI2V-5B."""

    presets: ClassVar[dict[str, "BackboneConfig"]]
    """Names for `--model.backbone`. A checkpoint keeps the sizes themselves."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns that become one token."""
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    in_channels: int = 48
    out_channels: int = 48
    text_dim: int = 4096
    """Width of the text encoder's rows."""
    freq_dim: int = 256
    ffn_dim: int = 14336
    num_layers: int = 30
    cross_attn_norm: bool = True
    qk_norm: Literal["rms_norm_across_heads"] | None = "rms_norm_across_heads"
    eps: Positive = 1e-6
    rope_max_seq_len: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_head_dim % 2 or self.attention_head_dim < 6:
            refuse(self, "attention_head_dim", "even and at least 6: positions turn pairs of numbers on three axes")
        if self.out_channels != self.in_channels:
            refuse(self, "out_channels", f"as many as in_channels, {self.in_channels}: what is predicted is a latent")
        if self.freq_dim % 2:
            refuse(self, "freq_dim", "even: half are sines")

    @property
    def width(self) -> int:
        """Size of a token."""
        return self.num_attention_heads * self.attention_head_dim

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """A `WanTransformer3DModel`, its weights of the types that `load_backbone` gives."""
        model = _transformer_class()(**asdict(self))
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(_dtype_of(name, dtype))
        return model


BackboneConfig.presets = {
    "wan2.2-ti2v-5b": BackboneConfig(),
    "tiny": BackboneConfig(
        num_attention_heads=5,
        attention_head_dim=32,
        in_channels=12,
        out_channels=12,
        text_dim=16,
        freq_dim=64,
        ffn_dim=640,
        num_layers=5,
    ),
}


def load_backbone(path: Path, config: BackboneConfig, *, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Load the pretrained transformer of `backbone_files`, in evaluation mode, on the CPU, one tensor at a time.

    Equal to what diffusers' `from_pretrained` gives: weights in `dtype`, except what diffusers keeps in float32. Raises
    `UsageError` where there is no such transformer, and `DataError` where the files are damaged or hold another model
    than `config`; of the number of heads, a `config.json` beside the files alone can tell.
    """
    files = backbone_files(path)
    if (described := files[0].parent / "config.json").is_file():
        _check_config(described, config)
    with torch.device("meta"):
        model = config.build()
    tensors = diffusers_names(weights.mapped_tensors(files))
    weights.check_tensors(tensors, model.state_dict(), files[0].parent, fix=_FIX)
    converted = {name: value.to(_dtype_of(name, dtype)) for name, value in tensors.items()}
    model.load_state_dict(converted, strict=True, assign=True)
    # Position tables are in no file: they were computed on the meta device and have to be made again.
    model.rope = type(model.rope)(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
    return model.eval()


def backbone_files(path: Path) -> list[Path]:
    """Files of the transformer in a diffusers folder, its `transformer/` or the original folder, or one file.

    Raises `UsageError` where there are none, `DataError` where the index names a shard that is not there.
    """
    single = [path] if path.is_file() and path.suffix == ".safetensors" else []
    files = single or weights.weight_files(path / "transformer") or weights.weight_files(path)
    if not files:
        raise UsageError(
            f"{path} holds no Wan2.2 transformer, and nothing is downloaded. Give transformer/config.json, "
            f"transformer/{STEM}*.safetensors and their index of {HUB_ID}, or of {ORIGINAL_HUB_ID} the same in no "
            "folder."
        )
    return files


def fingerprint_backbone(path: Path) -> str:
    """Identify the weights at a path by name, type, shape, first and last 4 KiB of every tensor; 64 hexadecimal digits.

    The same for the same weights in another layout or sharding. A change in the middle of a large tensor alone is not
    seen: no proof against tampering. Raises as `backbone_files`.
    """
    tensors = diffusers_names(weights.mapped_tensors(backbone_files(path)))
    return weights.digest(
        (f"{name} {_TYPES.get(value.dtype)} {tuple(value.shape)}", value.flatten().view(torch.uint8).numpy().data)
        for name, value in sorted(tensors.items())
    )


def diffusers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the original files under the names that diffusers gives them; its own names stay as they are."""
    if any(".attn1." in name for name in tensors):
        return dict(tensors)
    loaders = weights.upstream("diffusers.loaders.single_file_utils")
    return loaders.convert_wan_transformer_to_diffusers(dict(tensors))


def _transformer_class() -> Any:
    return weights.upstream("diffusers.models.transformers.transformer_wan").WanTransformer3DModel


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """What diffusers keeps in float32 whatever type is asked for is visible in the video at a lower precision."""
    return torch.float32 if {*_transformer_class()._keep_in_fp32_modules} & {*name.split(".")} else dtype


def _check_config(file: Path, config: BackboneConfig) -> None:
    content, expected = read_json(file), asdict(config)
    if (kind := content.get("_class_name")) == "WanModel":  # the original's; its other fields show in shapes
        found = {"num_attention_heads": content.get("num_heads"), "eps": content.get("eps")}
    elif kind == "WanTransformer3DModel":
        found = weights.full_config(content, _transformer_class())
    else:
        raise DataError(file, expected="a WanTransformer3DModel or WanModel", found=repr(kind), fix=_FIX)
    for name, value in found.items():
        # A field added by a later version is harmless only while it is off.
        if (value := tuple(value) if isinstance(value, list) else value) != expected.get(name):
            wanted = f"{name} = {expected[name]}" if name in expected else f"no field {name}"
            raise DataError(file, expected=wanted, found=f"{name} = {value}", fix=_FIX)
