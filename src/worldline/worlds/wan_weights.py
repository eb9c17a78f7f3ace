"""The pretrained Wan2.2 TI2V-5B transformer: its sizes and its files. Knows no robot states and no training.

Both published layouts are read, without a hub: diffusers' folder (`transformer/`) and the original files. Headers of
the safetensors files are compared with the configuration before any tensor is read, so that a wrong or half-copied
download is named in a second and not after gigabytes. Needs the extra `wan`, imported only when a model is built.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from safetensors import safe_open

from worldline.checks import number, refuse, whole
from worldline.files import read_json, unreadable
from worldline.schema import DataError, UsageError

if TYPE_CHECKING:
    import diffusers.models.transformers.transformer_wan

HUB_ID = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
ORIGINAL_HUB_ID = "Wan-AI/Wan2.2-TI2V-5B"
_STEM = "diffusion_pytorch_model"
_AGAIN = f"Download the file of {HUB_ID} or {ORIGINAL_HUB_ID} again."
_FLOATS = ("F32", "F16", "BF16")

_FP32_PARTS = frozenset({"time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})
"""What diffusers keeps in float32 whatever type is asked for: a lower precision there is visible in the video."""

_RENAMES = (
    (r"^model\.diffusion_model\.", ""),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),  # the one before cross-attention is third there, second here
    (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
    (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
    (r"^(blocks\.\d+)\.self_attn\.", r"\1.attn1."),
    (r"^(blocks\.\d+)\.cross_attn\.", r"\1.attn2."),
    (r"\.([qkv])\.(weight|bias)$", r".to_\1.\2"),
    (r"\.o\.(weight|bias)$", r".to_out.0.\1"),
)
_ORIGINAL_FIELDS = {"dim": "width", "num_layers": "num_layers", "num_heads": "num_attention_heads", "eps": "eps"}
"""Entries of the original `config.json` and what they are called here; shapes of tensors tell the others."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Sizes of diffusers' `WanTransformer3DModel`, under its names; the defaults are Wan2.2 TI2V-5B."""

    presets: ClassVar[dict[str, "BackboneConfig"]]
    """What `--model.backbone` may name. A checkpoint keeps the sizes themselves."""
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
    eps: float = 1e-6
    rope_max_seq_len: int = 1024

    def __post_init__(self) -> None:
        whole(
            self, "patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim"
        )
        whole(self, "freq_dim", "ffn_dim", "num_layers", "rope_max_seq_len")
        number(self, "eps", above=0)
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

    def build(
        self, dtype: torch.dtype = torch.float32
    ) -> "diffusers.models.transformers.transformer_wan.WanTransformer3DModel":
        """Build it with random weights; under `torch.device("meta")` with none.

        Embeddings of time, modulation tables and block norms stay in float32 for every `dtype`, as in `load_backbone`.

        Raises:
            UsageError: diffusers is not installed.
        """
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


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies: what a safetensors header says about it."""

    file: Path
    key: str
    """Its name in the file."""
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    """Bytes from the start of the file."""


def load_backbone(
    path: Path, config: BackboneConfig, *, dtype: torch.dtype = torch.bfloat16
) -> "diffusers.models.transformers.transformer_wan.WanTransformer3DModel":
    """Load the pretrained transformer, in evaluation mode, on the CPU. Nothing is ever downloaded.

    Equal to what diffusers' `from_pretrained` gives, also for the original files: weights in `dtype`, except what
    diffusers keeps in float32. Memory is that of the result; tensors are read one at a time.

    Args:
        path: a diffusers folder or its `transformer/`, the folder of the original files, or one safetensors file.
        config: what is expected there. Without a `config.json` beside the files, only what shows in shapes is checked:
            not the number of heads.

    Raises:
        UsageError: there is no such transformer; says which files of which hub repositories are meant.
        DataError: the files hold another model or are damaged; names the first field or key that differs.
    """
    files = backbone_files(path)
    described = files[0].parent / "config.json"
    if described.is_file():
        _check_config(described, config)
    stored = _stored_tensors(files)
    with torch.device("meta"):
        model = config.build()
    _check_tensors(stored, {name: tuple(value.shape) for name, value in model.state_dict().items()}, files[0].parent)
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        here = {name: at.key for name, at in stored.items() if at.file == file}
        with safe_open(file, framework="pt") as opened:
            weights |= {name: opened.get_tensor(key).to(_dtype_of(name, dtype)) for name, key in here.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    # Position tables are in no file: they were computed on the meta device and have to be made again.
    model.rope = type(model.rope)(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
    return model.eval()


def backbone_files(path: Path) -> list[Path]:
    """The safetensors files of the transformer meant by a path, in the order of their names.

    Raises:
        UsageError: there are none; says which files of which hub repositories are meant.
        DataError: the index names a shard that is not there.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    for folder in (path / "transformer", path):
        index = folder / f"{_STEM}.safetensors.index.json"
        if index.is_file():
            return _indexed(index)
        if found := sorted(folder.glob(f"{_STEM}*.safetensors")):
            return found
    raise UsageError(
        f"{path} holds no Wan2.2 transformer. Give the folder of {HUB_ID} (transformer/config.json and "
        f"transformer/{_STEM}*.safetensors with their index), or of {ORIGINAL_HUB_ID} (config.json and "
        f"{_STEM}-0000{{1,2,3}}-of-00003.safetensors with their index). worldline downloads nothing by itself."
    )


