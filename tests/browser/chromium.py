"""Open pages in headless Chromium and record what it logs, fetches and shows."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=4000",
)  # fmt: skip
# blocks every fetch of the page and logs it to the console
POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">"
)
PROBE = """<script>addEventListener("load", () => {
  const all = (what) => [...document.querySelectorAll(what)];
  const box = (one) => { const r = one.getBoundingClientRect();
    return [r.x, r.y + scrollY, r.width, r.height]; };
  parent.postMessage(JSON.stringify({
    scroll: document.documentElement.scrollWidth, inner: innerWidth,
    height: document.documentElement.scrollHeight,
    fetched: performance.getEntriesByType("resource").map((one) => one.name),
    text: document.body.innerText,
    pictures: all("figure svg").map((one) => ({box: box(one),
      title: one.querySelector("title").textContent,
      labels: [...one.querySelectorAll("text")].map((label) => label.textContent),
      letters: Math.min(...[...one.querySelectorAll("text")].map(
        (label) => label.getBoundingClientRect().height > 0 ? parseFloat(
          getComputedStyle(label).fontSize) * one.getBoundingClientRect().width /
          one.viewBox.baseVal.width : 0))})),
  }), "*");
});</script>"""
# in a frame: a window of headless Chromium cannot be as narrow as a phone
FRAME = """<!DOCTYPE html><html><body style="margin:0"><pre id="seen" hidden></pre><script>
addEventListener("message", (event) => {
  document.getElementById("seen").textContent = event.data; });
</script><iframe src="page.html" style="border:0;width:%dpx;height:%dpx"></iframe></body></html>"""


@dataclass(frozen=True)
class Seen:
    """A page as rendered.

    Attributes:
        probe: result of PROBE.
        console: lines logged to the console.
        image: screenshot.
    """

    probe: dict[str, Any]
    console: list[str]
    image: Image.Image


def find_browser() -> str:
    """Return the path of Chromium; without it, skip, or fail if a browser is required."""
    for name in NAMES:
        if (path := shutil.which(name)) is not None:
            return path
    if os.environ.get("ROBUST_FIN_REQUIRE_BROWSER") == "1":
        pytest.fail(f"none of {', '.join(NAMES)} is installed, and a browser is required")
    pytest.skip(f"none of {', '.join(NAMES)} is installed")


def look(page: str, folder: Path, *, width: int, height: int, dark: bool = False) -> Seen:
    """Open a page and take a screenshot.

    Args:
        page: its HTML.
        folder: created by this function.
        width: of the screen, in CSS pixels.
        height: at least that of the page.
        dark: the reader prefers dark pages.
    """
    browser = find_browser()
    folder.mkdir(parents=True)
    opened = page.replace("<head>", f"<head>{POLICY}", 1).replace("</body>", f"{PROBE}</body>", 1)
    (folder / "page.html").write_text(opened, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME % (width, height), encoding="utf-8")
    shot = folder / "shot.png"
    asked = [
        f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},{height}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--screenshot={shot}", "--dump-dom", (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run([browser, *FLAGS, *asked], capture_output=True, text=True, timeout=300)
    said = re.search(r'<pre id="seen"[^>]*>(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert said is not None, done.stderr[-2000:]
    assert said.group(1), done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    with Image.open(shot) as image:
        shown = image.convert("RGB").crop((0, 0, width, height))
    return Seen(json.loads(html.unescape(said.group(1))), console, shown)
