"""Line charts as inline SVG, which follow the page's colours and fonts."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

__all__ = ["COLOURS", "POINTS", "Line", "line_chart"]

COLOURS = {
    "ink": "#010203",
    "faint": "#010204",
    "dense": "#010205",
    "sparse": "#010206",
    "third": "#010207",
    "fourth": "#010208",
}
"""Names of colours; the page gives them their value in a CSS variable of that name (``--dense``)."""

POINTS = 120
"""A line with more is shown as means over so many stretches, with their range behind."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: What the legend calls it.
        x: Positions, increasing.
        y: Values; ``None`` or NaN leaves a gap.
        colour: One of `COLOURS`.
        dashed: For what was asked rather than measured.
        stairs: Values hold until the next position.
        low: Lower ends of an interval around each value, if any.
        high: Upper ends.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str = "sparse"
    dashed: bool = False
    stairs: bool = False
    low: Sequence[float | None] = field(default=())
    high: Sequence[float | None] = field(default=())


def line_chart(lines: Sequence[Line], x_label: str, percent: bool = False, logarithmic: bool = False) -> str:
    """Return a chart as an ``<svg>`` element without addresses, for use inside HTML.

    Args:
        lines: What is drawn, first line on top.
        x_label: Name and unit of the horizontal axis.
        percent: The values are shares in [0, 1] and shown in percent from 0 to 100.
        logarithmic: The values are positive and shown on a logarithmic axis.
    """
    settings: Any = {
        "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and takes the page's font
        "svg.hashsalt": "|".join(line.label for line in lines),
        "text.parse_math": False,  # a name is a name, whatever signs it holds
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": COLOURS["faint"],
        "axes.labelcolor": COLOURS["ink"],
        "text.color": COLOURS["ink"],
        "xtick.color": COLOURS["faint"],
        "ytick.color": COLOURS["faint"],
        "xtick.labelcolor": COLOURS["ink"],
        "ytick.labelcolor": COLOURS["ink"],
        "grid.color": COLOURS["faint"],
        "grid.alpha": 0.35,
        "grid.linewidth": 0.5,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.2, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True, axis="y")
        axes.margins(x=0.01)
        for order, line in enumerate(lines):
            _draw(axes, line, order=len(lines) - order)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        if percent:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the usual one writes in TeX
            axes.yaxis.set_minor_formatter(NullFormatter())
        if len(lines) > 1:
            place: dict[str, Any] = {
                "loc": "lower left",
                "bbox_to_anchor": (0.0, 1.0),
                "ncols": 2,
                "borderaxespad": 0.2,
            }
            axes.legend(frameon=False, fontsize=8, handlelength=1.6, columnspacing=1.2, **place)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return _inline(drawn.getvalue())


def _draw(axes: Axes, line: Line, order: int) -> None:
    x = np.asarray(line.x, dtype=float)
    y = _numbers(line.y)
    low, high = _numbers(line.low), _numbers(line.high)
    if len(x) > POINTS:
        x, y, low, high = _condensed(x, y)
    colour = COLOURS[line.colour]
    if len(low) == len(x):
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=order)
    axes.plot(
        x,
        y,
        label=line.label,
        color=colour,
        linewidth=1.6,
        linestyle="--" if line.dashed else "-",
        drawstyle="steps-post" if line.stairs else "default",
        marker="o" if len(x) <= 40 and not line.dashed else "",
        markersize=3,
        zorder=10 + order,
    )


def _condensed(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return positions, means, minima and maxima over `POINTS` stretches of a long line."""
    parts = [part for part in np.array_split(np.arange(len(x)), POINTS) if np.isfinite(y[part]).any()]
    means = [(x[part].mean(), np.nanmean(y[part]), np.nanmin(y[part]), np.nanmax(y[part])) for part in parts]
    columns = np.array(means, dtype=float).reshape(-1, 4).T
    return columns[0], columns[1], columns[2], columns[3]


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _inline(svg: str) -> str:
    """Return the ``<svg>`` element alone, without addresses, in the size and the colours of its page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'^<svg([^>]*?)\s+width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?)\s+height="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?)\s+version="[^"]*"', r'<svg\1 role="img"', svg)
    svg = re.sub(r"<style.*?</style>|font-family: [^;\"]*;? ?", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("<defs> </defs>", "")
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()
