"""The page's tabs Fruit and Runs, in a real browser."""

import base64
import re
import shlex
import shutil
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from images.drawing import COLUMNS
from tests.browser import Atelier, visit
from train import PigmentCLI
from vae.__main__ import main

ADDRESS = "https://wandb.ai/me/paintings/runs/whole"
HEADINGS_ARE = "names => [...document.querySelectorAll('h2')].map(one => one.innerText).join() == names.join()"


@pytest.fixture(scope="module")
def runs(atelier: Atelier, vae_run: PigmentCLI) -> Path:
    """Two runs, one with an epoch less in its metrics, a test of a model, and what is left of another run."""
    folder = atelier.folder / "runs"
    for name in ("whole", "shorter"):
        shutil.copytree(vae_run.run_folder, folder / name)
    lines = (folder / "shorter" / "metrics.csv").read_text().splitlines(keepends=True)
    epoch = lines[0].split(",").index("epoch")
    (folder / "shorter" / "metrics.csv").write_text("".join(line for line in lines if line.split(",")[epoch] != "2"))
    (folder / "shorter" / "wandb" / "offline-run-1").mkdir(parents=True)
    log = folder / "whole" / "wandb" / "run-1" / "files" / "output.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"Epoch 0\nW&B       {ADDRESS}\n")
    (folder / "tested").mkdir()
    shutil.copy(vae_run.run_folder / "config.yaml", folder / "tested")
    (folder / "tested" / "metrics.csv").write_text("epoch,step,test/psnr\n0,3,20\n")
    (folder / "torn").mkdir()
    (folder / "torn" / "config.yaml").write_text("model: {class_")
    return folder


@pytest.fixture
def page(atelier: Atelier, browser: Any, runs: Path) -> Iterator[Any]:
    with visit(browser, atelier.address) as page:
        yield page


@pytest.fixture
def fruit(page: Any, monkeypatch: pytest.MonkeyPatch, atelier: Atelier) -> Any:
    """The tab Fruit, with the fruit that it begins with."""
    monkeypatch.chdir(atelier.folder)  # where the page's command lines hold
    go_to(page, "Fruit")
    page.get_by_role("img", name="seed 0", exact=True).wait_for()
    return page


def wait_for_line(page: Any, wanted: str) -> str:
    """Wait until the command line in sight says what is wanted, and return it."""
    box = page.get_by_label("The same fruit on the command line").locator("visible=true")
    page.wait_for_function("([box, wanted]) => box.value.includes(wanted)", arg=[box.element_handle(), wanted])
    return box.input_value()


