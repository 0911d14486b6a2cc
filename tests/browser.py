"""The page to play in, served for tests, and a real browser that shows it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[1]


class Atelier(NamedTuple):
    address: str
    folder: Path  # where it was started


@contextmanager
def serve(folder: Path, *options: str) -> Iterator[Atelier]:
    """Serve the page as a user does, behind a proxy that should never be asked, and stop it with Ctrl-C."""
    pytest.importorskip("gradio", reason="needs Gradio")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        addresses = dict.fromkeys(("http_proxy", "https_proxy"), f"http://127.0.0.1:{proxy.getsockname()[1]}")
        paths = {"PYTHONPATH": str(ROOT), "PIGMENT_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
        command = [sys.executable, "-m", "atelier", *options]
        environment = {**os.environ, **paths, **addresses}
        with (
            open(folder / "errors.txt", "w+") as errors,
            subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            try:
                said = process.stdout.readline()
                assert "http://127.0.0.1:" in said, said
                yield Atelier(said.split()[4], folder)
            finally:
                process.send_signal(signal.SIGINT)
        assert process.returncode == 130
        assert "Traceback" not in (folder / "errors.txt").read_text()
        assert list(folder.glob("pigment-*")) == []  # what was uploaded and made is gone
        with pytest.raises(BlockingIOError):  # nothing tried to leave the machine
            proxy.accept()


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium without a window; tests are skipped where it or Playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    if CHROMIUM is None:
        pytest.skip("needs the command chromium (on Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # which root needs
        yield browser
        browser.close()


@contextmanager
def visit(browser: Any, address: str) -> Iterator[Any]:
    """Open the page as a new visitor, whose browser may fetch from nowhere else, and have no local storage."""
    with browser.new_context() as visitor:
        asked = list[str]()
        visitor.on("request", lambda request: asked.append(request.url))
        page = visitor.new_page()
        page.set_default_timeout(120_000)  # ms, as other tests may be busy
        page.goto(address)
        yield page
        assert page.evaluate("({...localStorage})") == {}
        assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()
