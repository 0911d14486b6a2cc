"""The Color tab: a picture in color by all models, and hints where they are wrong."""

from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
import skimage
from PIL import Image

from atelier.shared import AT_ONCE, EACH, HTML, LONG, SCRIPT, command_line, there
from colorization import Colorizer, PaletteColorizer
from colorization.easel import Easel, read_picture, small
from colorization.palette import DEFAULT_VIVIDNESS
from datamodules.demo.paintings import draw_painting
from images.writing import Pixels
from study.models import Models
from system.errors import PigmentError, shown

KEPT = 3600  # seconds that a visitor's picture is kept after its last change
PHOTOGRAPHS = ("camera.png", "astronaut.png", "chelsea.png", "rocket.jpg", "coffee.png")  # come with scikit-image
PAINTINGS = (1, 5, 8)  # seeds
SAVE = "file => Object.assign(document.createElement('a'), {href: file.url, download: file.orig_name}).click()"
MAKE_ROOM = "() => ({__type__: 'update', value: null, label: 'Your next picture'})"
SET_ENABLED = "() => ({__type__: 'update', interactive: %s})"
ACTS = {act.__name__: act for act in (Easel.put, Easel.move, Easel.remove, Easel.choose)}


def color_tab(page: gr.Blocks, models: Models, examples: list[Path]) -> None:
    offered = models.choices(Colorizer)
    state = gr.State(time_to_live=KEPT)
    with gr.Row():
        with gr.Column(scale=2, min_width=280, elem_id="begin"):
            file = gr.File(label="Your picture", height=150)
            gr.Markdown("Drop it, paste it, or choose it. Or try one of these:")
            thumbnails = [
                HTML.tile(small(read_picture(path).pixels), path.stem, what=number)
                for number, path in enumerate(examples)
            ]
            example = gr.HTML(HTML.strip(thumbnails, "--least: 76px; --aspect: 1"), js_on_load=SCRIPT)
            chosen = gr.Dropdown(offered, value=[offered[0][1]], multiselect=True, label="Models to compare")
        with gr.Column(scale=5, min_width=320, elem_id="stage"):
            with gr.Tab("Touch up"):
                picture = gr.HTML(js_on_load=SCRIPT)
            with gr.Tab("Before and after", elem_id="before-and-after"):
                halves = gr.HTML(js_on_load=SCRIPT)
            status = gr.Markdown("Coloring a first picture …", elem_id="said")
            compared = gr.HTML(js_on_load=SCRIPT, elem_id="compared")
        with gr.Column(scale=2, min_width=280):
            with gr.Column() as wishes:
                vividness = gr.Slider(0, 1, DEFAULT_VIVIDNESS, step=0.05, label="Vividness", buttons=[])
                with gr.Column(elem_id="touches"):
                    swatches = gr.HTML(js_on_load=SCRIPT, min_height=160)  # so that nothing moves when it is filled
                    own = gr.HTML(HTML.own(), js_on_load=SCRIPT)
                    undo = gr.Button("Undo", size="sm")
            command = command_line("The same on the command line", "In Pigment's folder, with the picture in it.")
            with gr.Row():
                save = gr.Button("Download", variant="primary", min_width=120)
                stop = gr.Button("Stop", min_width=60, interactive=False)
            hints = gr.HTML(js_on_load=SCRIPT, elem_id="hints")  # last, as it grows
            saved = gr.File(visible="hidden")

    def show(easel: Easel) -> dict[Any, Any]:
        return {
            picture: HTML.canvas(easel),
            halves: HTML.before_and_after(easel),
            compared: HTML.side_by_side(easel),
            **controls(easel),
        }

    def controls(easel: Easel) -> dict[Any, Any]:
        """Show what can be wished for here, and the command that makes the same picture."""
        colorizer = models.load(easel.shown, Colorizer)
        takes_hints = isinstance(colorizer, PaletteColorizer)
        name, model = escape(easel.path.name), escape(easel.views[easel.shown].name)
        about = f"**{name}**, {easel.size} pixels, colored by {model}."
        if easel.in_color:
            about += " Its own colors are not used."
        if not takes_hints:
            about += " This model cannot be corrected by hand; a palette colorizer can."
        return {
            state: easel,
            status: about,
            wishes: gr.Column(visible=takes_hints),
            swatches: HTML.swatches(easel.likeliest(colorizer)) if isinstance(colorizer, PaletteColorizer) else "",
            hints: HTML.hints(easel) if takes_hints else "",
            undo: gr.Button(interactive=bool(easel.past)),
            command: easel.command(colorizer),
        }

    def look(easel: Easel, pixels: Pixels, checkpoints: list[str]) -> Iterator[dict[Any, Any]]:
        """Show the picture in the colors of each model as it finishes; those that have looked before are done."""
        labels = {path: label for label, path in models.choices(Colorizer)}
        for checkpoint in sorted(checkpoints, key=lambda one: one != easel.shown):
            try:
                if checkpoint not in easel.views:
                    colorizer = models.load(checkpoint, Colorizer)
                    easel.look(checkpoint, labels.get(checkpoint, checkpoint), colorizer, pixels)
            except PigmentError as error:
                gr.Warning(escape(shown(error)))
                continue
            easel.views = {path: easel.views[path] for path in checkpoints if path in easel.views}
            if easel.shown not in easel.views:
                easel.shown = checkpoint
            yield show(easel)
        if not easel.views:
            raise PigmentError("none of these models can be used; choose a different one")

    def begin(
        path: str | Path, before: Easel | None, checkpoints: list[str], vividness: float
    ) -> Iterator[dict[Any, Any]]:
        pixels = read_picture(Path(path)).pixels
        easel = Easel.of(Path(path), pixels, vividness)
        if before:
            easel.follow(before)
        yield from look(easel, pixels, checkpoints)

    def try_example(
        before: Easel | None, checkpoints: list[str], vividness: float, event: gr.EventData
    ) -> Iterator[dict[Any, Any]]:
        yield from begin(examples[int(event.what)], before, checkpoints, vividness)

    def compare(easel: Easel | None, checkpoints: list[str], vividness: float, line: str) -> Iterator[dict[Any, Any]]:
        if not checkpoints:  # the list was emptied
            gr.Info("One model has to stay.")
            yield {chosen: [offered[0][1]]}
        elif easel or line:  # a picture was shown
            easel = there(easel)
            yield from look(easel, read_picture(easel.path).pixels, checkpoints)
        else:  # the first was not done yet, and this has cancelled it
            yield from begin(examples[0], None, checkpoints, vividness)

    def touch(wish: Callable[..., None], easel: Easel | None, *wished: Any) -> dict[Any, Any]:
        easel = there(easel)
        wish(easel, *wished)
        easel.color(easel.shown, models.load(easel.shown, Colorizer))
        return show(easel)

    def point(easel: Easel | None, place: gr.EventData) -> dict[Any, Any]:
        easel = there(easel)
        easel.point(place.x, place.y, place.when)
        return controls(easel)

    def act(easel: Easel | None, event: gr.EventData) -> dict[Any, Any]:
        return touch(ACTS[event.act], easel, event.what)

    def download(easel: Easel | None) -> Iterator[dict[Any, Any]]:
        easel = there(easel)
        with TemporaryDirectory() as folder:
            for done in easel.save(models.load(easel.shown, Colorizer), Path(folder)):
                if isinstance(done, Path):
                    yield {status: f"Saved as **{escape(done.name)}**", saved: str(done)}
                else:
                    yield {status: f"Coloring at full size: {done:.0%}", stop: gr.Button(interactive=True)}

    def choices(checkpoints: list[str]) -> gr.Dropdown:
        """Offer what there is now; what is gone is no longer chosen, or Gradio would refuse all that follows."""
        offered = models.choices(Colorizer)
        left = [path for _, path in offered if path in checkpoints]
        return gr.Dropdown(offered) if len(left) == len(checkpoints) else gr.Dropdown(offered, value=left)

    everything = [state, status, picture, halves, compared, wishes, swatches, hints, undo, command]
    given = [state, chosen, vividness]
    first = page.load(partial(begin, examples[0]), given, everything, **AT_ONCE)
    # not preprocessed, or Gradio would refuse a choice that is gone, which this is to repair
    gr.on([page.load, chosen.focus], choices, chosen, chosen, preprocess=False, **AT_ONCE)
    starts = [file.upload, example.click, chosen.change, save.click]
    gr.on(starts, None, None, stop, js=SET_ENABLED % "true")  # before the others, as listeners are called in order
    downloaded = save.click(download, state, [status, saved, stop], show_progress_on=status, **LONG)
    looks: dict[str, Any] = {**LONG, "show_progress": "full", "show_progress_on": [picture, halves], "cancels": first}
    working: list[Any] = [
        file.upload(begin, [file, *given], everything, trigger_mode="always_last", **looks),
        example.click(try_example, given, everything, trigger_mode="multiple", **looks),  # see EACH
        chosen.change(compare, [*given, command], [*everything, chosen], trigger_mode="always_last", **looks),
        downloaded,
    ]
    file.upload(None, None, file, js=MAKE_ROOM)
    downloaded.success(None, saved, js=SAVE)
    for event in working:
        for ended in (event.success, event.failure):
            ended(None, None, stop, js=SET_ENABLED % "false")
    stop.click(None, cancels=working)
    downloaded.failure(None, None, status, js="() => 'Stopped.'")
    gr.on([compared.click, swatches.click, own.click, hints.click], act, state, everything, **EACH)
    picture.input(point, state, everything, **EACH)
    vividness.input(partial(touch, Easel.enliven), [state, vividness], everything, **AT_ONCE)
    undo.click(partial(touch, Easel.undo), state, everything, **EACH)


def draw_examples(folder: Path) -> list[Path]:
    """Return pictures to begin with: scikit-image's photographs, and demo paintings, drawn into a folder."""
    for seed in PAINTINGS:
        Image.fromarray(draw_painting(np.random.default_rng(seed))).save(folder / f"painting {seed}.png")
    return [*(Path(skimage.__file__).parent / "data" / name for name in PHOTOGRAPHS), *sorted(folder.iterdir())]
