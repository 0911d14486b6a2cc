"""Compiled networks learn the same as uncompiled ones."""

import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from tests.test_resuming import flatten
from tests.world import CONFIGS, last, metrics, tiny
from train import main

# torch looks at it while it compiles
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


counter = CompileCounter()  # a backend that counts the graphs it is given, and computes them as they are


class Note(Callback):
    """Note the number of graphs at the end of each epoch."""

    graphs: ClassVar[list[int]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.graphs.append(counter.frame_count)


@pytest.mark.parametrize(
    ("config", "num_graphs"),
    [  # networks, each in training and in evaluation, where the tenth has batches of two sizes: twice 4, and twice 2
        ("colorization/4_shallow_adam.yaml", 2),
        pytest.param("colorization/7_resnet_adam.yaml", 2, marks=pytest.mark.slow),
        pytest.param("colorization/10_palette.yaml", 3, marks=pytest.mark.slow),
        ("vae.yaml", 8),
        pytest.param("vae_residual.yaml", 8, marks=pytest.mark.slow),
    ],
)
def test_networks_become_whole_graphs_in_the_first_epoch_and_checkpoints_stay_the_same(
    config: str, num_graphs: int, fruits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    counters.clear()
    counter.clear()
    monkeypatch.setattr(Note, "graphs", [])
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counter))
    arguments = tiny("fit", fruits, "--ckpt_path=last", config=CONFIGS / config)
    run = main([*arguments, "--compile=true", f"--trainer.callbacks+={__name__}.Note"])
    assert counters["graph_break"] == {}
    assert Note.graphs == [num_graphs, num_graphs]
    compiled = torch.load(last(run), weights_only=True)
    resumed = main([*arguments, "--trainer.max_epochs=3"])  # not compiled
    assert (resumed.run_folder, resumed.trainer.current_epoch) == (run.run_folder, 3)
    assert names(torch.load(last(run), weights_only=True)) == names(compiled)


def names(checkpoint: dict[str, Any]) -> list[str]:
    """The names of everything in a checkpoint but what callbacks remember, which grows."""
    return [name for name, _ in flatten(checkpoint, "") if not name.startswith(".callbacks")]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU torch compiles with g++, which is not here")
@pytest.mark.parametrize("config", ["vae.yaml", "colorization/4_shallow_adam.yaml"])
def test_compiled_networks_learn_the_same(config: str, fruits: Path) -> None:
    losses = []
    for compiled in ("false", "true"):
        given = tiny("fit", fruits, f"--compile={compiled}", config=CONFIGS / config)
        rows = metrics(main(given).run_folder)
        losses.append([float(row["train/loss"]) for row in rows if row["train/loss"]])
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
