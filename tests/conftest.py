"""The smallest world in which everything runs: a few tiny fruits, one thread, no network, nothing outside tmp_path."""

import os

# before any import that counts cores: a forked process would wait for threads that only its parent has
os.environ["OMP_NUM_THREADS"] = "1"

import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sklearn.mixture  # noqa: F401 - otherwise each process forked later would spend a second on it
import torch
import wandb

from tests.browser import Atelier, chromium, serve
from tests.wandb_server import WandbServer
from tests.world import live_in, tiny, write_fruits, write_paintings
from train import PigmentCLI, main

os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # Lightning 2.6 calls it as before its version 4.49


def pytest_xdist_auto_num_workers() -> int:
    """Take one process more than there are cores, as some tests wait for others that they have started."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    live_in(tmp_path, monkeypatch)
    yield
    wandb.finish()


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights & Biases for real, in the run's folder; each run takes half a second longer."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # forgets the mode that it saw first
    yield
    wandb.teardown()


@pytest.fixture
def server(wandb_offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """A stand-in for the server of Weights & Biases, where somebody is logged in."""
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever).start()
        for name, value in {**server.environment(), "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        yield server
        server.shutdown()


@pytest.fixture
def fruits(tmp_path: Path) -> Path:
    return write_fruits(tmp_path / "fruits")


@pytest.fixture
def paintings(tmp_path: Path) -> Path:
    return write_paintings(tmp_path / "paintings")


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where pre-trained weights are looked for; empty until a test puts something there."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a closed port
    monkeypatch.setattr(urllib.request, "_opener", None)  # or the proxies that it remembers would outlive this
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory: pytest.TempPathFactory) -> PigmentCLI:
    """Three epochs of a VAE on fruits, which tests only read."""
    folder = tmp_path_factory.mktemp("vae_run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        live_in(folder, monkeypatch)
        root = f"--trainer.default_root_dir={folder / 'runs'}"
        run = main(tiny("fit", write_fruits(folder / "fruits"), root, "--trainer.max_epochs=3"))
        assert run.datamodule.images("train")  # opened here, where its cache is
        return run


@pytest.fixture(scope="session")
def atelier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atelier]:
    """A page to play in, in a process of its own, with ``runs`` in its folder."""
    with serve(tmp_path_factory.mktemp("atelier")) as served:
        yield served


@pytest.fixture(scope="module")
def browser(atelier: Atelier) -> Iterator[Any]:
    """Chromium; until the module's tests end, this thread cannot run asyncio by itself."""
    with chromium() as started:
        yield started
