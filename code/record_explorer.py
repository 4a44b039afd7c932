"""Record the explorer in a browser for the README: docs/images/explorer.gif.

    python code/record_explorer.py

Serves the page of `make explore` on the demo model, moves alpha and clicks a token in Chromium, and
takes a picture of each state. Needs the test tools and Chromium.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from logit_amplification.errors import BadInput, exit_code
from logit_amplification.locations import ROOT

PAGE = "docs/notebooks/explorer.ipynb"
FOLDER = ROOT / "docs" / "images"
PORT = 8866
SIZE = {"width": 1080, "height": 1190}
SECONDS = 1.6  # that a picture is shown
COLOURS = 96  # of a GIF's palette: the page has few


def main() -> int:
    """Record the explorer; return the exit code."""
    return exit_code(lambda: record(FOLDER), "Nothing was written.")


def record(folder: Path) -> None:
    """Write `explorer.gif` into `folder`. Raises BadInput without Chromium."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        raise BadInput("no Chromium on this machine (Debian: apt-get install chromium)")
    environment = {**os.environ, "MODEL": "demo", "QUANTIZATION": "none", "MAX_NEW_TOKENS": "60"}
    command = [sys.executable, "-m", "voila", PAGE, "--no-browser", f"--port={PORT}"]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{PORT}/none")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE)
            page.goto(f"http://127.0.0.1:{PORT}")
            pictures = [Image.open(io.BytesIO(shot)) for shot in states(page)]
    finally:
        server.terminate()
        server.wait(timeout=30)
    folder.mkdir(parents=True, exist_ok=True)
    first, *others = [one.convert("RGB").quantize(COLOURS) for one in pictures]
    duration = int(1000 * SECONDS)
    path = folder / "explorer.gif"
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0)
    print(f"Wrote {path.relative_to(ROOT)}")


def states(page: Any) -> Iterator[bytes]:
    """Yield a picture of each state: alpha 2 at first, other alphas, then a token's place."""
    page.wait_for_selector(".lda-token", timeout=120_000)
    page.evaluate("document.querySelector('h1').parentElement.scrollIntoView()")
    time.sleep(1)
    yield page.screenshot()
    handle = page.locator(".noUi-handle").first
    handle.focus()
    for key, presses in (("ArrowLeft", 20), ("ArrowLeft", 20), ("ArrowRight", 80)):
        for _ in range(presses):
            page.keyboard.press(key)
        time.sleep(0.5)
        yield page.screenshot()
    tokens = page.locator(".lda-texts > div").last.locator(".lda-token")
    for place in (2, 6):
        tokens.nth(place).click()
        time.sleep(0.7)
        yield page.screenshot()


def _wait_for(url: str) -> None:
    """Wait until a server answers, with whatever status. Raises BadInput after a minute."""
    for _ in range(240):
        try:
            urllib.request.urlopen(url)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.25)
    raise BadInput(f"no answer from {url}")


if __name__ == "__main__":
    sys.exit(main())
