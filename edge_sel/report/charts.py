"""Charts as SVG in the colours of the page: matplotlib draws, and its colours become CSS variables.

So a chart is dark where the page is, and its text stays text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from edge_sel.errors import SetupError

INK, MUTED, GRID, PAPER = "#000101", "#000102", "#000103", "#000104"
SERIES = tuple(f"#0002{number:02x}" for number in range(10))
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
_NAMES |= {colour: f"s{number}" for number, colour in enumerate(SERIES)}
_STYLE = {
    "svg.fonttype": "none", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.facecolor": "none", "figure.facecolor": "none",
    "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "grid.color": GRID, "grid.linewidth": 0.6, "legend.frameon": False, "axes.axisbelow": True, "text.usetex": False,
    "text.parse_math": False, "axes.unicode_minus": True, "lines.linewidth": 1.8, "path.simplify": True,
}  # fmt: skip

Paint = Callable[..., None]
"""Is given the axes."""


def require_matplotlib() -> None:
    """Draw nothing yet.

    Raises:
        SetupError: what the report needs is missing.
    """
    try:
        import jinja2
        import matplotlib
    except ImportError as error:
        raise SetupError(f"a report needs {error.name}", fix="pip install 'edge-sel[report]'") from error
    except OSError as error:  # it wants a folder for its cache, and found none
        raise SetupError(f"matplotlib does not start ({error})", fix="set MPLCONFIGDIR to a folder of yours") from error
    del jinja2, matplotlib


class Charts:
    """Draws; every chart of a page has ids of its own."""

    def __init__(self) -> None:
        self._numbers = count()

    def draw(
        self, paint: Paint, *, size: tuple[float, float] = (5.2, 3.0), panels: int = 1, below: bool = False
    ) -> str:
        """The SVG of a figure.

        Args:
            paint: is given as many axes as there are panels.
            size: in inches at 72 pixels; the page scales it.
            panels: side by side, or one below the other.
            below: the latter; they share the horizontal axis.
        """
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        salt = f"edge-sel-{next(self._numbers)}"
        with rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
            # The text stays text: the reader's browser has the characters that matplotlib's font lacks.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasSVG(figure)
            shape = (panels, 1) if below else (1, panels)
            axes = figure.subplots(*shape, squeeze=False, sharex=below).flat
            paint(*axes)
            found = io.StringIO()
            figure.savefig(found, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        return _plain(found.getvalue(), salt)


def _plain(svg: str, salt: str) -> str:
    """The element alone, with the page's colours and fonts, and no ids that nothing refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    used = {*re.findall(r'href="#([^"]+)"', svg), *re.findall(r"url\(#([^)]+)\)", svg)}
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{salt}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{salt}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{salt}-\1)", svg)
    svg = re.sub(r"#[0-9a-f]{6}", lambda found: f"var(--{_NAMES[found[0]]})" if found[0] in _NAMES else found[0], svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r"(\d\.\d{2})\d+", r"\1", svg)
    return re.sub(r"\n\s*", "\n", svg).strip().replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def quiet_grid(axes: Any, axis: str) -> None:
    """Lines behind the marks, across one axis alone."""
    axes.grid(visible=True, axis=axis)
    axes.tick_params(length=0)


def short(name: str, most: int = 22) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def percent_axis(axis: Any) -> None:
    """Ticks in per cent, of values 0..1."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def plain_ticks(axis: Any) -> None:
    """Of a logarithmic axis: 0.1, 1, 10."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def epoch_axis(axes: Any, epochs: Sequence[int]) -> None:
    """Ticks at whole epochs that were run, and a single epoch's bar no wider than others."""
    from matplotlib.ticker import MaxNLocator

    first, last = min(epochs), max(epochs)
    if last - first < 8:
        axes.set_xticks(range(first, last + 1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    margin = max(0.6, (4 - (last - first)) / 2)
    axes.set_xlim(first - margin, last + margin)
    axes.set_xlabel("epoch")


def stacked_bars(
    axes: Any, epochs: Sequence[int], parts: Sequence[tuple[str, str, Sequence[float]]], unit: str
) -> None:
    """A bar for each epoch, of parts with their names and colours."""
    below = [0.0] * len(epochs)
    for name, colour, heights in parts:
        axes.bar(epochs, heights, bottom=below, color=colour, label=name, width=0.7)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_ylabel(unit)
    axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    epoch_axis(axes, epochs)
    quiet_grid(axes, "y")


def named_bars(
    axes: Any, names: Sequence[str], values: Sequence[float], colours: Sequence[str] | str, unit: str
) -> None:
    """A bar for each name, from the top down."""
    rows = range(len(names))
    axes.barh(rows, values, color=colours, height=0.7)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    quiet_grid(axes, "x")
