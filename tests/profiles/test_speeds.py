"""Measured speeds in a profile: the CSV file, points beside lines, and what the simulator makes of both."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from simkv.errors import ProfileError
from simkv.profile_speeds import SPEED_COLUMNS, parse_speeds
from simkv.profile_types import Line, PrefillFit, Profile, Variant
from simkv.profiles import load_profile, save_profile
from simkv.simulator.costs import build_costs
from simkv.traces.transform import assign_tasks
from simkv.units import seconds_to_ns
from tests.conftest import make_trace
from tests.profiles.test_files import same

KIVI = Variant("kivi", "2")
ROW = ["decode", "kivi:2", 512, 0, 1, 1000, 0.001, 0.002, 5, "reference"]
STEP = ["step", "", 512, 0, 4, 0, 0.01, 0.02, 5, "reference"]


@pytest.fixture
def measured() -> Profile:
    """A shipped profile with measured rows, and lines and a prefill that keep points."""
    profile = load_profile("llama-3.1-8b-a100")
    origin = {"status": "measured", "source": "test"}
    points = ((512, 0.001), (1024, 0.003))
    return replace(
        profile,
        decode_lines={**profile.decode_lines, KIVI: Line(1e-6, 0.0005, points)},
        prefill=PrefillFit(0.01, 1e-4, points=((512, 0.05), (1024, 0.2))),
        speed_rows=pd.DataFrame([ROW, STEP], columns=list(SPEED_COLUMNS)),
        provenance={**profile.provenance, "numbers": {**profile.provenance["numbers"], "speeds": origin}},
    )


def test_round_trip(measured: Profile, tmp_path: Path) -> None:
    """Rows and points come back exactly, and the rows are part of the profile's hash."""
    save_profile(measured, tmp_path / "mine")
    found = load_profile(tmp_path / "mine")
    same(measured, found)
    assert ((4, 512, 0.01),) == found.decode_steps
    text = (tmp_path / "mine" / "speeds.csv").read_text(encoding="utf-8").replace("0.002", "0.003")
    (tmp_path / "mine" / "speeds.csv").write_text(text, encoding="utf-8")
    assert found.sha256 != load_profile(tmp_path / "mine").sha256


def test_a_profile_without_rows_has_no_steps() -> None:
    """As published ones."""
    assert () == load_profile("llama-3.1-8b-a100").decode_steps


def test_whole_contexts_take_interpolated_times(measured: Profile) -> None:
    """A block that is a whole context decodes in the time between the points, without a fixed part."""
    trace = make_trace([[0], [1]], tokens=768)
    costs = build_costs(assign_tasks(trace, measured.tasks[0], 0), measured, measured.tiers)
    index = costs.variants.index("kivi:2")
    assert [(0, [2_000_000])] * 2 == [(costs.decode_fixed[t][index], costs.decode[t][index]) for t in (0, 1)]
    assert seconds_to_ns(0.01 + 0.125) == costs.prefill_ns(0, 768)


def test_blocks_that_add_up_take_the_line(measured: Profile) -> None:
    """Several blocks of one load cost fixed part and slope, as points do not add up."""
    trace = make_trace([[0, 1], [2, 3]], tokens=768)
    costs = build_costs(assign_tasks(trace, measured.tasks[0], 0), measured, measured.tiers)
    index = costs.variants.index("kivi:2")
    assert (500_000, [768_000]) == (costs.decode_fixed[0][index], costs.decode[0][index])


def _bytes(*rows: list[Any], header: tuple[str, ...] = SPEED_COLUMNS) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (_bytes(header=SPEED_COLUMNS[1:]), "line 1: the header must be what,variant"),
        (_bytes(["decod", *ROW[1:]]), "did you mean 'decode'"),
        (_bytes(["decode", "kivi:3", *ROW[2:]]), "unknown variant 'kivi:3'"),
        (_bytes(ROW[:-1]), "9 fields; the header has 10"),
        (_bytes(ROW, ROW), "line 3: a second row of the same measurement"),
        (_bytes([*ROW[:2], -1, *ROW[3:]]), "tokens is '-1'; it must be a whole number"),
        (_bytes([*ROW[:2], "9" * 5000, *ROW[3:]]), "it must be a whole number"),
        (_bytes([*ROW[:6], "nan", *ROW[7:]]), "seconds is 'nan'; it must be a number of at least 0"),
        (_bytes([*ROW[:6], "x", *ROW[7:]]), "seconds is 'x'"),
        (_bytes([*ROW[:-1], "quick"]), "unknown implementation 'quick'"),
        (b"\xff\xfe", "not a CSV file"),
        (b'"what', "the header must be|not a CSV file"),
    ],
)
def test_damaged_rows_are_one_line(raw: bytes, complaint: str) -> None:
    """Naming the file, the line and what is allowed."""
    with pytest.raises(ProfileError, match=complaint) as caught:
        parse_speeds(Path("speeds.csv"), raw, ["raw", "kivi:2"])
    assert "speeds.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("points", ["[]", "[[1, 2, 3]]", "[[2, 0.1], [1, 0.2]]", "[[1, -0.1]]", "[[1.5, 0.1]]", "3"])
def test_points_must_rise(points: str, measured: Profile, tmp_path: Path) -> None:
    """Anything else beside a line is refused."""
    save_profile(measured, tmp_path / "mine")
    path = tmp_path / "mine" / "profile.toml"
    text = path.read_text(encoding="utf-8")
    assert "points = [[512, 0.001], [1024, 0.003]]" in text
    path.write_text(text.replace("points = [[512, 0.001], [1024, 0.003]]", f"points = {points}"), encoding="utf-8")
    with pytest.raises(ProfileError, match=r"points is .* it must be a list of \[tokens, seconds\], rising"):
        load_profile(tmp_path / "mine")
