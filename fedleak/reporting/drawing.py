"""How figures are drawn: SVG by matplotlib, as it stands in a page.

Some ten kilobytes each, in a page that needs neither scripts nor a network. A plotting
library in the page itself would add megabytes and ask for scripts to be allowed.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedleak",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}

_FEWEST_POINTS, _FEWEST_PLACES = 6, 3


@dataclass(frozen=True)
class Figure:
    """A drawing as it stands in the page.

    Attributes:
        title: What is drawn.
        source: An SVG data URI.
        alt: The drawing in words.
        left_out: Series that there was no room for.
    """

    title: str
    source: str
    alt: str
    left_out: int = 0


def smoothed(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """The LOWESS curve through points (Cleveland 1979), with statsmodels' default span of 2/3.

    Returns:
        Its places, ascending, and its heights; nothing for fewer than six points, or for points
        at fewer than three places: a curve through those says nothing that they do not say.
    """
    if len(xs) < _FEWEST_POINTS or len(set(xs)) < _FEWEST_PLACES:
        return [], []
    # It takes a second to import.
    from statsmodels.nonparametric.smoothers_lowess import lowess

    curve = dict(lowess(ys, xs).tolist())
    return list(curve), list(curve.values())


def logarithmic(axes: Axes, side: Literal["x", "y"]) -> None:
    """Give an axis a logarithmic scale, with ticks that need no TeX: ``1e-08``."""
    from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter

    scale, axis = (axes.set_xscale, axes.xaxis) if side == "x" else (axes.set_yscale, axes.yaxis)
    scale("log")
    # Within one decade powers of ten alone would be a single tick.
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(NullFormatter())


class Drawing:
    """Axes to draw on and, after that, their SVG."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.source = ""


@contextmanager
def drawing() -> Iterator[Drawing]:
    """Draw on the axes that this gives; a legend is added where anything has a label.

    Afterwards ``source`` is an SVG data URI.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(7.2, 3.8), layout="constrained")
        made = Drawing(canvas.add_subplot())
        yield made
        handles, labels = made.axes.get_legend_handles_labels()
        if any(labels):
            made.axes.legend(handles, labels, fontsize="small")
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    made.source = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
