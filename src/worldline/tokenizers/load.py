"""Save and load tokenizers by path: a run folder or a model folder is enough, or a published download."""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from worldline.files import read_json
from worldline.nn.load import load_weights
from worldline.nn.published import HUB_ID
from worldline.rundir import from_json, model_folder, read_model, to_json
from worldline.schema import UsageError
from worldline.tokenizers.cosmos import CosmosConfig, CosmosTokenizer
from worldline.tokenizers.fsq_video import FSQVideoConfig, FSQVideoTokenizer
from worldline.tokenizers.wan_vae import WanVAEConfig, WanVAETokenizer
from worldline.tokenizers.wan_vae_keys import ORIGINAL_NAME, load_tensors, read_config, vae_files

TokenizerConfig = Annotated[FSQVideoConfig | CosmosConfig, Field(discriminator="kind")]
AnyTokenizer = FSQVideoTokenizer | CosmosTokenizer
"""Tokenizers with a vocabulary. The continuous one has a loader of its own, `load_vae`."""


@dataclass(frozen=True, kw_only=True)
class TokenizerIdentity:
    """Which tokenizer made tokens or latents: what their costs must have in common to be compared."""

    fingerprint: str
    """The first twelve digits of it."""
    hysteresis: float | None = field(default=None, compare=False)
    """Levels by which a token resists change (`FSQVideoConfig.hysteresis`), which the fingerprint is of, too; None
    where there is no such rule, or the tokenizer is not at hand."""

    def __str__(self) -> str:
        return self.fingerprint + ("" if self.hysteresis is None else f", hysteresis {self.hysteresis:g}")


def load_tokenizer(path: Path) -> AnyTokenizer:
    """Build the discrete tokenizer a path describes, in evaluation mode, on the CPU.

    A folder with `encoder.jit` is taken for a Cosmos download; anything else must be a run or model folder.

    Raises:
        DataError: files are missing or damaged, or weights do not fit the description.
        UsageError: the path is no such folder, or holds a continuous VAE.
    """
    if (path / "encoder.jit").exists() or (path / "decoder.jit").exists():
        return CosmosConfig(folder=path.resolve()).build().eval()
    if vae_files(path):
        raise UsageError(
            f"{path} holds Wan's VAE, whose latents are continuous; a tokenizer with tokens is needed here"
        )
    folder = model_folder(path)
    description, weights = read_model(folder)
    if (kind := _setting(description, "kind")) == "wan-vae":
        raise UsageError(f"{path} holds a VAE, whose latents are continuous; a tokenizer with tokens is needed here")
    if kind in ("st-transformer", "wan"):
        raise UsageError(f"{path} holds a world; a tokenizer with tokens is needed here")
    tokenizer = from_json(TokenizerConfig, description.get("config"), folder / "model.json").build()
    if isinstance(tokenizer, FSQVideoTokenizer):  # Cosmos' weights stay in its own files
        load_weights(tokenizer, weights, folder)
    return tokenizer.eval()


def load_vae(path: Path) -> WanVAETokenizer:
    """Build the continuous VAE a path describes, in evaluation mode, on the CPU, in float32.

    Args:
        path: a run or model folder of worldline; a diffusers folder with `vae/`, or that `vae/` itself; the original
            file `Wan2.2_VAE.pth`, or the folder it lies in.

    Raises:
        DataError: files are missing or damaged, or a tensor differs; names the first.
        UsageError: the path is none of these, or holds a discrete tokenizer.
    """
    if files := vae_files(path):
        config = read_config(files)
        with torch.device("meta"):  # the weights are in memory once, not twice
            tokenizer = config.build()
        tokenizer.vae.load_state_dict(load_tensors(files, tokenizer.vae.state_dict()), strict=True, assign=True)
        return tokenizer.eval()
    if not path.is_dir():
        raise UsageError(_no_vae(path))
    folder = model_folder(path)
    description, weights = read_model(folder)
    if (kind := _setting(description, "kind")) != "wan-vae":
        raise UsageError(f"{path} holds a model of kind {kind!r}, not a VAE (kind 'wan-vae')")
    if "path" in description:
        return load_vae(_elsewhere(folder, description))
    tokenizer = from_json(WanVAEConfig, description.get("config"), folder / "model.json").build()
    load_weights(tokenizer, weights, folder)
    return tokenizer.eval()


def describe(tokenizer: AnyTokenizer | WanVAETokenizer) -> dict[str, Any]:
    """The part of `model.json` that rebuilds a tokenizer."""
    return {"config": to_json(type(tokenizer.config), tokenizer.config)}


def fingerprint(path: Path) -> str:
    """Identity of a tokenizer: a hash of what decides its tokens or latents, weights and (where it has one) hysteresis.

    Raises:
        UsageError: the path is neither a run or model folder nor a download of Cosmos or of Wan's VAE.
    """
    cosmos = [path / "encoder.jit", path / "decoder.jit"]
    files = cosmos if all(file.is_file() for file in cosmos) else vae_files(path)
    if not files:
        folder = model_folder(path)
        description = read_json(folder / "model.json")
        if "path" in description:  # a run's note of where the weights lie
            return fingerprint(_elsewhere(folder, description))
        if "fingerprint" in description:  # weights of a published layout, saved in ours
            return str(description["fingerprint"])
        files = [folder / "model.safetensors"]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(_file_digest(file, status.st_size, status.st_mtime_ns))
    described = files[0].with_name("model.json")
    hysteresis = _setting(read_json(described), "hysteresis") if described.is_file() else None
    if hysteresis:  # the one setting that changes the tokens of the same weights; the rule has a name of its own
        digest.update(f"hysteresis per block {hysteresis}".encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _file_digest(file: Path, _size: int, _mtime: int) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def own_weights(path: Path) -> Path | None:
    """The weights of a tokenizer in our own layout, to be copied as they are; None of any other."""
    if (path / "encoder.jit").is_file() or vae_files(path):
        return None
    folder = model_folder(path)
    return None if read_json(folder / "model.json").keys() & {"path", "fingerprint"} else folder / "model.safetensors"


def identity_of(fingerprint: str, tokenizer: object) -> TokenizerIdentity:
    """The identity of a tokenizer that was loaded, and whose fingerprint is known."""
    hysteresis = tokenizer.config.hysteresis if isinstance(tokenizer, FSQVideoTokenizer) else None
    return TokenizerIdentity(fingerprint=fingerprint[:12], hysteresis=hysteresis)


def _setting(description: dict[str, Any], name: str) -> Any:
    """One entry of the configuration in a `model.json`; None where it has none."""
    config = description.get("config")
    return config.get(name) if isinstance(config, dict) else None


def _elsewhere(folder: Path, description: dict[str, Any]) -> Path:
    """Where a run says that the weights lie which were too large to copy into it."""
    path = Path(description["path"])
    if not path.exists():
        raise UsageError(
            f"the tokenizer behind {folder} was at {path} when the run began, and is not there now; give its new place "
            "(--tokenizer DIR)"
        )
    if (found := fingerprint(path)) != description["fingerprint"]:
        raise UsageError(
            f"the tokenizer at {path} is another one (fingerprint {found[:12]}) than when {folder} was made "
            f"({description['fingerprint'][:12]}); give that one (--tokenizer DIR)"
        )
    return path


def _no_vae(path: Path) -> str:
    return (
        f"{path} is no VAE. Give a run or model folder, the folder of {HUB_ID} (vae/config.json and "
        f"vae/diffusion_pytorch_model.safetensors), or {ORIGINAL_NAME}. worldline downloads nothing by itself."
    )
