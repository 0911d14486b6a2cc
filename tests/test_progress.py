import re
from pathlib import Path

import pytest

from callbacks import progress
from callbacks.loggers import read_metrics
from callbacks.resuming import Interrupted
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


def test_the_bar_shows_the_loss_of_the_step_drawn(fruits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = main(tiny("fit", fruits, "--trainer.max_epochs=1"))
    shown = re.findall(r" 4/4 .*?train/loss_step=([\d.e+-]+)", "".join(capsys.readouterr()))
    losses = [
        row["train/loss_step"] for row in read_metrics(run.run_folder / "metrics.csv") if "train/loss_step" in row
    ]
    assert len(losses) == 4
    assert float(shown[-1]) == pytest.approx(float(losses[-1]), rel=0.01)


def test_the_bar_can_be_left_out(fruits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tiny("fit", fruits, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"))
    assert "Epoch 0" not in "".join(capsys.readouterr())


def test_the_bar_of_a_run_that_goes_on_within_an_epoch_has_its_name_and_length(
    fruits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny("fit", fruits, "--trainer.max_epochs=1", "--trainer.val_check_interval=2", GO_ON)
    with pytest.raises(Interrupted):
        main([*arguments, at("on_validation_batch_start", 0, 1)])
    capsys.readouterr()
    main(arguments)
    said = "".join(capsys.readouterr())
    assert "Epoch 0:" in said
    assert " 3/4 " in said
