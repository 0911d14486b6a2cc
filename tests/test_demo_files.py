"""The files of the demo images: laid out like the real data sets, no image twice, drawn once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.demo import demo_fruits, demo_paintings, fruits, paintings
from datamodules.demo.draw_once import ToDraw, draw_once


def test_files_are_laid_out_like_the_real_ones_and_drawn_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fruits, "NUM_IMAGES", {"Training": 2, "Test": 1})
    monkeypatch.setattr(paintings, "NUM_IMAGES", {"training_set": 2, "validation_set": 1})
    for demo, short_side, parts, names in (
        (demo_fruits, 100, ("Training", "Test"), [f"{kind}/{{}}_100.jpg" for kind in fruits.FRUITS]),
        (demo_paintings, 256, ("training_set", "validation_set"), ["painting/{}.jpg"]),
    ):
        folder = demo()
        assert "Drawing demo" in capsys.readouterr().err
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        numbers = (parts[0], 0), (parts[0], 1), (parts[1], 0)
        assert paths.keys() == {f"{part}/{name.format(i)}" for part, i in numbers for name in names}
        assert len({path.read_bytes() for path in paths.values()}) == len(paths)  # no image is drawn twice
        for path in paths.values():
            with Image.open(path) as image:
                assert (image.format, image.mode, min(image.size)) == ("JPEG", "RGB", short_side)
        assert demo() == folder
        assert "Drawing" not in capsys.readouterr().err


def test_new_code_draws_a_new_folder(tmp_path: Path) -> None:
    source, image = tmp_path / "code.py", ToDraw("0.jpg", (0,), lambda rng: np.zeros((8, 8, 3), np.uint8))
    folders = []
    for code in ("old", "new", "old"):
        source.write_text(code)
        folders.append(draw_once("nothing", str(source), [image], quality=95))
    assert folders[0] == folders[2] != folders[1]
