"""A headless Chromium, driven over its debugging pipe: opens a page and tells what a reader would see of it."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 90.0  # for any one answer; the machine may be busy

# Chromium reads commands from descriptor 3 and answers on 4; high copies first, as either may be 3 or 4 already.
_LAUNCH = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 20) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
_MEASURE = """({
  width: document.documentElement.scrollWidth, window: window.innerWidth,
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
  images: document.images.length, text: document.body.innerText, title: document.title,
  height: document.documentElement.scrollHeight,
})"""


@dataclass
class View:
    """A page as it was opened in a window.

    Attributes:
        requests: every address that was asked for, the page's own file and data: addresses aside.
        complaints: errors and warnings of the console, uncaught exceptions included.
        width: of the content, pixels.
        window: of the window, pixels.
        images: number of images.
        broken: how many of them show nothing.
        title: of the page.
        text: what is visible as text.
    """

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    width: int = 0
    window: int = 0
    images: int = 0
    broken: int = 0
    title: str = ""
    text: str = ""


def find_chromium() -> str | None:
    """Return the program's path; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running Chromium; from `open_browser`."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer = b""
        self._last = 0
        self._events: list[dict[str, Any]] = []

    def view(self, page: Path, width: int, screenshot: Path | None = None) -> View:
        """Open a local page in a window of some width, as a phone does below 600 pixels."""
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable", {}, session)
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", metrics, session)
        self._events.clear()
        address = page.resolve().as_uri()
        self._call("Page.navigate", {"url": address}, session)
        self._wait("Page.loadEventFired", session)
        # Pictures that can't be decoded, and scripts, may finish after the load event.
        self._call(
            "Runtime.evaluate", {"expression": "new Promise(r => setTimeout(r, 300))", "awaitPromise": True}, session
        )
        measured = self._call("Runtime.evaluate", {"expression": _MEASURE, "returnByValue": True}, session)
        values = measured["result"]["value"]
        height = values.pop("height")
        found = View(**values)
        for event in self._events:
            _note(event, found, address)
        if screenshot is not None:
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
            screenshot.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", options, session)["data"]))
        self._call("Target.closeTarget", {"targetId": target})
        return found

    def _call(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._events.append(answer)

    def _wait(self, method: str, session: str) -> None:
        while not any(event.get("method") == method and event.get("sessionId") == session for event in self._events):
            self._events.append(self._read())

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium did not answer within {SECONDS:g} s"
            part = os.read(self._answers, 1 << 20)
            assert part, "Chromium ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def open_browser(program: str, profile: Path) -> Iterator[Browser]:
    """Run Chromium for the duration of a `with` block.

    Args:
        program: its path.
        profile: an empty folder for what it writes.
    """
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    # No host has an address: what leaves the page fails at once, and is noted.
    options += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, str(to_browser), str(from_browser), program, *options],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(from_us, to_us)
    finally:
        os.close(from_us)  # at the end of its commands it ends
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_us)


def _note(event: dict[str, Any], view: View, address: str) -> None:
    values = event.get("params", {})
    match event.get("method"):
        case "Network.requestWillBeSent":
            url = values["request"]["url"]
            if url != address and not url.startswith("data:"):
                view.requests.append(url)
        case "Runtime.consoleAPICalled" if values["type"] in ("error", "warning", "assert"):
            view.complaints.append(str(values["args"]))
        case "Runtime.exceptionThrown":
            view.complaints.append(str(values["exceptionDetails"]))
        case "Log.entryAdded" if values["entry"]["level"] in ("error", "warning"):
            view.complaints.append(values["entry"]["text"])
