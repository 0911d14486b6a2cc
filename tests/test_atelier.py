"""The page to play in, in a real browser."""

import base64
import os
import re
import shlex
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import skimage
import tifffile
from PIL import Image

from atelier.__main__ import main as open_atelier
from colorization.__main__ import main as colorize
from system.errors import PigmentError
from tests.browser import ROOT, Atelier, visit
from tests.world import CONFIGS, bomb, last, tiny
from train import PigmentCLI, main
from vae import VAE

COFFEE = Path(skimage.__file__).parent / "data" / "coffee.png"


@pytest.fixture
def page(atelier: Atelier, browser: Any) -> Iterator[Any]:
    with visit(browser, atelier.address) as page:
        command_for(page, "camera.png")  # which the page begins with
        yield page


def command_for(page: Any, wanted: str) -> list[str]:
    """Wait until the page's command line says what is wanted, and return its arguments."""
    box = page.get_by_label("The same on the command line")
    page.wait_for_function("([box, wanted]) => box.value.includes(wanted)", arg=[box.element_handle(), wanted])
    return shlex.split(box.input_value())[3:]


def upload(page: Any, path: Path) -> None:
    box = page.locator(".block", has_text=re.compile("Your (next )?picture"))
    box.locator("input[type=file]").set_input_files(path)


def click(page: Any, x: float, y: float) -> None:
    picture = page.get_by_role("slider", name="Point where").locator(".frame")
    size = picture.bounding_box()
    picture.click(position={"x": x * size["width"], "y": y * size["height"]})


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def save(page: Any, path: Path) -> Path:
    with page.expect_download() as download:
        press(page, "Download")
    assert download.value.suggested_filename == path.name
    download.value.save_as(path)
    return path


def test_a_picture_colored_by_hand_is_what_the_command_line_makes_of_it(page: Any) -> None:
    with Image.open(COFFEE) as image:
        tifffile.imwrite("deep.tif", np.asarray(image).astype(np.uint16) * 257)  # which no browser shows
    upload(page, Path("deep.tif"))
    command_for(page, "deep.tif")
    likely = "() => [...document.querySelectorAll('button[aria-label*=likely]')].map(one => one.ariaLabel).join()"
    in_the_middle = page.evaluate(likely)
    click(page, 0.25, 0.5)
    page.wait_for_function(f"before => ({likely})() != before", arg=in_the_middle)
    swatches = page.get_by_role("button", name=re.compile("likely"))
    chances = [int(text.rstrip("%")) for text in swatches.all_inner_texts()]
    assert len(chances) == 8
    assert chances == sorted(chances, reverse=True)
    swatches.nth(3).click()
    *_, hint = command_for(page, "--hint")
    x, y, color = hint.split(",")
    assert float(x) == pytest.approx(0.25, abs=0.01)
    assert float(y) == pytest.approx(0.5, abs=0.01)
    assert color == swatches.nth(3).get_attribute("data-what")
    page.get_by_label("number input for Vividness").fill("0.8")
    arguments = command_for(page, "--vividness 0.8")
    page.locator(".strip").nth(1).get_by_text("CIEDE2000").wait_for()
    ours = save(page, Path("ours", "deep in color.tif"))
    assert colorize(arguments) == 0
    assert ours.read_bytes() == Path("colorized", "deep.tif").read_bytes()
    assert colorize([*arguments[:-2], "--out=without"]) == 0
    assert ours.read_bytes() != Path("without", "deep.tif").read_bytes()


def test_a_picture_can_be_pasted_and_dropped_anywhere(page: Any) -> None:
    give = """bytes => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], '%s'));
        const event = new %s;
        document.body.dispatchEvent(event);
        return event.defaultPrevented;  // or the browser would show the file instead of the page
    }"""
    paste = "ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})"
    drop = "DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})"
    Image.new("RGB", (60, 40), "teal").save(content := BytesIO(), "PNG")
    for name, event in (("pasted.png", paste), ("dropped.png", drop)):
        assert page.evaluate(give % (name, event), list(content.getvalue()))
        command_for(page, name)
    page.get_by_role("tab", name="Runs").click()  # where nothing can be given
    assert page.evaluate(give % ("lost.png", drop), list(content.getvalue()))


