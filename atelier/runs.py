"""The Runs tab: what all runs reached, and two of them side by side."""

from collections.abc import Iterator
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from atelier.shared import AT_ONCE, EACH, HTML, SCRIPT
from resuming.loggers import sync_command
from study.models import Models
from study.overview import FIGURES, Run, find_run, find_runs
from system.errors import reason

LARGEST_FIRST = ("PSNR", "Epochs", "When")  # at the first click, so that the best comes first
Row = dict[str, Any]  # by heading
Order = tuple[str, bool]  # the heading to sort by, and whether the largest comes first


def runs_tab(models: Models) -> None:
    order, chosen = gr.State(("When", True)), gr.State([])  # the latter's names, the last click first
    with gr.Tab("Runs") as tab:
        table = gr.HTML(js_on_load=SCRIPT)
        sides = gr.HTML()

    def find(order: Order, chosen: list[str]) -> tuple[Order, list[str], str]:
        found, left_out = find_runs(models.runs)
        runs = {str(run.folder.relative_to(models.runs)): run for run in found if run.num_epochs}
        chosen = [name for name in dict.fromkeys([*chosen, *runs]) if name in runs][:2]
        rows = [describe(name, run) for name, run in runs.items()]
        return order, chosen, table_of(rows, order, chosen, left_out)

    def show(order: Order, chosen: list[str]) -> tuple[Any, ...]:
        answer = find(order, chosen)
        return *answer, HTML.sides(side(name, find_run(models.runs / name)) for name in answer[1])

    def act(order: Order, chosen: list[str], event: gr.EventData) -> tuple[Any, ...]:
        if event.act == "sort":
            by, downward = order
            downward = not downward if by == event.what else event.what in LARGEST_FIRST
            return *find((event.what, downward), chosen), gr.skip()
        answer = show(order, [event.what, *chosen])
        if event.what not in answer[1]:
            gr.Warning(f"The run {escape(event.what)} is no longer there.")
        return answer

    tab.select(show, [order, chosen], [order, chosen, table, sides], **AT_ONCE)
    table.click(act, [order, chosen], [order, chosen, table, sides], **EACH)


def describe(name: str, run: Run) -> Row:
    """Return a run's row of the table. What people look for comes first: a phone shows only a few columns."""
    return {
        "Model": f"{run.kind}\n{run.recipe}",
        **{heading: run.best.get(heading) for heading in FIGURES},
        "Epochs": run.num_epochs,
        "Seed": run.seed,
        "Data": run.data,
        "When": datetime.fromtimestamp(run.changed).isoformat(" ", "minutes"),
        "W&B": run.in_wandb,
        "Run": name,
    }


def table_of(rows: list[Row], order: Order, chosen: list[str], left_out: dict[str, str]) -> str:
    """Return the HTML of a table without empty columns; empty cells come last."""
    by, downward = order
    headings = [heading for heading in rows[0] if any(row[heading] is not None for row in rows)] if rows else []
    known = sorted((row for row in rows if row[by] is not None), key=lambda row: row[by], reverse=downward)
    rows = [*known, *(row for row in rows if row[by] is None)]
    return HTML.table(rows, headings, by, downward, chosen, left_out)


def side(name: str, run: Run) -> str:
    config = (run.folder / "config.yaml").read_text()
    return HTML.side(name, run, sync_command(run.folder), pictures_of(run.folder), config)


def pictures_of(folder: Path) -> Iterator[tuple[str, Image.Image | None, str]]:
    """Yield what a run's film strips, curves, and latest map show, and the picture, or why it cannot be shown."""
    newest = sorted((folder / "media" / "latent_map").glob("*.png"))[-1:]
    films = sorted((folder / "media").glob("*.png"), key=lambda path: (path.stem == "curves", path))
    for path in [*films, *newest]:
        what = path.stem if path.parent.name == "media" else path.parent.name
        try:
            with Image.open(path) as image:
                image.load()
                yield what.replace("_", " "), image, ""
        except (OSError, SyntaxError) as error:  # being written, cut off by a kill, or just deleted
            yield str(path), None, reason(error)
