"""From a path to a forecaster: the world of a run, the tokenizer it was trained on, and how to sample."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from worldline import builtin
from worldline.contract import Contract
from worldline.devices import pick_device
from worldline.families.card import ModelCard, card_of
from worldline.families.sample import LoadOptions
from worldline.forecasting.latents import LatentForecaster
from worldline.forecasting.session import Session
from worldline.forecasting.tokens import TokenForecaster
from worldline.formats.encoded import LatentSource
from worldline.formats.source import Source
from worldline.identity import Identity, Part, refuse_another
from worldline.rundir import RunDir, model_folder
from worldline.schema import DataError, Forecast, TokenGrid, UsageError
from worldline.tokenizers.load import TokenizerIdentity, fingerprint, identity_of, load_tokenizer, load_vae
from worldline.tokenizers.tokenizer import Tokenizer
from worldline.worlds.load import load_world
from worldline.worlds.st_transformer import STTransformer
from worldline.worlds.wan import WanWorld


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A forecaster from disk, with what its checkpoint says about the data it was trained on."""

    forecaster: TokenForecaster | LatentForecaster
    contract: Contract
    folder: Path
    """The model folder of the world."""
    checkpoint: str = ""
    """Name of the checkpoint of a run folder; empty for a model folder."""
    made_with: Identity = field(default_factory=Identity)
    """What the world was trained with, as far as its checkpoint says."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer behind the world; None where it was trained on tokens as they came."""

    @property
    def chosen(self) -> dict[str, str]:
        """Which checkpoint of a run this is, for the settings of an evaluation."""
        return {"checkpoint": self.checkpoint} if self.checkpoint else {}

    @property
    def identity(self) -> TokenizerIdentity | None:
        """Which tokenizer the world speaks the tokens of, or forecasts the latents of; None where that is not known."""
        return None if self.tokenizer is None else identity_of(self.tokenizer, self.forecaster.tokenizer)

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

    def over_tokens(self) -> TokenForecaster:
        """The forecaster of a world over tokens. Raises `UsageError` for one over latents."""
        if not isinstance(self.forecaster, TokenForecaster):
            raise UsageError(f"{self.folder} holds a world over latents; it has no tokens to be scored")
        return self.forecaster


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
    world, description = load_world(model, weights=options.weights, allow_different=options.allow_different)
    card = card_of(description, model)
    made_with, contract = card.identity, card.promise
    expected = made_with.tokenizer
    place = builtin.resolve(options.tokenizer) if options.tokenizer else _tokenizer_of(path, expected)
    spoken = fingerprint(place) if place else expected
    places: dict[Part, Path | str | None] = {"tokenizer": place}
    found = Identity(tokenizer=spoken)
    refuse_another(made_with, found, what=f"the world in {path}", places=places, allowed=options.allow_different)
    match world:
        case STTransformer():
            spoken_by = load_tokenizer(place).to(device) if place else None
            _check_grid(spoken_by, contract.tokens, place)
            forecaster = TokenForecaster(
                tokenizer=spoken_by,
                world=world.to(device),
                grid=contract.tokens,
                sampling=options.tokens,
                num_samples=options.num_samples,
                decode_mode=options.decode_mode,
                blend_last_frame=options.blend_last_frame,
                rows=options.rows,
                device=device,
            )
        case WanWorld():
            if place is None:
                raise UsageError(f"{path} has no VAE beside it; give the one it was trained on (--tokenizer DIR)")
            forecaster = LatentForecaster(
                tokenizer=load_vae(place).to(device),
                world=world.to(device),
                grid=contract.latents,
                pattern=contract.pattern,
                sampling=options.flow,
                num_samples=options.num_samples,
                average_repeats=options.average_repeats,
                rows=options.rows,
                device=device,
            )
    return Loaded(
        forecaster=forecaster,
        contract=contract,
        folder=path,
        checkpoint=model.name if model != path else "",
        made_with=made_with,
        tokenizer=spoken,
    )