def picture(page: Any) -> np.ndarray:
    """The fruit's picture, or the walk's, as the link below it saves it."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Save as").click()
    return np.asarray(Image.open(download.value.path()).convert("RGB"))


def made_by(line: str, out: Path) -> np.ndarray:
    program, arguments = shlex.split(line)[:3], shlex.split(line)[3:]
    assert program == ["python", "-m", "vae"]
    assert main([*arguments, f"--out={out}"]) == 0
    return np.asarray(Image.open(out))


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def go_to(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def keep_new(page: Any, seed: int) -> None:
    go_to(page, "New fruits")
    page.get_by_role("button", name=f"seed {seed}", exact=True).first.click()
    wait_for_line(page, f"walk {seed} ")
    press(page, "Keep for a walk")


def point(page: Any, label: str, x: float, y: float) -> None:
    pad = page.get_by_role("slider", name=label).locator(".frame")
    size = pad.bounding_box()
    pad.click(position={"x": x * size["width"], "y": y * size["height"]})


def choose(page: Any, label: str, option: str) -> None:
    page.locator(f"input[aria-label='{label}']").click()
    page.get_by_role("option", name=re.compile(option)).click()


def rows(page: Any) -> list[dict[str, str]]:
    """The table of runs, by heading, as it is sorted now."""
    headings = page.get_by_role("columnheader").all_inner_texts()
    found = [row.locator("td").all_inner_texts() for row in page.locator("tbody tr").all()]
    return [dict(zip(headings, row, strict=True)) for row in found]


def test_sliders_change_the_fruit_into_what_the_command_line_makes(fruit: Any, tmp_path: Path) -> None:
    first = picture(fruit)
    for direction, key in ((1, "ArrowRight"), (1, "ArrowRight"), (3, "ArrowLeft")):
        fruit.get_by_role("slider", name=f"Direction {direction}").press(key)
    line = wait_for_line(fruit, "0@0.2,0,-0.1")
    moved = picture(fruit)
    assert (moved != first).any()
    assert (moved == made_by(line, tmp_path / "fruit.png")).all()
    press(fruit, "All directions back to 0")
    wait_for_line(fruit, "walk 0 ")
    assert (picture(fruit) == first).all()


def test_a_walk_leads_where_the_command_line_leads(fruit: Any, tmp_path: Path) -> None:
    press(fruit, "Keep for a walk")
    keep_new(fruit, 3)
    go_to(fruit, "Walk")
    wait_for_line(fruit, "walk 0 3 --at=0.5 ")
    fruit.get_by_role("slider", name="The way").press("ArrowRight")  # without a click before it
    wait_for_line(fruit, "walk 0 3 --at=0.523 ")
    point(fruit, "The way", 0.2813, 0.5)
    line = wait_for_line(fruit, "walk 0 3 --at=0.25 ")
    assert (picture(fruit) == made_by(line, tmp_path / "between.png")).all()

    go_to(fruit, "Fruit")
    keep_new(fruit, 5)
    go_to(fruit, "Walk")
    wait_for_line(fruit, "walk 0 3 5 --at=0.5,0.5 ")
    fruit.get_by_text("the third is the lower edge").wait_for()
    fruit.get_by_role("img", name="between seed 0, seed 3, and seed 5").wait_for()
    fruit.get_by_role("slider", name="The way").press("ArrowDown")
    wait_for_line(fruit, "walk 0 3 5 --at=0.5,0.523 ")
    middle_of_first = 0.5 / COLUMNS
    point(fruit, "The way", middle_of_first, 0.723)
    line = wait_for_line(fruit, "walk 0 3 5 --at=0,0.75")
    assert (picture(fruit) == made_by(line, tmp_path / "between.png")).all()

    go_to(fruit, "Fruit")
    fruit.get_by_role("button", name="seed 0 click to remove").click()
    go_to(fruit, "Walk")
    wait_for_line(fruit, "walk 3 5 --at=0.5 ")


def test_a_seed_that_cannot_be_gets_a_line(fruit: Any) -> None:
    go_to(fruit, "New fruits")
    for seed in ("-5", "2.5", "1e+30"):
        fruit.get_by_label("First seed").fill(seed)
        fruit.get_by_text(f"the first seed is {seed}; it must be a whole number from 0 to 1,000,000,000").wait_for()
    pill = fruit.locator("[data-testid=status-tracker] .error")  # Gradio's, which would stay until the next click
    pill.wait_for(state="attached")
    assert not pill.is_visible()
    fruit.get_by_label("First seed").fill("12")
    press(fruit, "seed 13")
    wait_for_line(fruit, "walk 13 ")


def test_what_a_browser_sends_names_no_file_of_the_servers(fruit: Any, vae_run: PigmentCLI) -> None:
    go_to(fruit, "New fruits")
    tile = fruit.get_by_role("button", name="seed 1", exact=True)
    tile.evaluate("(tile, path) => tile.dataset.what = path", str(vae_run.datamodule.folder / "Test/Lime/0_100.jpg"))
    tile.click()
    fruit.get_by_text("choose one of the fruits that are shown").wait_for()
    wait_for_line(fruit, "walk 0 ")


def test_fruits_are_kept_and_removed_however_quickly_and_a_walk_ended_with_a_quick_drag(fruit: Any) -> None:
    kept = fruit.get_by_role("button", name="click to remove")
    fruit.get_by_role("button", name="Keep for a walk").dblclick()
    fruit.get_by_text("This fruit is kept already").wait_for()
    assert kept.count() == 1
    for seed in (3, 5):
        keep_new(fruit, seed)
    kept.nth(2).wait_for()
    kept.first.dblclick()
    kept.nth(2).wait_for(state="detached")
    fruit.wait_for_timeout(500)  # ms, in which the second click would remove another
    assert kept.count() == 2
    go_to(fruit, "Walk")
    wait_for_line(fruit, "walk 3 5 ")
    way = fruit.get_by_role("slider", name="The way").locator(".frame")
    box = way.bounding_box()
    fruit.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + box["height"] / 2)
    fruit.mouse.down()
    for share in (0.4, 0.5, 0.6, 0.7, 1.5):
        fruit.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    fruit.mouse.up()
    wait_for_line(fruit, "--at=1 ")


def test_two_visitors_have_their_own_fruits(fruit: Any, atelier: Atelier, browser: Any) -> None:
    with visit(browser, atelier.address) as other:
        go_to(other, "Fruit")
        keep_new(other, 3)
        fruit.get_by_role("slider", name="Direction 1").press("ArrowRight")
        wait_for_line(fruit, "walk 0@0.1 ")
        press(fruit, "Keep for a walk")
        fruit.get_by_role("button", name="seed 0 (moved) click to remove").wait_for()
        other.get_by_role("slider", name="Direction 1").press("ArrowLeft")
        wait_for_line(other, "walk 3@-0.1 ")
        press(other, "Keep for a walk")
        go_to(other, "Walk")
        wait_for_line(other, "walk 3 3@-0.1 ")
        assert fruit.get_by_text("click to remove").count() == 1


def test_the_map_shows_training_images_and_what_lies_between(fruit: Any, vae_run: PigmentCLI, tmp_path: Path) -> None:
    fruit.get_by_text("there are no training images here (they do not come with Pigment)").wait_for()
    assert fruit.get_by_label("Kind", exact=True).count() == 0
    press(fruit, "Keep for a walk")
    removable = fruit.get_by_role("button", name="seed 0 click to remove")
    removable.wait_for()
    choose(fruit, "Model", "whole")
    wait_for_line(fruit, "whole")
    removable.wait_for(state="detached")  # it is of the other model
    fruit.get_by_text("What you kept with a different model comes back when you choose it.").wait_for()
    point(fruit, "Map of fruits", 0.4, 0.6)
    line = wait_for_line(fruit, str(vae_run.datamodule.folder / "Training"))
    assert (picture(fruit) == made_by(line, tmp_path / "fruit.png")).all()
    ring = fruit.get_by_role("slider", name="Map of fruits").locator("i")
    pointed_at = ring.get_attribute("style")
    (other,) = {"Lime", "Orange"} - {Path(shlex.split(line)[4]).parent.name}
    choose(fruit, "Kind", other)
    line = wait_for_line(fruit, f"/Training/{other}/")
    assert (picture(fruit) == made_by(line, tmp_path / "typical.png")).all()
    assert ring.get_attribute("style") not in (pointed_at, None)
    fruit.get_by_role("slider", name="Direction 1").press("ArrowRight")
    moved = wait_for_line(fruit, "@0.1 ")
    for key in ("Enter", "Tab"):
        fruit.get_by_label("Kind", exact=True).press(key)
    fruit.wait_for_timeout(1000)  # ms, in which leaving the list would have chosen the kind again
    assert wait_for_line(fruit, "@") == moved
    kinds = fruit.get_by_label("Kind", exact=True)
    kinds.fill(other)
    kinds.press("Enter")
    assert wait_for_line(fruit, ".jpg --ckpt") == line
    choose(fruit, "Model", "comes with Pigment")
    removable.wait_for()


def test_a_picture_of_ones_own_is_drawn_as_the_command_line_draws_it(
    fruit: Any, vae_run: PigmentCLI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_to(fruit, "Your picture")
    Path("text.jpg").write_text("I am not an image")
    fruit.locator(".block", has_text="A picture of a fruit").locator("input[type=file]").set_input_files("text.jpg")
    fruit.get_by_text(re.compile("text.jpg' cannot be used: not an image")).wait_for()
    own = vae_run.datamodule.folder / "Test" / "Lime" / "0_100.jpg"
    fruit.locator(".block", has_text="A picture of a fruit").locator("input[type=file]").set_input_files(own)
    line = wait_for_line(fruit, "walk 0_100.jpg ").replace("--ckpt ", f"--ckpt {Path.cwd()}/")
    drawn = picture(fruit)
    monkeypatch.chdir(own.parent)
    assert (drawn == made_by(line, tmp_path / "fruit.png")).all()


def test_a_checkpoint_that_is_being_written_or_was_deleted_gets_a_line(fruit: Any, runs: Path) -> None:
    checkpoint = runs / "shorter" / "checkpoints" / "last.ckpt"
    whole = checkpoint.read_bytes()
    choose(fruit, "Model", "shorter")
    wait_for_line(fruit, f"--ckpt {checkpoint.relative_to(Path.cwd())} ")
    go_to(fruit, "New fruits")
    checkpoint.write_bytes(whole[: len(whole) // 2])
    fruit.get_by_role("slider", name="Direction 1").press("ArrowRight")
    fruit.get_by_text("is not a whole checkpoint").wait_for()
    checkpoint.unlink()
    press(fruit, "seed 2")
    fruit.get_by_text(f"there is no checkpoint '{checkpoint.relative_to(Path.cwd())}' any more").wait_for()
    checkpoint.write_bytes(whole)
    press(fruit, "seed 3")
    wait_for_line(fruit, "walk 3 ")


def test_the_table_of_runs_takes_any_name_and_has_empty_cells_last() -> None:
    table_of = pytest.importorskip("atelier.runs", reason="needs Gradio").table_of
    name = "<b>'\"&"
    rows = [
        {"Model": "VAE", "val/loss": loss, "Data": "http://x", "W&B": address, "Run": run, "Recipe": "lr 0.1"}
        for loss, address, run in ((2.0, "offline", "two"), (None, ADDRESS, name), (1.0, None, "one"))
    ]
    for downward, order in ((False, ["one", "two", str(escape(name))]), (True, ["two", "one", str(escape(name))])):
        said = table_of(rows, ("val/loss", downward), [name], {})
        assert re.findall('data-act="show" data-what="(.*?)"', said) == order
        assert said.count('aria-current="true"') == 1
        assert name not in said
        assert re.findall('href="(.*?)"', said) == [ADDRESS]


def test_runs_are_a_table_to_sort_and_two_are_looked_at_side_by_side(page: Any, runs: Path) -> None:
    go_to(page, "Runs")
    page.get_by_text("torn is left out: ").wait_for()
    found = {row["Run"]: row for row in rows(page)}
    assert found.keys() == {"whole", "shorter"}  # not the one that was only tested
    when = (runs / "whole" / "checkpoints" / "last.ckpt").stat().st_mtime
    assert found["whole"]["When"] == datetime.fromtimestamp(when).isoformat(" ", "minutes")
    assert found["whole"]["Seed"] == "0"
    assert {name: row["W&B"] for name, row in found.items()} == {"whole": "W&B", "shorter": "offline"}
    assert page.get_by_role("link", name="W&B", exact=True).get_attribute("href") == ADDRESS
    page.get_by_text(f"wandb sync {(runs / 'shorter').relative_to(runs.parent)}/wandb/offline-run-*").wait_for()
    losses = {name: float(row["val/loss"]) for name, row in found.items()}
    assert losses["whole"] < losses["shorter"]
    for direction, first in (("ascending", "whole"), ("descending", "shorter")):
        press(page, "val/loss")
        page.locator(f"th[aria-sort={direction}]", has_text="val/loss").wait_for()
        assert rows(page)[0]["Run"] == first

    press(page, "Epochs")  # the most first
    page.locator("th[aria-sort=descending]", has_text="Epochs").wait_for()
    assert page.get_by_role("columnheader", name="PSNR").count() == 0  # which no run has

    films = page.get_by_role("img", name="reconstructions")
    for clicked, beside in (("shorter", "whole"), ("whole", "shorter"), ("whole", "shorter")):
        page.get_by_role("cell", name=clicked, exact=True).click()
        page.wait_for_function(HEADINGS_ARE, arg=[clicked, beside])
        for number in range(2):
            shown = BytesIO(base64.b64decode(films.nth(number).get_attribute("src").partition(",")[2]))
            with Image.open(shown) as image, Image.open(runs / "whole" / "media" / "reconstructions.png") as film:
                assert np.array_equal(image, film)
    boxes = [films.nth(number).bounding_box() for number in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    press(page, "Run")
    page.locator("th[aria-sort=ascending]", has_text="Run").wait_for()

    (runs / "whole").rename(runs.parent / "gone")
    page.get_by_role("cell", name="whole", exact=True).click()
    page.get_by_text("The run whole is no longer there").wait_for()
    assert [row["Run"] for row in rows(page)] == ["shorter"]
    (runs.parent / "gone").rename(runs / "whole")


def test_a_phone_shows_what_one_looks_for_in_a_run(page: Any, runs: Path) -> None:
    page.set_viewport_size({"width": 420, "height": 800})
    go_to(page, "Runs")
    for heading in ("Model", "val/loss", "Bits per dim", "Epochs"):
        box = page.get_by_role("columnheader", name=heading).bounding_box()
        assert box["x"] + box["width"] < 420
