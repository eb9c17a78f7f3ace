"""`worldline text WEIGHTS`: run Wan's text encoder once and keep the few rows a world needs."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from worldline.cli.console import show
from worldline.progress import say
from worldline.worlds.wan_text import encode_text, fingerprint_encoder, save_text

EXAMPLES = """Encode a prompt for a Wan world, once. Needs the extra: pip install 'worldline[wan]'.

PATH is a folder with text_encoder/ and tokenizer/ of Wan-AI/Wan2.2-TI2V-5B-Diffusers, or with
models_t5_umt5-xxl-enc-bf16.pth and google/umt5-xxl/ of Wan-AI/Wan2.2-TI2V-5B. Nothing is downloaded.

Examples:
  worldline text weights/Wan2.2-TI2V-5B-Diffusers --out text.safetensors
  worldline text weights/Wan2.2-TI2V-5B --prompt "a robot tidies a kitchen" --out kitchen.safetensors
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    weights: tyro.conf.Positional[Path]
    prompt: str = ""
    """The default is the empty prompt, one row, with which robot worlds are trained."""
    out: Path = Path("text.safetensors")
    """File to write; 16 KB a row."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type for the encoder: it needs 11.4 GB of memory, or 22.7 GB in float32. The rows are always float32."""
    json: bool = False


def parse(arguments: list[str]) -> Job:
    return tyro.cli(Job, prog="worldline text", description=EXAMPLES, args=arguments)


def main(arguments: list[str]) -> None:
    """Parse, encode and write."""
    job = parse(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads it once
    encoder = fingerprint_encoder(job.weights)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    say(f"reading the text encoder in {job.weights}")
    rows = encode_text(job.weights, job.prompt, dtype=job.dtype)
    save_text(job.out, rows, job.prompt, {"encoder": encoder, "dtype": job.dtype})
    result = {"text": str(job.out), "prompt": job.prompt, "rows": rows.shape[0], "width": rows.shape[1]}
    show(result | {"encoder": encoder}, text=f"{job.out}: {len(rows)} x {rows.shape[1]}", as_json=job.json)
