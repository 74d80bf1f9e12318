"""The bound of a study: computed once per point of the grid, kept, in the table, in the figure, and printed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from simkv.cli import app
from simkv.cli_figures import open_results
from simkv.config import BoundConfig, StudyConfig, load_config, override, parse_config
from simkv.errors import ConfigError
from simkv.experiments import load_runs, run_study
from simkv.figures import delay_quality
from simkv.simulator.bounds import bound_config

STUDY: dict[str, Any] = {
    "name": "bounded",
    "tasks": "lcc",
    "trace": {"generate": "sessions", "options": {"sessions": 20, "turns": 4.0, "block_tokens": 256}},
    "profile": {"name": "llama-3.1-8b-a100"},
    "grid": {"tiers.dram.capacity": ["256 MiB", "1 GiB"], "seed": [0, 1]},
    "policies": [{"name": "recompute"}, {"name": "lru", "grid": {"variant": ["raw", "kivi:4"]}}],
    "bound": {"alphas": [0.0, 0.5, 2.0]},
}


def study(**changes: Any) -> StudyConfig:
    """The study above, with some tables changed."""
    parsed = parse_config({**STUDY, **changes})
    assert isinstance(parsed, StudyConfig)
    return parsed


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The study, computed once."""
    folder = tmp_path_factory.mktemp("bounded")
    return folder, run_study(study(), folder, progress=False)


def test_a_bound_per_point_of_the_grid(swept: tuple[Path, pd.DataFrame]) -> None:
    """Twelve runs and, for each of four points of the grid, a row per alpha, below every run at its quality."""
    folder, table = swept
    runs, limits = table[table["policy"] != "bound"], table[table["policy"] == "bound"]
    assert (12, 12) == (len(runs), len(limits))
    assert {"Bound"} == set(limits["label"])
    assert 4 == limits["run"].nunique() == len(list((folder / "bounds").iterdir()))
    for row in runs.to_dict("records"):
        own = limits[(limits["seed"] == row["seed"]) & (limits["tiers.dram.capacity"] == row["tiers.dram.capacity"])]
        for limit in own.to_dict("records"):
            alpha = json.loads(limit["params"])["alpha"]
            assert alpha * row["quality_mean"] - row["ttft_mean_s"] <= limit["utility_s"]


def test_rows_are_those_of_the_library(swept: tuple[Path, pd.DataFrame]) -> None:
    """A point's rows are the corners of ``bound_config`` with the same configuration."""
    _, table = swept
    config = override(study().base, {"tiers.dram.capacity": '"1 GiB"', "seed": "1"})
    corners = bound_config(config, alphas=[0.0, 0.5, 2.0]).corners()
    own = table[(table["policy"] == "bound") & (table["seed"] == 1) & (table["tiers.dram.capacity"] == "1 GiB")]
    for column in ("ttft_mean_s", "quality_mean", "utility_s"):
        np.testing.assert_array_equal(corners[column], own[column])


def test_the_least_delay_is_always_known() -> None:
    """Without weight 0 the curve would stop at a quality below which policies may be faster than its last point."""
    assert (0.0, 0.5, 2.0) == study(bound={"alphas": [2.0, 0.5]}).bound.alphas  # type: ignore[union-attr]


def test_bounds_are_kept_like_runs(swept: tuple[Path, pd.DataFrame]) -> None:
    """A second sweep computes nothing, not even when policies are left out; other alphas are another bound."""
    folder, table = swept
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/meta.json")}
    fewer = run_study(study(policies=[{"name": "recompute"}]), folder, progress=False)
    assert 4 + 12 == len(fewer)
    again = run_study(study(), folder, progress=False)
    pd.testing.assert_frame_equal(table, again)
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.glob("*/*/meta.json")}
    other = study(grid={"seed": [0]}, bound={"alphas": [1.0]}, policies=[{"name": "recompute"}])
    run_study(other, folder, progress=False)
    assert 5 == len(list((folder / "bounds").iterdir()))
    run_study(study(), folder, progress=False)


def test_runs_are_loaded_without_bounds(swept: tuple[Path, pd.DataFrame]) -> None:
    """Frames exist for runs only, and figures of single runs leave bounds out."""
    folder, _ = swept
    assert {"recompute", "lru"} == {row["policy"] for row, _ in load_runs(folder)}
    assert not any(title.startswith("Bound") for title in open_results(folder).frames("requests"))


def test_the_figure_has_the_line(swept: tuple[Path, pd.DataFrame]) -> None:
    """One line per panel through the corners averaged over seeds, without markers, which the front ignores."""
    _, table = swept
    for axes, capacity in zip(delay_quality(table).axes, ("256 MiB", "1 GiB"), strict=True):
        (line,) = [line for line in axes.lines if line.get_label() == "Bound"]  # type: ignore[attr-defined]
        own = table[(table["policy"] == "bound") & (table["tiers.dram.capacity"] == capacity)]
        means = own.groupby("params")[["ttft_mean_s", "quality_mean"]].mean().sort_values("ttft_mean_s")
        np.testing.assert_allclose(means["ttft_mean_s"], np.asarray(line.get_xdata(), dtype=float))
        assert "None" == line.get_marker()