def fingerprint_backbone(path: Path) -> str:
    """Identify the pretrained weights without reading all of them; 64 hexadecimal digits.

    Covers name, type and shape of every tensor and the first and last 4 KiB of its values, under diffusers' names: the
    same weights in another layout or sharding have the same fingerprint, and another model, another stored type or
    training of any tensor gives another. A change inside one large tensor that leaves both its ends as they were is
    not seen, so it tells copies and models apart but is no proof against tampering.

    Raises:
        UsageError, DataError: as `backbone_files`, or a file is damaged.
    """
    stored = _stored_tensors(backbone_files(path))
    return digest((f"{name} {at.dtype} {at.shape}", at.file, at.begin, at.end) for name, at in sorted(stored.items()))


def digest(ranges: Iterable[tuple[str, Path, int, int]], sample: int = 4096) -> str:
    """SHA-256 over labels and the first and last `sample` bytes of each range (label, file, begin, end)."""
    hasher = hashlib.sha256()
    for label, file, begin, end in ranges:
        hasher.update(f"{label}\n{end - begin}\n".encode())
        with file.open("rb") as opened:
            for start in (begin, max(begin, end - sample)):
                opened.seek(start)
                hasher.update(opened.read(min(sample, end - start)))
    return hasher.hexdigest()


def diffusers_name(key: str) -> str:
    """The name diffusers gives a tensor of the original files; its own names stay as they are."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _transformer_class() -> Any:
    try:
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    except ImportError as error:
        raise UsageError("Wan's transformer needs diffusers: pip install 'worldline[wan]'") from error
    return WanTransformer3DModel


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return dtype if _FP32_PARTS.isdisjoint(name.split(".")) else torch.float32


def _indexed(index: Path) -> list[Path]:
    files = [index.parent / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    for file in files:
        if not file.is_file():
            raise DataError(file, expected=f"a shard, named by {index.name}", found="nothing", fix=_AGAIN)
    if not files:
        raise DataError(index, expected="a weight_map of shards", found="none", fix=_AGAIN)
    return files


def _check_config(file: Path, config: BackboneConfig) -> None:
    content = read_json(file)
    match content.get("_class_name"):
        case "WanTransformer3DModel":
            expected = asdict(config)
            defaults = inspect.signature(_transformer_class().__init__).parameters
            found = {name: content.get(name, defaults[name].default) for name in expected}
            # A field added by a later version is harmless only while it is off.
            found |= {name: value for name, value in content.items() if name[0] != "_" and value is not None}
        case "WanModel":
            expected = {name: getattr(config, ours) for name, ours in _ORIGINAL_FIELDS.items()}
            found = {name: content[name] for name in expected if name in content}
        case other:
            fix = "Give the folder of the transformer, not of another part of the model."
            raise DataError(file, expected="a WanTransformer3DModel or WanModel", found=repr(other), fix=fix)
    for name, value in found.items():
        value = tuple(value) if isinstance(value, list) else value
        if name not in expected or value != expected[name]:
            wanted = f"{name} = {expected[name]}" if name in expected else f"no field {name}"
            fix = f"Give the weights of {HUB_ID}, or configure the backbone like these."
            raise DataError(file, expected=wanted, found=f"{name} = {value}", fix=fix)


def _stored_tensors(files: list[Path]) -> dict[str, StoredTensor]:
    """Headers of the files, by diffusers' names."""
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            name = diffusers_name(tensor.key)
            if name in stored:
                fix = "Keep the files of one download only."
                expected, found = f"{tensor.key} once", f"it in {stored[name].file.name} as well"
                raise DataError(file, expected=expected, found=found, fix=fix)
            stored[name] = tensor
    return stored


def read_header(file: Path) -> list[StoredTensor]:
    """What a safetensors file holds, without reading it. Raises `DataError` where it is cut short or something else."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        text = opened.read(start - 8) if start <= size else b""
    try:
        header = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise unreadable(file, expected="a safetensors file", found=f"{size} other bytes", fix=_AGAIN) from None
    header.pop("__metadata__", None)
    tensors = []
    for key, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        shape = tuple(entry["shape"])
        tensors.append(StoredTensor(file=file, key=key, dtype=entry["dtype"], shape=shape, begin=begin, end=end))
    needed = max((tensor.end for tensor in tensors), default=start)
    if needed != size:
        raise DataError(file, expected=f"{needed} bytes", found=f"{size}", fix=_AGAIN)
    return tensors


def _check_tensors(stored: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]], folder: Path) -> None:
    fix = f"Give the weights of {HUB_ID} or {ORIGINAL_HUB_ID}, complete, or configure the backbone like these."
    for name, shape in expected.items():
        if name not in stored:
            raise DataError(folder, expected=f"a tensor {name}", found="none of that name", fix=fix)
        at = stored[name]
        if at.shape != shape:
            raise DataError(at.file, expected=f"{at.key} of shape {shape}", found=f"shape {at.shape}", fix=fix)
        if at.dtype not in _FLOATS:
            raise DataError(at.file, expected=f"{at.key} as one of {', '.join(_FLOATS)}", found=at.dtype, fix=fix)
    for name in sorted(stored.keys() - expected.keys()):
        at = stored[name]
        raise DataError(at.file, expected="the tensors of this backbone only", found=f"{at.key} besides", fix=fix)
