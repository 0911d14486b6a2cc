import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.world import CONFIGS, read_wandb, tiny
from train import main
from vae import ConvVAE

pytestmark = pytest.mark.usefixtures("wandb_offline")


@pytest.mark.parametrize(
    ("config", "stage", "columns"),
    [
        ("colorization/4_shallow_adam", "validate", ["lightness", "prediction", "truth", "CIEDE2000", "PSNR", "path"]),
        ("vae", "test", ["original", "reconstruction", "PSNR", "path"]),
    ],
)
def test_a_table_shows_the_worst_images_first(
    config: str, stage: str, columns: list[str], paintings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(paintings.parent))  # where files wait for their upload
    file = CONFIGS / f"{config}.yaml"
    fitted = main(tiny("fit", paintings, "--trainer.max_epochs=1", config=file))
    assert "table" not in str(read_wandb(fitted.run_folder)["history"])  # a fit is only as slow as it was
    last = f"--ckpt_path={fitted.run_folder / 'checkpoints' / 'last.ckpt'}"
    run = main(tiny(stage, paintings, last, "--data.init_args.batch_size=2", config=file))

    prefix = {"validate": "val", "test": "test"}[stage]
    records = read_wandb(run.run_folder)
    (item,) = (record["item"] for record in records["history"] if f"{prefix}/images._type" in record["item"])
    assert item[f"{prefix}/images.nrows"] == len(run.datamodule.images(prefix))
    files = {one["path"]: one["local_path"] for one in records["artifact"][0]["manifest"]["contents"]}  # as uploaded
    table = json.loads(Path(files[f"{prefix}/images.table.json"]).read_text())
    assert table["columns"] == columns
    rows = [dict(zip(columns, row, strict=True)) for row in table["data"]]

    values = run.trainer.callback_metrics
    for name in {"PSNR", "CIEDE2000"} & set(columns):
        assert np.mean([row[name] for row in rows]) == pytest.approx(
            values[f"{prefix}/{name.lower()}"].item(), rel=1e-4
        )
    assert [row["PSNR"] for row in rows] == sorted(row["PSNR"] for row in rows)

    images = run.datamodule.images(prefix)
    assert sorted(row["path"] for row in rows) == sorted(images.store.paths()[index] for index in images.rows)
    by_path = {images.store.paths()[row]: image for row, image in zip(images.rows, images, strict=True)}
    for row in rows:
        truth = row.get("truth", row.get("original"))
        shown = np.array(Image.open(files[truth["path"]])).astype(float)
        assert np.abs(shown - by_path[row["path"]].permute(1, 2, 0).numpy()).mean() < 12  # as JPEG


def test_of_many_images_some_are_shown_evenly_spaced(paintings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(paintings.parent))
    monkeypatch.setattr("callbacks.table.NUM_IMAGES", 3)
    file = CONFIGS / "colorization" / "4_shallow_adam.yaml"
    main(tiny("fit", paintings, "--trainer.max_epochs=1", "--trainer.logger=false", config=file))
    run = main(tiny("test", paintings, "--ckpt_path=last", "--data.init_args.batch_size=2", config=file))
    files = read_wandb(run.run_folder)["artifact"][0]["manifest"]["contents"]
    (path,) = [one["local_path"] for one in files if one["path"].endswith(".json")]
    images = run.datamodule.images("val")
    expected = [images.store.paths()[row] for row in images.rows[[0, 2, 5]]]
    assert sorted(row[-1] for row in json.loads(Path(path).read_text())["data"]) == sorted(expected)


class WithoutCompare(ConvVAE):
    compare = property()  # as if there were none


def test_a_model_that_compares_nothing_gets_no_table_and_a_line(fruits: Path, caplog: pytest.LogCaptureFixture) -> None:
    of_ours = ["--trainer.max_epochs=1", f"--model={__name__}.WithoutCompare"]
    main(tiny("fit", fruits, *of_ours))
    assert not any("LogTable: " in said for said in caplog.messages)
    run = main(tiny("test", fruits, *of_ours[1:], "--ckpt_path=last"))
    (line,) = [said for said in caplog.messages if "LogTable: " in said]
    assert "a method compare in WithoutCompare" in line
    assert "table" not in str(read_wandb(run.run_folder)["history"])