def test_a_study_without_a_bound_has_none(tmp_path: Path) -> None:
    """Without the table ``[bound]`` nothing of the kind is computed."""
    table = run_study(study(bound={}, grid={}).model_copy(update={"bound": None}), tmp_path, progress=False)
    assert "bound" not in set(table["policy"])
    assert not (tmp_path / "bounds").exists()


def test_moves_that_a_bound_does_not_cover_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """EvicPress raises entries when it profiles anew: one warning, unless it never does or the bound allows it."""
    press = {"name": "evicpress", "reprofile_below": 0.01, "reprofile_queries": 50, "reprofile_s": 1e-3}
    tables: dict[str, Any] = {
        "grid": {},
        "tiers": [
            {"name": "dram", "capacity": "256 MiB", "read": "20 GB/s", "write": "20 GB/s"},
            {"name": "ssd", "capacity": "2 GiB", "read": "2 GB/s", "write": "2 GB/s"},
            {"name": "copies", "capacity": "unlimited", "read": "1 GB/s", "write": "1 GB/s"},
        ],
        "engine": {"quality_view": "sampled", "quality_queries": 1, "pristine": True},
        "policies": [press, {**press, "reprofile_below": 0.0, "label": "Never"}, {"name": "lru"}],
    }
    for anticipation, told in (("none", 1), ("raise", 0)):
        caplog.clear()
        asked = study(**tables, bound={"alphas": [1.0], "anticipation": anticipation})
        run_study(asked, tmp_path, progress=False)
        found = [record.message for record in caplog.records if "does not cover" in record.message]
        assert told == len(found)
        if told:
            assert "1 of 3 runs raised entries between two uses" in found[0]
            assert "(evicpress" in found[0] and 'give [bound] anticipation = "raise"' in found[0]


def test_verb_prints_and_writes(tmp_path: Path) -> None:
    """``simkv bound`` has a row per factor and alpha, as a table, as JSON and as a file."""
    config = tmp_path / "study.toml"
    config.write_text(
        'tasks = "lcc"\n[trace]\ngenerate = "sessions"\noptions = { sessions = 10 }\n'
        '[profile]\nname = "llama-3.1-8b-a100"\n[grid]\n"tiers.dram.capacity" = ["256 MiB", "1 GiB"]\n'
        '[policy]\nname = "lru"\n[bound]\n'
    )
    out = tmp_path / "rows.csv"
    shown = CliRunner().invoke(app, ["bound", str(config), "--alphas", "0,1", "--out", str(out)])
    assert 0 == shown.exit_code, shown.output
    assert "TTFT at least (s)" in shown.output
    rows = pd.read_csv(out)
    assert (4, ["tiers.dram.capacity", "alpha"]) == (len(rows), list(rows.columns[:2]))
    printed = CliRunner().invoke(app, ["bound", str(config), "--alphas", "0,1", "--json"])
    assert rows["alpha"].tolist() == [row["alpha"] for row in json.loads(printed.stdout)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alphas", "1,x"], "--alphas 1,x: write numbers"),
        (["--out", "rows.txt"], "end the name in .csv or .parquet"),
        (["--anticipation", "perfect"], "unknown anticipation 'perfect'"),
    ],
    ids=str,
)
def test_verb_refuses_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Mistakes of the command line end with 2 and one line."""
    config = tmp_path / "run.toml"
    config.write_text(
        'tasks = "lcc"\n[trace]\ngenerate = "sessions"\noptions = { sessions = 3 }\n'
        '[profile]\nname = "llama-3.1-8b-a100"\n[policy]\nname = "lru"\n'
    )
    ran = CliRunner().invoke(
        app, ["bound", str(config), *(["--alphas", "1"] if "--alphas" not in arguments else []), *arguments]
    )
    assert 2 == ran.exit_code
    assert message in ran.stderr
    assert 1 == ran.stderr.count("\n")


def test_keys_of_the_table() -> None:
    """Defaults, changes from the command line, and mistakes named by their key."""
    assert 14 == len(BoundConfig().alphas)
    changed = override(study(), {"bound.anticipation": "prefetch", "bound.alphas": "[1]"})
    assert ("prefetch", (0.0, 1.0)) == (changed.bound.anticipation, changed.bound.alphas)  # type: ignore[union-attr]
    for table, message in [
        ({"alpha": [1]}, "bound.*unknown key 'alpha'"),
        ({"alphas": [-1.0]}, "bound.alphas"),
        ({"alphas": []}, "bound.alphas"),
        ({"anticipation": "all"}, "bound.anticipation"),
    ]:
        with pytest.raises(ConfigError, match=message):
            study(bound=table)


def test_a_file_with_the_table_alone_is_a_study(tmp_path: Path) -> None:
    """``[bound]`` beside ``[policy]`` is a study of one run."""
    path = tmp_path / "one.toml"
    path.write_text(
        '[trace]\ngenerate = "zipf"\n[profile]\nname = "llama-3.1-8b-a100"\n[policy]\nname = "lru"\n[bound]\n'
    )
    loaded = load_config(path)
    assert isinstance(loaded, StudyConfig)
    assert loaded.bound == BoundConfig()
