"""The dashboard Colorizers, drawn by Matplotlib for docs/runs.md: python -m dashboard.drawing FOLDERS... --out OUT.jpg

A folder is named after a model, and holds a run of ``fit`` and one of ``test``.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from cli.arguments import ArgumentParser, local_path
from dashboard.panels import COLORIZERS, EPOCH, STEP, Bars, Curves, Dashboard, Media
from resuming.loggers import read_metrics
from system.atomic import make_folders
from system.command import Command

AXES = {STEP: "step", EPOCH: "epoch"}  # the names in metrics.csv of what W&B calls so
LINES = ("-", "--", ":")  # of the metrics in a panel
Rows = dict[str, list[dict[str, str]]]  # what was logged, by model


def draw(dashboard: Dashboard, folders: list[Path]) -> Figure:
    """Draw a page: a color for each model, and a kind of line for each metric."""
    logged = {
        folder.name: [row for path in sorted(folder.rglob("metrics.csv")) for row in read_metrics(path)]
        for folder in folders
    }
    pictures = {f"film/{path.stem}": path for folder in folders for path in folder.glob("*/media/*.png")}
    pictures |= {path.parent.name: path for folder in folders for path in sorted(folder.glob("*/media/*/*.png"))}
    heights = [math.ceil(len(section.panels) / section.columns) for section in dashboard.sections]
    figure = Figure(figsize=(13, 2.6 * sum(heights)), dpi=60, layout="constrained")
    parts = figure.subfigures(len(heights), height_ratios=heights, squeeze=False).flat
    for part, section, num_rows in zip(parts, dashboard.sections, heights, strict=True):
        part.suptitle(section.title, x=0.01, horizontalalignment="left", fontweight="bold")
        places = part.subplots(num_rows, section.columns, squeeze=False).flat
        for place in places[len(section.panels) :]:
            place.set_axis_off()
        for place, panel in zip(places, section.panels, strict=False):
            place.set_title(panel.title)
            if isinstance(panel, Media):
                for name in pictures.keys() & panel.metrics:
                    place.imshow(Image.open(pictures[name]))
                    place.set_axis_off()
            elif isinstance(panel, Bars):
                draw_bars(place, panel, logged)
            else:
                draw_curves(place, panel, logged)
            if not place.has_data():
                place.clear()
                place.set(title=panel.title, xticks=[], yticks=[])
                place.text(0.5, 0.5, "not in these runs' folders", horizontalalignment="center")
    handles = [Line2D([], [], color=f"C{number}", label=model) for number, model in enumerate(logged)]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return figure


def draw_curves(axes: Axes, panel: Curves, logged: Rows) -> None:
    axis = AXES.get(panel.x, "")
    for metric, line in zip(panel.metrics, LINES, strict=False):
        for number, rows in enumerate(logged.values()):
            points = [(float(row[axis]), float(row[metric])) for row in rows if metric in row and axis in row]
            axes.plot(*zip(*points, strict=True), color=f"C{number}", linestyle=line, label=metric)
    axes.set(xlabel=panel.x, yscale="log" if panel.log else "linear")
    if len(panel.metrics) > 1:
        axes.legend(handles={line.get_label(): line for line in axes.lines}.values(), fontsize="small")


def draw_bars(axes: Axes, panel: Bars, logged: Rows) -> None:
    height = 0.8 / len(logged)
    for place, metric in enumerate(panel.metrics):
        for number, rows in enumerate(logged.values()):
            if values := [float(row[metric]) for row in rows if metric in row]:
                axes.barh(place + number * height, statistics.mean(values), height, color=f"C{number}")
    axes.set_yticks(range(len(panel.metrics)), panel.metrics)
    axes.invert_yaxis()


def main(args: Sequence[str] | None = None) -> int:
    parser = ArgumentParser("python -m dashboard.drawing", description=__doc__)
    parser.add_argument("folders", nargs="+", type=local_path)
    parser.add_argument("--out", type=local_path, required=True)
    with Command() as command:
        options = parser.parse_args(args)
        make_folders([options.out])
        draw(COLORIZERS, options.folders).savefig(options.out, pil_kwargs={"quality": 75, "optimize": True})
    return command.status


if __name__ == "__main__":
    sys.exit(main())