def _check_grid(tokenizer: Tokenizer | None, grid: TokenGrid, place: Path | None) -> None:
    if tokenizer is None:
        return
    made = tokenizer.grid(grid.height * tokenizer.spatial_stride, grid.width * tokenizer.spatial_stride)
    if made != grid:
        raise UsageError(f"the tokenizer in {place} makes tokens of {made}, but this world speaks those of {grid}")


def check_world(card: ModelCard, folder: Path) -> None:
    """Refuse a model folder that holds no world.

    Raises:
        UsageError: it holds a tokenizer.
        DataError: its description lacks what a world's must say.
    """
    if card.config.kind not in ("st-transformer", "wan"):
        raise UsageError(f"{folder} holds a tokenizer, which forecasts nothing; give a world's run folder")
    if card.contract is None:
        raise DataError(
            folder / "model.json",
            expected="the configuration of a world and what data it was trained on",
            found=f"a configuration of kind {card.config.kind!r} and no contract",
            fix="Copy the model folder again, or retrain.",
        )


def refuse_unfit(
    source: Source,
    card: ModelCard,
    *,
    tokenizer: bool,
    pictures: bool,
    allow_different: Collection[Part] = (),
) -> None:
    """Refuse data that a world cannot forecast from, before any weights are read.

    Args:
        tokenizer: whether one is there.
        pictures: whether frames are to be shown.
        allow_different: `tokenizer`, where tokens may be of another one than the world was trained on.

    Raises:
        UsageError: the data hold neither what the world begins with nor what is turned into it, or tokens of another
            tokenizer.
    """
    if card.config.kind == "wan":
        if isinstance(source, LatentSource):
            _refuse_other_latents(source, card)
        elif source.image_size is None:
            raise UsageError(f"{source.path} holds no frames for a forecast to begin with; give data that do (--data)")
        return
    grid, needed = card.promise.tokens, source.grid is None or pictures
    if needed and not tokenizer:
        instead = "" if source.grid is None else ", or ask for tokens alone (--format npz)"
        raise UsageError(
            f"this world was trained on tokens alone; give the tokenizer they came from (--tokenizer DIR){instead}"
        )
    if source.grid is None and source.image_size is None:
        raise UsageError(f"{source.path} holds neither frames nor tokens, but {source.kind}; give other data (--data)")
    if source.grid not in (None, grid):
        raise UsageError(f"{source.path} holds tokens of {source.grid}, but this world speaks those of {grid}")
    made_by: dict[Part, Path | str | None] = {"tokenizer": f"that of the tokens in {source.path}"}
    found = Identity(tokenizer=getattr(source, "tokenizer", None))
    refuse_another(card.identity, found, what="this world", places=made_by, allowed=allow_different)


def _refuse_other_latents(source: LatentSource, card: ModelCard) -> None:
    pattern = card.promise.pattern
    if source.pattern != pattern:
        raise UsageError(f"{source.path} holds latents of {source.pattern}, but this world was trained on {pattern}")
    if card.identity.tokenizer not in (None, source.tokenizer):
        raise UsageError(f"{source.path} holds latents of another VAE than this world was trained on")


def has_tokenizer(path: Path, card: ModelCard) -> bool:
    """Whether a tokenizer lies beside a world or ships with worldline. Raises `UsageError` where one should."""
    return _tokenizer_of(path, card.identity.tokenizer) is not None


def _tokenizer_of(path: Path, expected: str | None) -> Path | None:
    for run in (path, path.parent.parent):  # a run folder, or run/checkpoints/step_N
        if RunDir(run).tokenizer.is_dir():
            return RunDir(run).tokenizer
    if expected is None:
        return None
    for shipped in (builtin.TOKENIZER_TINY, builtin.VAE_TINY):
        if shipped.is_dir() and expected == fingerprint(shipped):
            return shipped
    raise UsageError(f"{path} has no tokenizer beside it; give the one it was trained on (--tokenizer DIR)")
