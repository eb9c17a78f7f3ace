"""The command line: finds the verb, imports only that verb, turns errors into exit codes. No logic."""

import importlib
import os
import sys
from typing import Any, NoReturn

VERBS = {
    "data info": "show the content of a data set and all its problems",
    "data convert": "write any source of frames as 1X raw data or as LeRobot",
    "data tokenize": "write any source of frames as tokens",
    "data encode": "write any source of frames as continuous latents",
    "data twin": "make a data set of the simulated humanoid",
    "plan": "estimate a training before it starts: memory, FLOP, settings that fit a card",
    "train": "train a tokenizer or a world by a recipe, or resume a run",
    "forecast": "predict what a robot will see, as video, images or arrays",
    "submission": "check that forecasts of a test set are complete and sound",
    "evaluate": "evaluate a run on held-out data, beside the baselines",
    "verify": "check the receipt of an evaluation, and whether its numbers come out again",
    "compare": "compare evaluations on the same clips, or draw a learning curve of them",
    "rank": "rank policies inside a world, and compare with physics or with real successes",
    "report": "write one HTML page about one or several runs",
    "view": "drive in a world: a local page with sliders, keys and branches",
    "policies": "make policies of the twin's tasks, and a classifier that reads success from pictures",
    "text": "encode a prompt for a Wan world, once",
    "demo": "evaluate the built-in worlds, train a new one and write a report, in minutes",
}
HELP = """usage: worldline VERB ...

Generative world models of robots: train them, evaluate them, run them.

{verbs}

worldline VERB --help shows a verb's options and examples.
Exit codes: 0 done, 1 the job failed, 2 wrong usage or bad data."""
NAMES = tuple(dict.fromkeys(words.split()[0] for words in VERBS))


def main() -> None:
    """Entry point. Exit code 0; 1 for a job that failed; 2 for wrong usage or bad data."""
    from worldline.progress import reader_may_leave

    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        verbs = "\n".join(f"  {verb:14} {meaning}" for verb, meaning in VERBS.items())
        with reader_may_leave():
            print(HELP.format(verbs=verbs))
        return
    verb = arguments[0]
    from worldline.checks import refuse_unknown  # brings PyTorch: too slow for --help alone
    from worldline.schema import DataError, UsageError

    try:
        refuse_unknown(verb, NAMES, what="verb")
        job = None  # so it stays where help was asked for, and its reader left
        with reader_may_leave():
            job = parse(arguments)
        if job is not None:
            job.carry_out()
    except (DataError, UsageError) as error:
        _end(2, f"worldline {verb}: {error}")
    except KeyboardInterrupt:
        _end(1, f"worldline {verb}: interrupted")
    except (RuntimeError, OSError) as error:
        _end(1, f"worldline {verb}: failed: {error}")


def parse(arguments: list[str]) -> Any:
    """The job that words behind `worldline` ask for; `carry_out` does it. Exits where help is asked for."""
    verb, *words = arguments
    own = {"data": "data", "plan": "train", "train": "train", "policies": "policies", "rank": "rank"}
    home = own.get(verb, "verbs")
    return importlib.import_module(f"worldline.cli.{home}").parse(verb, words)


def _end(code: int, message: str) -> NoReturn:
    """Exit. One of several ranks at once: threads of a group that broke would abort Python on its way out."""
    print(message, file=sys.stderr)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
