"""`worldline plan RECIPE`: estimate a training before it starts."""

from dataclasses import dataclass
from pathlib import Path

from worldline.builtin import located
from worldline.checks import Checked, Positive
from worldline.cli.console import show
from worldline.cli.train import Recipe, parse_recipe
from worldline.planning.footprint import worst
from worldline.planning.plan import Card, Plan, Setting, plan
from worldline.rundir import to_json

UNITS = {"Z": 1e21, "E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9}


@dataclass(frozen=True, kw_only=True)
class Job(Checked):
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
        show(to_json(Plan, found), text=text(found), as_json=self.json)


def parse(arguments: list[str]) -> Job:
    return parse_recipe(Job, "plan", arguments)[1]


def text(found: Plan) -> str:
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
