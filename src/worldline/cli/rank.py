"""`worldline rank`: does a ranking of policies inside a world agree with the truth?"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from worldline.checks import options_of
from worldline.cli.verbs import Run
from worldline.files import read_json
from worldline.progress import show
from worldline.ranking.rank import RankOptions, out_of, rank
from worldline.ranking.result import FILE
from worldline.report.ranked import ranking_text


@dataclass(frozen=True, kw_only=True)
class Rank(RankOptions):
    """Rank policies inside a world, and say how well that agrees with physics, or with real successes.

    Each policy plays the same starts in closed loop, in the world and in the twin: it sees the predicted frame and the
    state that it commanded, and its next command is what the world is given. One frozen classifier reads success from
    pixels at both places; in the twin physics says it, too. Writes RUN/ranking/ranking.json, which the report shows.
    The same command again continues a ranking that was cut off. A policy that does what none may do (no number, another
    shape, an error, too slow) is named and left out; the exit code is then 2.

    Examples:
      worldline rank driven-tiny --policies runs/policies --starts 24
      worldline rank runs/world --policies runs/policies --tasks touch push --unconditional runs/world_unconditional
      worldline rank runs/world --policies runs/policies --also runs/without_failures "without failures"
      worldline rank runs/world --policies runs/policies --policy mine=my_package.my_module:make_policy
      worldline rank runs/world --policy own:fast --real-counts counts.csv --data MY_ROBOT --success own:success
    """

    run: Run
    policy: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Your own: `label=my_package.my_module:make_policy`, once for each; calling it gives an object with
    `act(observation) -> action`."""
    also: tyro.conf.UseAppendAction[tuple[tuple[Path, str], ...]] = ()
    """Another world with its label, ranked by the same policies, once for each: `--also RUN "without failures"`."""
    json: bool = False

    def carry_out(self) -> None:
        found = rank(self.run, self)
        path = out_of(self.run, self) / FILE
        content = read_json(path) | {"file": str(path)}
        show(content, text=f"{ranking_text(found)}\n{path}", as_json=self.json)
        if found.failures:
            raise SystemExit(2)


def parse(verb: str, arguments: list[str]) -> Any:
    with options_of():
        return tyro.cli(Rank, prog=f"worldline {verb}", description=inspect.getdoc(Rank), args=arguments)
