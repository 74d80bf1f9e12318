"""How every figure looks: sizes, fonts, colours of tiers and policies, axes with plain numbers.

What it is: the one place where appearance is decided, so that a tier or a policy keeps its colour over
all figures.  What it is not: a plot.  Each file beside it draws one figure with what is here; nothing
here knows a result frame.
"""

import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from simkv.errors import SimkvError

__all__ = [
    "COLUMN_IN",
    "FAINT",
    "LOOK",
    "PAGE_IN",
    "PAIR",
    "SeriesStyle",
    "legend_above",
    "log_x_axis",
    "new_figure",
    "panel_axes",
    "panel_grid",
    "series_styles",
    "shade",
    "styled",
    "tier_colours",
    "tier_title",
    "tint",
]

COLUMN_IN = 3.4
PAGE_IN = 7.0
FAINT = "#8a8a8a"
_LINE_IN = 0.155
_LEGEND_KEY_IN = 0.38
_TALLEST_IN = 100
_MOST_LABELS = 200
_LEGEND_MARGIN_IN = 0.2
_NOTE_CHARACTERS = 24
_CHARACTERS_PER_IN = 13.5

LOOK: Any = {
    "figure.dpi": 200,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 1.9,
    "legend.columnspacing": 1.2,
    "legend.handletextpad": 0.5,
    "legend.labelspacing": 0.3,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "lines.markeredgewidth": 0.6,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "simkv",
    "text.parse_math": False,
}

# Okabe-Ito without its yellow (too pale for a line), then dark hues of Paul Tol that stay apart from it.
_VERMILLION, _BLUE, _GREEN, _ORANGE = "#D55E00", "#0072B2", "#009E73", "#E69F00"
_PURPLE, _SKY, _BLACK, _GREY = "#CC79A7", "#56B4E9", "#000000", "#7f7f7f"
_WINE, _OLIVE, _INDIGO, _TEAL = "#882255", "#999933", "#332288", "#44AA99"
_PALETTE = (_ORANGE, _SKY, _PURPLE, _GREEN, _BLUE, _VERMILLION, _OLIVE, _WINE, _INDIGO, _TEAL, _GREY, _BLACK)
_MARKERS = ("^", "v", "d", "s", "o", "p", "<", "h", ">", "D", "P", "X", "*")
_MARKER_SIZES = {"P": 6.0, "X": 6.0, "*": 7.5, "^": 5.2, "v": 5.2, "<": 5.2, ">": 5.2, "p": 5.2}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))

_KNOWN_POLICIES = {
    "adaptcache": (_VERMILLION, "o"),
    "hitdensity": (_BLUE, "D"),
    "evicpress": (_GREEN, "s"),
    "impress": (_WINE, "<"),
    "kvserve": (_INDIGO, "h"),
    "recompute": (_BLACK, "X"),
    "prefill": (_BLACK, "X"),
    "offload": (_GREY, "P"),
    "lru": (_GREY, "P"),
    "clairvoyant": (_TEAL, ">"),
    "bound": ("#444444", "*"),
    "kivilru": (_ORANGE, "^"),
    "streamingllmlru": (_PURPLE, "v"),
    "keydifflru": (_SKY, "p"),
    "knormlru": (_OLIVE, "d"),
    "snapkvlru": (_PURPLE, ">"),
}
# Neighbours in a stack differ in brightness too, so that the order survives a greyscale print.
_TIERS = {"dram": _BLUE, "ssd": _ORANGE, "remote": "#AA5A94", "recompute": "#d4d4d4", "hbm": "#0b3c5d", "cxl": _TEAL}
_ACRONYMS = {"dram", "ssd", "hbm", "cxl", "cpu", "gpu", "nvme", "hdd"}
_OTHER_TIERS = (_GREEN, _PURPLE, _OLIVE, _SKY, _WINE, _VERMILLION)

_Arguments = ParamSpec("_Arguments")


@dataclass(frozen=True)
class SeriesStyle:
    """Colour, marker and dash pattern of one labelled series."""

    color: Any
    marker: str
    linestyle: Any

    def line(self) -> dict[str, Any]:
        """Keywords of ``Axes.plot`` for a line with this style's markers."""
        return {
            "color": self.color,
            "linestyle": self.linestyle,
            "marker": self.marker,
            "markersize": _MARKER_SIZES.get(self.marker, 4.5),
            "markeredgecolor": "white",
            "markeredgewidth": 0.4,
        }


# For panels of two series that are no policies.
PAIR = (SeriesStyle(_BLUE, "o", "-"), SeriesStyle(_ORANGE, "^", (0, (4, 1.5))))


def styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Run a figure function under matplotlib's defaults plus ``LOOK``, whatever the user's own settings are."""

    @functools.wraps(draw)
    def under_style(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with matplotlib.style.context(["default", LOOK]):
            return draw(*args, **kwargs)

    return under_style


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty Figure of that size (inches) with its own Agg canvas; pyplot never hears of it.

    Raises SimkvError for more inches than can be drawn.
    """
    _check_height(height_in)
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _check_height(height_in: float) -> None:
    if height_in > _TALLEST_IN:
        raise SimkvError(f"the figure would be {height_in:.0f} inches tall, more than {_TALLEST_IN}; pass fewer runs")


def panel_grid(count: int) -> tuple[int, int]:
    """Rows and columns that ``count`` panels are laid out in: at most three to a row."""
    columns = min(count, 2 if count == 4 else 3)
    return math.ceil(count / columns), columns


