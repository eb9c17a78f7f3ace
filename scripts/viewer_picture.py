"""Make the README's moving picture of the viewer, by driving the real page in Chromium, frame by frame.

python scripts/viewer_picture.py driven-tiny docs/media/viewer.gif

Needs what tests/test_viewer_browser.py needs. The robot is driven from the same moment in two ways, in two branches.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1120, 690
CLIP = 20  # open, with three objects on the table and both hands beside them
REAL, FIRST, SECOND = 6, 34, 34  # pictures
PANELS = (20, 92, 604, 384)  # where they stand
EACH_MS, LAST_MS = 70, 1500
COLOURS = 208
FLAGS = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"]
ARM = ("SHOULDER_PITCH", "ELBOW_PITCH", "SHOULDER_YAW")
AHEAD, ACROSS = (0.35, 0.75, 0.5), (0.3, 0.6, 0.9)  # shares of what the data have


@contextmanager
def serving(world: str) -> Iterator[str]:
    """The address of a viewer of a world."""
    command = [sys.executable, "-m", "worldline", "view", world, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            said = iter(process.stdout)
            yield next(found[0] for line in said if (found := re.search(r"http://\S+", line)))
        finally:
            process.terminate()


class Film:
    """Pictures of the page, one for each step of the world."""

    def __init__(self, tab: Any) -> None:
        self.tab, self.pictures = tab, list[Image.Image]()

    def shoot(self) -> None:
        self.tab.wait_for_timeout(60)
        self.pictures.append(Image.open(io.BytesIO(self.tab.screenshot())).convert("RGB"))

    def step(self) -> None:
        frame = int(self.tab.locator("#panels").get_attribute("data-frame"))
        self.tab.click("#step")
        self.tab.locator(f'#panels[data-frame="{frame + 1}"]').wait_for()
        self.shoot()

    def drive(self, shares: dict[str, float], steps: int) -> None:
        """Move sliders to shares of their ranges while the world goes on."""
        sliders = {
            name: self.tab.locator(f'.limb.chosen .joint[data-joint*="{name}"] input[type=range]') for name in shares
        }
        begin = {name: float(slider.input_value()) for name, slider in sliders.items()}
        for step in range(steps):
            for name, slider in sliders.items():
                low, high = (float(slider.get_attribute(end)) for end in ("min", "max"))
                moved = begin[name] + min(1, 3 * (step + 1) / steps) * (low + shares[name] * (high - low) - begin[name])
                slider.fill(str(moved))
            self.step()


def act(tab: Any) -> list[Image.Image]:
    """Drive, go back, branch, drive another way, and show both side by side."""
    film = Film(tab)
    tab.select_option("#clips", index=CLIP)
    tab.locator("main[aria-busy=false]").wait_for()
    if tab.locator("#twin").is_enabled():
        tab.check("#twin")
    tab.evaluate("document.querySelector('#side').scrollTop = 150")
    tab.wait_for_timeout(500)
    for _ in range(REAL):
        film.shoot()
    film.step()
    film.drive(dict(zip(ARM, AHEAD, strict=True)), FIRST)
    for _ in range(2):
        tab.click("#rewind")
    tab.wait_for_timeout(500)
    film.shoot()
    tab.click("#branch")
    tab.locator("#tree li").nth(1).wait_for()
    film.shoot()
    film.drive(dict(zip(ARM, ACROSS, strict=True)), SECOND)
    return film.pictures


def write(pictures: list[Image.Image], out: Path) -> None:
    """One palette for all pictures, so that what does not move is written once: colours of page and panels."""
    page = Counter(pictures[0].get_flattened_data()).most_common(256 - COLOURS)
    some = [picture.crop(PANELS) for picture in pictures[:: max(1, len(pictures) // 8)]]
    sheet = Image.new("RGB", (some[0].width, some[0].height * len(some)))
    for i, picture in enumerate(some):
        sheet.paste(picture, (0, some[0].height * i))
    seen = sheet.quantize(COLOURS, method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour, _ in page for value in colour] + seen[: 3 * COLOURS])
    pages = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [EACH_MS] * (len(pages) - 1) + [LAST_MS]
    pages[0].save(out, save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=True)
    print(f"{out}: {len(pages)} pictures, {out.stat().st_size / 1e6:.2f} MB")


def main(world: str, out: Path) -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with serving(world) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        tab = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", reduced_motion="reduce"
        )
        tab.goto(url)
        tab.locator("main[aria-busy=false]").wait_for()
        pictures = act(tab)
        browser.close()
    write(pictures, out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
