"""Tokens or latents for a driven world? Its forms, trained for equally long and then driven for ten seconds. JSON.

    python benchmarks/driven_latents.py PLAY VAL TOKENIZER --work DIR [--episodes :120] [--steps 400]
    python benchmarks/driven_latents.py --quick

PLAY and VAL are data of `worldline data twin` (table, 15 fps, 128x128), TOKENIZER a run of `tokenizer_driven`
(scripts/driven.sh makes all three). The forms share trunk, cache, states, skeleton, decoder, clips and schedule:

* `tokens`: the product (`worlds/causal.py`), which predicts the digits of each token's code.
* `regression`: reads and predicts the code before its rounding; the squared error of what changes. One call.
* `flow`: the same trunk over clean latents (so that its cache holds these alone), and a light head that turns noise
  into what changes by rectified flow, in 1, 2 or 4 calls.

First a step of each is timed in turns, in processor seconds; `tokens` gets `--steps` steps, each other form as many as
cost the same. In the last quarter of each training the grids after the context are its own roll-out. The roll-outs are
judged on held-out episodes, on which nothing is chosen. Whatever is in DIR already is not made again, so that parts can
be made one by one (`--only`); without the figures of all forms nothing is judged.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from common import in_turns, options, publish, skip, spread
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from worldline import builtin
from worldline.checks import Share
from worldline.contract import FramePattern, ModelConfig
from worldline.data.clips import Clips, DataConfig, evenly, open_split, source_windows
from worldline.encoding.encode import encode
from worldline.families.compression import CausalKind
from worldline.families.config import TrainConfig
from worldline.families.family import Prepared, contract_with, register
from worldline.families.load import load_world, prepare
from worldline.families.tokenizers import fingerprint, keep_tokenizer, load_tokenizer
from worldline.files import read_json, write_json, write_npz
from worldline.formats.open import open_source
from worldline.metrics.bootstrap import Interval, interval, intervals
from worldline.metrics.image import changes, psnr
from worldline.metrics.networks import LearnedOptions, Networks, there
from worldline.metrics.table import NotComputed
from worldline.nn.attention import Attention
from worldline.nn.optimizer import build_optimizer
from worldline.process.flow import FlowConfig, FlowSampling, corrupt, draw_sigma, integrate
from worldline.ranks import Ranks
from worldline.recipes import driven_tiny
from worldline.rundir import RunDir
from worldline.schema import Batch, Clip, LatentGrid, Origin, TokenGrid, stack
from worldline.tokenizers.tokenizer import to_signed
from worldline.training.loop import train
from worldline.worlds.causal import CausalConfig, CausalWorld, Past, Told

Form = Literal["tokens", "regression", "flow"]
FORMS: tuple[Form, ...] = get_args(Form)
CALLS = (1, 2, 4)
"""Calls of the head for one frame in which a flow is sampled."""
SEED = 0
FLOW = FlowConfig(shift=1.0, pure_noise=0.25)
"""Even noise levels, and a quarter of them pure noise: one call is then the conditional mean."""
LEAST_SIGMA = 0.1
"""Below it, errors of a velocity count no more than here."""
OWN_FROM = 0.75

Latents = Float[Tensor, "b t h w c"]
"""Codes before rounding, each channel of mean 0 and deviation 1 over the training data."""


# --- the forms ---


@dataclass(frozen=True, kw_only=True)
class TrialConfig(CausalConfig, ModelConfig):
    """The driven world in one of its forms."""

    kind: Literal["driven-trial"] = "driven-trial"  # pyright: ignore[reportIncompatibleVariableOverride]
    form: Form = "tokens"
    history_noise: Share = 0.1
    """Deviation of the noise on the latents that are read, where they are true ones: so small errors are mended
    (of a latent's own deviation)."""

    def build(self, grid: TokenGrid, state_names: tuple[str, ...]) -> CausalWorld:
        return (CausalWorld if self.form == "tokens" else LatentWorld)(self, grid, state_names)


class LatentWorld(CausalWorld):
    """The driven world over continuous codes: predicts by how much the next grid differs from the present one."""

    config: TrialConfig
    mean: Tensor
    deviation: Tensor
    change: Tensor

    def __init__(self, config: TrialConfig, grid: TokenGrid, state_names: tuple[str, ...]) -> None:
        super().__init__(config, grid, state_names)
        channels, width = len(config.code_levels), config.width
        inside = config.patch**2 * channels
        self.read = nn.Sequential(nn.Linear(inside, width), nn.SiLU(), nn.Linear(width, width))
        self.write = nn.Linear(width, inside) if config.form == "regression" else Head(width, config.heads, inside)
        for name in ("mean", "deviation", "change"):
            self.register_buffer(name, torch.ones(channels))
        self.initialise()
        for module in self.modules():
            if isinstance(module, HeadBlock):
                nn.init.zeros_(module.modulation.weight)

    def measure(self, latents: Sequence[Float32[Tensor, "t c h w"]]) -> None:
        """Take mean and deviation of each channel, and the deviation of its changes, from episodes."""
        rows = [rearrange(one, "t c h w -> t (h w) c") for one in latents]
        self.mean.copy_(torch.cat(rows).mean(dim=(0, 1)))
        self.deviation.copy_(torch.cat(rows).std(dim=(0, 1)))
        moves = torch.cat([one[1:] - one[:-1] for one in rows])
        self.change.copy_(moves.std(dim=(0, 1)) / self.deviation)

    def standard(self, latents: Float[Tensor, "b t c h w"]) -> Latents:
        return (rearrange(latents, "b t c h w -> b t h w c") - self.mean) / self.deviation

    def raw(self, latents: Latents) -> Float[Tensor, "b t c h w"]:
        """Codes as the decoder takes them, within the range that it knows."""
        half = torch.tensor([levels // 2 for levels in self.config.code_levels])
        top = (torch.tensor(self.config.code_levels) - 1 - half) / half
        codes = (latents * self.deviation + self.mean).clamp(-1, 1).minimum(top)
        return rearrange(codes, "b t h w c -> b t c h w")

    def patched(self, latents: Latents) -> Float[Tensor, "b t s d"]:
        side = self.config.patch
        return rearrange(latents, "b t (i p) (j q) c -> b t (i j) (p q c)", p=side, q=side)

    def features(self, latents: Latents, told: Told, past: Past | None = None) -> tuple[Tensor, Past]:
        """What the trunk knows of the grid after each: a pass over the new ones alone."""
        return self.through(self.read(self.patched(latents)), told, past)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the changes, or of a flow's velocity towards them; from `own_from` on along the world's
        own roll-out, of the grids after the context alone."""
        assert batch.latents is not None, "clips of latents"
        true, told = self.standard(batch.latents), self.conditions(batch.states)
        own = self.training and self.progress >= self.config.own_from < 1
        first = self.context_grids if own else 1
        if own:
            calls = CALLS[int(torch.randint(len(CALLS), (), generator=generator))]
            seen = self.rolled(true[:, :first], told, calls=calls, generator=generator)[:, :-1]
        else:
            noise = torch.randn(true[:, 1:].shape, generator=generator) * self.config.history_noise
            seen = true[:, :-1] + noise if self.training else true[:, :-1]
        features = self.features(seen, told)[0][:, first - 1 :]
        target = self.patched((true[:, first:] - seen[:, first - 1 :]) / self.change)
        return self.error(features, target, generator), {"own_roll_outs": float(own)}

    def error(
        self, features: Float[Tensor, "b t s d"], target: Float[Tensor, "b t s c"], generator: torch.Generator
    ) -> Tensor:
        """Of changes that are to be predicted from features."""
        features, target = features.flatten(0, 1), target.flatten(0, 1)
        if self.config.form == "regression":
            return (self.write(features) - target).square().mean()
        sigma = draw_sigma(FLOW, len(target), generator)
        noised, _ = corrupt(target, torch.randn(target.shape, generator=generator), sigma)
        weight = sigma.clamp_min(LEAST_SIGMA)[:, None, None].square()  # of the velocity, (x - x0) / sigma
        return ((self.write(features, noised, sigma) - target).square() / weight).mean()

    def changed(
        self, features: Float[Tensor, "b s d"], calls: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b s c"]:
        """One change for each grid: the mean, or a sample of a flow in so many calls."""
        if self.config.form == "regression":
            return self.write(features)
        shape = (*features.shape[:2], self.config.patch**2 * len(self.config.code_levels))

        def velocity_of(x: Tensor, sigma: float) -> Tensor:
            return (x - self.write(features, x, torch.full((len(x),), sigma))) / max(sigma, LEAST_SIGMA)

        noise = torch.randn(shape, generator=generator)
        return integrate(velocity_of, noise, FlowSampling(steps=calls, shift=FLOW.shift))

    @torch.no_grad()
    def rolled(
        self, context: Latents, told: Told, *, calls: int = 1, generator: torch.Generator | None = None
    ) -> Latents:
        """The context and the world's own grids after it, as far as it is told of."""
        count, side = context.shape[1], self.config.patch
        features, past = self.features(context, told[:count])
        grids = [context]
        for t in range(count, told.grids + 1):
            moves = self.changed(features[:, -1], calls, generator)[:, None]
            sizes = {"i": self.shape["h"], "p": side, "q": side}
            moves = rearrange(moves, "b t (i j) (p q c) -> b t (i p) (j q) c", **sizes)
            grids.append(self.standard(self.raw(grids[-1][:, -1:] + moves * self.change)))
            if t < told.grids:
                features, past = self.features(grids[-1], told[t : t + 1], past)
        return torch.cat(grids, dim=1)


class Head(nn.Module):
    """From features of a grid and noised changes to the changes without noise; `sigma` enters by adaLN."""

    def __init__(self, width: int, heads: int, inside: int, *, layers: int = 2, waves: int = 8) -> None:
        super().__init__()
        self.noised = nn.Linear(inside, width)
        self.level = nn.Sequential(nn.Linear(2 * waves, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(HeadBlock(width, heads) for _ in range(layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, inside)
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(-1, waves - 1), persistent=False)

    frequencies: Tensor

    def forward(
        self, features: Float[Tensor, "n s d"], noised: Float[Tensor, "n s c"], sigma: Float[Tensor, " n"]
    ) -> Float[Tensor, "n s c"]:
        angles = sigma[:, None] * self.frequencies
        level = self.level(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = features + self.noised(noised)
        for block in self.blocks:
            x = block(x, level)
        return self.out(self.norm(x))


class HeadBlock(nn.Module):
    """Attention within a grid and MLP, each a residual branch that the noise level modulates (as in `SlidingBlock`)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.spatial = Attention(width, heads, 0.0)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Float[Tensor, "n s d"], level: Float[Tensor, "n d"]) -> Float[Tensor, "n s d"]:
        by = rearrange(self.modulation(level), "n (branch three d) -> branch three n 1 d", branch=2, three=3)
        for norm, branch, (shift, scale, gate) in zip(
            self.norms, (partial(self.spatial, causal=False), self.mlp), by, strict=True
        ):
            x = x + (1 + gate) * branch(torch.addcmul(shift, norm(x), 1 + scale))
        return x


# --- data: the same clips of continuous codes for all forms ---


class Continuous(nn.Module):
    """A tokenizer of single frames as one of latents: its codes before rounding, in [-1, 1]."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def grid(self, height: int, width: int) -> LatentGrid:
        grid, levels = self.tokenizer.grid(height, width), self.tokenizer.config.levels
        return LatentGrid(channels=len(levels), height=grid.height, width=grid.width, temporal_stride=1)

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "b t 3 h w"]) -> Float32[Tensor, "b t c gh gw"]:
        video = to_signed(frames.flatten(0, 1)[:, None])
        quantiser = self.tokenizer.quantiser
        codes = quantiser._bound(self.tokenizer.latents_of(video)) / (quantiser._levels // 2)
        return rearrange(codes, "(b t) 1 h w c -> b t c h w", b=len(frames))

    def decode(self, latents: Float[Tensor, "b t c gh gw"]) -> UInt8[Tensor, "b t 3 h w"]:
        return self.tokenizer.decode_codes(rearrange(latents, "b t c h w -> b t h w c").float())


@dataclass(frozen=True)
class LatentClips(Clips):
    """Clips of latents of single frames, which can be cut anywhere. The file holds one window for each frame."""

    def __getitem__(self, key: int | tuple[int, int]) -> Clip:
        episode, start = self.windows[key[0] if isinstance(key, tuple) else key].tolist()
        stop = start + self.pattern.window
        latents = np.load(self.source.footage(episode)[0], mmap_mode="r")[start:stop, 0]
        return Clip(
            states=torch.from_numpy(np.array(self.source.read_states(episode)[start:stop])),
            fps=self.source.fps,
            origin=Origin(source=str(self.source.path), episode=episode, start=start),
            latents=torch.from_numpy(latents.astype(np.float32)),
        )


def latents_of(data: DataConfig, split: Literal["train", "val"], tokenizer: Path, *, window: int, stride: int) -> Clips:
    """Clips of a split, encoded into the cache unless they are there."""
    source, episodes = open_split(data, split)
    assert data.cache is not None, "a folder of this trial"
    made = encode(
        source,
        Continuous(load_tokenizer(tokenizer, "tokens")),  # pyright: ignore[reportArgumentType] - all that is called
        data.cache,
        fingerprint=f"{fingerprint(tokenizer)} before rounding",
        episodes=episodes,
        size=data.image_size,
        pattern=FramePattern(window=1),
        window_stride=1,
        batch_size=16,
        in_cache=True,
    )
    found = open_source(made.folder)
    index = source_windows(found, window=window, stride=stride)  # single frames, read one after the other
    return LatentClips(found, index, FramePattern(window=window))


class TrialKind(CausalKind):
    """All forms, on the same clips; the product's training does the rest."""

    config = TrialConfig

    def prepare(self, config: TrainConfig, model: TrialConfig, ranks: Ranks) -> Prepared:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert config.tokenizer is not None, "given to this script"
        place, tokenizer = config.tokenizer, load_tokenizer(config.tokenizer, "tokens").requires_grad_(False)
        window = model.context_grids + model.horizon_grids
        clips = [
            latents_of(config.data, split, place, window=window, stride=config.data.window_stride)
            for split in ("train", "val")
        ]
        grid = tokenizer.grid(config.data.image_size, config.data.image_size)
        source = open_split(config.data, "train")[0]
        contract = contract_with(source, config.data, grid, clips[0].pattern)
        torch.manual_seed(config.seed)
        world = self.build(model, contract)
        if isinstance(world, LatentWorld):
            files = [clips[0].source.footage(i)[0] for i in range(0, len(clips[0].source.episodes), 8)]
            world.measure([torch.from_numpy(np.load(file)[:, 0].astype(np.float32)) for file in files])
        more: dict[str, Any] = {"tokenizer": tokenizer if model.form == "tokens" else Continuous(tokenizer)}
        if model.form == "tokens":
            more["ready"] = partial(as_tokens, world)
        return self.prepared(
            config,
            world,
            (clips[0], clips[1]),
            contract,
            keep=lambda run: keep_tokenizer(run, place, tokenizer),
            **more,
        )

    def figures(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return {} if isinstance(model, LatentWorld) else super().figures(model, batch)

    def roll_out(self, world: Any, batch: Batch) -> Tensor:
        if not isinstance(world, LatentWorld):
            return super().roll_out(world, batch)
        assert batch.latents is not None, "clips of latents"
        context = world.standard(batch.latents[:, : world.context_grids])
        made = world.rolled(context, world.conditions(batch.states), generator=torch.Generator().manual_seed(SEED))
        return world.raw(made[:, world.context_grids :])


def as_tokens(world: CausalWorld, batch: Batch) -> Batch:
    """The same clips as tokens: codes are rounded as the tokenizer rounds them."""
    assert batch.latents is not None, "clips of latents"
    tokens = world.quantiser.indices(rearrange(batch.latents, "b t c h w -> b t h w c"))
    return replace(batch, latents=None, tokens=tokens)


# --- the trial ---


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is trained on what, and for how long."""

    data: DataConfig
    tokenizer: Path
    work: Path
    steps: int
    """Of `tokens`."""
    batch_size: int = 3
    horizon_grids: int = 8
    frames_ahead: int = 150
    validation_clips: int = 20
    clips: int = 12
    repeats: int = 4
    layers: int = CausalConfig.layers

    def config(self, form: Form, steps: int) -> TrainConfig:
        """The recipe of the driven world in another form. Nothing of a schedule depends on the form."""
        recipe = driven_tiny()
        shared = {name: getattr(recipe.model, name) for name in ("skeleton", "code_levels")}
        shared |= {"horizon_grids": self.horizon_grids, "layers": self.layers}
        model = TrialConfig(form=form, own_from=OWN_FROM, **shared)
        every = max(1, steps // 2)
        return replace(
            recipe,
            model=model,
            data=self.data,
            tokenizer=self.tokenizer,
            batch_size=self.batch_size,
            steps=steps,
            seed=SEED,
            evaluate_every=every,
            checkpoint_every=every,
            validation_clips=self.validation_clips,
            device="cpu",
        )


def steps_of(trial: Trial) -> dict[str, Any]:
    """Processor seconds of a step of each form, on true grids and on its own, and how many steps cost the same."""
    if (file := trial.work / "steps.json").exists():
        return read_json(file)
    calls: dict[str, Callable[[], object]] = {}
    for form in FORMS:
        made = prepare(trial.config(form, trial.steps))
        optimizer = build_optimizer(driven_tiny().optimizer, made.model.train())
        batch = made.ready(stack([made.train[i] for i in range(trial.batch_size)]))
        for phase, progress in (("true", 0.0), ("own", 1.0)):
            calls[f"{form}_{phase}"] = partial(_step, made.model, optimizer, batch, progress)
    seconds = in_turns(calls, repeats=trial.repeats, clock=time.process_time, warm=trial.repeats > 1)
    middle = {name: spread(values)["median"] for name, values in seconds.items()}
    cost = {form: OWN_FROM * middle[f"{form}_true"] + (1 - OWN_FROM) * middle[f"{form}_own"] for form in FORMS}
    found = {
        "processor_seconds_of_a_step": {name: spread(values) for name, values in seconds.items()},
        "steps": {form: max(1, round(trial.steps * cost["tokens"] / cost[form])) for form in FORMS},
    }
    write_json(file, found)
    return found


def _step(world: Any, optimizer: torch.optim.Optimizer, batch: Batch, progress: float) -> None:
    world.progress = progress
    optimizer.zero_grad(set_to_none=True)
    world.loss(batch, torch.Generator().manual_seed(SEED))[0].backward()
    optimizer.step()


def trained(trial: Trial, form: Form, steps: int) -> Path:
    """The run of a form, which is made or gone on with unless it is finished."""
    path = trial.work / form
    run = RunDir(path)
    if run.latest() != run.checkpoint(steps):
        train(trial.config(form, steps), path, resume=run.config.exists())
    return path


@torch.no_grad()
def codes_of(trial: Trial, batch: Batch) -> dict[str, Float32[Tensor, "b f c h w"]]:
    """Codes that each form imagines after the context, and those of the truth; the decoder is the same for all."""
    assert batch.latents is not None, "clips of latents"
    count = CausalConfig.context_grids
    true = batch.latents[:, count:]
    found: dict[str, Tensor] = {}
    for form in FORMS:
        world: Any = load_world(trial.work / form)[0]
        if form == "tokens":
            tokens = as_tokens(world, batch).tokens
            assert tokens is not None, "just made"
            made = world.rolled(tokens[:, :count], world.conditions(batch.states))[:, count:]
            found |= {"tokens": _codes(world, made), "reconstruction": _codes(world, tokens[:, count:])}
            continue
        told, context = world.conditions(batch.states), world.standard(batch.latents[:, :count])
        for calls in CALLS if form == "flow" else (1,):
            generator = torch.Generator().manual_seed(SEED)
            made = world.rolled(context, told, calls=calls, generator=generator)[:, count:]
            found[f"flow_{calls}" if form == "flow" else form] = world.raw(made)
    return found | {"reconstruction_of_latents": true}


def _codes(world: CausalWorld, tokens: Tensor) -> Float32[Tensor, "b f c h w"]:
    return rearrange(world.quantiser.codes(tokens), "b t h w c -> b t c h w")


def judged(trial: Trial) -> dict[str, Any]:
    """Every form, driven over held-out episodes from their first frames on."""
    count = CausalConfig.context_grids
    window, size = count + trial.frames_ahead, trial.data.image_size
    clips = latents_of(trial.data, "val", trial.tokenizer, window=window, stride=10**6)  # one of each episode
    chosen = evenly(len(clips), trial.clips)
    batch = stack([clips[i] for i in chosen])
    source, episodes = open_split(trial.data, "val")
    places = clips.windows[chosen].tolist()
    real = Clips(source, np.array([(episodes[e], s) for e, s in places]), FramePattern(window=window), size)
    true = torch.stack([frames for i in range(len(places)) if (frames := real[i].frames) is not None])
    before, truth = true[:, count - 1], true[:, count:]
    decoder = Continuous(load_tokenizer(trial.tokenizer, "tokens"))
    rows = {name: decoder.decode(codes) for name, codes in codes_of(trial, batch).items()}
    rows["copy_last"] = before[:, None].expand_as(truth)
    numbers = torch.tensor([e for e, _ in places])
    shown = {"truth": truth, **rows}
    write_npz(trial.work / "frames.npz", {name: frames[:3].numpy() for name, frames in shown.items()})
    return figures(rows, truth, before, numbers, fps=round(batch.fps))


def figures(
    rows: dict[str, Tensor], truth: UInt8[Tensor, "b f 3 h w"], before: Tensor, episodes: Tensor, *, fps: int
) -> dict[str, Any]:
    """PSNR, LPIPS and motion of each row by seconds, and its PSNR less that of `tokens`, with intervals."""
    networks = Networks.load(LearnedOptions(), torch.device("cpu"))

    def by_second(values: Float[Tensor, "b f"]) -> Float[Tensor, "b second"]:
        return torch.stack([part.double().mean(dim=1) for part in values.split(fps, dim=1)], dim=1)

    def said(found: Sequence[Interval]) -> list[list[float]]:
        return [[round(x, 4) for x in (one.mean, one.low, one.high)] for one in found]

    scores = {name: by_second(psnr(frames, truth)) for name, frames in rows.items()}
    real, made = by_second(changes(truth, before)), {}
    for name, frames in rows.items():
        made[name] = {"psnr_db_by_second": said(intervals(scores[name], episodes))}
        mean, other = scores[name].mean(dim=1), scores["tokens"].mean(dim=1)
        made[name] |= {"psnr_db": said([interval(mean, episodes)])[0]}
        made[name] |= {"psnr_db_less_tokens": said([interval(mean - other, episodes)])[0]}
        moved = by_second(changes(frames, before))
        made[name] |= {"motion": said([interval(moved.mean(dim=1) / real.mean(dim=1), episodes)])[0]}
        made[name] |= {"motion_by_second": said(intervals(moved / real, episodes))}
        try:
            ends = slice(fps - 1, None, fps)  # the last frame of each second
            distance = there(networks.lpips).distance(frames[:, ends].contiguous(), truth[:, ends].contiguous())
            made[name] |= {"lpips_by_second": said(intervals(distance, episodes))}
        except NotComputed as reason:
            made[name] |= {"lpips_by_second": f"not computed: {reason}"}
    return made


@torch.no_grad()
def step_seconds(trial: Trial, repeats: int) -> dict[str, dict[str, float]]:
    """Processor seconds of one more frame of one episode, decoder not counted, by form and calls."""
    calls: dict[str, Callable[[], object]] = {}
    for form in FORMS:
        world: Any = load_world(trial.work / form)[0]
        states = torch.zeros(1, world.context_grids + 1, world.state_dim)
        told, count = world.conditions(states), world.context_grids
        shape = (1, count, world.grid.height, world.grid.width)
        if form == "tokens":
            grids = torch.zeros(shape, dtype=torch.long)
            past = world(grids[:, 1:], told[1:count])[1]
            calls["tokens"] = partial(world, grids[:, :1], told[:1], past)
            continue
        grids = torch.zeros(*shape, len(world.config.code_levels))
        past = world.features(grids[:, 1:], told[1:count])[1]

        def one(number: int, world: Any = world, grids: Tensor = grids, told: Told = told, past: Past = past) -> None:
            world.changed(world.features(grids[:, :1], told[:1], past)[0][:, -1], number, None)

        calls |= {
            f"flow_{number}" if form == "flow" else form: partial(one, number)
            for number in (CALLS if form == "flow" else (1,))
        }
    return {name: spread(values) for name, values in in_turns(calls, repeats=repeats, clock=time.process_time).items()}


def last_figures(trial: Trial, form: Form) -> dict[str, float]:
    """The last line of a run's log: training loss, validation, wall-clock seconds."""
    lines = list(RunDir(trial.work / form).logged())
    kept = ("step", "seconds", "train/loss", "val/loss", "val/psnr_db")
    return {name: float(lines[-1][name]) for name in kept if name in lines[-1]}


def run(trial: Trial, only: Sequence[str], *, quick: bool) -> None:
    """Make what is asked for, and judge where all of it is there."""
    planned = steps_of(trial)
    for form in FORMS:
        if form in only:
            trained(trial, form, planned["steps"][form])
    if not set(FORMS) <= set(only):
        return publish({"made": list(only), **planned}, quick=quick)
    worlds = {form: load_world(trial.work / form)[0] for form in FORMS}
    return publish(
        {
            **planned,
            "parameters": {form: sum(p.numel() for p in world.parameters()) for form, world in worlds.items()},
            "trained": {form: last_figures(trial, form) for form in FORMS},
            "processor_seconds_of_a_frame": step_seconds(trial, 1 if quick else 20),
            "clips": trial.clips,
            "frames_ahead": trial.frames_ahead,
            "rows": judged(trial),
        },
        quick=quick,
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("data", nargs="*", type=Path, metavar="PLAY VAL TOKENIZER")
    parser.add_argument("--work", type=Path, help="where encoded data and runs are kept")
    parser.add_argument("--episodes", default=":", help="which of PLAY, for example :120")
    parser.add_argument("--steps", type=int, default=400, help="of the world over tokens")
    parser.add_argument("--only", nargs="+", choices=("encode", *FORMS), default=("encode", *FORMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    register(TrialKind())
    if given.quick:
        with tempfile.TemporaryDirectory() as folder:
            data = replace(driven_tiny().data, cache=Path(folder), train_episodes=":2", val_episodes="5:7")
            tokenizer = builtin.TOKENIZER_DRIVEN
            small = {"batch_size": 1, "horizon_grids": 2, "frames_ahead": 15, "validation_clips": 1}
            small |= {"clips": 2, "repeats": 1, "steps": 1, "layers": 1}
            run(Trial(data=data, tokenizer=tokenizer, work=Path(folder), **small), given.only, quick=True)
        return
    if len(given.data) != 3 or given.work is None:
        skip("give PLAY VAL TOKENIZER and --work, or --quick", quick=False)
        return
    play, val, tokenizer = given.data
    data = replace(driven_tiny().data, path=play, val_path=val, cache=given.work)
    data = replace(data, train_episodes=given.episodes, val_episodes=":")
    run(Trial(data=data, tokenizer=tokenizer, work=given.work, steps=given.steps), given.only, quick=False)


if __name__ == "__main__":
    main()
