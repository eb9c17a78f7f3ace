"""The page in real Chromium: what a reader does with it, at a phone's width and at a desk's.

Needs Debian's `chromium` (or any: CHROMIUM=/path) and the Python package playwright, of which only the driver is used.
Pictures of the page are left in `screenshots/`, which git ignores, so that a person can look at them afterwards.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranking_builders import films_of, ranking_of
from report_builders import CONTEXT, FRAMES, finding_of, page_of, run_of, with_maps, with_scores

from worldline.evaluation.result import Evaluation
from worldline.ranking.result import write_films

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or set CHROMIUM"),
]
SCREENSHOTS = Path(__file__).parents[1] / "screenshots"
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()  # noqa: SIM905 - as one types them
WIDTHS = (400, 1400)
SHARED = """() => {
  const boxes = [...document.querySelectorAll("a, button, select, input, summary")]
    .filter(part => part.checkVisibility() && !part.closest(".skip"))
    .map(part => [part, (part.matches(".pill input") ? part.parentElement : part).getBoundingClientRect()])
    .filter(([part, box]) => box.width > 1 && !part.closest("nav"));
  const found = [];
  boxes.forEach(([a, x], i) => boxes.slice(i + 1).forEach(([b, y]) => {
    const wide = Math.min(x.right, y.right) - Math.max(x.left, y.left);
    const high = Math.min(x.bottom, y.bottom) - Math.max(x.top, y.top);
    if (wide > 1 && high > 1) found.push(a.outerHTML.slice(0, 90) + " over " + b.outerHTML.slice(0, 90));
  }));
  return found;
}"""
"""Parts to click that share a place."""
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter(part => {
  const box = part.getBoundingClientRect();
  if (!part.checkVisibility() || part.matches(".skip") || part.closest(".scroll, nav, pre, svg")) return false;
  return box.right > innerWidth + 1 || box.left < -1;
}).map(part => part.outerHTML.slice(0, 120))"""
"""Parts that stick out of the page; what lies in a box that scrolls by itself does not."""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs, one with everything in it, the other with little."""
    root = tmp_path_factory.mktemp("page")
    full, bare = with_maps(with_scores(run_of(root / "full"))), run_of(root / "bare_" / "of_a_very_long_name" / "run")
    path = full / "evaluation/metrics.json"
    findings = tuple(finding_of(id, verdict) for id, verdict in (("audit", "follows"), ("uncertainty", "calibrated")))
    replace(Evaluation.load(path), findings=findings).save(path)
    shutil.copytree(full / "evaluation", full / "evaluation_10s")
    (bare / "evaluation/forecasts.npz").unlink()
    ranking_of().write(full / "ranking")
    write_films(full / "ranking", films_of())
    page_of(full, bare)
    return root / "out/report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Opened:
    """A page, with what its console said and what it asked for."""

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": context.pop("width", 1400), "height": 900}, **context)
        self.tab, self.said, self.asked = self.context.new_page(), [], []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(file.as_uri())

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def ready(self) -> Any:
        """The tab, once its first player has pictures."""
        self.tab.wait_for_selector(".player[data-ready]")
        return self.tab

    def until(self, expression: str) -> None:
        """Wait until it is true. The page forbids to evaluate strings, which playwright's own waiting does."""
        for _ in range(100):
            if self.tab.evaluate(expression):
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError(f"never true: {expression}")

    def frame(self) -> int:
        return int(self.tab.input_value(".player input[type=range]"))

    def pixels(self, kind: str) -> str:
        return self.tab.evaluate(f"document.querySelector('.player .{kind} canvas').toDataURL()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_asked_for_and_nothing_overflows(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    with Opened(browser, page_file, width=width, color_scheme=scheme, reduced_motion="reduce") as opened:
        tab = opened.ready()
        SCREENSHOTS.mkdir(exist_ok=True)
        tab.screenshot(path=SCREENSHOTS / f"report_{width}_{scheme}.png", full_page=True)
        tab.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(OUTSIDE) == []
        assert tab.evaluate(SHARED) == []
        assert opened.said == []
        assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
        assert len([url for url in opened.asked if url.startswith("file:")]) == 1
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(paper[4:].split(",")[0]) < 64) == (scheme == "dark")


def test_policies_play_side_by_side_from_one_frame_number(browser: Any, page_file: Path) -> None:
    (film,) = films_of()
    with Opened(browser, page_file, reduced_motion="reduce") as opened:
        tab = opened.ready()
        tab.wait_for_selector(".together[data-ready]")
        canvases = tab.locator(".together canvas")
        assert canvases.count() == 2 * len(film.policies)
        assert tab.locator(".side figcaption").all_inner_texts()[4] == "5 oracle"

        def seen() -> list[str]:
            return canvases.evaluate_all("all => all.map(canvas => canvas.toDataURL())")

        first, last = seen(), len(film.world[0]) - 1
        tab.focus(".together")
        tab.keyboard.press("End")
        assert tab.input_value(".together input[type=range]") == str(last)
        assert "s" in tab.inner_text(".together output")
        # The films of these five run forward in the twin and backward in the world.
        assert seen() == [first[number ^ 1] for number in range(10)]
        tab.click(".together .play")
        opened.until(f"document.querySelector('.together input[type=range]').value != {last}")
        assert opened.said == []