def test_hints_are_placed_without_a_mouse_and_moved_removed_and_undone(page: Any) -> None:
    page.get_by_role("slider", name="Point where").press("ArrowLeft")
    swatch = page.get_by_role("button", name=re.compile("likely")).first
    swatch.press("Enter")
    command_for(page, "'0.48,0.5,#")
    click(page, 0.9, 0.1)
    press(page, "Move to the ring: color 1")
    assert "'0.48,0.5" not in shlex.join(command_for(page, "--hint '0.9"))
    press(page, "Remove color 1")
    page.get_by_role("button", name="Remove color 1").wait_for(state="detached")
    press(page, "Undo")
    command_for(page, "--hint '0.9")
    press(page, "Undo")
    command_for(page, "'0.48,0.5,#")
    swatch.press("Enter")  # a second one, where the ring is
    page.get_by_role("button", name="Remove color 2").wait_for()
    press(page, "Move to the ring: color 1")
    page.get_by_text("there is a color at the ring already").wait_for()
    assert command_for(page, "'0.48,0.5,#").count("--hint") == 2
    page.get_by_role("button", name="Remove color 2").press("Enter")
    page.get_by_role("button", name="Remove color 2").wait_for(state="detached")
    page.wait_for_function("document.activeElement.closest('.hints')")  # not at the top of the page
    page.get_by_role("button", name="Remove color 1").press("Enter")
    page.wait_for_function("document.activeElement.matches('.pad')")


def test_a_finger_that_scrolls_moves_nothing_and_one_that_taps_moves_the_ring(page: Any) -> None:
    browser = page.context.new_cdp_session(page)
    browser.send("Emulation.setTouchEmulationEnabled", {"enabled": True})

    def touch(kind: str, *places: tuple[float, float]) -> None:
        browser.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in places]})

    pad = page.get_by_role("slider", name="Point where")
    ring, box = pad.locator("i"), pad.locator(".frame").bounding_box()
    x, y = box["x"] + 0.2 * box["width"], box["y"] + 0.6 * box["height"]
    place = "ring => [ring.style.left, ring.style.top].map(parseFloat).join()"
    before = ring.evaluate(place)
    touch("touchStart", (x, y))
    for moved in range(10, 200, 10):
        touch("touchMove", (x, y - moved))
    touch("touchEnd")
    page.wait_for_function("scrollY > 50")
    page.wait_for_timeout(500)  # ms, more than it would wait to send
    assert ring.evaluate(place) == before
    box = pad.locator(".frame").bounding_box()
    touch("touchStart", (box["x"] + 0.2 * box["width"], box["y"] + 0.6 * box["height"]))
    touch("touchEnd")
    press(page, "Put your own color")
    *_, hint = command_for(page, "--hint")
    assert float(hint.split(",")[0]) == pytest.approx(0.2, abs=0.02)


def test_on_a_phone_a_hint_is_chosen_with_the_picture_in_sight(page: Any) -> None:
    page.set_viewport_size({"width": 420, "height": 900})
    page.get_by_role("button", name="coffee").click()
    command_for(page, "coffee.png")
    picture, swatch, others = (
        found.bounding_box()
        for found in (
            page.get_by_role("slider", name="Point where"),
            page.get_by_role("button", name=re.compile("likely")).last,
            page.get_by_text("Lightness", exact=True),
        )
    )
    assert picture["y"] < swatch["y"]
    assert swatch["y"] + swatch["height"] < picture["y"] + 900
    assert others["y"] > swatch["y"]


def test_what_needs_the_ring_is_there_only_with_the_picture_to_point_into(page: Any) -> None:
    own = page.get_by_role("button", name="Put your own color")
    page.get_by_role("tab", name="Before and after").click()
    own.wait_for(state="hidden")
    page.get_by_role("tab", name="Touch up").click()
    own.wait_for()


