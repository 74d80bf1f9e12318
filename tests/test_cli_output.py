"""How the command line prints: exact text when piped, tables that fit a terminal, JSON without NaN."""

import fcntl
import json
import math
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simkv.cli_output import duration, fixed, percent, print_json, print_table, records
from simkv.cli_results import print_comparison

ROOT = Path(__file__).resolve().parents[1]


def in_terminal(columns: int, *args: str) -> str:
    """Output of one command in a terminal of that width, colours included."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "", "COLUMNS": "", "LINES": ""}
    command = [sys.executable, "-m", "simkv", *args]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=follower, stderr=follower) as ran:
        os.close(follower)
        parts = []
        try:
            while part := os.read(leader, 1 << 16):
                parts.append(part)
        except OSError:  # Linux tells the end of a terminal so
            pass
    os.close(leader)
    assert 0 == ran.returncode
    return b"".join(parts).decode("utf-8").replace("\r\n", "\n")


def test_piped_table_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Text to the left, numbers to the right, two spaces between, none at the end."""
    print_table(["policy", "setting", "TTFT (s)"], [["lru", "", "1.5"], ["adaptcache", "[x]", "10.25"]], text=2)
    expected = "policy      setting  TTFT (s)\nlru                       1.5\nadaptcache  [x]         10.25\n"
    assert expected == capsys.readouterr().out


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of numpy become plain ones; NaN, infinity and missing values become null."""
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan], "c": pd.array([None, 7], dtype="Int64")})
    print_json([*records(frame), {"d": np.int64(3), "e": float("inf"), "f": (np.float64(2.5), None)}])
    expected = [{"a": 1, "b": 0.5, "c": None}, {"a": 2, "b": None, "c": 7}, {"d": 3, "e": None, "f": [2.5, None]}]
    assert expected == json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_numbers_have_units_or_a_dash() -> None:
    """Durations read with their unit, zero and the unknown included; what is missing is a dash."""
    assert ["0 s", "4.2 ms", "1.5 h", "unknown"] == [duration(value) for value in (0, 0.0042, 5400, float("nan"))]
    assert ["1,234.500", "-", "-"] == [fixed(value) for value in (1234.5, None, float("nan"))]
    assert ["12.5", "-"] == [percent(value) for value in (0.125, None)]


def test_wide_terminal_gets_every_column() -> None:
    """A terminal shows a heading with a rule and all columns, the long text wrapped."""
    text = in_terminal(150, "trace", "list")
    assert "what" in text.splitlines()[0]
    assert "───" in text.splitlines()[1]
    assert "left out" not in text


def test_narrow_terminal_leaves_out_spare_columns() -> None:
    """In 80 columns no line is longer than that, nothing is cut, and what is left out is named."""
    lines = in_terminal(80, "trace", "list").splitlines()
    assert "left out in this narrow terminal: what" == lines[-1]
    assert "…" not in "".join(lines)
    rows = [line for line in lines if line.startswith("mooncake-conversation ")]
    assert ["mooncake-conversation", "mooncake"] == rows[0].split()[:2]
    assert 80 >= max(len(line) for line in lines[2:])


def test_an_end_that_no_number_has_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Where resamples' curves do not reach, an interval of the gain goes from "below"; the legend says what it is."""
    ratio = {"delay_ratio": 1.5, "delay_ratio_low": 0.0, "delay_ratio_high": math.inf, "delay_ratio_flag": ""}
    gain = {
        "quality_gain": 0.02,
        "quality_gain_low": -math.inf,
        "quality_gain_high": 0.03,
        "quality_gain_flag": "outside",
    }
    place = {"delay": "ttft_mean_s", "baseline": "LRU", "params": "", "delay_s": 1.0, "quality_mean": 0.9}
    compared = pd.DataFrame([{**place, **ratio, **gain}])
    print_comparison(compared, "Ours", tmp_path)
    shown = capsys.readouterr().out
    assert "1.50 (0.00 to above)" in shown and "2.0+ (below to 3.0)" in shown
    assert "below, above: a curve does not reach in so many resamples" in shown
