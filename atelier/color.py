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
from PIL import Image, ImageDraw

from atelier.easel import Easel, Preview, read_picture, small
from atelier.events import AT_ONCE, LONG, said_on_the_page
from atelier.models import Models
from atelier.strips import CLICKS, strip
from colorization import Colorizer, PaletteColorizer
from colorization.hints import to_hex
from colorization.palette import DEFAULT_VIVIDNESS
from datamodules.demo.paintings import draw_painting
from images.writing import Pixels
from system.errors import PigmentError

KEPT = 3600  # seconds that a visitor's picture is kept after its last change
PHOTOGRAPHS = ("coffee.png", "astronaut.png", "chelsea.png", "rocket.jpg", "camera.png")  # come with scikit-image
PAINTINGS = (1, 5, 8)  # seeds
NOTHING = "choose a picture and a model first; a picture is forgotten after an hour"
FETCH = "() => setTimeout(() => document.querySelector('#saved').click(), 200)"  # ms, until the page has the link
ACTS: dict[str, Callable[..., None]] = {
    "put": Easel.put,
    "move": lambda easel, number: easel.move(int(number)),
    "remove": lambda easel, number: easel.remove(int(number)),
    "undo": Easel.undo,
}


def color_tab(page: gr.Blocks, models: Models, examples: list[Path]) -> None:
    choices = models.choices(Colorizer)
    easel = gr.State(time_to_live=KEPT)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            file = gr.File(label="Your picture", height=130)
            thumbnails = [(small(read_picture(path).pixels), path.stem) for path in examples]
            gr.Markdown("Drop it, paste it, or choose it. Or try one of these:")
            example = gr.HTML(strip(thumbnails, style="--least: 70px; --aspect: 1"), js_on_load=CLICKS)
            chosen = gr.Dropdown(choices, value=[choices[0][1]], multiselect=True, label="Models to compare")
        with gr.Column(scale=5, min_width=320):
            with gr.Tab("Touch up"):
                picture = gr.Image(
                    label="Click where you want a different color",
                    alt_text="The picture in color, with the hints",
                    format="jpeg",
                    interactive=False,
                    buttons=["fullscreen"],
                )
            with gr.Tab("Before and after"):
                slider = gr.ImageSlider(
                    label="Lightness, and color", format="jpeg", interactive=False, buttons=["fullscreen"]
                )
            status = gr.Markdown()
            compared = gr.HTML(js_on_load=CLICKS)
        with gr.Column(scale=2, min_width=280):
            with gr.Column() as wishes:
                vividness = gr.Slider(0, 1, DEFAULT_VIVIDNESS, step=0.05, label="Vividness", buttons=[])
                palette = gr.HTML(js_on_load=CLICKS)
                picker = gr.ColorPicker("#2a5caa", label="Or a color of your own")
                put = gr.Button("Put it where you clicked", size="sm")
                with gr.Accordion("Choose the spot by numbers", open=False), gr.Row():
                    across = gr.Number(label="From the left", minimum=0, maximum=1, step=0.01, min_width=100)
                    down = gr.Number(label="From the top", minimum=0, maximum=1, step=0.01, min_width=100)
            command = gr.Textbox(
                label="The same on the command line", lines=3, buttons=["copy"], interactive=False, elem_id="command"
            )
            with gr.Row():
                save = gr.Button("Download", variant="primary", min_width=120)
                stop = gr.Button("Stop", min_width=60)
            saved = gr.DownloadButton(visible="hidden", elem_id="saved")

    def show(easel: Easel) -> list[Any]:
        colorizer, view = models.load(easel.shown, Colorizer), easel.views[easel.shown]
        row = [(easel.gray, "Lightness")]
        row += [(one.colored, "\n".join([one.name, one.figures, one.details])) for one in easel.views.values()]
        row += [(easel.original, "Original")] if easel.in_color else []
        colors = offer(easel, colorizer) if isinstance(colorizer, PaletteColorizer) else ""
        more = "" if colors else " This model takes no hints; a palette colorizer does."
        return [
            easel,
            f"**{escape(easel.path.name)}**, {easel.size} pixels.{more}",
            marked(easel, view.colored),
            (easel.gray, view.colored),
            strip(((small(pixels), text) for pixels, text in row), 1 + list(easel.views).index(easel.shown)),
            gr.Column(visible=bool(colors)),
            colors,
            *(easel.spot or (None, None)),
            easel.command(colorizer),
        ]

    def look(easel: Easel, pixels: Pixels, checkpoints: list[str]) -> Iterator[list[Any]]:
        """Show the picture in the colors of each model as it finishes; those that have looked before are done."""
        labels = {path: label for label, path in models.choices(Colorizer)}
        easel.views = {path: easel.views[path] for path in checkpoints if path in easel.views}
        for checkpoint in checkpoints:
            try:
                if checkpoint not in easel.views:
                    colorizer = models.load(checkpoint, Colorizer)
                    easel.look(checkpoint, labels.get(checkpoint, checkpoint), colorizer, pixels)
            except PigmentError as error:
                gr.Warning(escape(str(error)))
                continue
            if easel.shown not in easel.views:
                easel.shown = checkpoint
            yield show(easel)
        if not easel.views:
            raise PigmentError(NOTHING)

    def begin(path: str | Path, checkpoints: list[str], vividness: float) -> Iterator[list[Any]]:
        with said_on_the_page():
            pixels = read_picture(Path(path)).pixels
            yield from look(Easel.of(Path(path), pixels, vividness), pixels, checkpoints)

    def try_example(checkpoints: list[str], vividness: float, event: gr.EventData) -> Iterator[list[Any]]:
        yield from begin(examples[int(event.what)], checkpoints, vividness)

    def compare(easel: Easel | None, checkpoints: list[str]) -> Iterator[list[Any]]:
        with said_on_the_page():
            easel = there(easel)
            yield from look(easel, read_picture(easel.path).pixels, checkpoints)

    @said_on_the_page()
    def touch(wish: Callable[..., None], easel: Easel | None, *wished: Any) -> list[Any]:
        easel = there(easel)
        wish(easel, *wished)
        easel.color(easel.shown, models.load(easel.shown, Colorizer))
        return show(easel)

    @said_on_the_page()
    def click(easel: Easel | None, event: gr.SelectData) -> list[Any]:
        height, width = there(easel).original.shape[:2]
        return touch(Easel.point, easel, (event.index[0] + 0.5) / width, (event.index[1] + 0.5) / height)

    def place(easel: Easel, x: float | None, y: float | None) -> list[Any]:
        return touch(Easel.point, easel, x or 0, y or 0)

    def act(easel: Easel, event: gr.EventData) -> list[Any]:
        return touch(ACTS[event.act], easel, *filter(None, [event.what]))

    @said_on_the_page()
    def go_on_with(easel: Easel | None, event: gr.EventData) -> list[Any]:
        easel = there(easel)
        views = [easel.shown, *easel.views, easel.shown]  # the first is the lightness, the last the original
        return touch(Easel.show, easel, views[int(event.what)])

    def download(easel: Easel | None) -> Iterator[list[Any]]:
        with said_on_the_page(), TemporaryDirectory() as folder:
            easel = there(easel)
            for done in easel.save(models.load(easel.shown, Colorizer), Path(folder)):
                if isinstance(done, Path):
                    yield [f"Saved as **{escape(done.name)}**", str(done)]
                else:
                    yield [f"Coloring at full size: {done:.0%}", gr.skip()]

    def offered() -> gr.Dropdown:
        return gr.Dropdown(models.choices(Colorizer))

    everything = [easel, status, picture, slider, compared, wishes, palette, across, down, command]
    page.load(partial(begin, examples[0]), [chosen, vividness], everything, **AT_ONCE)
    page.load(offered, None, chosen, **AT_ONCE)
    chosen.focus(offered, None, chosen, **AT_ONCE)
    long: list[Any] = [
        file.upload(begin, [file, chosen, vividness], everything, show_progress_on=status, **LONG),
        example.click(try_example, [chosen, vividness], everything, show_progress_on=status, **LONG),
        chosen.input(compare, [easel, chosen], everything, show_progress_on=status, **LONG),
        save.click(download, easel, [status, saved], show_progress_on=status, **LONG),
    ]
    file.upload(None, None, file, js="() => null")  # makes room for the next
    long[-1].success(None, js=FETCH)
    stop.click(lambda: "Stopped.", None, status, cancels=long, **AT_ONCE)
    compared.click(go_on_with, easel, everything, **AT_ONCE)
    picture.select(click, easel, everything, **AT_ONCE)
    palette.click(act, easel, everything, **AT_ONCE)
    vividness.input(partial(touch, Easel.enliven), [easel, vividness], everything, **AT_ONCE)
    put.click(partial(touch, Easel.put), [easel, picker], everything, **AT_ONCE)
    gr.on([across.submit, down.submit], place, [easel, across, down], everything, **AT_ONCE)


