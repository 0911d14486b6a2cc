import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from callbacks import progress
from callbacks.progress import ProgressBar
from resuming.loggers import read_metrics
from tests.test_resuming import GO_ON, at
from tests.world import tiny
from train import main


def test_the_bar_is_drawn_now_and_then_and_at_the_end(
    fruits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 3600)
    main(tiny("fit", fruits, "--trainer.max_epochs=1"))
    said = "".join(capsys.readouterr())
    drawn = [step for step in range(5) if f" {step}/4 " in said]
    assert drawn == [0, 1, 4]


@pytest.mark.parametrize("batches", [1, 2])
def test_the_bar_shows_the_loss_of_the_step_drawn(
    batches: int, fruits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = main(tiny("fit", fruits, "--trainer.max_epochs=1", f"--trainer.accumulate_grad_batches={batches}"))
    shown = re.findall(r" 4/4 .*?train/loss_step=([\d.e+-]+)", "".join(capsys.readouterr()))
    losses = [
        row["train/loss_step"] for row in read_metrics(run.run_folder / "metrics.csv") if "train/loss_step" in row
    ]
    assert len(losses) == 4 / batches
    assert float(shown[-1]) == pytest.approx(float(losses[-1]), rel=0.01)


class SkipsSteps(BoringModel):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass


@pytest.mark.filterwarnings("ignore")  # Lightning warns that nothing was returned
def test_the_bar_of_a_model_that_leaves_steps_out_has_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(max_steps=-1, max_epochs=1, logger=False, callbacks=ProgressBar(), limit_train_batches=4).fit(SkipsSteps())
    said = "".join(capsys.readouterr())
    assert " 4/4 " in said
    assert "loss" not in said


def test_the_bar_can_be_left_out(fruits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tiny("fit", fruits, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"))
    assert "Epoch 0" not in "".join(capsys.readouterr())


def test_the_bar_of_a_run_that_goes_on_within_an_epoch_has_its_name_and_length(
    fruits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny("fit", fruits, "--trainer.max_epochs=1", "--trainer.val_check_interval=2", GO_ON)
    with pytest.raises(SystemExit, match="143"):
        main([*arguments, at("on_validation_batch_start", 0, 1)])
    capsys.readouterr()
    main(arguments)
    said = "".join(capsys.readouterr())
    assert "Epoch 0:" in said
    assert " 3/4 " in said