def test_before_is_the_picture_as_given_and_after_its_colors(page: Any) -> None:
    page.get_by_role("button", name="coffee").click()
    command_for(page, "coffee.png")
    page.get_by_role("tab", name="Before and after").click()
    with Image.open(COFFEE) as image:
        given = np.asarray(image, float)
    far = []
    for name in ("As given", "As colored"):
        jpeg = page.get_by_role("img", name=name).get_attribute("src").partition(",")[2]
        with Image.open(BytesIO(base64.b64decode(jpeg))) as image:
            far.append(np.abs(np.asarray(image, float) - given).mean())
    before, after = far
    assert before < 6  # of 255; it is a JPEG
    assert after > 10

    line = page.get_by_role("slider", name="How much is shown as given")
    frame = page.locator(".halves")
    for key, left, right in (("Home", False, False), ("End", True, True)):  # where the coffee is orange
        line.press(key)
        shot = np.asarray(Image.open(BytesIO(frame.screenshot())).convert("RGB"), float)
        height, width, _ = shot.shape
        spots = shot[height // 2, width // 3], shot[height // 2, 2 * width // 3]
        orange = [red - blue > 60 for red, _, blue in spots]
        assert orange == [left, right]


def test_an_emptied_list_of_models_holds_the_first_again(page: Any) -> None:
    models = page.locator(".block", has_text="Models to compare")
    first = models.get_by_text("comes with Pigment").element_handle()
    models.get_by_title("Clear").click()
    first.wait_for_element_state("hidden")  # for good; the one that follows is another
    models.get_by_text("comes with Pigment").wait_for()
    page.get_by_text("One model has to stay.").wait_for()
    page.get_by_role("button", name="rocket").click()
    command_for(page, "rocket.jpg")


def test_of_quick_moves_the_last_counts(page: Any) -> None:
    click(page, 0.2, 0.5)
    for _ in range(10):
        page.get_by_role("slider", name="Point where").press("ArrowRight")
    page.wait_for_timeout(1000)  # ms, which a hand takes to the button; on a busy machine, requests can overtake others
    press(page, "Put your own color")
    *_, hint = command_for(page, "--hint")
    assert float(hint.split(",")[0]) == pytest.approx(0.4, abs=0.01)


def test_what_is_no_picture_is_said_in_a_line_and_the_page_goes_on(page: Any) -> None:
    contents = {"bad.jpg": b"no image", "bomb.png": bomb(20_000), "photo.heic": b"", "<b>.png": b""}
    said = ["not an image", "decompression bomb", ".heic files are not read", "not an image"]
    for (name, content), line in zip(contents.items(), said, strict=True):
        Path(name).write_bytes(content)
        upload(page, Path(name))
        page.get_by_text(re.compile(line)).last.wait_for()
        page.locator("button:disabled", has_text="Stop").wait_for()
    page.get_by_label("number input for Vividness").fill("0.9")
    command_for(page, "camera.png --out colorized --vividness 0.9")
    page.get_by_role("button", name="astronaut").click()
    command_for(page, "astronaut.png --out colorized --vividness 0.9")


def test_the_last_of_several_quick_clicks_is_shown(page: Any) -> None:
    for name in ("rocket", "chelsea", "coffee"):
        page.get_by_role("button", name=name).click()
    command_for(page, "coffee.png")
    page.wait_for_timeout(1000)  # ms
    command_for(page, "coffee.png")


def test_a_picture_that_comes_back_has_its_hints_again(page: Any) -> None:
    page.get_by_label("Your own color").fill("#aa3311")
    press(page, "Put your own color")
    command_for(page, "#aa3311")
    page.get_by_role("button", name="rocket").click()
    assert "--hint" not in command_for(page, "rocket.jpg")
    page.get_by_role("button", name="camera").click()
    command_for(page, "#aa3311")
    press(page, "Undo")
    page.get_by_role("button", name="Undo", disabled=True).wait_for()
    assert "--hint" not in command_for(page, "camera.png")


def test_an_emptied_number_is_zero(page: Any) -> None:
    vividness = page.get_by_label("number input for Vividness")
    vividness.fill("1")
    command_for(page, "--vividness 1")
    vividness.fill("")
    assert command_for(page, "--vividness 0")[-1] == "0"


def test_two_visitors_see_their_own_pictures(page: Any, atelier: Atelier, browser: Any) -> None:
    with visit(browser, atelier.address) as other:
        command_for(other, "camera.png")
        other.get_by_role("button", name="rocket").click()
        command_for(other, "rocket.jpg")
        click(page, 0.5, 0.5)
        page.get_by_role("button", name=re.compile("likely")).first.click()
        command_for(page, "camera.png --out colorized --vividness 0.5 --hint")
        other.get_by_label("number input for Vividness").fill("1")
        assert "--hint" not in command_for(other, "rocket.jpg --out colorized --vividness 1")


def test_a_new_run_is_offered_at_once_and_a_deleted_one_is_said(page: Any, atelier: Atelier, paintings: Path) -> None:
    root = f"--trainer.default_root_dir={atelier.folder / 'runs'}"
    run = main(tiny("fit", paintings, root, config=CONFIGS / "colorization" / "4_shallow_adam.yaml"))
    arrow = page.locator(".block", has_text="Models to compare").locator(".dropdown-arrow")
    arrow.click()
    option = page.get_by_role("option", name=re.compile(run.run_folder.name))
    assert re.search("ShallowColorizer · validation CIEDE2000 [0-9.]+ · 2 epochs · paintings", option.inner_text())
    assert "optimizer adam, loss mse, lr 0.001" in option.inner_text()
    option.click()
    own = page.get_by_label("Your own color")
    own.fill("#aa3311")
    page.get_by_role("button", name="ShallowColorizer").click()
    arguments = command_for(page, "--ckpt")
    assert page.get_by_role("slider", name="Point where").count() == 0  # this model takes no hints
    assert own.count() == 0
    page.get_by_role("button", name="Palette").click()
    command_for(page, "--vividness")
    assert own.input_value() == "#aa3311"
    page.get_by_role("button", name="ShallowColorizer").click()
    command_for(page, "--ckpt")
    page.get_by_role("button", name="coffee").click()
    command_for(page, "coffee.png --out colorized --ckpt")  # the model that was looked at before
    assert page.get_by_text("Lightness", exact=True).is_visible()
    assert page.get_by_role("button", name="Lightness").count() == 0
    assert arguments[-1] == str(last(run).relative_to(atelier.folder))
    last(run).write_bytes(b"half of it")
    page.get_by_role("button", name="rocket").click()
    page.get_by_text("is not a whole checkpoint").first.wait_for()
    command_for(page, "rocket.jpg --out colorized --vividness")  # by the other model
    shutil.rmtree(run.run_folder)
    page.get_by_role("button", name="chelsea").click()
    page.get_by_text("any more; choose a different one").wait_for()
    command_for(page, "chelsea.png")
    arrow.click()  # the list notices, too
    page.get_by_role("option", name="comes with Pigment").wait_for()
    page.get_by_role("option", name=re.compile(run.run_folder.name)).wait_for(state="detached")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="astronaut").click()
    command_for(page, "astronaut.png")