def there(easel: Easel | None) -> Easel:
    if easel is None or not easel.views:
        raise PigmentError(NOTHING)
    return easel


def draw_examples(folder: Path) -> list[Path]:
    """Return pictures to begin with: scikit-image's photographs, and demo paintings, drawn into a folder."""
    for seed in PAINTINGS:
        Image.fromarray(draw_painting(np.random.default_rng(seed))).save(folder / f"painting {seed}.png")
    return [*(Path(skimage.__file__).parent / "data" / name for name in PHOTOGRAPHS), *sorted(folder.iterdir())]


def marked(easel: Easel, colored: Preview) -> Image.Image:
    """Draw the hints on a preview, numbered as in their list, and a ring around the spot."""
    image = Image.fromarray(colored)
    draw = ImageDraw.Draw(image)

    def ring(x: float, y: float, radius: int, fill: tuple[int, ...] | None = None) -> None:
        center = x * image.width, y * image.height
        draw.circle(center, radius + 1, outline="black")
        draw.circle(center, radius, fill=fill, outline="white", width=2)

    for number, hint in enumerate(easel.hints, start=1):
        ring(hint.x, hint.y, 8, tuple(round(255 * channel) for channel in hint.color))
        draw.text((hint.x * image.width + 11, hint.y * image.height), str(number), "white", anchor="lm", stroke_width=2,
            stroke_fill="black", font_size=15)  # fmt: skip
    if easel.spot and easel.spot not in [hint[:2] for hint in easel.hints]:
        ring(*easel.spot, 8)
    return image


