"""Drive a page of headless Chromium: open it, wait for text, evaluate scripts, take screenshots.

The DevTools protocol is spoken over a pair of pipes, so no port and no package is needed.
"""

import base64
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.browser.chromium import find_browser

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-pipe", "--force-color-profile=srgb",
)  # fmt: skip
# all visible text, including that of shadow roots
DEEP = """
(() => {
  const found = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) {
      const words = node.textContent.trim();
      const parent = node.parentElement;
      const hidden = parent && /^(STYLE|SCRIPT|TEMPLATE|DOM-MODULE)$/.test(parent.tagName);
      if (words && !hidden && (!parent || parent.getClientRects().length)) found.push(words);
    }
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  if (document.body) walk(document.body);
  return found;
})()
"""


@dataclass
class Browser:
    """A page, and the pipes to its browser.

    Attributes:
        give: file descriptor that commands are written to.
        take: file descriptor that answers are read from.
        page: id of the page's session.
    """

    give: int
    take: int
    page: str = ""
    _count: int = 0
    _rest: bytes = b""
    errors: list[str] = field(default_factory=list)

    def ask(self, method: str, **words: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        self._count += 1
        told = {"id": self._count, "method": method, "params": words}
        told |= {"sessionId": self.page} if self.page else {}
        os.write(self.give, json.dumps(told).encode() + b"\0")
        while True:
            text = self._read()
            if text.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(text["params"]["exceptionDetails"]))
            if text.get("id") == self._count:
                assert "error" not in text, (method, text["error"])
                return text["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self.take, 1 << 16)
            assert part, "the browser has exited"
            self._rest += part
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def open(self, url: str, *, width: int, height: int) -> None:
        """Show a page in a window of this size, in CSS pixels."""
        if not self.page:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
            self.page = attached["sessionId"]
            self.ask("Runtime.enable")
        self.resize(width, height)
        self.ask("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        """Resize the window, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page."""
        words = {"expression": script, "returnByValue": True, "awaitPromise": True}
        result = self.ask("Runtime.evaluate", **words)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def shown(self) -> list[str]:
        """Return all visible text, node by node."""
        return self.run(DEEP)

    def wait_for(self, words: set[str], *, seconds: float = 30) -> list[str]:
        """Wait until each of `words` is a visible text node; return all visible text."""
        end = time.monotonic() + seconds
        while True:
            shown = self.shown()
            missing = words.difference(shown)
            if not missing:
                return shown
            assert time.monotonic() < end, f"{sorted(missing)} are not among {shown}"
            time.sleep(0.1)

    def wait_until(self, script: str, *, seconds: float = 30) -> Any:
        """Wait until an expression in the page is truthy; return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} stayed {value}"
            time.sleep(0.1)
        return value

    def settle(self, *, seconds: float = 30) -> None:
        """Wait until the page does not change for a second."""
        end, before, same = time.monotonic() + seconds, "", 0
        while same < 5:
            assert time.monotonic() < end, "the page keeps changing"
            now = self.ask("Page.captureScreenshot", format="png")["data"]
            before, same = now, same + 1 if now == before else 0
            time.sleep(0.2)

    def shoot(self, path: Path) -> None:
        """Save a screenshot of the window."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a Chromium with a fresh profile, closed on exit.

    Args:
        folder: empty folder for the profile.
    """
    path = find_browser()
    theirs_in, give = os.pipe()
    take, theirs_out = os.pipe()

    def connect() -> None:  # the browser reads from 3 and writes to 4
        first, second = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(first, 3)
        os.dup2(second, 4)

    process = subprocess.Popen(
        [path, *FLAGS, f"--user-data-dir={folder}"],
        preexec_fn=connect,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    result = Browser(give, take)
    try:
        yield result
        result.page = ""
        result.ask("Browser.close")
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        os.close(give)
        os.close(take)
