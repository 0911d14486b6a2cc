"""The page to play in, served for tests, and a real browser that shows it."""

import os
import shutil
import signal
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
    process: subprocess.Popen[str]


@contextmanager
def serve(folder: Path, *options: str) -> Iterator[Atelier]:
    """Serve the page as a user does, and stop it with Ctrl-C."""
    pytest.importorskip("gradio", reason="needs Gradio")
    command = [sys.executable, "-m", "atelier", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIGMENT_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    with process:
        said = process.stdout.readline()
        assert "http://127.0.0.1:" in said, said
        yield Atelier(said.split()[4], folder, process)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert list(folder.glob("pigment-*")) == []  # what was uploaded and made is gone


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
