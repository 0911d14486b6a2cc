"""The Runs tab: what all runs reached, and their pictures, two side by side."""

import re
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from atelier.models import FIGURES, Models, Run
from atelier.pictures import img
from resuming.loggers import sync_command
from system.errors import PigmentError, reason

NO_RUNS = "**No runs yet.** `python train.py fit --config configs/vae.yaml` makes one; it appears here by itself."


def runs_tab(models: Models) -> None:
    with gr.Tab("Runs") as tab:
        said = gr.Markdown()
        table = gr.Dataframe(
            headers=["Run", "Model", "Data", "When", "Epochs", *FIGURES],
            datatype="auto",
            label="Runs: a heading has a menu that sorts, a click on a row shows the run",
            interactive=False,
        )
        with gr.Row():
            shown = [side(label) for label in ("A run", "Beside it")]
    (first, *_), _ = shown

    def find(*chosen: str | None) -> tuple[Any, ...]:
        runs, left_out = models.find_runs()
        names = [name_of(run, models) for run in runs]
        notes = [f"`{folder}` is left out: {escape(why)}" for folder, why in left_out.items()]
        if not runs:
            notes.insert(0, NO_RUNS)
        newest = (*names, None, None)[:2]
        choices = [
            gr.Dropdown(names, value=name if name in names else new) for name, new in zip(chosen, newest, strict=True)
        ]
        return "\n\n".join(notes), gr.Dataframe([row(run, models) for run in runs], visible=bool(runs)), *choices

    def show(name: str | None) -> tuple[Any, ...]:
        if name is None:
            return "", "", "", gr.Accordion(visible=False)
        folder = models.runs / name
        try:
            config = (folder / "config.yaml").read_text()
        except OSError as error:
            raise PigmentError(f"the run '{folder}' cannot be shown: {reason(error)}") from error
        where = on_wandb(folder)
        about = f"`{where}`" if where.startswith("wandb") else where
        return about, pictures_of(folder), config, gr.Accordion(visible=True)

    def choose(chosen: gr.SelectData) -> str:
        return chosen.row_value[0]

    tab.select(find, [name for name, *_ in shown], [said, table, *(name for name, *_ in shown)])
    table.select(choose, None, first)
    for name, *outputs in shown:
        name.change(show, name, outputs)


def side(label: str) -> list[Any]:
    with gr.Column(min_width=320):
        name = gr.Dropdown([], label=label)
        about = gr.Markdown()
        pictures = gr.HTML()
        with gr.Accordion("config.yaml", open=False, visible=False) as settings:
            config = gr.Code(language="yaml", show_label=False, interactive=False)
    return [name, about, pictures, config, settings]


def name_of(run: Run, models: Models) -> str:
    return str(run.folder.relative_to(models.runs))


def row(run: Run, models: Models) -> list[Any]:
    figures = [float(f"{run.best[heading]:.4g}") if heading in run.best else None for heading in FIGURES]
    when = datetime.fromtimestamp(run.changed).isoformat(" ", "minutes")
    return [name_of(run, models), run.kind, run.data, when, run.num_epochs, *figures]


def on_wandb(folder: Path) -> str:
    """Return where a run is in Weights & Biases, as it said at its end, or the command that takes it there."""
    if any(folder.glob("wandb/offline-run-*")):
        return sync_command(folder)
    logs = sorted(folder.glob("wandb/run-*/files/output.log"))
    found = re.search(r"https?://\S+/runs/\S+", logs[-1].read_text(errors="replace")) if logs else None
    return found[0] if found else ""


def pictures_of(folder: Path) -> str:
    """Return the HTML of a run's curves, film strips, and latest map; a damaged picture is named instead."""
    shown = []
    newest = sorted((folder / "media" / "latent_map").glob("*.png"))[-1:]
    films = sorted((folder / "media").glob("*.png"), key=lambda path: (path.stem == "curves", path))
    for path in [*films, *newest]:
        what = path.stem.replace("_", " ") if path.parent.name == "media" else "latent map"
        try:
            with Image.open(path) as image:
                shown.append(f"<figure>{img(image, what)}<figcaption>{escape(what)}</figcaption></figure>")
        except (OSError, SyntaxError) as error:  # being written, cut off by a kill, or just deleted
            shown.append(f"<p>{escape(str(path))} cannot be shown: {escape(reason(error))}</p>")
    return f'<div class="films">{"".join(shown)}</div>'
