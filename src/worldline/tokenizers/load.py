"""Save and load tokenizers by path: a run folder or a model folder is enough."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from worldline.nn.load import load_weights
from worldline.rundir import from_json, model_folder, read_model, to_json
from worldline.tokenizers.cosmos import CosmosConfig, CosmosTokenizer
from worldline.tokenizers.fsq_video import FSQVideoConfig, FSQVideoTokenizer

TokenizerConfig = Annotated[FSQVideoConfig | CosmosConfig, Field(discriminator="kind")]
AnyTokenizer = FSQVideoTokenizer | CosmosTokenizer


def load_tokenizer(path: Path) -> AnyTokenizer:
    """Build the tokenizer a path describes, in evaluation mode, on the CPU.

    A folder with `encoder.jit` is taken for a Cosmos download; anything else must be a run or model folder.

    Raises:
        DataError: files are missing or damaged, or weights do not fit the description.
        UsageError: the path is no such folder.
    """
    if (path / "encoder.jit").exists() or (path / "decoder.jit").exists():
        return CosmosConfig(folder=path.resolve()).build().eval()
    folder = model_folder(path)
    description, weights = read_model(folder)
    tokenizer = from_json(TokenizerConfig, description.get("config"), folder / "model.json").build()
    if isinstance(tokenizer, FSQVideoTokenizer):  # Cosmos' weights stay in its own files
        load_weights(tokenizer, weights, folder)
    return tokenizer.eval()


def describe(tokenizer: AnyTokenizer) -> dict[str, Any]:
    """The part of `model.json` that rebuilds a tokenizer."""
    return {"config": to_json(type(tokenizer.config), tokenizer.config)}


def fingerprint(path: Path) -> str:
    """Identity of a tokenizer's weights: a hash of the bytes that decide its tokens.

    Raises:
        UsageError: the path is neither a run or model folder nor a Cosmos download.
    """
    files = [path / "encoder.jit", path / "decoder.jit"]
    if not all(file.is_file() for file in files):
        folder = model_folder(path)
        files = [folder / "model.safetensors"]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