def panel_axes(figure: Figure, titles: Sequence[str], xlabel: str, ylabel: str) -> list[Axes]:
    """An axes per title in the grid of ``panel_grid``, sharing both scales and labelled at the outer edge only."""
    count = len(titles)
    rows, columns = panel_grid(count)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for spare in grid.flat[count:]:
        spare.remove()
    for column in range(columns):
        lowest = grid[(count - 1 - column) // columns, column]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel(xlabel)
    for row in range(rows):
        grid[row, 0].set_ylabel(ylabel)
    characters = int(figure.get_figwidth() / columns * 0.85 * _CHARACTERS_PER_IN)
    wrapped = [textwrap.fill(title, characters) for title in titles]
    for axes, title in zip(grid.flat, wrapped, strict=False):
        axes.set_title(title)
    figure.set_figheight(figure.get_figheight() + rows * max(title.count("\n") for title in wrapped) * _LINE_IN)
    return list(grid.flat[:count])


def legend_above(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], note: tuple[Any, str] | None = None
) -> None:
    """Put one legend above all panels, in as many columns as fit, and grow the figure by its height.

    ``note``, a handle and its text, comes last, in short lines that do not cost a column.
    """
    if not labels:
        return
    width, height = figure.get_size_inches()
    labels = [textwrap.fill(label, int(width * _CHARACTERS_PER_IN)) for label in labels]
    if note is not None:
        handles, labels = [*handles, note[0]], [*labels, textwrap.fill(note[1], _NOTE_CHARACTERS)]
    size = float(matplotlib.rcParams["legend.fontsize"])
    needs = [_width_in(label, size) + _LEGEND_KEY_IN for label in labels]
    columns = len(labels)
    while columns > 1 and sum(max(part) for part in np.array_split(needs, columns)) > width - _LEGEND_MARGIN_IN:
        columns -= 1
    columns = math.ceil(len(labels) / math.ceil(len(labels) / columns))
    lines = [label.count("\n") + 1 for label in labels]
    tallest = max(int(part.sum()) for part in np.array_split(lines, columns))
    _check_height(height + tallest * _LINE_IN)
    figure.set_size_inches(width, height + tallest * _LINE_IN)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _width_in(label: str, size: float) -> float:
    lines = [line for line in label.split("\n") if line]
    return max((float(TextPath((0, 0), line, size=size).get_extents().width) / 72 for line in lines), default=0.0)


def series_styles(labels: Iterable[str]) -> dict[str, SeriesStyle]:
    """A style per label: known policies keep their own colour, others take free ones in the order given.

    "AdaptCache (a)" and "AdaptCache (b)" share the hue of "AdaptCache"; they differ in brightness, dashes and marker.

    Raises SimkvError for more than 200 labels.
    """
    labels = list(labels)
    if len(labels) > _MOST_LABELS:
        raise SimkvError(f"{len(labels)} labels to tell apart, more than {_MOST_LABELS}; pass fewer runs")
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_normal(label.split(" (")[0]), []).append(label)
    known = [_KNOWN_POLICIES[name] for name in groups if name in _KNOWN_POLICIES]
    free = [colour for colour in _PALETTE if colour not in {taken for taken, _ in known}] or list(_PALETTE)
    markers = [marker for marker in _MARKERS if marker not in {taken for _, taken in known}] or list(_MARKERS)
    styles: dict[str, SeriesStyle] = {}
    fresh = 0
    for name, members in groups.items():
        if name in _KNOWN_POLICIES:
            (colour, marker), dash = _KNOWN_POLICIES[name], 0
        else:
            colour, marker, dash = free[fresh % len(free)], markers[fresh % len(markers)], fresh // len(free)
            fresh += 1
        for index, label in enumerate(members):
            shape = marker if index == 0 else _MARKERS[(_MARKERS.index(marker) + index) % len(_MARKERS)]
            styles[label] = SeriesStyle(
                _ramp(colour, index, len(members)), shape, _DASHES[(dash + index) % len(_DASHES)]
            )
    return styles


def _ramp(colour: str, index: int, count: int) -> Any:
    """One of ``count`` brightnesses of a colour, dark to light, the colour itself among the darker ones."""
    darkest = 0.0 if count < 3 else 0.35
    lightness = index / max(1, count - 1) * (0.5 + darkest) - darkest
    return tint(colour, lightness) if lightness > 0 else shade(colour, -lightness) if lightness < 0 else colour


def _normal(label: str) -> str:
    return "".join(letter for letter in label.lower() if letter.isalnum())


def tier_colours(tiers: Iterable[str]) -> dict[str, str]:
    """Fill colour of each tier name and of "recompute", the same in every figure."""
    names = list(dict.fromkeys(tiers))
    others = [name for name in names if name not in _TIERS]
    return {
        name: _TIERS[name] if name in _TIERS else _OTHER_TIERS[others.index(name) % len(_OTHER_TIERS)] for name in names
    }


def tier_title(tier: str) -> str:
    """A tier's name as it is printed: "DRAM", "SSD", "remote"."""
    return tier.upper() if tier in _ACRONYMS else tier


def tint(colour: Any, share: float) -> tuple[float, float, float]:
    """``colour`` mixed with white; ``share`` in [0, 1] is how much white."""
    red, green, blue = (value + (1.0 - value) * share for value in to_rgb(colour))
    return red, green, blue


def shade(colour: Any, share: float = 0.5) -> tuple[float, float, float]:
    """``colour`` mixed with black; ``share`` in [0, 1] is how much black."""
    red, green, blue = (value * (1.0 - share) for value in to_rgb(colour))
    return red, green, blue


def log_x_axis(axes: Axes, low: float, high: float) -> None:
    """Make x logarithmic, with plain numbers (0.2, 0.5, 1) as dense as the range ``low`` to ``high`` (> 0) allows."""
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.7 else (1.0, 2.0, 5.0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