def test_a_picture_of_100_megapixels_is_shown_in_color_and_its_download_can_be_stopped(page: Any) -> None:
    Image.new("L", (10_000, 10_000), 99).save("huge.png", compress_level=1)
    upload(page, Path("huge.png"))
    command_for(page, "huge.png")
    page.get_by_text("10,000 x 10,000 pixels").wait_for()
    press(page, "Download")
    page.get_by_text("Coloring at full size").wait_for()
    press(page, "Stop")
    page.get_by_text("Stopped.").wait_for()
    page.get_by_role("button", name="Stop", disabled=True).wait_for()
    page.get_by_role("button", name="astronaut").click()
    command_for(page, "astronaut.png")


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore what a page that is opened within the test's process changes."""
    pytest.importorskip("gradio", reason="needs Gradio")
    for name in ("GRADIO_TEMP_DIR", "no_proxy"):
        monkeypatch.setenv(name, "")


@pytest.mark.filterwarnings("ignore")  # Gradio's packages warn of each other
@pytest.mark.usefixtures("own_server")
def test_a_picture_that_was_forgotten_is_said(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atelier.color.KEPT", 2)  # seconds
    from atelier.page import open_page
    from study.models import Models

    with open_page(Models(tmp_path)) as address, visit(browser, address) as page:
        command_for(page, "camera.png")
        page.wait_for_timeout(5000)
        click(page, 0.5, 0.4)
        page.get_by_text("the page has forgotten what you had here").wait_for()
        page.locator(".block", has_text="Models to compare").get_by_title("Clear").click()
        page.get_by_text("the page has forgotten what you had here").nth(1).wait_for()  # said once more
        page.get_by_role("button", name="astronaut").click()
        command_for(page, "astronaut.png")


@pytest.mark.filterwarnings("ignore")  # Gradio's packages warn of each other
@pytest.mark.usefixtures("own_server")
def test_a_port_that_is_taken_gets_a_line(atelier: Atelier, capsys: pytest.CaptureFixture[str]) -> None:
    port = atelier.address.rpartition(":")[2].strip("/")
    assert open_atelier(["--port", port]) == 2
    assert f"no page can be opened at 127.0.0.1:{port}: the port is taken" in capsys.readouterr().err


def test_an_option_that_cannot_be_right_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert open_atelier(["--runs=none"]) == 2
    with pytest.raises(SystemExit, match="2"):
        open_atelier(["--port=99999"])
    said = capsys.readouterr().err
    assert "there is no folder 'none': --runs must name the folder of your runs" in said
    assert "must be a whole number from 1 to 65535, not 99999" in said


def test_options_reach_the_page(
    tmp_path: Path, vae_run: PigmentCLI, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_page(models: Any, *given: Any) -> None:
        assert given == ("0.0.0.0", 8080, True)
        assert models.runs == tmp_path
        assert str(last(vae_run)) in dict(models.choices(VAE)).values()
        raise PigmentError("as asked")

    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    monkeypatch.setitem(sys.modules, "atelier.page", SimpleNamespace(open_page=open_page))
    where = ["--host=0.0.0.0", "--port=8080", "--share"]
    assert open_atelier([f"--runs={tmp_path}", f"--ckpt={last(vae_run)}", *where]) == 2
    assert "as asked" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/etc/passwd", ROOT / "pyproject.toml", "notes.txt"])
def test_only_what_was_uploaded_or_made_is_served(path: Path | str, atelier: Atelier) -> None:
    (atelier.folder / "notes.txt").write_text("mine")
    for whole in (path, atelier.folder / path, os.path.relpath(atelier.folder / path, ROOT)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{atelier.address}gradio_api/file={whole}")
        with refused.value as answer:
            assert answer.code in (403, 404)
    (drawn,) = atelier.folder.glob("pigment-*/painting 1.png")
    with urllib.request.urlopen(f"{atelier.address}gradio_api/file={quote(str(drawn))}") as answer:
        assert answer.read() == drawn.read_bytes()
