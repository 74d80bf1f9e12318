"""How the command line prints: tables, JSON, numbers with units, and progress on stderr.

What it is: the one place that looks at whether stdout or stderr is a terminal; piped output is plain text without
colours, and nothing is drawn on a piped stderr.  What it is not: a choice of what is printed (the verbs).
"""

import contextlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from simkv.units import format_duration

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "duration",
    "fixed",
    "percent",
    "print_json",
    "print_pairs",
    "print_table",
    "records",
    "report_notes",
    "request_bar",
    "waiting",
]

_LOG = logging.getLogger(__name__)
_NOTHING = "-"
_GAP = "  "
_NARROW = 30


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1, spare: Sequence[str] = ()
) -> None:
    """Columns with a header; the first ``text`` columns are left-justified, the others right-justified.

    On a narrow terminal the longest text is wrapped, and if that is not enough, columns named in ``spare`` are left
    out, the first ones first; if even that is not enough, the lines are simply long.
    """
    if not sys.stdout.isatty():
        _print_plain([headers, *rows], text)
        return
    console = Console(markup=False, highlight=False, emoji=False)
    widths = _widths([headers, *rows])
    longest = max(range(text), key=widths.__getitem__)
    widths[longest] = min(widths[longest], _NARROW)
    kept = _fitting(headers, widths, console.width, spare)
    if not kept:
        _print_plain([headers, *rows], text)
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index in kept:
        table.add_column(headers[index], justify="left" if index < text else "right", no_wrap=index != longest)
    for row in rows:
        table.add_row(*(row[index] for index in kept))
    console.print(table)
    if left_out := [header for index, header in enumerate(headers) if index not in kept]:
        print(f"left out in this narrow terminal: {', '.join(left_out)}")


def _fitting(headers: Sequence[str], widths: Sequence[int], room: int, spare: Sequence[str]) -> list[int]:
    """Indices of the columns to show: all, or without as many of ``spare`` as it takes; none if they never fit."""
    kept = list(range(len(headers)))
    for header in [*spare, None]:
        if sum(widths[index] + len(_GAP) for index in kept) - len(_GAP) <= room:
            return kept
        if header is not None:
            kept.remove(headers.index(header))
    return []


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values, one pair per line."""
    _print_plain(pairs, 2)


def _print_plain(rows: Sequence[Sequence[str]], text: int) -> None:
    widths = _widths(rows)
    for row in rows:
        cells = [
            cell.ljust(width) if index < text else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(_GAP.join(cells).rstrip())


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def print_json(value: Any) -> None:
    """``value`` as JSON; NaN, infinity and missing values become null."""
    print(json.dumps(_jsonable(value), indent=1, allow_nan=False))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def records(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows of a table as dicts by column, None where a value is missing."""
    return [
        {str(key): value for key, value in row.items()}
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    ]


def fixed(value: float | None, places: int = 3) -> str:
    """A number with so many decimals, or a dash when there is none."""
    return _NOTHING if value is None or not math.isfinite(value) else f"{value:,.{places}f}"


def percent(share: float | None) -> str:
    """A share in percent with one decimal, without the sign."""
    return fixed(None if share is None else 100 * share, 1)


def duration(seconds: float) -> str:
    """Seconds with the unit that reads best, or "unknown" for NaN."""
    if math.isnan(seconds):
        return "unknown"
    return format_duration(seconds) if seconds else "0 s"


def report_notes(meta: Mapping[str, Any]) -> None:
    """Log what a trace says about itself: counts of odd or skipped records as one warning, the rest as information."""
    notes = [str(note) for note in meta.get("notes", [])]
    counts = [note for note in notes if note[:1].isdigit()]
    if counts:
        _LOG.warning("%s: %s", meta.get("name", "trace"), "; ".join(counts))
    for note in notes:
        if note not in counts:
            _LOG.info("%s: %s", meta.get("name", "trace"), note)
    for step in meta.get("transforms", []):
        _LOG.info("%s: changed by %s", meta.get("name", "trace"), step)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show ``what`` with a spinner on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True, markup=False).status(what):
        yield


@contextlib.contextmanager
def request_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal; the callback takes (finished, total) requests."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