def offer(easel: Easel, colorizer: PaletteColorizer) -> str:
    """Return swatches of the likeliest colors at the spot, and the list of hints, as HTML with buttons."""
    parts = ["<p>Click on the picture, and the model says which colors are likely there.</p>"]
    if easel.spot:
        parts = ["<p>Likely here, says the model. Choose one:</p>", "<div class='swatches'>"]
        for likely in easel.likeliest(colorizer, *easel.spot):
            value = to_hex(likely.color)
            parts.append(
                f"<button data-act='put' data-what='{value}' style='--swatch: {value}' aria-label='{value}, "
                f"{likely.probability:.0%} likely'>{likely.probability:.0%}</button>"
            )
        parts.append("</div>")
    if easel.moving is not None:
        parts.append(f"<p>Click where hint {easel.moving + 1} should go.</p>")
    parts.append("<ol>")
    for index, hint in enumerate(easel.hints):
        place = f"{index + 1}. <code>{hint.x:.2f}, {hint.y:.2f}</code>"
        parts.append(f"<li><span style='--swatch: {to_hex(hint.color)}'></span>{place}")
        for act in ("move", "remove"):
            attributes = f"data-act='{act}' data-what='{index}' aria-label='{act} hint {index + 1}'"
            parts.append(f"<button class='small' {attributes}>{act.title()}</button>")
    parts.append("</ol>")
    if easel.past:
        parts.append("<button class='small' data-act='undo' data-what=''>Undo</button>")
    return f"<div class='palette'>{''.join(parts)}</div>"
