"""The prompt as rows computed once: Wan's UMT5 encoder on a text, and the file that keeps its output.

A world needs the rows of the prompt's real tokens (of the empty prompt one, `</s>`), not an encoder of 5.7 billion
parameters. Needs the extra `wan`, only when a text is encoded.
"""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline.files import atomic, mapped, reading
from worldline.nn.weights import HUB_ID, ORIGINAL_HUB_ID, digest, mapped_tensors, renamed, upstream, weight_files
from worldline.schema import DataError, UsageError

_ORIGINAL = "models_t5_umt5-xxl-enc-bf16.pth"
_AGAIN = f"Download the folder of {HUB_ID} again."
_RENAMES = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.", r"encoder.block.\1."),
    (r"\.norm1\.", ".layer.0.layer_norm."),
    (r"\.attn\.", ".layer.0.SelfAttention."),
    (r"\.pos_embedding\.embedding\.", ".layer.0.SelfAttention.relative_attention_bias."),
    (r"\.norm2\.", ".layer.1.layer_norm."),
    (r"\.ffn\.gate\.0\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn\.fc1\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn\.fc2\.", ".layer.1.DenseReluDense.wo."),
)
"""Names of the original encoder's tensors, and what transformers calls them."""


def encode_text(
    weights: Path, prompt: str = "", *, dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> Float[Tensor, "n d"]:
    """Encode a prompt as Wan does, trimmed to its real tokens; float32 on the CPU. `dtype` is the encoder's.

    HTML entities are resolved and white space is collapsed, as upstream; broken Unicode is not repaired. Raises
    `UsageError` for no encoder or a prompt that is too long, and `DataError` for files that are damaged or do not
    belong together.
    """
    files, tokenizer = _parts(weights)
    try:
        ids = _token_ids(tokenizer, prompt)
        encoder = _encoder(files, getattr(torch, dtype))
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # of transformers and PyTorch
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(weights, expected="UMT5 encoder and tokenizer", found=found, fix=_AGAIN) from error
    if max(ids) >= encoder.config.vocab_size:
        expected, found = f"an encoder that knows token {max(ids)}", f"one of {encoder.config.vocab_size} tokens"
        raise DataError(weights, expected=expected, found=found, fix="Give tokenizer and encoder of one download.")
    with torch.no_grad():
        return encoder(input_ids=torch.tensor([ids])).last_hidden_state[0].float()


def fingerprint_encoder(weights: Path) -> str:
    """Identify encoder and tokenizer by sizes and samples all over their files; 64 hexadecimal digits."""
    files, tokenizer = _parts(weights)
    sizes = [(file, file.stat().st_size) for file in [*files, *sorted(tokenizer.glob("*.json"))]]
    contents = [(file.name, size, mapped(file, "uint8", (size,)).data) for file, size in sizes]
    parts = range(512)
    return digest((name, data[size * i // 512 : size * (i + 1) // 512]) for name, size, data in contents for i in parts)


def save_text(path: Path, rows: Float[Tensor, "n d"], prompt: str, provenance: Mapping[str, str]) -> None:
    """Write the rows as safetensors, atomically, in float32; metadata are the prompt and where the rows are from."""
    # The same arguments give the same bytes: safetensors shuffles entries of metadata, so there is only one.
    about = json.dumps({"prompt": prompt, **provenance}, sort_keys=True)
    with atomic(path) as temporary:
        save_file({"text": rows.detach().float().cpu().contiguous()}, temporary, {"about": about})


def load_text(path: Path) -> Float[Tensor, "n d"]:
    """Read the rows of a prompt. Raises `DataError` where the file is missing, damaged or holds something else."""
    fix = "Write it with `worldline text`."
    expected = "the rows of a prompt (a float32 tensor `text` of two dimensions)"
    with reading(path, SafetensorError, KeyError, expected=expected, fix=fix):
        rows = load_file(path)["text"]
    if rows.ndim != 2 or rows.dtype != torch.float32:
        raise DataError(path, expected=expected, found=f"{rows.dtype} of shape {tuple(rows.shape)}", fix=fix)
    return rows.clone()


def _parts(weights: Path) -> tuple[list[Path], Path]:
    """The encoder's files, safetensors of diffusers' folder or else the original one, and the tokenizer's folder."""
    original = weights / _ORIGINAL
    files = weight_files(weights / "text_encoder", "model") or [original] * original.is_file()
    folders = (weights / "tokenizer", weights / "google" / "umt5-xxl")
    tokenizer = next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)
    if not files or tokenizer is None:
        raise UsageError(
            f"{weights} holds no {'tokenizer' if files else 'text encoder'} of Wan; nothing is downloaded. "
            f"Give text_encoder/ and tokenizer/ of {HUB_ID}, or {_ORIGINAL} and google/umt5-xxl/ of {ORIGINAL_HUB_ID}."
        )
    return files, tokenizer


def _token_ids(folder: Path, prompt: str) -> list[int]:
    tokenizer = upstream("transformers").AutoTokenizer.from_pretrained(folder, local_files_only=True)
    clean = re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
    ids: list[int] = tokenizer(clean).input_ids
    if not ids or ids[-1] != tokenizer.eos_token_id:
        raise DataError(folder, expected="a tokenizer that ends a text with </s>", found=f"{ids[-3:]}", fix=_AGAIN)
    if len(ids) > 512:  # what Wan was trained to read, `</s>` included
        raise UsageError(f"the prompt has {len(ids)} tokens; Wan reads 512. Shorten it.")
    return ids


def _encoder(files: list[Path], dtype: torch.dtype) -> Any:
    """The encoder of files in either layout; its sizes are those of its tensors."""
    weights = {renamed(key, _RENAMES): tensor.to(dtype) for key, tensor in mapped_tensors(files).items()}
    first = "encoder.block.0.layer"
    buckets, heads = weights[f"{first}.0.SelfAttention.relative_attention_bias.weight"].shape
    inner, width = weights[f"{first}.0.SelfAttention.q.weight"].shape
    config = upstream("transformers").UMT5Config(
        vocab_size=len(weights["shared.weight"]),
        d_model=width,
        d_kv=inner // heads,
        num_heads=heads,
        d_ff=len(weights[f"{first}.1.DenseReluDense.wi_0.weight"]),
        num_layers=1 + max(int(key.split(".")[2]) for key in weights if key.startswith("encoder.block.")),
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        encoder = upstream("transformers").UMT5EncoderModel(config)
    encoder.load_state_dict({**weights, "encoder.embed_tokens.weight": weights["shared.weight"]}, assign=True)
    return encoder.eval()
