"""The command line: finds the verb, imports only that verb, turns errors into exit codes. No logic."""

import importlib
import os
import sys
from typing import NoReturn

VERBS = {
    "data": "info, convert, tokenize, twin: look at data, change its format, make some",
    "train": "train a tokenizer or a world by a recipe",
    "plan": "say what a training would need: memory, FLOP, settings that fit a card",
    "forecast": "predict what a robot will see, as video",
    "evaluate": "judge a run on held-out data against the baselines",
    "text": "encode a prompt for a Wan world, once",
    "report": "write one HTML page about one or several runs",
    "demo": "from the built-in data and checkpoints to a report, in minutes",
}


def main() -> None:
    """Entry point. Exit code 0; 1 for a job that failed; 2 for wrong usage or bad data."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        sys.exit(0)
    verb = arguments[0]
    if verb not in VERBS:
        print(f"worldline: there is no verb {verb!r}; verbs: {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    from worldline.schema import DataError, UsageError  # brings PyTorch: too slow for --help alone

    try:
        importlib.import_module(f"worldline.cli.{verb}").main(arguments[1:])
    except (DataError, UsageError) as error:
        print(f"worldline {verb}: {error}", file=sys.stderr)
        _end(2)
    except KeyboardInterrupt:
        print(f"worldline {verb}: interrupted", file=sys.stderr)
        _end(1)
    except (RuntimeError, OSError) as error:
        print(f"worldline {verb}: failed: {error}", file=sys.stderr)
        _end(1)


def _end(code: int) -> NoReturn:
    """Exit. One of several ranks at once: threads of a group that broke would abort Python on its way out."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _help() -> str:
    lines = [f"  {verb:10} {meaning}" for verb, meaning in VERBS.items()]
    return "\n".join(
        [
            "usage: worldline VERB ...",
            "",
            "Generative world models of robots: train them, judge them, run them.",
            "",
            *lines,
            "",
            "worldline VERB --help shows a verb's options and examples.",
            "Exit codes: 0 done, 1 the job failed, 2 wrong usage or bad data.",
        ]
    )
