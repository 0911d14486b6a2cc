"""The tabs Fruit and Walk: fruits that never grew, and the ways between them."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, get_args

import gradio as gr
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from atelier.shared import AT_ONCE, EACH, HTML, SCRIPT, command_line, there
from datamodules.folder import in_batches
from images.drawing import COLUMNS, grid
from study.models import Models
from system.errors import PigmentError
from vae import VAE
from vae.chart import NUM_CHARTED, Chart, Found
from vae.codes import Sampler
from vae.play import NUM_CORNERS, REACH, Fruit, between, decode, nearest, places, read_image, share_at
from vae.weights import FRUIT, LEARNED

NUM_DIRECTIONS = 6  # sliders
DIRECTIONS = "Fruits differ most along the first, and less along each that follows."
NUM_NEW = 12
COMMAND = "The same fruit on the command line", "In Pigment's folder, with your own picture in it if you use one."
AWAY = "What you kept with a different model comes back when you choose it."
KEEP = "Keep for a walk"
NEXT = "Keep one more to walk between them.", "The tab Walk leads between them."
FULL = f"{NUM_CORNERS} are kept: remove one to keep another"
WALKS = {  # by the number of fruits
    0: "Keep two fruits on the tab Fruit to walk from one to the other; three or four make a square.",
    1: "Keep one more fruit on the tab Fruit to walk to it.",
    2: "Point at a place, or drag: from left to right, one fruit becomes the other.",
    3: "Point at a place, or drag: two fruits are the upper corners, the third is the lower edge.",
    4: "Point at a place, or drag: each corner is one of the fruits.",
}
SAMPLERS = "mixture and gaussian follow the codes of the training images, mixture more closely; prior ignores them"
SEEDS, LARGEST_SEED = "The same seed and distribution always draw the same fruit.", 10**9
Kept = dict[str, list[Found]]  # by model
SEEN = "Your picture as the model sees it: it sees a fruit that it knows in everything."
NO_CODES = "This VAE has no map and no directions: its samplers are not fitted; `python -m vae fit` fits them."


def fruit_tabs(models: Models) -> None:
    opened, found, kept = gr.State(""), gr.State(), gr.State({})  # the first changes only when the model is there
    with gr.Tab("Fruit") as tab, gr.Row():
        with gr.Column(scale=4, min_width=320):
            path = gr.Dropdown([], label="Model", info="It knows the fruits that it learned from, and no others.")
            with gr.Tab("Map"):
                kind = gr.Dropdown([], label="Kind", info="Choose one to see a typical fruit.", visible=False)
                chart = gr.HTML(js_on_load=SCRIPT)
                about_chart = gr.Markdown()
            with gr.Tab("New fruits"):
                with gr.Row():
                    seed = gr.Number(0, label="First seed", info=SEEDS, min_width=100)
                    sampler = gr.Dropdown(get_args(Sampler), label="Drawn from", info=SAMPLERS, min_width=140)
                new = gr.HTML(js_on_load=SCRIPT)
                others = gr.Button(f"{NUM_NEW} others")
                with_nearest = gr.Checkbox(label="Below each, the training image that is most like it", visible=False)
            with gr.Tab("Your picture"):
                own = gr.File(label="A picture of a fruit")
                seen = gr.HTML(elem_id="seen")
        with gr.Column(scale=4, min_width=300):
            picture = gr.HTML()
            keep = gr.Button(KEEP, variant="primary")
            corners = gr.HTML(js_on_load=SCRIPT)
        with gr.Column(scale=3, min_width=300):
            sliders = [
                gr.Slider(-REACH, REACH, 0, step=0.1, label=f"Direction {number}", info=info, buttons=[])
                for number, info in enumerate([DIRECTIONS, *[None] * (NUM_DIRECTIONS - 1)], start=1)
            ]
            as_found = gr.Button("All directions back to 0")
            line = command_line(*COMMAND)
    with gr.Tab("Walk"):
        about_walk = gr.Markdown(WALKS[0])
        with gr.Row():
            with gr.Column(scale=7, min_width=320):
                way = gr.HTML(js_on_load=SCRIPT)
            with gr.Column(scale=4, min_width=300):
                passed = gr.HTML()
                way_line = command_line(*COMMAND, visible=False)
    shown = [kind, found, *sliders, picture, line]
    new_fruits = [opened, seed, sampler, with_nearest]

    def find(path: str | None) -> gr.Dropdown:
        choices = models.choices(VAE)
        paths = [value for _, value in choices]
        return gr.Dropdown(choices, value=path if path in paths else paths[0])

    def load(path: str) -> VAE:
        if not path:  # none was opened yet, or the visitor's session was dropped
            raise PigmentError("no model is open here; wait until it is, or reload the page")
        return models.load(path, VAE)

    def open_model(path: str) -> tuple[Any, ...]:
        vae = models.load(path, VAE)
        if vae.codes:
            samplers, (drawn, note) = get_args(Sampler), draw_chart(path, vae, models)
            kinds = [*drawn.typical]
        else:
            samplers, note, kinds = ("prior",), NO_CODES, []
        first = Fruit((samplers[-1], 0))
        found = Found(first, first.code(vae))
        return (
            path,
            map_with(path, found),
            note,
            gr.Dropdown(kinds, value=None, visible=len(kinds) > 1),
            gr.Dropdown(samplers, value=samplers[-1]),
            gr.Checkbox(False, visible=bool(kinds)),
            found,
            *(gr.Slider(value=0, visible=bool(vae.codes) and n < vae.latent_dim) for n in range(NUM_DIRECTIONS)),
        )

    def draw_new(path: str, seed: float, sampler: Sampler, with_nearest: bool) -> Iterator[str]:
        vae = load(path)
        if seed % 1 or not 0 <= seed <= LARGEST_SEED:
            raise PigmentError(f"the first seed is {seed:,}; it must be a whole number from 0 to {LARGEST_SEED:,}")
        fruits = [Fruit((sampler, number)) for number in range(int(seed), int(seed) + NUM_NEW)]
        images = decode(torch.stack([fruit.code(vae) for fruit in fruits]), vae)
        captions = [fruit.name for fruit in fruits]
        yield row(images, captions, fruits)
        if with_nearest:
            training = models.data(path, vae.image_size).images("train")
            indices = nearest(images.to(vae.device), in_batches(training, vae.device, "Comparing"))
            pairs = torch.cat([images, training.__getitems__(indices.tolist()) / 255], dim=2)
            yield row(pairs, captions, fruits)

    def show(path: str, found: Found | None, *moves: float) -> tuple[str, str]:
        vae = load(path)
        fruit, code = there(found).moved(moves, vae)
        (image,) = decode(code[None], vae)
        return HTML.saveable(to_pil_image(image), fruit.name, "fruit.png"), command(path, "fruit.png", str(fruit))

    def begin_with(
        path: str, found: Found | None, moves: Sequence[float] = (), kind: str | None = None
    ) -> tuple[Any, ...]:
        moves = (*moves, *[0.0] * NUM_DIRECTIONS)[:NUM_DIRECTIONS]
        return kind, found, *moves, *show(path, found, *moves)

    def chart_of(path: str) -> Chart:
        return draw_chart(path, load(path), models)[0]

    def point_at_map(path: str, place: gr.EventData) -> tuple[Any, ...]:
        return begin_with(path, *chart_of(path).at(place.x, place.y))

    def map_with(path: str, found: Found) -> str:
        vae = load(path)
        if not vae.codes:
            return ""
        drawn = chart_of(path)
        spot = drawn.spot(found.code, vae)
        return HTML.pad(drawn.picture, "Map of fruits: point at one, or beside it", spot, lossy=True)

    def jump_to(path: str, found: Found | None, kind: str | None = None) -> tuple[Any, ...]:
        return map_with(path, there(found)), *begin_with(path, found, kind=kind)

    def choose_kind(path: str, kind: str | None, found: Found | None, *moves: float) -> Any:
        typical = chart_of(path).typical.get(kind or "")
        if not typical or (found and found.fruit == typical.fruit and not any(moves)):
            return gr.skip()  # Gradio's list says so, too, when it only loses focus
        return jump_to(path, typical, kind)

    def choose_new(path: str, chosen: gr.EventData) -> tuple[Any, ...]:
        fruit = Fruit.parse(chosen.what)
        if isinstance(fruit.source, Path):  # a browser can send anything, and only uploads may be read
            raise PigmentError("choose one of the fruits that are shown")
        return jump_to(path, Found(fruit, fruit.code(load(path))))

    def read_own(path: str, file: str) -> tuple[Any, ...]:
        vae = load(path)
        try:
            image = read_image(Path(file), vae)
        except PigmentError as error:  # name the file as its owner does, not by where the upload lies
            raise PigmentError(str(error).replace(file, Path(file).name)) from error
        own = Found(Fruit(Path(Path(file).name)), Fruit(Path(file)).code(vae))
        seen = HTML.figure(to_pil_image(image[0].cpu()), SEEN)
        return seen, *jump_to(path, own)

    def keep_one(path: str, found: Found | None, kept: Kept, *moves: float) -> Any:
        moved, ours = there(found).moved(moves, load(path)), kept.get(path, [])
        if any(moved.code.equal(code) for _, code in ours):
            gr.Info("This fruit is kept already.")
            return gr.skip()
        return lay_out(path, {**kept, path: [*ours, moved][:NUM_CORNERS]})

    def let_go(path: str, kept: Kept, chosen: gr.EventData) -> tuple[Any, ...]:
        number, ours = int(chosen.what), there(kept.get(path))
        return lay_out(path, {**kept, path: ours[:number] + ours[number + 1 :]})

    def lay_out(path: str, all_kept: Kept) -> tuple[Any, ...]:
        vae, kept = load(path), all_kept.get(path, [])
        codes = [code for _, code in kept]
        images = [decode(code[None], vae)[0] for code in codes]
        corners = row(images, [fruit.name for fruit, _ in kept], range(len(kept)), "click to remove")
        away = AWAY if any(ours for model, ours in all_kept.items() if model != path) else ""
        for note in filter(None, (away, kept and NEXT[len(kept) > 1])):
            corners += HTML.note(note)
        free = len(kept) < NUM_CORNERS
        full = gr.Button(KEEP if free else FULL, interactive=free, variant="primary" if free else "secondary")
        if len(kept) < 2:
            return all_kept, full, corners, f"{WALKS[len(kept)]} {away}", "", "", gr.Textbox(visible=False)
        drawn = grid(between(vae, codes, *places(len(kept), COLUMNS)), COLUMNS)
        passed, line = pass_by(path, kept, 0.5, 0.5)
        way = HTML.pad(drawn, "The way between the fruits: point at a place", spot=(0.5, 0.5))
        return all_kept, full, corners, WALKS[len(kept)], way, passed, gr.Textbox(line, visible=True)

    def pass_by(path: str, kept: list[Found], across: float, down: float) -> tuple[str, str]:
        vae = load(path)
        down = down if len(kept) > 2 else 0.0
        (image,) = between(vae, [code for _, code in kept], torch.tensor([across]), torch.tensor([down]))
        at = f"--at={across:g},{down:g}" if down else f"--at={across:g}"
        names = [str(fruit) for fruit, _ in kept]
        *others, last = (fruit.name for fruit, _ in kept)
        if len(kept) > 2:
            caption = f"between {', '.join(others)}, and {last}"
        else:
            caption = f"{across:.0%} of the way from {others[0]} to {last}"
        return HTML.saveable(to_pil_image(image), caption, "between.png"), command(path, "between.png", *names, at)

    def point_at_way(path: str, kept: Kept, place: gr.EventData) -> tuple[str, str]:
        return pass_by(path, there(kept.get(path)), share_at(place.x, COLUMNS), share_at(place.y, COLUMNS))

    walk = [kept, keep, corners, about_walk, way, passed, way_line]
    tab.select(find, path, path)
    model = [opened, chart, about_chart, kind, sampler, with_nearest, found, *sliders]
    opening = path.change(open_model, path, model, show_progress_on=chart)
    opening.success(show, [opened, found, *sliders], [picture, line], **AT_ONCE)
    opening.success(draw_new, new_fruits, new, trigger_mode="always_last")
    opening.success(lay_out, [opened, kept], walk, **EACH)
    others.click(lambda seed: seed + NUM_NEW, seed, seed)
    gr.on([seed.change, sampler.input, with_nearest.input], draw_new, new_fruits, new)
    gr.on([slider.input for slider in sliders], show, [opened, found, *sliders], [picture, line], **AT_ONCE)
    chart.input(point_at_map, opened, shown, **EACH)
    kind.input(choose_kind, [opened, kind, found, *sliders], [chart, *shown])
    gr.on([slider.input for slider in sliders], None, None, kind, js="() => null")  # so that it can be chosen again
    new.click(choose_new, opened, [chart, *shown])
    own.upload(read_own, [opened, own], [seen, chart, *shown], show_progress="hidden")
    own.upload(lambda: None, None, own)  # makes room for the next
    as_found.click(jump_to, [opened, found], [chart, *shown])
    keep.click(keep_one, [opened, found, kept, *sliders], walk, **EACH)
    corners.click(let_go, [opened, kept], walk, concurrency_id="at once")  # one at a time: it is about what is shown
    way.input(point_at_way, [opened, kept], [passed, way_line], **EACH)


@lru_cache(maxsize=4)
def draw_chart(path: str, vae: VAE, models: Models) -> tuple[Chart, str]:
    """Map training images, or new fruits if there are none here, and say what the map shows."""
    try:
        data = models.data(path, vae.image_size)
    except PigmentError as error:
        cause, _, _ = str(error).partition(";")  # the rest is advice for the command line
        like = f", like the {LEARNED} that the model learned from" if Path(path) == FRUIT else ""
        note = f"New fruits{like}. They have no names, as there are no training images here ({escape(cause)})."
        chart = Chart.of_new(NUM_CHARTED, vae)
    else:
        note = "Training images, where their codes lie."
        chart = Chart.of_images(*data.examples("train", NUM_CHARTED), vae)
    return chart, f"{note} Point at one; beside it, you get what the model makes of that place."


def row(images: Iterable[Tensor], titles: Iterable[str], what: Iterable[object], *lines: str) -> str:
    """Return the HTML of a row of fruits, and what each of them sends."""
    fruits = zip(map(to_pil_image, images), titles, what, strict=True)
    return HTML.strip((HTML.tile(image, title, lines, sent) for image, title, sent in fruits), "--least: 90px")


def command(path: str, out: str, *arguments: str) -> str:
    checkpoint = [] if Path(path) == FRUIT else ["--ckpt", path]
    return shlex.join(["python", "-m", "vae", "walk", *arguments, *checkpoint, "--out", out])
