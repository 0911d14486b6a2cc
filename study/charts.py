"""Curves as SVG that shows well on both light and dark pages."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.runs import Curve

INK = "#010203"  # a placeholder for the color of the page's text
DARK = "<style>svg{color:#1b1b1b}@media(prefers-color-scheme:dark){svg{color:#e4e4e4}}</style>"
COLORS = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]


def curves_svg(curves: Mapping[str, list[Curve]], title: str, width: float = 4.5) -> str:
    """Draw every curve over a logarithmic axis, as SVG; curves with the same name share a color."""
    ink: Any = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context({**ink, "svg.hashsalt": title, "legend.framealpha": 0}):
        figure = Figure(figsize=(width, 0.7 * width), layout="constrained")
        axes = figure.subplots()
        for number, (name, several) in enumerate(curves.items()):
            for index, curve in enumerate(several):
                label = name if index == 0 else None
                axes.plot(*zip(*curve, strict=True), color=COLORS[number % len(COLORS)], marker=".", label=label)
        axes.set(title=title, xlabel="epoch", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        svg = StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    text = svg.getvalue().replace(INK, "currentColor")
    return text[text.index("<svg") :].replace(">", f">{DARK}", 1)
