"""From a path to a world or a forecaster: finds its tokenizer and checks that everything fits."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline import builtin
from worldline.contract import Contract
from worldline.families.card import ModelCard, describe_model
from worldline.families.family import WorldKind, kind_of
from worldline.families.sample import LoadOptions, SampleOptions
from worldline.families.tokenizers import TokenizerIdentity, fingerprint, load_any
from worldline.forecasting.forecaster import Forecaster, Session
from worldline.formats.source import Source
from worldline.identity import Identity, Part, refuse_another
from worldline.nn.weights import load_weights
from worldline.ranks import pick_device
from worldline.rundir import RunDir, load_tensors, model_folder
from worldline.schema import DataError, Forecast, UsageError


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A forecaster from disk, with what its checkpoint says about the data it was trained on."""

    forecaster: Forecaster
    contract: Contract
    folder: Path
    """The model folder of the world."""
    checkpoint: str = ""
    """Name of the checkpoint of a run folder; empty for a model folder."""
    tokenizer: str | None = None
    """Fingerprint of the world's tokenizer; None if it was trained on a token source."""
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)
    """How it samples, for the record."""

    @property
    def chosen(self) -> dict[str, str]:
        """Which checkpoint of a run this is, for the settings of an evaluation."""
        return {"checkpoint": self.checkpoint} if self.checkpoint else {}

    @property
    def identity(self) -> TokenizerIdentity | None:
        """The tokenizer of the world's tokens or latents; None if unknown."""
        tokenizer = getattr(self.forecaster, "tokenizer", None)
        return None if self.tokenizer is None else TokenizerIdentity.of(self.tokenizer, tokenizer)

    def forecast(
        self,
        frames: UInt8[Tensor, "b c 3 h w"],
        states: Float32[Tensor, "b t s"],
        *,
        seeds: Sequence[int] | None = None,
    ) -> Forecast:
        """Forecast what follows the context `frames`, given the states of context and horizon (`Forecaster.forecast`).

        Args:
            seeds: one per clip; 0, 1, ... if not given.
        """
        return self.forecaster.forecast(frames, states, seeds=range(len(frames)) if seeds is None else seeds)

    def start(self, frames: UInt8[Tensor, "b c 3 h w"], states: Float32[Tensor, "b c s"], *, seed: int = 0) -> Session:
        """An imagined episode of any length, from context frames and their states (`Forecaster.start`)."""
        return self.forecaster.start(frames, states, seed=seed)


def load_world(
    path: Path, *, weights: Path | None = None, allow_different: Collection[Part] = ()
) -> tuple[Any, ModelCard]:
    """Build the world a path describes, in evaluation mode, on the CPU; with its card.

    Trained parameters are fp32, because the report found bfloat16 inference to be worse (section 3.2). A frozen
    backbone keeps its type.

    Args:
        weights: folder of the pretrained backbone, if not where the checkpoint says (worlds with adapters only).
        allow_different: `backbone`, where it may be another one on purpose.

    Raises:
        DataError: files are missing or damaged, or weights do not fit the description.
        UsageError: the path is no run or model folder, or the backbone is absent or another one.
    """
    folder = model_folder(path)
    card = describe_model(folder)
    world = world_kind(card, folder).rebuild(card, folder, weights=weights, allowed=allow_different)
    load_weights(world, load_tensors(folder / "model.safetensors"), folder)
    return world.eval(), card


def load_forecaster(path: Path, options: LoadOptions | None = None, *, device: torch.device | None = None) -> Loaded:
    """Load the world of a run and, where there is one, the tokenizer it was trained on.

    Args:
        path: run folder, or model folder inside one.
        device: in place of `options.device`; a rank has its own.

    Raises:
        UsageError: the tokenizer is missing though the world was trained with one, or is another one.
        DataError: files are missing or damaged.
    """
    options = options or LoadOptions()
    device = device or pick_device(options.device)
    model = model_folder(path, options.checkpoint)
    world, card = load_world(model, weights=options.weights, allow_different=options.allow_different)
    expected = card.identity.tokenizer
    place = builtin.resolve(options.tokenizer) if options.tokenizer else _tokenizer_of(path, expected)
    spoken = fingerprint(place) if place else expected
    places: dict[Part, Path | str | None] = {"tokenizer": place}
    found = Identity(tokenizer=spoken)
    refuse_another(card.identity, found, what=f"the world in {path}", places=places, allowed=options.allow_different)
    kind = world_kind(card, model)
    return Loaded(
        forecaster=kind.forecaster(world, card, load_any(place).to(device) if place else None, options, device),
        settings=options.settings(kind.options),
        contract=card.promise,
        folder=path,
        checkpoint=model.name if model != path else "",
        tokenizer=spoken,
    )


def world_kind(card: ModelCard, folder: Path) -> WorldKind:
    """The kind of the world in a model folder.

    Raises:
        UsageError: it holds a tokenizer.
        DataError: its card lacks what a world's must say.
    """
    kind = kind_of(card.config)
    if not isinstance(kind, WorldKind):
        raise UsageError(f"{folder} holds a tokenizer, which forecasts nothing; give a world's run folder")
    if card.contract is None:
        raise DataError(
            folder / "model.json",
            expected="the configuration of a world and what data it was trained on",
            found=f"a configuration of kind {card.config.kind!r} and no contract",
            fix="Copy the model folder again, or retrain.",
        )
    return kind


def check_options(card: ModelCard, folder: Path, options: SampleOptions, *, weights: Path | None = None) -> None:
    """Refuse options that a world would ignore, before its weights are read.

    Raises:
        UsageError: an option of another kind of world, or one that this very world has no use for.
        DataError: the folder's card lacks what a world's must say.
    """
    kind = world_kind(card, folder)
    if foreign := [name for name in options.given() if name not in (*kind.options, "num_samples", "rows")]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise UsageError(f"this is a world over {kind.over}: {names} would change nothing")
    kind.check_options(card.config, card.promise, options)
    if weights and not kind.adapts(card.config):
        raise UsageError("--weights would change nothing: this world has no adapters and holds all of its weights")


def refuse_unfit(
    source: Source,
    card: ModelCard,
    folder: Path,
    *,
    tokenizer: bool,
    shown: bool,
    allow_different: Collection[Part] = (),
) -> None:
    """Refuse data that a world cannot forecast from, before any weights are read.

    Args:
        folder: of the run or model.
        tokenizer: whether one is given; else one is looked for.
        shown: whether frames are to be shown.
        allow_different: `tokenizer`, where tokens may be of another one than the world was trained on.

    Raises:
        UsageError: the data hold neither what the world begins with nor what is turned into it, or tokens of another
            tokenizer; or the world's tokenizer is not where it should be.
    """
    tokenizer = tokenizer or _tokenizer_of(folder, card.identity.tokenizer) is not None
    kind = world_kind(card, folder)
    kind.refuse_unfit(source, card, tokenizer=tokenizer, shown=shown, allowed=allow_different)


def _tokenizer_of(path: Path, expected: str | None) -> Path | None:
    """Where the tokenizer lies, beside a world or among the built-ins. Raises `UsageError` where one should."""
    for run in (path, path.parent.parent):  # a run folder, or run/checkpoints/step_N
        if RunDir(run).tokenizer.is_dir():
            return RunDir(run).tokenizer
    if expected is None:
        return None
    for shipped in (builtin.TOKENIZER_TINY, builtin.VAE_TINY):
        if shipped.is_dir() and expected == fingerprint(shipped):
            return shipped
    raise UsageError(f"{path} has no tokenizer beside it; give the one it was trained on (--tokenizer DIR)")
