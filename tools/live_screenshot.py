"""Takes the picture of `faststy live` that the README shows.

    python tools/live_screenshot.py docs/live.jpg

It starts the page on the moving sample photo, opens it in headless Chromium, turns some dials as a
person would, and writes what is seen. Chromium is spoken to through its debugging pipe, so nothing
but the browser is needed.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

# The browser reads commands from file 3 and writes answers to file 4.
WITH_PIPES = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """A page in a headless browser, driven by the Chrome DevTools Protocol."""

    def __init__(self, width: int = 1280, height: int = 800) -> None:
        program = find_chromium()
        if program is None:
            raise FileNotFoundError("there is no chromium here")
        self._folder = tempfile.mkdtemp()
        browser_reads, self._commands = os.pipe()
        self._answers, browser_writes = os.pipe()
        options = [
            *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"),
            *("--disable-dev-shm-usage", "--disable-extensions", "--mute-audio"),
            f"--user-data-dir={self._folder}",
            f"--window-size={width},{height}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # it refuses root otherwise
            "about:blank",
        ]
        ends = (browser_reads, browser_writes)
        self._process = subprocess.Popen(
            [sys.executable, "-c", WITH_PIPES, *map(str, ends), program, *options],
            pass_fds=ends,
            start_new_session=True,  # so that all of its processes can be ended together
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_reads)
        os.close(browser_writes)
        self._numbers = itertools.count(1)
        self._reader = os.fdopen(self._answers, "rb")
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.errors: list[str] = []
        self.send("Runtime.enable")
        self.send("Log.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # it holds nothing worth saving
        self._process.wait()
        os.close(self._commands)
        self._reader.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer; notes what the page complains of meanwhile."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            entry = message.get("params", {}).get("entry", {})
            if message.get("method") == "Log.entryAdded" and entry["level"] == "error":
                self.errors.append(entry["text"])

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._reader.read(1)) != b"\0":
            if not byte:
                raise EOFError("chromium has stopped")
            data += byte
        message: dict[str, Any] = json.loads(data)
        return message

    def open(self, url: str) -> None:
        """Goes to a page."""
        self.send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30.0) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                raise TimeoutError(f"the page never came to: {script}")
            time.sleep(0.05)

    def press(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Clicks into an element, at a part of its width and height."""
        box = self.run(
            f"(e => {{ const b = e.getBoundingClientRect(); "
            f"return [b.x + {x} * b.width, b.y + {y} * b.height]; }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )

    def picture(self) -> Image.Image:
        """What is seen."""
        data = self.send("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def find_chromium() -> str | None:
    """The browser's program, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def main(target: Path) -> None:
    from faststy.stylization.live import Live, moving_photo, thumbnails
    from faststy.stylization.live_server import LiveServer
    from faststy.stylization.stylizer import Stylizer

    stylizer = Stylizer.load()
    frames = moving_photo(360)
    previews = thumbnails(stylizer, next(frames))
    with (
        Live(stylizer, frames) as live,
        LiveServer(live, source="demo", thumbnails=previews) as server,
        Chromium(1180, 820) as browser,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        browser.send("Emulation.setEmulatedMedia", features=[dark])
        browser.open(server.url)
        browser.wait_for("document.querySelectorAll('.style').length > 1")
        browser.press(".style[data-style='woodcut']")
        browser.press("#stage", x=0.36)
        seen = "Number(document.querySelector('#fps').textContent)"
        browser.wait_for(f"{seen} > 0 && document.querySelector('#message').hidden")
        time.sleep(4)  # for the speed to be a true one
        browser.picture().save(target, quality=88)
        server.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="the picture to write, as docs/live.jpg")
    main(parser.parse_args().target)