def test_pictures_play_pause_and_step_in_step(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file, reduced_motion="reduce") as opened:
        tab = opened.ready()
        assert opened.frame() == CONTEXT, "at rest on the first forecast frame, as the reader prefers stillness"
        assert "0.10 s ahead" in tab.inner_text(".player output")
        tab.click(".player .play")
        opened.until(f"document.querySelector('.player input[type=range]').value != {CONTEXT}")
        tab.click(".player .play")
        stopped = opened.frame()
        tab.wait_for_timeout(400)
        assert opened.frame() == stopped
        tab.focus(".player")
        tab.keyboard.press("Home")
        assert (opened.frame(), opened.pixels("truth")) == (0, opened.pixels("made")), "both show what was given"
        for _ in range(CONTEXT + 4):
            tab.keyboard.press("ArrowRight")
        assert opened.frame() == CONTEXT + 4
        assert opened.pixels("truth") != opened.pixels("made")
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("End")
        assert opened.frame() == FRAMES - 1
        tab.keyboard.press("Space")
        assert tab.inner_text(".player .play") == "Pause"
        tab.keyboard.press("Space")
        assert tab.inner_text(".player .play") == "Play"
        tab.fill(".player input[type=range]", "7")
        assert "frame 8 of 13" in tab.inner_text(".player output")
        tab.click(".player .step[data-by='-1']")
        assert opened.frame() == 6
        assert opened.said == []


def test_a_reader_chooses_clip_condition_and_speed(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file, reduced_motion="reduce") as opened:
        tab = opened.ready()
        tab.fill(".player input[type=range]", "12")
        forecast, error = opened.pixels("made"), opened.pixels("error")
        tab.select_option(".player select.rows", label="copy-last")
        opened.until("document.querySelector('.player .made figcaption').textContent === 'copy-last'")
        assert opened.pixels("made") != forecast
        assert opened.pixels("error") != error
        tab.select_option(".player select.rows", label="forecast")
        opened.until("document.querySelector('.player .made figcaption').textContent === 'forecast'")
        assert opened.pixels("made") == forecast
        assert "episode 3, from frame 120" in tab.inner_text(".player .truth .under")
        tab.check(".player input[value='2']", force=True)
        opened.until("document.querySelector('.player .truth .under').textContent.includes('episode 6')")
        assert opened.pixels("made") != forecast
        assert "Worst, forecast: frame 13 of 13, forecast, 0.80 s ahead" in tab.inner_text(".player .said")
        tab.select_option(".player select.speed", "16")
        assert "nats" in tab.inner_text(".player .unsure .under")
        assert opened.said == []


def test_error_is_the_amplified_difference(browser: Any, page_file: Path) -> None:
    """Where forecast and truth agree it is black, and it is brightest where they differ most."""
    with Opened(browser, page_file, reduced_motion="reduce") as opened:
        tab = opened.ready()
        tab.fill(".player input[type=range]", "12")
        differs, lit = tab.evaluate("""() => {
          const read = kind => {
            const canvas = document.querySelector(`.player .${kind} canvas`);
            return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          };
          const [truth, made, error] = ["truth", "made", "error"].map(read);
          const places = [...Array(truth.length / 4).keys()];
          const sum = (data, i) => data[4 * i] + data[4 * i + 1] + data[4 * i + 2];
          return [places.filter(i => [0, 1, 2].some(c => Math.abs(truth[4 * i + c] - made[4 * i + c]) > 2)),
                  places.filter(i => sum(error, i) > 12)];
        }""")
        assert differs == lit
        assert 0 < len(lit) < 400


def test_moving_pictures_play_by_themselves_only_while_they_are_seen(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file, reduced_motion="no-preference") as opened:
        tab = opened.ready()
        tab.evaluate("document.querySelector('.player').scrollIntoView({ block: 'center' })")
        opened.until(f"document.querySelector('.player input[type=range]').value > {CONTEXT}")
        tab.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        tab.wait_for_timeout(300)
        before = opened.frame()
        tab.wait_for_timeout(500)
        assert opened.frame() == before


def test_colours_can_be_turned_round_and_keys_reach_everything(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file, color_scheme="light") as opened:
        tab = opened.ready()
        light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.click("button.theme")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != light
        assert tab.inner_text("button.theme") == "Light"
        tab.evaluate("document.activeElement.blur()")
        reached = []
        for _ in range(160):
            tab.keyboard.press("Tab")
            reached.append(tab.evaluate("document.activeElement.className || document.activeElement.tagName"))
        assert {"skip", "A", "theme", "player", "rows", "play", "step", "speed", "scroll"} <= set(reached)
        unnamed = tab.evaluate("""() => [...document.querySelectorAll("button, select, input, canvas, img, .player")]
          .filter(part => !part.hidden)
          .filter(part => !(part.ariaLabel || part.alt || part.labels?.length || part.textContent.trim()))
          .map(part => part.outerHTML.slice(0, 90))""")
        assert unnamed == []


def test_without_scripts_everything_but_playing_is_there(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file, java_script_enabled=False, width=400) as opened:
        tab = opened.tab
        assert tab.is_visible(".strips img")
        assert not tab.is_visible(".player")
        assert not tab.is_visible("button.theme")
        assert "follows the robot" in tab.inner_text("#summary")
        assert tab.is_visible("#results table")
