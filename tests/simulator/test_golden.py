"""Back test: fixed runs give the figures that were stored, to the last nanosecond and byte."""

import csv
from collections.abc import Iterator

import pytest

from simkv.traces.trace import Trace
from tests.golden.regenerate import FOLDER, RUNS, figures, read_trace, replay


@pytest.fixture(scope="module")
def trace() -> Trace:
    """The stored trace."""
    return read_trace()


def stored_figures() -> Iterator[tuple[str, str, int]]:
    """(run, figure, value) as stored."""
    with (FOLDER / "runs.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            yield line["run"], line["figure"], int(line["value"])


@pytest.mark.parametrize("name", list(RUNS))
def test_figures_are_those_stored(trace: Trace, name: str) -> None:
    """Sums of times, hits, moves and bytes are unchanged; if they should change, see ``tests/golden/regenerate.py``."""
    expected = {figure: value for run, figure, value in stored_figures() if run == name}
    assert expected == figures(replay(trace, name))


def test_stored_runs_are_telling(trace: Trace) -> None:
    """The runs differ from each other, and among them everything happens: moves of all kinds, refusals, duplicates."""
    found: dict[str, dict[str, int]] = {}
    for run, figure, value in stored_figures():
        found.setdefault(run, {})[figure] = value
    assert set(RUNS) == set(found)
    assert len({run["ttft_ns"] for run in found.values()}) == len(RUNS)
    assert [] == [figure for figure in found["lru"] if all(run[figure] == 0 for run in found.values())]
    assert 200 == len(trace)
