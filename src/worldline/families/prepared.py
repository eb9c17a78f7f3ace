"""What preparing a run ends in, and the steps that every kind of run shares."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from worldline.contract import Contract, FramePattern
from worldline.data.clips import Clips, DataConfig, open_split, open_windows
from worldline.families.card import ModelCard
from worldline.formats.encoded import LatentSource
from worldline.formats.open import contract_of
from worldline.formats.source import Source
from worldline.nn.load import load_weights
from worldline.rundir import RunDir, model_folder, new_folder, read_model, write_model
from worldline.schema import Batch, DataError, LatentGrid, TokenGrid, UsageError
from worldline.tokenizers.load import AnyTokenizer, describe, fingerprint, own_weights
from worldline.tokenizers.wan_vae import WanVAETokenizer

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total) during long preparations."""


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _nothing(*_: RunDir) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the loop trains, on what, and how a checkpoint will describe it."""

    model: nn.Module
    train: Clips
    val: Clips
    card: ModelCard
    tokenizer: AnyTokenizer | WanVAETokenizer | None
    """The tokenizer behind a world, to show its samples; None for a tokenizer or where it is not given."""
    left_out: tuple[str, ...]
    """What the training data list but do not have."""
    ready: Callable[[Batch], Batch] = _as_it_is
    """Turns a loaded batch, on the device, into what the model's loss reads (say, frames into latents)."""
    keep: Callable[[RunDir], None] = _nothing
    """Writes into a new run folder what belongs beside its checkpoints (the tokenizer, token counts)."""
    finish: Callable[[], None] = _nothing
    """Called on the trained model before its last checkpoint, to measure what only a trained one has."""


def contract(source: Source, data: DataConfig, grid: TokenGrid | LatentGrid, pattern: FramePattern) -> Contract:
    """What a model that is trained on a source was trained on; how data behind encoded latents were read."""
    read = contract_of(source, data, data.path, data.image_size)
    if isinstance(source, LatentSource):
        read |= source.contract
    return Contract(
        fps=source.fps,
        image_size=read["image_size"],
        conditioning=read["conditioning"],
        camera=read["camera"],
        state_keys=tuple(read.get("state_keys", ())),
        state_names=source.layout.names,
        state_kinds=source.layout.kinds,
        source_kind=source.kind,
        pattern=pattern,
        token_grid=grid if isinstance(grid, TokenGrid) else None,
        latent_grid=grid if isinstance(grid, LatentGrid) else None,
    )


def frame_size(data: DataConfig) -> tuple[int, int]:
    """Height and width of the frames that are trained on; both splits have windows of them. Decodes nothing.

    Raises:
        UsageError: the data hold no frames, or a split no window.
    """
    size = picture_size(data, open_split(data, "train")[0])
    open_windows(data, "val")
    open_windows(data, "train")
    return size


def picture_size(data: DataConfig, source: Source) -> tuple[int, int]:
    """Height and width of a source's frames, scaled as asked for."""
    if source.image_size is None:
        raise UsageError(f"{source.path} holds no frames, it is {source.kind}; give video")
    return (data.image_size, data.image_size) if data.image_size else source.image_size


def initialise(model: nn.Module, path: Path | None) -> None:
    """Start from the weights of a run or model folder, if one is given. Raises `UsageError` where they do not fit."""
    if path is None:
        return
    weights = read_model(folder := model_folder(path))[1]
    try:
        load_weights(model, weights, folder)
    except DataError as error:
        raise UsageError(
            f"{path} holds another model than is trained here, {error.found}; give one of the same kind and sizes "
            "(--init-from), or train one of its"
        ) from error


def keep_tokenizer(run: RunDir, path: Path, tokenizer: AnyTokenizer | WanVAETokenizer, *, weights: bool) -> None:
    """Describe a tokenizer in the run; with `weights` copy it, so that the run folder stands alone, else say where."""
    own = own_weights(path) if weights else None
    description = describe(tokenizer)
    if own is None:
        description["fingerprint"] = fingerprint(path)
    if not weights:
        description["path"] = str(path.resolve())
    with new_folder(run.tokenizer) as folder:
        write_model(folder, description, tokenizer.state_dict() if weights else {})
        if own is not None:  # byte for byte, and so of the same fingerprint
            shutil.copyfile(own, folder / "model.safetensors")
