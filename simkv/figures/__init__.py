"""Figures of results in the style of a paper: functions from result frames to a matplotlib Figure.

What it is: the list of figures and the way to a file.  What it is not: a reader of result folders, or a choice of
runs; whoever calls passes frames, as ``Result`` and the sweep's table hold them.

    figure = delay_quality(table)              # the summary table of a sweep
    save_figure(figure, "delay-quality.pdf")   # PNG, PDF or SVG; equal frames give equal bytes

One file per figure (``delay_quality.py``, ``hit_share.py`` ...).  They share ``tables.py`` (points of a summary
table), ``runs.py`` (frames of single runs), ``placing.py`` (text where nothing else is), ``style.py`` (all
appearance) and ``saving.py``.  The two of ``validation.py`` are drawn by ``simkv validate`` itself, not by ``plot``.
"""

from collections.abc import Callable

from matplotlib.figure import Figure

from simkv.errors import SimkvError, unknown_name
from simkv.figures.capacity_sweep import capacity_sweep
from simkv.figures.decisions import decisions
from simkv.figures.delay_quality import delay_quality
from simkv.figures.goodput import goodput
from simkv.figures.hit_share import hit_share
from simkv.figures.occupancy import occupancy
from simkv.figures.saving import save_figure
from simkv.figures.trace_stats import trace_stats
from simkv.figures.ttft_cdf import ttft_cdf
from simkv.figures.validation import validation_cdf, validation_scatter

__all__ = [
    "FIGURES",
    "FIGURE_INPUTS",
    "capacity_sweep",
    "decisions",
    "delay_quality",
    "find_figure",
    "goodput",
    "hit_share",
    "occupancy",
    "save_figure",
    "trace_stats",
    "ttft_cdf",
    "validation_cdf",
    "validation_scatter",
]

FIGURES: dict[str, Callable[..., Figure]] = {
    "delay-quality": delay_quality,
    "hit-share": hit_share,
    "capacity-sweep": capacity_sweep,
    "goodput": goodput,
    "ttft-cdf": ttft_cdf,
    "decisions": decisions,
    "occupancy": occupancy,
    "trace-stats": trace_stats,
}

# What the one positional argument of each figure is: the summary table of a sweep, {label: requests frame},
# {label: occupancy frame}, or the statistics of a trace.
FIGURE_INPUTS: dict[str, str] = {
    "delay-quality": "summary",
    "hit-share": "summary",
    "capacity-sweep": "summary",
    "goodput": "summary",
    "ttft-cdf": "requests",
    "decisions": "requests",
    "occupancy": "occupancy",
    "trace-stats": "trace",
}


def find_figure(name: str) -> Callable[..., Figure]:
    """The figure function of that name.  Raises SimkvError naming the nearest known figure."""
    if name not in FIGURES:
        raise SimkvError(unknown_name("figure", name, FIGURES))
    return FIGURES[name]
