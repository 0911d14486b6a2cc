"""Compiled networks learn the same as uncompiled ones."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor

from tests.world import CONFIGS, tiny
from train import main

# torch looks at it while it compiles
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU torch compiles with g++, which is not here")
@pytest.mark.parametrize("config", ["vae.yaml", "colorization/4_shallow_adam.yaml"])
def test_compiled_networks_learn_the_same(config: str, fruits: Path) -> None:
    losses = []
    for compiled in ("false", "true"):
        given = tiny("fit", fruits, f"--compile={compiled}", config=CONFIGS / config)
        with (main(given).run_folder / "metrics.csv").open() as lines:
            losses.append([float(row["train/loss"]) for row in csv.DictReader(lines) if row["train/loss"]])
    eager, compiled_too = losses
    assert compiled_too != eager  # sums in a different order show that it was compiled
    assert compiled_too == pytest.approx(eager, rel=0.02)


def test_without_a_compiler_a_line_says_so(
    fruits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.compiler.reset()  # or what another test compiled would be used
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # nothing is there
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(SystemExit, match="2"):
        main(tiny("fit", fruits, "--compile=true", config=CONFIGS / "colorization" / "4_shallow_adam.yaml"))
    said = capfd.readouterr().err
    assert "error: cannot compile: No working C++ compiler" in said
    assert "set compile to false" in said
