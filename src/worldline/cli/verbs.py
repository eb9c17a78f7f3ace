"""Verbs about runs: `evaluate`, `verify`, `compare`, `forecast`, `report`, `view`; `text`, `demo`. Texts are help."""

import inspect
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from worldline import api, builtin
from worldline.checks import Checked, Positive, options_of
from worldline.evaluation.compare import Compared, CompareOptions, compare
from worldline.evaluation.evaluate import EvaluateOptions, evaluate, out_of
from worldline.evaluation.result import Evaluation
from worldline.evaluation.verify import Verification, VerifyOptions, verify
from worldline.forecasts import ForecastOptions, forecast
from worldline.owner import LOCK, OWNER, Claim, owned
from worldline.progress import say, show
from worldline.report.compared import compared_text, write_compared
from worldline.report.receipts import verification_text
from worldline.report.tables import text_table
from worldline.rundir import RunDir, to_json
from worldline.schema import UsageError
from worldline.submission import Submission as Found
from worldline.submission import check_submission
from worldline.viewer.stage import DEFAULT_WORLD, ViewOptions
from worldline.worlds.wan_text import encode_text, fingerprint_encoder, save_text

Run = Annotated[
    tyro.conf.Positional[Path],
    tyro.conf.arg(help="Run folder, model folder, or a built-in name such as compression-tiny."),
]


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluateOptions):
    """Evaluate a run on its held-out data (named in its config.json), or on other data.

    Worlds over tokens use the compression protocol: three token grids of context, all states, three grids predicted
    from the model's own predictions. Worlds over latents use the sampling protocol: 17 frames and 77 states in, the
    frame two seconds ahead out. Tokenizers are evaluated by their reconstructions. Writes evaluation/metrics.json.
    Under torchrun the processes share the clips. The same command again continues an interrupted evaluation.

    Examples:
      worldline evaluate runs/world --unconditional runs/world_unconditional
      worldline evaluate compression-tiny
      worldline evaluate sampling-tiny --num-samples 20 --window-stride 8
      worldline evaluate runs/world --members runs/seed_1 runs/seed_2 --out runs/ensemble
      worldline evaluate runs/sampling --protocol sampling --num-samples 20 --steps 100 --guidance 1.5
      worldline evaluate runs/tokenizer --num-clips 256 --json
      worldline evaluate runs/world --on training-data
      torchrun --nproc-per-node 8 --no-python worldline evaluate runs/sampling --num-clips None --num-samples 20
    """

    run: Run
    json: bool = False

    def carry_out(self) -> None:
        evaluation = evaluate(self.run, self)
        table = f"{text_table(evaluation)}\n\n{out_of(self.run, self) / 'metrics.json'}"
        show(to_json(Evaluation, evaluation), text=table, as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Verify(VerifyOptions):
    """Verify the receipt of an evaluation: its checksums, what it was made from, and its numbers, by evaluating again.

    Says of each part that differs (data, models, code, libraries, processor) what it was and what it is, and of each
    number whether it is equal, within the tolerance of another processor, or different. Exit codes: 0 all numbers are
    equal or within tolerance; 1 some are not; 2 the receipt is damaged or edited, or run or data are not there. Nothing
    is written.

    Examples:
      worldline verify runs/world
      worldline verify runs/world/evaluation/receipt.json --data NEW/val
      worldline verify compression-tiny --identities
    """

    receipt: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(help="A receipt, a folder with one, a run folder, or a built-in that was evaluated."),
    ]
    json: bool = False

    def carry_out(self) -> None:
        found = verify(self.receipt, self)
        content = to_json(Verification, found) | {"holds": found.holds, "summary": found.summary}
        show(content, text=verification_text(found), as_json=self.json)
        if not found.holds:
            raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class Compare(CompareOptions):
    """Compare evaluations of the same clips: one table, paired differences, each episode; or draw a learning curve.

    RUN is a run folder, the folder of an evaluation, or a built-in that was evaluated. Runs on other clips, data or
    horizons are refused; token costs of other tokenizers are left out. What else differs is said before the numbers.

    Examples:
      worldline compare runs/world runs/world_with_dropout
      worldline compare runs/world runs/other --metric ssim_last lpips_last --out compare.html
      worldline compare runs/world/evaluation runs/halfway --over steps
      worldline compare runs/episodes_10 runs/episodes_40 runs/episodes_160 --over episodes --json
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None
    """HTML page to write too, with a point for each episode; or a folder for a `compare.html`."""
    json: bool = False

    def carry_out(self) -> None:
        found = compare(self.runs, self)
        page = None if self.out is None else str(write_compared(found, self.out))
        text = compared_text(found) + (f"\n\n{page}" if page else "")
        show(to_json(Compared, found) | ({"page": page} if page else {}), text=text, as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Forecast(ForecastOptions):
    """Forecast clips of a data set: context and states in; video, pictures or arrays out, one file or folder per clip.

    It needs no true future, so it works on the challenge's test samples and on data of tokens alone.

    Examples:
      worldline forecast compression-tiny
      worldline forecast runs/world --clips 3 17 --temperature 1.0 --top-p 0.9 --num-samples 4
      worldline forecast sampling-tiny --num-samples 3 --steps 20
      worldline forecast runs/revontuli --data test_v2.0 --format npz
      worldline forecast runs/sampling --data test_v2.0_raw --format png --num-samples 20
    """

    run: Run
    json: bool = False

    def carry_out(self) -> None:
        written = [str(path) for path in forecast(self.run, self)]
        out = written[0] if self.version else str(Path(written[0]).parent)  # LeRobot is one folder
        show({"out": out, "files": written}, text="\n".join(written), as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Submission(Checked):
    """Check a folder of forecasts before it is handed in: every sample of a test set once, sound, by one run.

    Reads every file: hashes, types, shapes, ranges, log-probabilities that sum to at most 1, pictures that decode.
    Lists all problems, and exits with 2 if there is one. The challenge's own format of submissions is not public: what
    is checked is the layout that `worldline forecast` writes.

    Examples:
      worldline submission runs/revontuli/forecasts --data test_v2.0
      worldline submission runs/sampling/forecasts --data test_v2.0_raw --json
    """

    folder: tyro.conf.Positional[Path]
    """Folder of forecasts, made with --format npz or png."""
    data: Path | None = None
    """The test set that was forecast: all of its samples must be there."""
    json: bool = False

    def carry_out(self) -> None:
        found = check_submission(self.folder, self.data)
        show(to_json(Found, found), text=str(found), as_json=self.json)
        if found.problems:
            raise SystemExit(2)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML page about one or several runs. Reads run folders only; needs no GPU.

    Examples:
      worldline report runs/world
      worldline report runs/world runs/world_unconditional --out compare.html
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None
    """File or folder; `report.html` in the first run folder if not given."""
    json: bool = False

    def carry_out(self) -> None:
        from worldline.report.write import write_report

        path = write_report(self.runs, self.out)
        show({"report": str(path), "bytes": path.stat().st_size}, text=str(path), as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class View(ViewOptions):
    """Drive in a world: a page on this machine with a slider for every joint, keys, branches and exports.

    The forecast streams frame by frame, from a clip of the world's validation data (or --data). Only this machine can
    reach the page, unless --host says otherwise; from elsewhere use a tunnel: ssh -L 8000:localhost:8000 MACHINE.
    Needs the extra: pip install 'worldline[viewer]'. Ctrl-C ends it.

    Examples:
      worldline view
      worldline view compression-tiny --port 8123
      worldline view runs/world --data data/other --num-samples 4 --temperature 1
    """

    run: Run = Path(DEFAULT_WORLD)

    def carry_out(self) -> None:
        try:
            from worldline.viewer.server import view
        except ModuleNotFoundError as error:
            raise UsageError(f"the viewer needs {error.name}: pip install 'worldline[viewer]'") from error

        view(self.run, self)


@dataclass(frozen=True, kw_only=True)
class Text:
    """Encode a prompt for a Wan world, once. Needs the extra: pip install 'worldline[wan]'.

    PATH is a folder with text_encoder/ and tokenizer/ of Wan-AI/Wan2.2-TI2V-5B-Diffusers, or with
    models_t5_umt5-xxl-enc-bf16.pth and google/umt5-xxl/ of Wan-AI/Wan2.2-TI2V-5B. Nothing is downloaded.

    Examples:
      worldline text weights/Wan2.2-TI2V-5B-Diffusers --out text.safetensors
      worldline text weights/Wan2.2-TI2V-5B --prompt "a robot tidies a kitchen" --out kitchen.safetensors
    """

    weights: tyro.conf.Positional[Path]
    prompt: str = ""
    """The default is the empty prompt, one row, with which robot worlds are trained."""
    out: Path = Path("text.safetensors")
    """File to write; 16 KB a row."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type for the encoder: it needs 11.4 GB of memory, or 22.7 GB in float32. The rows are always float32."""
    json: bool = False

    def carry_out(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads it once
        encoder = fingerprint_encoder(self.weights)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        say(f"reading the text encoder in {self.weights}")
        rows = encode_text(self.weights, self.prompt, dtype=self.dtype)
        save_text(self.out, rows, self.prompt, {"encoder": encoder, "dtype": self.dtype})
        result = {"text": str(self.out), "prompt": self.prompt, "rows": rows.shape[0], "width": rows.shape[1]}
        show(result | {"encoder": encoder}, text=f"{self.out}: {len(rows)} x {rows.shape[1]}", as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class Demo(Checked):
    """Evaluate the built-in worlds, of both tracks and the driven one, train a new one for minutes, write a report.

    What is trained is a world over latents: within these minutes it learns to follow the robot's states, which a world
    over tokens does not. The report shows it: with another clip's states its forecast is worse. Needs no GPU and no
    network.

    Examples:
      worldline demo
      worldline demo --out /tmp/demo --steps 100
    """

    out: Path = Path("runs/demo")
    """Folder for run folders and report.html: a new one, an empty one, or an earlier demo's, which is replaced."""
    steps: int = 600
    """Training steps of the new world."""
    max_minutes: Positive = 5.0
    """Stop that training after this long, whatever step it is at."""
    num_clips: int = 10
    """Held-out clips of each evaluation; a fifth of them are driven, because those are four seconds long."""
    json: bool = False

    def carry_out(self) -> None:
        began = time.monotonic()
        report, found = self.run()
        seconds = time.monotonic() - began
        tables = [f"{title}:\n{text_table(evaluation)}\n" for title, evaluation in found.items()]
        text = "\n".join([*tables, f"Report: {report.resolve()} ({seconds:.0f} s in all)"])
        show({"report": str(report), "seconds": round(seconds, 1)}, text=text, as_json=self.json)

    def run(self) -> tuple[Path, dict[str, Evaluation]]:
        """Do what a notebook would do. Gives the report, and what was found.

        Raises `UsageError` where the folder holds anything but an earlier demo.
        """
        with owned(self.out, claim=_DEMO):
            _clear(self.out)
            return self._made()

    def _made(self) -> tuple[Path, dict[str, Evaluation]]:
        from worldline.report.write import write_report

        size = {"num_clips": self.num_clips, "study_clips": max(1, self.num_clips // 2)}
        few: dict[str, Any] = {**size, "num_samples": 5, "steps": 10, "condition_samples": 1}
        few |= {"window_stride": 20, "batch_size": 4, "data": builtin.TWIN_MINI_VAL}
        # What objects would have done is asked of the other two: over latents it would take a third of the time.
        few |= {"studies": ("audit", "regions", "drift", "inverse_dynamics", "uncertainty")}
        tokens = _evaluated(builtin.COMPRESSION_TINY, self.out / "builtin", **size)
        latents = _evaluated(builtin.SAMPLING_TINY, self.out / "sampling", **few)
        long: dict[str, Any] = {"num_clips": max(1, self.num_clips // 5), "horizon": "4s", "batch_size": 4}
        driven = _evaluated(builtin.DRIVEN_TINY, self.out / "driven", **long)
        api.train(
            "sampling_tiny",
            out=self.out / "fresh",
            steps=self.steps,
            max_minutes=self.max_minutes,
            optimizer={"warmup_steps": 50, "ema_decay": 0.99},  # a short run: a moving average with a short memory
            data={"cache": self.out / "cache"},
            evaluate_every=max(1, self.steps // 4),
            checkpoint_every=self.steps,
        )
        found = {
            "The built-in world over tokens (compression track)": tokens,
            "The built-in world over latents (sampling track), two seconds ahead": latents,
            "The same world, trained just now for minutes": api.evaluate(self.out / "fresh", **few),
            "The built-in world that is driven, one frame a step for four seconds": driven,
        }
        return write_report([self.out / name for name in ("builtin", "sampling", "fresh", "driven")], self.out), found


_DEMO = Claim(file="demo.json", key={}, what="a demo")


def _clear(folder: Path) -> None:
    """Remove an earlier demo: its claim says that all in the folder is its own."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (LOCK, OWNER, _DEMO.file):
            path.unlink()


def _evaluated(shipped: Path, run: Path, **options: Any) -> Evaluation:
    """Evaluate a built-in, which must not be written into, in a copy of its folder: the report shows its card."""
    shutil.copytree(shipped, run)
    return api.evaluate(shipped, out=RunDir(run).evaluation, **options)


def parse(verb: str, arguments: list[str]) -> Any:
    """The job of a verb: its options are the job's fields."""
    jobs = (Evaluate, Verify, Compare, Forecast, Submission, Report, View, Text, Demo)
    job = {job.__name__.lower(): job for job in jobs}[verb]
    with options_of():
        return tyro.cli(job, prog=f"worldline {verb}", description=inspect.getdoc(job), args=arguments)
