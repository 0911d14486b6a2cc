"""The Runs tab: what all runs reached, and two of them side by side."""

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from atelier.shared import AT_ONCE, EACH, HTML, SCRIPT
from resuming.loggers import sync_command
from study.models import Models
from study.overview import Row, Run, find_runs, headings_of
from system.errors import PigmentError

LARGEST_FIRST = ("PSNR", "Epochs", "When")  # at the first click, so that the best comes first
Order = tuple[str, bool]  # the heading to sort by, and whether the largest comes first


def runs_tab(models: Models) -> None:
    order, chosen = gr.State(("When", True)), gr.State([])  # the latter's names, the last click first
    with gr.Tab("Runs") as tab:
        table = gr.HTML(js_on_load=SCRIPT)
        sides = gr.HTML()

    def find(order: Order, chosen: list[str]) -> tuple[list[Run], tuple[Order, list[str], str]]:
        found, left_out = find_runs(models.runs)
        runs = {str(run.folder.relative_to(models.runs)): run for run in found if run.num_epochs}
        chosen = [name for name in dict.fromkeys([*chosen, *runs]) if name in runs][:2]
        rows = [run.row(models.runs) for run in runs.values()]
        return [runs[name] for name in chosen], (order, chosen, table_of(rows, order, chosen, left_out))

    def show(order: Order, chosen: list[str]) -> tuple[Any, ...]:
        runs, answer = find(order, chosen)
        return *answer, HTML.sides(map(side, answer[1], runs))

    def act(order: Order, chosen: list[str], event: gr.EventData) -> tuple[Any, ...]:
        if event.act == "sort":
            by, downward = order
            downward = not downward if by == event.what else event.what in LARGEST_FIRST
            return *find((event.what, downward), chosen)[1], gr.skip()
        answer = show(order, [event.what, *chosen])
        if event.what not in answer[1]:
            gr.Warning(f"The run {escape(event.what)} is no longer there.")
        return answer

    tab.select(show, [order, chosen], [order, chosen, table, sides], **AT_ONCE)
    table.click(act, [order, chosen], [order, chosen, table, sides], **EACH)


def table_of(rows: Sequence[Row], order: Order, chosen: list[str], left_out: dict[str, str]) -> str:
    """Return the HTML of a table without empty columns; empty cells come last."""
    by, downward = order
    headings = [heading for heading in headings_of(rows) if heading != "Recipe"]  # which stands below the model
    known = sorted((row for row in rows if row[by] is not None), key=lambda row: row[by], reverse=downward)
    rows = [*known, *(row for row in rows if row[by] is None)]
    return HTML.table(rows, headings, by, downward, chosen, left_out)


def side(name: str, run: Run) -> str:
    try:
        config = (run.folder / "config.yaml").read_text()
    except FileNotFoundError:
        raise PigmentError(f"the run {name} was deleted just now; choose a different one") from None
    return HTML.side(name, run, sync_command(run.folder), run.pictures(), config)
