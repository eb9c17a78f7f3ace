"""`TrainConfig`: one complete run. Recipes return it, the command line overrides it, config.json stores it.

`LoadOptions`, in its parts: how the world of a run is loaded and sampled from; each family reads what is its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from worldline.builtin import located
from worldline.checks import MOST_WORKERS, Checked, Limit, Natural, Positive, Seed, refuse
from worldline.contract import ModelConfig
from worldline.data.clips import DataConfig
from worldline.families.card import Part
from worldline.files import read_json
from worldline.forecasting.tokens import DecodeMode
from worldline.nn.optimizer import OptimizerConfig
from worldline.process.categorical import Sampling
from worldline.rundir import RunDir, from_json
from worldline.schema import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """Everything that decides a run's numbers, except the bytes of its data."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    batch_size: int
    """Clips per optimizer step, over all ranks and accumulated pieces."""
    tokenizer: Path | None = None
    """Run or model folder of the tokenizer (or Wan's or Cosmos' own folder), for a world on a source of frames."""
    weights: Path | None = None
    """Folder of the pretrained backbone, in diffusers' layout or the original files. It is frozen under a world's
    adapters; with `--model.lora None`, all of it is trained, from these weights on."""
    text: Path | None = None
    """The prompt, encoded by `worldline text`; without it the prompt is a row of zeros."""
    start_offsets: int = 4
    """How often each episode is tokenized for training, each time from another frame on, and with `data.augment` each
    time with its own crop and colours (see worldline.encoding.encode)."""
    init_from: Path | None = None
    """Run or model folder with the weights to start from, for example a tokenizer trained on the twin."""
    steps: Natural = 0
    """Optimizer steps; or 0 and `epochs` decides."""
    epochs: float = 0.0
    """Passes over the training clips; or 0 and `steps` decides."""
    accumulate: int = 1
    """Pieces into which a batch is cut to fit into memory. It changes rounding, and which noise a clip is given (of
    dropout, of flow matching)."""
    max_minutes: Positive | None = None
    """Stop early, with a checkpoint, after so many minutes. The schedule still ends at the full number of steps."""
    seed: Seed = 0
    device: str = "auto"
    """`auto` takes CUDA where there is one."""
    check_memory: bool = True
    """On CUDA, first compare `worldline plan` with free memory: warn, and refuse what certainly cannot fit."""
    autocast: bool = True
    """bfloat16 autocast on hardware that has bfloat16 arithmetic; elsewhere fp32."""
    workers: Annotated[int, Limit(most=MOST_WORKERS)] = 0
    """Processes that read clips; the order of clips does not depend on it."""
    log_every: int = 20
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    keep_best: str | None = None
    """Also keep the checkpoint that is best by this figure of validation, for example `val/loss` or `val/psnr_db`."""
    validation_clips: int = 64
    """Held-out clips for the `val/...` figures during training."""
    allow_different: tuple[Part, ...] = ()
    """Parts that may differ on purpose from those of the tokens, the initial weights or the resumed run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.steps > 0) == (self.epochs > 0):
            raise UsageError("give the length of the run as --steps or as --epochs, one of the two, above 0")
        if self.accumulate > self.batch_size:
            refuse(self, "accumulate", f"at most the batch of {self.batch_size}")
        if self.model.draws_map and self.data.augment.crop_scale != (1.0, 1.0):
            raise UsageError(
                "--data.augment crops pictures, and the map of the robot would not follow; leave it out, or take a "
                "recipe without a map (compression_any, sampling_any, driven_any)"
            )

    def total_steps(self, num_clips: int) -> int:
        """Steps of the run."""
        return self.steps or max(1, round(self.epochs * num_clips / self.batch_size))


def read_config(run: RunDir) -> TrainConfig:
    """A run's configuration, with paths as they can be opened from here. Raises `DataError` where it is damaged.

    Where the tokenizer is gone, the run's own copy takes its place.
    """
    config: TrainConfig = located(from_json(TrainConfig, read_json(run.config), run.config), run.path)
    if config.tokenizer is not None and not config.tokenizer.exists() and run.tokenizer.is_dir():
        return replace(config, tokenizer=run.tokenizer)
    return config


def resumed(found: TrainConfig, given: TrainConfig, run: RunDir) -> TrainConfig:
    """The configuration of a resumed run: its own, with the given length and places.

    Raises:
        UsageError: something else differs that decides what the run computes.
    """
    data = replace(found.data, path=given.data.path, val_path=given.data.val_path, cache=given.data.cache)
    length_and_places = ("steps", "epochs", "tokenizer", "weights", "text", "init_from")
    kept = replace(found, data=data, **{name: getattr(given, name) for name in length_and_places})
    of_this_call = ("max_minutes", "device", "workers", "check_memory", "allow_different")
    if replace(kept, **{name: getattr(given, name) for name in of_this_call}) != given:
        raise UsageError(f"{run.path} was started with another configuration; resume takes it from {run.config}")
    return kept


# --- to load a run and sample from it ---


@dataclass(frozen=True, kw_only=True)
class DrawOptions(Checked):
    """How samples of the future are drawn.

    Raises:
        UsageError: a value that makes no sense for any world.
    """

    num_samples: int = 1
    """Independent futures per clip; from worlds over tokens, more than one need a temperature above 0."""
    temperature: float | None = None
    """Worlds over tokens: 0 is greedy decoding, the report's choice. If not given, a driven world draws at the
    temperature of its configuration, and all others are greedy. `top_k` and `top_p` need one that is given."""
    top_k: int | None = None
    top_p: Annotated[float, Limit(above=0, most=1)] | None = None
    mixture: int = 1
    """Worlds over tokens: average the distributions of so many roll-outs, one of them greedy; 1 is the report's way."""
    decode_mode: DecodeMode = "tokens"
    """Worlds over tokens: decode the chosen tokens, or the mean code of their distribution."""
    blend_last_frame: bool = False
    """Worlds over tokens: where a patch keeps its token, show the last context frame instead of the decoded token."""
    steps: int = 20
    """Worlds over latents: evaluations of the velocity; the report uses 20 and 100."""
    guidance: float = 1.0
    """Worlds over latents: classifier-free guidance on the states; values other than 1 need a trained null state."""
    sampler: Literal["euler", "unipc"] = "euler"
    average_repeats: bool = False
    """Worlds over latents: average the frames that show the same instant (frames 19 and 20 of the report's 21)."""
    rows: int | None = None
    """Samples generated at once, over all clips; if not given, as many as fit into a few GB of memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.tokens  # its values must go together

    @property
    def tokens(self) -> Sampling:
        """How worlds over tokens choose."""
        return Sampling(temperature=self.temperature or 0.0, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True, kw_only=True)
class SampleOptions(DrawOptions):
    """What a forecaster gives: samples, or their mean."""

    mean_draws: Natural = 0
    """Worlds over latents: instead of samples, the mean of all futures, from so many estimates at pure noise, one call
    each; 4 are enough (docs/beyond.md)."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which checkpoint of a run is loaded, with what beside it, and from where."""

    checkpoint: str = "latest"
    """Which checkpoint of a run folder: `latest`, `best` (see `--keep-best` of training) or a step."""
    members: tuple[Path, ...] = ()
    """Further runs that form an ensemble with this one, such as the same training with other seeds (their latest
    checkpoints): worlds over tokens are averaged, worlds over latents draw futures in turn."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, if not in the run folder; it must be the one the world was trained with."""
    weights: Path | None = None
    """Folder of the pretrained backbone, if it has moved since training (worlds with adapters)."""
    allow_different: tuple[Part, ...] = ()
    """Parts that may differ on purpose from those the world was trained with: `tokenizer`."""
    device: str = "auto"
    """`auto` takes CUDA where there is one; under torchrun each process its own."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions(ModelChoice, SampleOptions):
    """Which checkpoint of a run is loaded, and how it forecasts."""
