"""The Runs tab: what all runs reached, and two of them side by side."""

from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from atelier.events import AT_ONCE, EACH
from atelier.pictures import SCRIPT, img
from resuming.loggers import sync_command
from study.models import Models
from study.overview import FIGURES, Run, find_run, find_runs
from system.errors import reason

NO_RUNS = (
    "<b>No runs yet.</b> <code>python train.py fit --config configs/vae.yaml</code> makes one; it appears here after "
    "its first epoch."
)
HOW_TO = "Click a heading to sort by it, and a row to see that run beside the one you chose before."
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
        notes = [f"<code>{escape(folder)}</code> is left out: {escape(why)}" for folder, why in left_out.items()]
        notes.append(HOW_TO if runs else NO_RUNS)
        rows = [describe(name, run) for name, run in runs.items()]
        return order, chosen, f"<p>{'<br>'.join(notes)}</p>{table_of(rows, order, chosen) if rows else ''}"

    def show(order: Order, chosen: list[str]) -> tuple[Any, ...]:
        answer = find(order, chosen)
        both = (side(name, find_run(models.runs / name)) for name in answer[1])
        return *answer, f"<div class='sides'>{''.join(both)}</div>"

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


def table_of(rows: list[Row], order: Order, chosen: list[str]) -> str:
    """Return the HTML of a table that is sorted by a click on a heading; empty cells come last."""
    by, downward = order
    known = sorted((row for row in rows if row[by] is not None), key=lambda row: row[by], reverse=downward)
    lines = ["<div class='runs'><table><thead><tr>"]
    headings = [heading for heading in rows[0] if any(row[heading] is not None for row in rows)]
    for heading in headings:
        sorting = ("descending" if downward else "ascending") if heading == by else "none"
        button = f"<button data-act='sort' data-what='{escape(heading)}'>{escape(heading)}</button>"
        lines.append(f"<th aria-sort='{sorting}'>{button}</th>")
    lines.append("</tr></thead><tbody>")
    for row in [*known, *(row for row in rows if row[by] is None)]:
        first, *others = (cell(row[heading], heading) for heading in headings)
        name = row["Run"]
        lines.append(f"<tr data-act='show' data-what='{escape(name)}' aria-current='{str(name in chosen).lower()}'>")
        lines += [f"<td><button>{first}</button></td>", *(f"<td>{other}</td>" for other in others), "</tr>"]
    return "".join([*lines, "</tbody></table></div>"])


def cell(value: Any, heading: str) -> str:
    if value is None:
        return ""
    if heading == "W&B" and "://" in value:
        return f"<a href='{escape(value)}' target='_blank'>W&amp;B</a>"
    title, *more = escape(f"{value:.4g}" if isinstance(value, float) else str(value)).split("\n")
    return "".join([title, *(f"<small>{line}</small>" for line in more)])


def side(name: str, run: Run) -> str:
    """Return the HTML of a run: its kind, where it is in W&B, its film strips, curves, latest map, and config."""
    if run.in_wandb is None:
        about = "Not logged in Weights &amp; Biases."
    elif run.in_wandb == "offline":
        about = f"Logged offline. To upload it to Weights &amp; Biases: <code>{escape(sync_command(run.folder))}</code>"
    elif run.in_wandb == "online":
        about = "Logged in Weights &amp; Biases; the run says its address when it ends."
    else:
        address = escape(run.in_wandb)
        about = f"In Weights &amp; Biases: <a href='{address}' target='_blank'>{address}</a>"
    kind, config = escape(f"{run.kind}, {run.recipe}"), escape((run.folder / "config.yaml").read_text())
    return (
        f"<section><h3>{escape(name)}</h3><p>{kind}. {about}</p><div>{pictures_of(run.folder)}</div>"
        f"<details><summary>config.yaml</summary><pre>{config}</pre></details></section>"
    )


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
    return "".join(shown)
