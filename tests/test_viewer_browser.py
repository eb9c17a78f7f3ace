"""The viewer in a real browser, over a real server: what a person does with it, at a phone's width and at a desk's.

Needs what tests/test_report_browser.py needs. Pictures of the page are left in the folder that CI_ARTIFACTS names, else
in a temporary one.
"""

import base64
import io
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from lerobot_rules import faults
from PIL import Image
from viewer_builders import Remembering, Served, served, squares_stage

from worldline.api import open_data
from worldline.twin.simulation import can_draw
from worldline.viewer.stage import DEFAULT_WORLD, ViewOptions, open_stage

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or set CHROMIUM")
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()  # noqa: SIM905 - as one types them
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter(part => {
  const box = part.getBoundingClientRect();
  if (!part.checkVisibility() || part.matches(".skip, .unseen") || part.closest("svg")) return false;
  return box.right > innerWidth + 1 || box.left < -1;
}).map(part => part.outerHTML.slice(0, 120))"""
"""Parts that stick out of the page."""
SMALL = """() => [...document.querySelectorAll("button, select, input, a")].filter(part => {
  if (!part.checkVisibility() || part.matches(".skip")) return false;
  const label = part.matches("[type=checkbox], [type=radio]") ? part.closest("label") : part;
  const box = label.getBoundingClientRect();
  return box.height < 40 || box.width < 40;
}).map(part => part.outerHTML.slice(0, 120))"""
"""Parts to touch that are smaller than a finger."""
UNNAMED = """() => [...document.querySelectorAll("button, select, input, canvas, [role=group]")]
  .filter(part => !(part.ariaLabel || part.hasAttribute("aria-labelledby") || part.labels?.length))
  .filter(part => !part.textContent.trim())
  .map(part => part.outerHTML.slice(0, 90))"""
PIXELS = "kind => document.querySelector(`.panel.${kind} canvas`).toDataURL()"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def viewer() -> Iterator[Served]:
    """The built-in world over tokens."""
    with served(open_stage("compression-tiny", ViewOptions())) as found:
        yield found


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A world of a few multiplications, of a robot with an elbow and a gripper."""
    with served(squares_stage(tmp_path_factory.mktemp("light") / "squares", Remembering())) as found:
        yield found


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("CI_ARTIFACTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Visit:
    """A tab of the viewer, with what its console said and which hosts it asked."""

    def __init__(self, browser: Any, viewer: Served, *, width: int = 1400, height: int = 900, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.tab, self.said, self.hosts = self.context.new_page(), [], set()
        self.tab.set_default_timeout(20_000)
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.tab.on("websocket", lambda line: self.hosts.add(line.url.split("/")[2]))
        self.host = f"127.0.0.1:{viewer.port}"

    def __enter__(self) -> "Visit":
        self.tab.goto(f"http://{self.host}/")
        self.tab.wait_for_selector("#link[data-state=open]")
        self.begun()
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def until(self, expression: str, *, seconds: float = 20.0) -> None:
        """Wait until it is true. The page forbids to evaluate strings, which playwright's own waiting does."""
        end = time.monotonic() + seconds
        while not self.tab.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}; {self.said}; {self.toasts()}"
            self.tab.wait_for_timeout(40)

    def toasts(self) -> list[str]:
        return self.tab.locator(".toast p").all_inner_texts()

    def frame(self) -> int:
        return int(self.tab.input_value("#time"))

    def reaches(self, frame: int) -> None:
        self.until(f"+document.querySelector('#panels').dataset.frame >= {frame}")

    def rests(self, frame: int) -> None:
        """Wait until the pictures and the slider are there."""
        self.until(f"document.querySelector('#panels').dataset.frame === '{frame}'")
        assert self.frame() == frame

    def pixels(self, kind: str = "main") -> str:
        return self.tab.evaluate(PIXELS, kind)

    def begun(self) -> None:
        """Wait for the session, and for its first picture."""
        self.until("document.querySelector('main').ariaBusy === 'false'")
        self.until("document.querySelector('.main canvas').width > 1")

    def colours(self, kind: str) -> np.ndarray:
        """The picture of a panel, in grey levels."""
        encoded = self.pixels(kind).split(",")[1]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"), np.float32)

    def shows(self, pixels: str) -> None:
        self.until(f"({PIXELS})('main') === {pixels!r}")

    def branches(self) -> list[str]:
        return self.tab.locator("#tree .switch").all_inner_texts()

    def current(self) -> str:
        return self.tab.inner_text("#tree .on .switch")

    def pause(self) -> int:
        """Stop the clock; gives the frame at which the page rests."""
        if self.tab.inner_text("#play") == "Pause":
            self.tab.click("#play")
        self.until("document.querySelector('#play').textContent === 'Play'")
        self.tab.wait_for_timeout(300)
        return self.frame()

    def joint(self, place: int = 0) -> Any:
        """The row of a joint of the selected limb."""
        return self.tab.locator(".limb.chosen .joint").nth(place)

    def at(self, place: int = 0) -> float:
        """Where the mark of a joint stands on its slider, from 0 to 1."""
        return float(self.joint(place).locator(".actual").evaluate("part => part.style.getPropertyValue('--at')"))

    def sound(self) -> None:
        assert self.said == []
        assert self.hosts == {self.host}


# --- in the default suite ---


def test_a_person_opens_the_page_drives_by_slider_and_by_key_and_leaves(browser: Any, light: Served) -> None:
    with Visit(browser, light) as visit:
        tab, first, real = visit.tab, visit.frame(), visit.pixels()
        assert "real" in tab.inner_text("#when")
        assert "predicted" not in tab.locator(".main").get_attribute("class")
        slider, number = (visit.joint().locator(f"input[type={kind}]") for kind in ("range", "number"))
        slider.fill(slider.get_attribute("max"))
        visit.reaches(first + 12)
        assert "predicted" in tab.locator(".main").get_attribute("class")
        assert visit.pixels() != real
        tab.evaluate("document.activeElement.blur()")
        before = float(number.input_value())
        assert before == pytest.approx(float(slider.get_attribute("max")), abs=1e-3)
        tab.keyboard.down("KeyF")
        tab.wait_for_timeout(250)
        tab.keyboard.up("KeyF")
        assert float(number.input_value()) < before
        visit.pause()
        visit.sound()
        assert light.tabs == 1
    assert light.until(tabs=0)


# --- slow ---


@pytest.mark.slow
def test_a_clip_is_chosen_and_what_the_robot_saw_is_watched(browser: Any, viewer: Served) -> None:
    with Visit(browser, viewer) as visit:
        tab = visit.tab
        first = visit.pixels()
        other = tab.locator("#clips option").nth(1)
        tab.select_option("#clips", other.get_attribute("value"))
        visit.begun()
        visit.until(f"({PIXELS})('main') !== {first!r}")
        begun = visit.pixels()
        tab.click("#watch")
        visit.until("document.querySelector('.main figcaption b').textContent === 'Recording'")
        shown = set()
        for _ in range(20):
            shown.add(visit.pixels())
            tab.wait_for_timeout(60)
        assert len(shown) > 3
        tab.click("#watch")
        visit.until("document.querySelector('.main figcaption b').textContent !== 'Recording'")
        visit.shows(begun)
        visit.sound()


@pytest.mark.slow
def test_time_is_stopped_stepped_and_taken_back(browser: Any, viewer: Served) -> None:
    with Visit(browser, viewer) as visit:
        tab, first = visit.tab, visit.frame()
        tab.click("#play")
        visit.reaches(first + 40)
        rest = visit.pause()
        tab.wait_for_timeout(400)
        assert visit.frame() == rest
        tab.click("#step")
        visit.rests(rest + 1)
        tab.click("#step")
        visit.rests(rest + 2)
        tab.evaluate("document.activeElement.blur()")
        tab.keyboard.press(",")
        visit.rests(rest + 1)
        kept = visit.pixels()
        tab.click("#rewind")
        visit.until(f"+document.querySelector('#panels').dataset.frame < {rest - 5}")
        assert visit.pixels() != kept
        tab.locator("#time").fill(str(rest + 1))
        visit.rests(rest + 1)
        visit.shows(kept)  # nothing is lost by looking back
        tab.keyboard.press("Home")
        visit.rests(0)
        assert "real" in tab.inner_text("#when")
        visit.sound()


@pytest.mark.slow
def test_branches_begin_at_a_moment_and_stand_side_by_side(browser: Any, viewer: Served) -> None:
    with Visit(browser, viewer) as visit:
        tab, first = visit.tab, visit.frame()
        tab.click("#play")
        visit.reaches(first + 30)
        end = visit.pause()
        original = visit.pixels()
        tab.click("#rewind")
        visit.until(f"+document.querySelector('#panels').dataset.frame < {end}")
        at = visit.frame()
        tab.click("#branch")
        visit.until("document.querySelectorAll('#tree li').length === 2")
        assert tab.input_value("#export-branch") == "b2"
        name, main = visit.current(), visit.branches()[0]
        assert name != main
        slider = visit.joint().locator("input[type=range]")
        slider.fill(slider.get_attribute("max"))
        tab.click("#play")
        visit.reaches(end)
        visit.pause()
        tab.locator("#time").fill(str(end))
        visit.rests(end)
        driven = visit.pixels()
        assert driven != original, "other states, another future"
        tab.check("#tree li:not(.on) input[type=checkbox]")
        visit.until("document.querySelectorAll('#compare canvas').length === 2")
        beside = "[...document.querySelectorAll('#compare canvas')].map(one => one.toDataURL())"
        visit.until(f"(([a, b]) => a === {driven!r} && b === {original!r})({beside})")
        tab.locator("#time").fill(str(at))
        visit.until(f"(([a, b]) => a === b)({beside})")
        tab.locator("#tree li:not(.on) .switch").click()
        visit.until("document.querySelector('#tree .on .switch').textContent !== " + repr(name))
        assert visit.current() == main
        tab.locator("#tree .on").get_by_text("Rename").click()
        tab.keyboard.type("as recorded")
        tab.keyboard.press("Enter")
        visit.until("document.querySelector('#tree .on .switch').textContent === 'as recorded'")
        assert tab.input_value("#export-branch") == "b1", "what is exported is the branch that one is in"
        tab.locator("#tree .on").get_by_text("Rename").click()
        tab.keyboard.insert_text("\u00dcber den Tisch")
        tab.keyboard.press("Enter")
        visit.until("document.querySelector('#tree .on .switch').textContent === '\u00dcber den Tisch'")
        tab.click("#play")
        visit.until("document.querySelector('#play').textContent === 'Pause'")
        tab.click("#again")
        visit.until("document.querySelector('#play').textContent === 'Play'")  # one clock at a time
        visit.until("document.querySelector('#again').textContent !== 'Stop'", seconds=60)
        tab.locator("#tree .on").get_by_text("Rename").click()
        tab.keyboard.type("../up")
        tab.keyboard.press("Enter")
        visit.until("document.querySelectorAll('.toast.error').length > 0")
        tab.locator("#tree li:not(.on)").get_by_text("Drop").click()
        visit.until("document.querySelectorAll('#tree li').length === 1")
        visit.sound()


@pytest.mark.slow
def test_looking_back_shows_what_is_chosen_now(browser: Any, viewer: Served) -> None:
    """Other pictures beside kept frames: of the overlay that is chosen, and none where none can be."""
    with Visit(browser, viewer, width=400, has_touch=True) as visit:
        tab, first = visit.tab, visit.frame()
        tab.select_option("#motions", tab.input_value("#clips"))
        tab.check("#overlays [value=entropy]")
        visit.reaches(first + 6)
        end = visit.pause()
        tab.locator("#time").fill(str(end - 2))
        visit.rests(end - 2)
        filled = "document.querySelector('.panel.overlay .none').hidden"
        visit.until(filled)
        entropy = visit.pixels("overlay")
        tab.check("#overlays [value=difference]")
        visit.until(f"({PIXELS})('overlay') !== {entropy!r} && {filled}")
        tab.locator("#time").fill(str(end - 3))
        visit.rests(end - 3)
        visit.until(filled)
        tab.locator("#time").fill(str(end - 2))
        visit.rests(end - 2)
        visit.until(filled)
        assert visit.pixels("overlay") != entropy
        assert tab.is_visible(".panel.truth canvas")
        assert not tab.is_visible(".panel.truth .none")
        tab.click("#branch")
        slider = visit.joint().locator("input[type=range]")
        slider.fill(slider.get_attribute("max"))
        tab.click("#step")
        visit.rests(end - 1)
        visit.until("!document.querySelector('.panel.truth .none').hidden")
        cut = "[...document.querySelectorAll('.panel b')].filter(one => one.scrollWidth > one.clientWidth + 1)"
        assert tab.evaluate(f"{cut}.map(one => one.textContent)") == []
        visit.sound()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mp4", "gif", "lerobot-v3.0", "lerobot-v2.1"])
def test_a_branch_is_downloaded(browser: Any, viewer: Served, tmp_path: Path, form: str) -> None:
    with Visit(browser, viewer) as visit:
        tab, first = visit.tab, visit.frame()
        tab.click("#play")
        visit.reaches(first + 8)
        visit.pause()
        frames = int(tab.get_attribute("#time", "max")) + 1
        tab.select_option("#export-format", form)
        with tab.expect_download(timeout=60_000) as caught:
            tab.click("#export-now")
        path = tmp_path / caught.value.suggested_filename
        caught.value.save_as(path)
        assert tab.locator("#exported a").count() == 1
        if form.startswith("lerobot"):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(tmp_path / "out")
            root = next(found.parents[1] for found in (tmp_path / "out").rglob("meta/info.json"))
            assert faults(root) == []
            assert open_data(root).episodes[0].length == frames
        else:
            with av.open(str(path)) as video:
                pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            assert len(pictures) == frames
            assert any((one != pictures[0]).any() for one in pictures)
        visit.sound()


@pytest.mark.slow
def test_two_tabs_are_two_robots(browser: Any, viewer: Served) -> None:
    with Visit(browser, viewer) as one, Visit(browser, viewer) as other:
        first = one.frame()
        one.tab.click("#play")
        one.reaches(first + 10)
        assert other.frame() == first
        other.tab.click("#step")
        other.rests(first + 1)
        one.pause()
        assert viewer.tabs == 2
        one.sound()
        other.sound()
    assert viewer.until(tabs=0)


@pytest.mark.slow
def test_what_is_not_understood_is_said_and_the_session_lives_on(browser: Any, viewer: Served) -> None:
    visit, lines = Visit(browser, viewer), []

    def between(page: Any) -> None:
        lines.append((page, page.connect_to_server()))

    visit.tab.route_web_socket(re.compile("/live$"), between)
    with visit:
        visit.hosts.add(visit.host)  # playwright speaks to the server in the page's place
        first = visit.frame()
        for bad in (
            "{",
            '{"type": "fly"}',
            '{"type": "rewind", "to": -1}',
            '{"type": "drive", "states": {"NO_JOINT": 1}}',
        ):
            seen = len(visit.toasts())
            lines[0][1].send(bad)
            visit.until(f"document.querySelectorAll('.toast.error').length > {seen}")
        visit.tab.click("#step")
        visit.rests(first + 1)
        visit.tab.locator(".toast button").first.click()
        assert len(visit.toasts()) == 3
        lines[0][0].close(code=1001)
        visit.until("document.querySelector('#link').dataset.state === 'lost'")
        visit.until("document.querySelector('#link').dataset.state === 'open'")
        visit.begun()
        assert any("begins again" in said for said in visit.toasts())
        visit.rests(first)
        assert len(lines) == 2
        visit.tab.click("#step")
        visit.rests(first + 1)
        lines[1][0].close(code=1001, reason="idle")  # after long silence it waits for the person
        visit.tab.click("#again-now")
        visit.until("document.querySelector('#link').dataset.state === 'open'")
        visit.begun()
        visit.sound()
    assert viewer.until(tabs=0)


@pytest.mark.slow
def test_a_recorded_motion_is_followed_beside_the_true_frames(browser: Any, viewer: Served) -> None:
    with Visit(browser, viewer) as visit:
        tab, first = visit.tab, visit.frame()
        tab.select_option("#motions", tab.input_value("#clips"))
        visit.reaches(first + 12)
        assert tab.is_visible(".panel.truth")
        visit.pause()
        assert visit.pixels("truth") != visit.pixels()
        overlay = tab.locator("#overlays [name=overlay]:enabled").nth(1)
        overlay.check()
        visit.until("!document.querySelector('.panel.overlay').hidden")
        tab.click("#step")
        visit.until("document.querySelector('.panel.overlay canvas').width > 1")
        assert tab.is_visible(".scale .heat")
        assert tab.inner_text("#trust .words") not in ("", "no forecast yet", "real pictures")
        places = [visit.at(i) for i in range(3)]
        tab.select_option("#motions", "")
        tab.click("#play")
        tab.wait_for_timeout(1500)
        assert places != [visit.at(i) for i in range(3)] or visit.frame() > first + 13
        visit.sound()


@pytest.mark.slow
@pytest.mark.skipif(not can_draw(), reason="MuJoCo or its OpenGL is missing")
def test_the_built_in_that_is_driven_moves_as_its_twin_does(browser: Any) -> None:
    """The world that `worldline view` opens by itself: a driven arm is nearer to physics than one at rest."""
    with served(open_stage(DEFAULT_WORLD, ViewOptions())) as driven, Visit(browser, driven) as visit:
        tab, first = visit.tab, visit.frame()
        tab.check("#twin")
        visit.until("!document.querySelector('.panel.twin').hidden")
        tab.click("#step")
        visit.rests(first + 1)
        begin = visit.colours("main")
        slider = visit.joint().locator("input[type=range]")
        slider.fill(slider.get_attribute("max"))
        for step in range(10):
            tab.click("#step")
            visit.rests(first + 2 + step)
        forecast, twin = visit.colours("main"), visit.colours("twin")
        assert np.abs(forecast - twin).mean() < np.abs(begin - twin).mean()
        visit.sound()


PAD = """() => {
  const pad = { index: 0, id: "Test pad", connected: true, mapping: "standard", axes: [0, 0, 0, 0],
                buttons: Array.from({ length: 17 }, () => ({ pressed: false, value: 0 })) };
  navigator.getGamepads = () => [pad];
  window.pad = pad;
}"""


@pytest.mark.slow
def test_base_hands_and_limbs_answer_to_keys_and_a_gamepad(browser: Any, viewer: Served) -> None:
    """The pad is the browser's list of pads with one in it, which no machine of a test has."""
    visit = Visit(browser, viewer)
    visit.tab.add_init_script(f"({PAD})()")
    with visit:
        tab = visit.tab
        value = "name => +document.querySelector(`.joint[data-joint='${name}'] input[type=range]`).value"
        limb = ".limb[data-limb='{}'] .joint".format
        forward, hand = (tab.locator(limb(name)).first.get_attribute("data-joint") for name in ("base", "left hand"))
        tab.keyboard.down("KeyW")
        tab.wait_for_timeout(200)
        assert tab.evaluate(value, forward) > 0
        tab.keyboard.up("KeyW")
        visit.until(f"({value})({forward!r}) === 0")
        tab.evaluate("dispatchEvent(Object.assign(new Event('gamepadconnected'), { gamepad: pad }))")
        assert "Test pad" in tab.text_content("#gamepad")
        tab.evaluate("pad.axes[1] = -1; pad.buttons[6].value = 1")
        visit.until(f"({value})({forward!r}) > 0")
        visit.until(f"({value})({hand!r}) > 0.9")
        tab.evaluate("pad.axes[1] = 0; pad.buttons[6].value = 0")
        visit.until(f"({value})({forward!r}) === 0")
        chosen = tab.inner_text(".limb.chosen .open")
        tab.evaluate("pad.buttons[13].pressed = true")
        visit.until("document.querySelector('.limb.chosen .open').innerText !== " + repr(chosen))
        tab.keyboard.press("1")
        assert "1" in tab.locator("#limbs .limb").first.inner_text()
        assert "chosen" in tab.locator("#limbs .limb").first.get_attribute("class")
        tab.keyboard.press("/")
        tab.keyboard.type("wrist")
        rows = tab.locator(".joint:visible label").all_inner_texts()
        assert rows
        assert all("rist" in row for row in rows)
        visit.sound()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_everything_is_reachable_and_nothing_overflows(
    browser: Any, viewer: Served, screenshots: Path, width: int, scheme: str
) -> None:
    touch = width == 400
    how: dict[str, Any] = {"color_scheme": scheme, "reduced_motion": "reduce", "has_touch": touch, "height": 860}
    with Visit(browser, viewer, width=width, **how) as visit:
        tab = visit.tab
        first = visit.frame()
        tab.select_option("#motions", tab.input_value("#clips"))
        visit.reaches(first + 12)
        tab.locator("#overlays [name=overlay]:enabled").nth(1).check()
        visit.pause()
        tab.click("#branch")
        tab.click("#step")
        tab.check("#tree li:not(.on) input[type=checkbox]")
        if not tab.is_visible("#keyboard"):
            tab.click("#show-keys")
        while (closed := tab.locator(".limb .open[aria-expanded=false]")).count():
            closed.first.click()
        tab.evaluate("scrollTo(0, 0)")
        tab.screenshot(path=screenshots / f"viewer_{width}_{scheme}.png", full_page=not touch)
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate(OUTSIDE) == []
        assert tab.evaluate(UNNAMED) == []
        if touch:
            assert tab.evaluate(SMALL) == []
            last = tab.locator(".joint").last
            last.scroll_into_view_if_needed()
            box = tab.locator(".main canvas").bounding_box()
            assert box["y"] >= 0, "the picture stays in view"
            assert box["y"] + box["height"] < 860 / 2
            slider = last.locator("input[type=range]").bounding_box()
            assert box["y"] + box["height"] <= slider["y"] <= 860
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(paper[4:].split(",")[0]) < 64) == (scheme == "dark")
        visit.sound()
