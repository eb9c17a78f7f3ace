"""`worldline train RECIPE` and `worldline plan RECIPE`: train a model into a run folder, or estimate that before.

A field of a recipe is given with its value, `--model.block-bias True`; a verb's own switch stands alone, `--json`.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec

from worldline import api
from worldline.builtin import located
from worldline.checks import Checked, Positive, options_of, refuse_unknown
from worldline.families.config import TrainConfig
from worldline.families.family import idle, kind_of, parts_of, refuse_idle
from worldline.planning.footprint import worst
from worldline.planning.plan import Card, Plan, Setting, plan
from worldline.progress import say, show
from worldline.recipes import RECIPES
from worldline.rundir import to_json
from worldline.schema import UsageError
from worldline.training.loop import TrainResult

AnyJob = TypeVar("AnyJob")
Recipe = Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
"""How a job holds the recipe that it is given."""
PYTHON_ONLY = ("autocast", "log_every", "keep_checkpoints", "model.kind", "optimizer.beta1", "optimizer.beta2")
"""Fields of every recipe that are no options, since hardly anybody changes them; models have some of their own.

A notebook sets them: `worldline.train(RECIPE, optimizer={"beta2": 0.99})`.
"""
UNITS = {"Z": 1e21, "E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9}


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model by a recipe; its options override it. A notebook can change every field (`worldline.train`).

    Examples:
      worldline train tokenizer_tiny --out runs/tokenizer
      worldline train compression_tiny --tokenizer runs/tokenizer --out runs/world
      worldline train compression_any --data.path MY_ROBOT --data.val-path None --data.train-episodes :-10 \\
          --data.val-episodes -10: --tokenizer runs/tokenizer
      worldline train --resume runs/world
      worldline train --resume runs/world --steps 9000 --data.path NEW_PLACE
      torchrun --nproc-per-node 8 --no-python worldline train compression_revontuli --data.path train_v2.0 \\
          --data.val-path val_v2.0
    """

    config: Recipe
    out: Path | None = None
    """Run folder; a new one below `runs/` if not given."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def carry_out(self) -> None:
        _show(api.train(self.config, out=self.out), as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Resume(api.ResumeOptions):
    """A run to resume. It needs no recipe, because the run folder contains the complete configuration."""

    run: tyro.conf.Positional[Path]
    json: bool = False

    def carry_out(self) -> None:
        with options_of():
            _show(api.go_on(self.run, self), as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Estimate(Checked):
    """Estimate a training before it starts: parameters, memory of a GPU, FLOP, and settings that fit a card.

    Takes a recipe and options like `worldline train`. Counts on tensors without memory: needs no data, weights or GPU.

    Examples:
      worldline plan sampling_revontuli
      worldline plan sampling_revontuli --gpus 8 --gpu-memory 80 --accumulate 16
      worldline plan compression_revontuli --accumulate 16 --json
    """

    config: Recipe
    gpus: int = 1
    """Processes that torchrun would start, one for each GPU."""
    gpu_memory: Positive | None = None
    """Of one GPU, in GB; without it the usual sizes."""
    json: bool = False
    """Print one JSON object on stdout and nothing else."""

    def carry_out(self) -> None:
        found = plan(located(self.config, Path()), gpu_gb=self.gpu_memory, gpus=self.gpus)
        show(to_json(Plan, found), text=_plan_text(found), as_json=self.json)


def parse(verb: str, arguments: list[str]) -> Train | Resume | Estimate:
    if verb == "plan":
        return _parse_recipe(Estimate, verb, arguments)[1]
    if arguments[:1] == ["--resume"]:
        return tyro.cli(Resume, prog="worldline train --resume", args=arguments[1:])
    name, job = _parse_recipe(Train, verb, arguments)
    refuse_idle(job.config, RECIPES[name]())
    return replace(job, out=job.out or api.new_run(name))


def _show(result: TrainResult, *, as_json: bool) -> None:
    if result.left_out:
        say(f"{len(result.left_out)} listed episodes were left out, for example: {result.left_out[0]}")
    if result.stopped:
        say(f"stopped by SIGTERM, with a checkpoint; to go on: worldline train --resume {result.run}")
    lines = [f"{result.run}: step {result.step} of {result.total_steps} after {result.seconds:.0f} s"]
    lines += [f"  {name:24} {value:.5g}" for name, value in result.figures.items()]
    done = to_json(TrainResult, result) | {"left_out": len(result.left_out)}
    show(done, text="\n".join(lines), as_json=as_json)


def _plan_text(found: Plan) -> str:
    """The plan for people."""
    flop, shapes = sum(found.flop.values()), (f"{name} {'x'.join(map(str, s))}" for name, s in found.clip.items())
    step = flop * found.batch_size
    run = f", {found.steps} steps {_flop(step * found.steps)}" if found.steps else ""
    vae = f"; VAE {found.tokenizer_parameters:,}" if found.tokenizer_parameters else ""
    lines = [
        f"{found.kind}: {found.parameters:,} parameters, {found.trained:,} trained{vae}",
        f"  a clip       {', '.join(shapes)}",
        f"  FLOP         a clip {_flop(flop)} = {_sum({name: _flop(n) for name, n in found.flop.items() if n})}",
        f"               a step of {found.batch_size} clips {_flop(step)}{run}",
        "",
        *_setting_lines(found.setting, "as configured"),
        *(_setting_lines(found.otherwise, "otherwise") if found.otherwise else []),
        "",
        "what fits, a tenth to spare:",
        *(line for card in found.cards for line in _card_lines(found.least, card)),
        "",
        f"main memory, {found.setting.gpus} process{'es in one machine' if found.setting.gpus > 1 else ''}: "
        f"{_gb(worst(found.host))} GB at the worst moment",
        f"  {', '.join(f'{name} {_gb(size)}' for name, size in found.host.items())}",
        "",
        "the other verbs, in one process each:",
        *(f"  {v.name:19} {_gb(v.gpu)} GB of GPU, {_gb(v.host)} GB of main memory: {v.what}" for v in found.verbs),
    ]
    return "\n".join([*lines, "", *found.notes])


def _setting_lines(setting: Setting, title: str) -> list[str]:
    lines = [f"{title}: {setting.words}"]
    lines += [f"  {phase:12} {_gb(size)} GB" for phase, size in setting.phases.items() if size]
    lines[1] += f" = {_sum({name: _gb(size) for name, size in setting.memory.items() if size})}"
    return lines


def _card_lines(least: Setting, card: Card) -> list[str]:
    found = [f"{one.words}: {_gb(one.needed)} GB ({one.greediest})" for one in card.settings or (least,)]
    why = "as configured; " if card.fits else "" if card.settings else "nothing. The least is "
    return [f"{card.gb:>6g} GB  {why}{found[0]}", *(f"{'':9}  or {line}" for line in found[1:])]


def _sum(parts: dict[str, str]) -> str:
    return " + ".join(f"{name} {size}" for name, size in parts.items())


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}" if size < 1e10 else f"{size / 1e9:.1f}"


def _flop(count: int) -> str:
    unit = next((unit for unit in UNITS if count >= UNITS[unit]), "G")
    return f"{count / UNITS[unit]:.4g} {unit}FLOP"


# --- the options of a recipe ---


def _parse_recipe(job: type[AnyJob], verb: str, arguments: list[str]) -> tuple[str, AnyJob]:
    """The recipe's name and the verb's job on it (`config`); exits where help is asked for or an option is unknown.

    Raises `UsageError` where there is no recipe of that name, or none is given.
    """
    name, asked = next((a for a in arguments if a[:1] != "-"), None), not {"-h", "--help"}.isdisjoint(arguments)
    if name is None:
        if not asked:
            raise UsageError(f"give a recipe: {', '.join(RECIPES)}")
        print(f"usage: worldline {verb} RECIPE [OPTIONS]\n\n{inspect.getdoc(job)}\n\nrecipes:")
        print(*(f"  {name:31} {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items()), sep="\n")
        print(f"\nworldline {verb} RECIPE --help shows a recipe's options.")
        raise SystemExit(0)
    refuse_unknown(name, RECIPES, what="recipe")
    rest = [argument for at, argument in enumerate(arguments) if at != arguments.index(name)]
    given = {argument.partition("=")[0][2:] for argument in rest if argument.startswith("--")}
    for length in api.other_lengths(given):
        rest += [f"--{length}", "0"]
    recipe = RECIPES[name]()
    parts = {type(part): start for start, part in parts_of(recipe)}
    hidden = {*PYTHON_ONLY, *kind_of(recipe.model).python_only}
    if asked:  # help does not show what would change nothing; where it is given, the reason is said later
        hidden |= {place.rstrip(".") for place in idle(recipe)}
    registry, options = ConstructorRegistry(), {type(one): _options(at, one, hidden) for at, one in parts_of(recipe)}
    registry.struct_rule(lambda info: options.get(info.type))
    with options_of(parts):
        return name, tyro.cli(
            job,
            default=job(config=recipe),  # pyright: ignore[reportCallIssue]
            prog=f"worldline {verb} {name}",
            description=RECIPES[name].__doc__,
            args=rest,
            config=(tyro.conf.AvoidSubcommands,),
            registry=registry,
        )


@runtime_checkable
class HasPresets(Protocol):
    """A class of sizes that go together, some of them by a name."""

    presets: ClassVar[Mapping[str, Any]]


def _options(place: str, part: Any, hidden: set[str]) -> StructConstructorSpec:
    """How tyro makes a part of a recipe, of those fields that are options.

    Sizes that go together (`HasPresets`) are one option that takes the name of a preset.
    """
    found, presets = [], {}
    for field in api.fields_of(type(part), part):
        if isinstance(field.type, HasPresets):
            named = field.type.presets
            named = named if field.default in named.values() else {"as in the recipe": field.default, **named}
            usual = next(preset for preset, sizes in named.items() if sizes == field.default)
            presets[field.name], field = named, replace(field, type=Literal[tuple(named)], default=usual)
        if place + field.name not in hidden:
            found.append(field)

    def made(**given: Any) -> Any:
        return replace(part, **given | {name: presets[name][given[name]] for name in presets.keys() & given})

    return StructConstructorSpec(made, tuple(found))
