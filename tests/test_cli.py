"""The verbs run, sweep and plot, on a small generated trace and shipped profiles, in this process and as a program."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from simkv.cli import app
from simkv.simulator.metrics import Result
from simkv.traces import save_trace
from simkv.traces.generate import generate_trace

ROOT = Path(__file__).resolve().parents[1]
RUN = """
name = "small"
seed = 3
tasks = "qmsum"
[trace]
file = "trace.parquet"
[profile]
name = "adaptcache-a100-1gbps"
[[tiers]]
name = "dram"
capacity = "2 GiB"
read = "15.3 GB/s"
write = "15.3 GB/s"
[[tiers]]
name = "ssd"
capacity = "16 GiB"
read = "1 GB/s"
write = "1 GB/s"
endurance = "1 TB"
"""
STUDY = """
[grid]
"tiers.dram.capacity" = ["2 GiB", "4 GiB"]
[[policies]]
name = "recompute"
label = "Recompute"
[[policies]]
name = "lru"
label = "KIVI + LRU"
grid = { variant = ["kivi:8", "kivi:4", "kivi:2"] }
"""
RUN_KEYS = {
    *("policy", "params", "requests", "ttft_mean_s", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "quality_mean"),
    *("token_hit_ratio", "request_share_dram", "request_share_ssd", "request_share_recompute"),
    *("ssd_written_bytes", "engine", "wall_s"),
    *("ssd_written_bytes_per_request", "pristine_read_bytes_per_request", "recodings_per_request"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace of 60 requests, a run's configuration and a study's."""
    folder = tmp_path_factory.mktemp("cli")
    trace = generate_trace("zipf", seed=1, requests=60, contexts=12, rate_per_s=0.5)
    save_trace(trace, folder / "trace.parquet")
    (folder / "run.toml").write_text(RUN + '[policy]\nname = "lru"\nvariant = "kivi:4"\n', encoding="utf-8")
    (folder / "study.toml").write_text(RUN + STUDY, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def swept(folder: Path) -> Path:
    """The results of the study, made by the command itself."""
    outcome = call("sweep", folder / "study.toml", "--out", folder / "swept")
    assert 0 == outcome.exit_code, outcome.stderr
    return folder / "swept"


def call(*args: Any) -> Any:
    """The outcome of one command, run in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def program(*args: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The outcome of one command, run as a program with pipes."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from simkv.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_help_lists_the_verbs() -> None:
    """``simkv --help`` names the six verbs."""
    listed = {line.split()[0] for line in call("--help").stdout.partition("Commands:")[2].splitlines() if line.strip()}
    assert {"run", "sweep", "bound", "plot", "trace", "profile"} <= listed


@pytest.mark.parametrize(
    "verb", ["run", "sweep", "bound", "plot", "trace list", "trace fetch", "trace stats", "trace convert"]
)
def test_help_has_an_example(verb: str) -> None:
    """The help of a verb ends with an example of itself."""
    assert f"Example: simkv {verb}" in call(*verb.split(), "--help").stdout


def test_command_line_is_light() -> None:
    """Importing the command line, as ``--help`` does, loads neither torch, numba, matplotlib nor pandas."""
    heavy = "('torch', 'numba', 'matplotlib', 'pandas', 'numpy', 'pydantic')"
    code = f"import sys, simkv, simkv.cli; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "[]" == ran.stdout.strip()


def test_module_can_be_run() -> None:
    """``python -m simkv --version`` prints a name and a version."""
    ran = subprocess.run(
        [sys.executable, "-m", "simkv", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ["simkv"] == ran.stdout.split()[:1]
    assert "" == ran.stderr


def test_run_prints_a_summary_with_units(folder: Path) -> None:
    """The summary names the policy with its parameters and gives times, shares and bytes with units."""
    outcome = call("run", folder / "run.toml")
    assert 0 == outcome.exit_code, outcome.stderr
    lines = {line[:20].strip(): line[20:].strip() for line in outcome.stdout.splitlines()}
    assert "lru (variant = kivi:4)" == lines["policy"]
    assert "60" == lines["requests measured"]
    assert lines["TTFT, p99"].split()[1] in ("ms", "s")
    assert lines["reused from DRAM"].endswith("% of requests")
    assert lines["SSD written"].endswith("iB per request")
    assert lines["SSD lifetime"].endswith("years")


def test_run_prints_what_comes_after_the_first_token(folder: Path) -> None:
    """With decoding and an objective the summary has four more lines, with units."""
    given = ["engine.decode=prefill_first", "engine.step_base=5 ms", "engine.slo_tpot=6 ms"]
    outcome = call("run", folder / "run.toml", *(part for text in given for part in ("--set", text)))
    lines = dict(line.split("  ", 1) for line in outcome.stdout.splitlines())
    assert re.fullmatch(r" +mean [\d.]+ ms, p90 [\d.]+ ms, p99 [\d.]+ ms", lines["per output token"])
    assert "% of requests" in lines["within the objective"]
    assert {"to the last token", "sequences per step", "goodput"} <= set(lines)


def test_run_json_has_the_promised_keys(folder: Path) -> None:
    """``--json`` is a list of one object with at least the promised keys and a parameter object."""
    outcome = call("run", folder / "run.toml", "--json")
    (row,) = json.loads(outcome.stdout)
    assert set() == RUN_KEYS - set(row)
    assert "kivi:4" == row["params"]["variant"]
    assert 60 == row["requests"]
    assert 1.0 == pytest.approx(sum(row[key] for key in row if key.startswith("request_share_")))


def test_run_json_writes_null_for_what_is_not_a_number(folder: Path) -> None:
    """A mean of one request has no interval: null, not NaN."""
    outcome = call("run", folder / "run.toml", "--json", "--set", "trace.stop=0.5 s")
    assert 0 == outcome.exit_code, outcome.stderr
    row = json.loads(outcome.stdout, parse_constant=pytest.fail)[0]
    assert 1 == row["requests"]
    assert row["ttft_mean_low_s"] is None


def test_run_is_quiet_when_piped(folder: Path) -> None:
    """With pipes, nothing comes on stderr and no colours or bars on stdout."""
    ran = program("run", folder / "run.toml")
    assert (0, "") == (ran.returncode, ran.stderr)
    assert "\x1b" not in ran.stdout
    assert "TTFT, mean" in ran.stdout


def test_run_writes_a_result_that_can_be_loaded(folder: Path) -> None:
    """``--out`` writes frames and metadata, and a second run replaces them."""
    for policy in ("lru", "fifo"):
        assert 0 == call("run", folder / "run.toml", "--policy", policy, "--out", folder / "one").exit_code
        assert policy == Result.load(folder / "one").summary["policy"]
    assert 60 == len(Result.load(folder / "one").requests)


def test_run_changes_keys_in_order(folder: Path) -> None:
    """``--policy`` replaces the whole policy, and ``--set`` then changes keys of it."""
    outcome = call(
        *("run", folder / "run.toml", "--json", "--policy", "adaptcache"),
        *("--set", "policy.alpha=0.25", "--set", "tiers.dram.capacity=4 GiB"),
    )
    (row,) = json.loads(outcome.stdout)
    assert ("adaptcache", 0.25) == (row["policy"], row["params"]["alpha"])


def test_verbose_tells_the_notes_of_the_trace(folder: Path) -> None:
    """``-v``, before or after the verb, tells the notes and changes of the trace on stderr."""
    args = ("run", folder / "run.toml", "--set", "trace.rate=2")
    for outcome in (call("-v", *args), call(*args, "-v")):
        assert "simkv: zipf: changed by scale_rate(factor=2.0)" in outcome.stderr.splitlines()
    assert "" == call(*args).stderr


def test_odd_records_are_one_warning(tmp_path: Path, folder: Path) -> None:
    """What a reader counted as odd is one line on stderr, even without ``-v``."""
    lines = ['{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}']
    lines += ['{"timestamp": 9, "input_length": 600, "output_length": 1, "hash_ids": [1]}']
    (tmp_path / "odd.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    outcome = call("run", folder / "run.toml", "--set", f"trace.file={tmp_path / 'odd.jsonl'}")
    assert 0 == outcome.exit_code
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("simkv: warning: odd: 1 of 2 ")


def test_sweep_prints_the_policy_table(folder: Path, swept: Path) -> None:
    """One line per policy, setting and factor, without colours, and where the files are; nothing on stderr."""
    ran = program("sweep", folder / "study.toml", "--out", swept)
    lines = ran.stdout.splitlines()
    assert (0, "") == (ran.returncode, ran.stderr)
    assert ["policy", "setting", "tiers.dram.capacity", "TTFT", "(s)"] == lines[0].split()[:5]
    assert lines[0].split()[-5:] == ["SSD", "written", "pristine", "read", "recoded"]
    assert 2 * (1 + 3) == sum(line.startswith(("Recompute", "KIVI + LRU")) for line in lines)
    assert f"8 runs in {swept}: summary.parquet, summary.csv" in lines
    assert "\x1b" not in ran.stdout


def test_sweep_writes_table_and_figures(swept: Path) -> None:
    """The table and the figures are there, with the capacity sweep since the grid has a capacity."""
    assert 8 == len(pd.read_parquet(swept / "summary.parquet")) == len(pd.read_csv(swept / "summary.csv"))
    drawn = {path.stem for path in (swept / "figures").glob("*.png")}
    assert {"delay-quality", "hit-share", "ttft-cdf", "decisions", "occupancy", "capacity-sweep"} == drawn


def test_sweep_over_rates_draws_goodput(folder: Path, tmp_path: Path) -> None:
    """With decoding, an objective and two rates the table has their columns, and the figure is drawn."""
    changes = {
        "engine.decode": "chunked",
        "engine.step_base": "5 ms",
        "engine.slo_ttft": "100 ms",
        "engine.slo_tpot": "8 ms",
        "grid.trace.rate": "[1, 8]",
    }
    given = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    outcome = call("sweep", folder / "study.toml", "--out", tmp_path / "out", *given)
    assert 0 == outcome.exit_code, outcome.output
    assert " TPOT (s)  in SLO (%)  goodput (1/s) " in outcome.stdout.splitlines()[0]
    assert (tmp_path / "out" / "figures" / "goodput.png").is_file()
    table = pd.read_parquet(tmp_path / "out" / "summary.parquet")
    assert (table["tpot_mean_s"] >= 0.005).all() and table["slo_share"].between(0, 1).all()


def test_sweep_does_not_compute_again(folder: Path, swept: Path) -> None:
    """A second sweep tells that all runs were there, and leaves their files alone; ``--fresh`` makes them anew."""
    files = sorted(swept.glob("runs/*/meta.json"))
    before = [path.stat().st_mtime_ns for path in files]
    args = ("sweep", folder / "study.toml", "--out", swept, "--no-plots", "-v")
    assert "simkv: 8 of 8 runs were there already" in call(*args).stderr
    assert before == [path.stat().st_mtime_ns for path in files]
    call(*args, "--fresh")
    assert not set(before) & {path.stat().st_mtime_ns for path in files}


def test_sweep_json_is_one_object_per_run(folder: Path, swept: Path) -> None:
    """``--json`` lists the runs in grid order with their factors and parameter objects, and nothing else."""
    rows = json.loads(call("sweep", folder / "study.toml", "--out", swept, "--no-plots", "--json").stdout)
    assert ["2 GiB"] * 4 + ["4 GiB"] * 4 == [row["tiers.dram.capacity"] for row in rows]
    assert ["raw", "kivi:8", "kivi:4", "kivi:2"] == [row["params"].get("variant", "raw") for row in rows[:4]]
    assert set() == RUN_KEYS - set(rows[0])


def test_sweep_compares_curves(folder: Path, swept: Path) -> None:
    """``--compare`` adds every other setting against the curve of one label, with intervals, and writes them down."""
    outcome = call("sweep", folder / "study.toml", "--out", swept, "--no-plots", "--compare", "KIVI + LRU")
    compared = outcome.stdout.partition("KIVI + LRU against the others")[2].splitlines()[2:]
    assert ["Recompute", "Recompute", "in", "all"] == [line.split()[0] for line in compared]
    written = pd.read_csv(swept / "comparison.csv")
    assert ["ttft_mean_s"] * 2 + ["ttft_p90_s"] * 2 == written["delay"].tolist()
    gains = written.dropna(subset=["quality_gain_low"])
    assert (
        (gains["quality_gain_low"] <= gains["quality_gain"]) & (gains["quality_gain"] <= gains["quality_gain_high"])
    ).all()


def test_sweep_compares_in_json(folder: Path, swept: Path) -> None:
    """``--json`` with ``--compare`` is one object: the runs as without it, and the rows of ``comparison.csv``."""
    args = ("sweep", folder / "study.toml", "--out", swept, "--no-plots", "--json")
    found = json.loads(call(*args, "--compare", "KIVI + LRU").stdout)
    assert {"runs", "comparison"} == set(found)
    assert json.loads(call(*args).stdout) == found["runs"]
    written = pd.read_csv(swept / "comparison.csv")
    assert written["delay_s"].tolist() == [row["delay_s"] for row in found["comparison"]]
    assert list(written.columns) == list(found["comparison"][0])
    assert {"Recompute"} == {row["baseline"] for row in found["comparison"]}
    at = json.loads(call(*args, "--compare", "KIVI + LRU", "--at", "0.9").stdout)["comparison"]
    assert [0.9] * len(at) == [row["quality_mean"] for row in at] and {} == at[0]["params"]


def test_sweep_compares_curves_at_qualities(folder: Path, swept: Path) -> None:
    """``--at`` compares whole curves, a line per quality, and is refused without ``--compare`` or with words."""
    args = ("sweep", folder / "study.toml", "--out", swept, "--no-plots")
    outcome = call(*args, "--compare", "Recompute", "--at", "0.7,0.9")
    lines = outcome.stdout.partition("Recompute against the others")[2].splitlines()[2:]
    assert 2 * 2 * 2 + 2 == len(lines)  # two grid points, two qualities, the other label and all others together
    assert {"KIVI", "(others)"} == {line.split()[0] for line in lines[:-2]}
    assert "it needs --compare LABEL" in call(*args, "--at", "0.9").stderr
    assert "--at high: write numbers" in call(*args, "--compare", "Recompute", "--at", "high").stderr
    for text, wrong in (("2", "2"), ("0.9,0", "0"), ("nan", "nan")):
        outcome = call(*args, "--compare", "Recompute", "--at", text)
        message = f"--at {text}: quality {wrong} is not allowed; it must be above 0 and at most 1"
        assert (2, True) == (outcome.exit_code, message in outcome.stderr)


def test_sweep_compares_with_the_bound(folder: Path, tmp_path: Path) -> None:
    """The Bound of a study is a label to compare with: no setting needs less, and it has no 90th percentile."""
    (tmp_path / "trace.parquet").write_bytes((folder / "trace.parquet").read_bytes())
    study = tmp_path / "study.toml"
    study.write_text((folder / "study.toml").read_text(encoding="utf-8") + "\n[bound]\nalphas = [0.0, 0.5, 2.0]\n")
    outcome = call("sweep", study, "--out", tmp_path / "out", "--no-plots", "--compare", "Bound")
    assert 0 == outcome.exit_code, outcome.stderr
    written = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert {"ttft_mean_s"} == set(written["delay"])
    assert (written["delay_ratio"] >= 1).all()
    assert (
        "Recompute against the others"
        in call("sweep", study, "--out", tmp_path / "out", "--no-plots", "--compare", "Recompute").stdout
    )


def test_sweep_of_a_single_run(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run's configuration is a study of one, in results/NAME of the current folder; a grid can be set."""
    monkeypatch.chdir(tmp_path)
    assert 0 == call("sweep", folder / "run.toml").exit_code
    assert 1 == len(pd.read_parquet("results/small/summary.parquet"))
    assert not Path("results/small/figures/delay-quality.png").exists()
    outcome = call("sweep", folder / "run.toml", "--set", "grid.seed=[1, 2]", "--no-plots")
    assert "seeds" in outcome.stdout.splitlines()[0].split()
    assert "in brackets: 95 % interval: contexts and seeds resampled" in outcome.stdout
    low, high = outcome.stdout.splitlines()[1].partition("[")[2].partition("]")[0].split(", ")
    assert float(low) <= float(outcome.stdout.splitlines()[1].split("[")[0].split()[-1]) <= float(high)
    assert 2 == len(pd.read_parquet("results/small/summary.parquet"))


def test_sweep_with_workers_gives_the_same_numbers(folder: Path, swept: Path, tmp_path: Path) -> None:
    """Two processes give the table of one."""
    args = ("sweep", folder / "study.toml", "--no-plots", "--json")
    ran = program(*args, "--out", tmp_path / "parallel", "--workers", 2)
    assert (0, "") == (ran.returncode, ran.stderr)
    alone = json.loads(call(*args, "--out", swept).stdout)
    for row in (*alone, *(parallel := json.loads(ran.stdout))):
        del row["wall_s"]
    assert alone == parallel


def test_sweep_keeps_what_succeeds(folder: Path, tmp_path: Path) -> None:
    """When some runs fail, the others are in the table and the exit code is 1; when all fail, it is 2."""
    (tmp_path / "study.toml").write_text(RUN + STUDY, encoding="utf-8")
    files = f'grid.trace.file=["{folder / "trace.parquet"}", "missing.jsonl"]'
    args = ("sweep", tmp_path / "study.toml", "--out", tmp_path / "out", "--no-plots", "--json")
    outcome = call(*args, "--set", files)
    assert 1 == outcome.exit_code
    assert 8 == len(json.loads(outcome.stdout))
    *warnings, last = outcome.stderr.splitlines()
    assert "simkv: warning: more than these; see all with --verbose" == warnings[-1]
    assert "8 of 16 runs failed" in last
    none = call(*args, "--set", "trace.file=missing.jsonl")
    assert (2, "") == (none.exit_code, none.stdout)
    assert "8 of 8 runs failed" in none.stderr


def test_plot_draws_what_was_asked(swept: Path, tmp_path: Path) -> None:
    """Named figures go to a folder in the chosen format, or one of them to a file, and their paths are printed."""
    outcome = call(
        *("plot", swept, "--figure", "delay-quality", "--figure", "hit-share", "--by", "tokens"),
        *("--out", tmp_path / "figures", "--format", "svg"),
    )
    expected = [tmp_path / "figures" / name for name in ("delay-quality.svg", "hit-share.svg")]
    assert [str(path) for path in expected] == outcome.stdout.split()
    assert all(b"<svg" in path.read_bytes()[:600] for path in expected)
    capacity = tmp_path / "capacity.pdf"
    outcome = call("plot", swept, "--figure", "capacity-sweep", "--metric", "ttft_p99_s", "--out", capacity)
    assert (0, b"%PDF") == (outcome.exit_code, capacity.read_bytes()[:4])


def test_plot_draws_the_chosen_runs(swept: Path, tmp_path: Path) -> None:
    """Runs chosen by label or folder appear with their setting and factors; others show the middle setting."""
    args = ("plot", swept, "--figure", "ttft-cdf", "--out", tmp_path / "cdf.svg")
    assert 0 == call(*args).exit_code
    middle = (tmp_path / "cdf.svg").read_text(encoding="utf-8")
    assert "KIVI + LRU (kivi:4)" in middle
    assert "kivi:2" not in middle
    assert 0 == call(*args, "--run", "KIVI + LRU").exit_code
    chosen = (tmp_path / "cdf.svg").read_text(encoding="utf-8")
    assert "KIVI + LRU (kivi:2), DRAM capacity 4 GiB" in chosen
    assert "Recompute" not in chosen
    run = next(swept.glob("runs/*")).name
    assert 0 == call(*args, "--run", run).exit_code


def test_plot_of_a_single_run(folder: Path, tmp_path: Path) -> None:
    """A run's folder is drawn too, without the figures that need several runs."""
    call("run", folder / "run.toml", "--out", tmp_path / "one")
    outcome = call("plot", tmp_path / "one")
    names = [Path(line).name for line in outcome.stdout.splitlines()]
    assert ["hit-share.png", "ttft-cdf.png", "decisions.png", "occupancy.png"] == names
    assert all((tmp_path / "one" / "figures" / name).is_file() for name in names)


@pytest.mark.parametrize(
    "args, part",
    [
        ("--figure trace-stats", "draw it with `simkv trace stats FILE --plot trace-stats.png`"),
        ("--figure hit-share --metric ttft_p99_s", "--metric has an effect on figure capacity-sweep only"),
        ("--figure capacity-sweep --metric ttft", "unknown metric 'ttft'"),
        ("--figure hit-share --by blocks", "unknown share 'blocks'"),
        ("--figure hit-share --figure ttft-cdf --out both.png", "2 figures do not go into one file"),
        ("--run AdaptCache", "unknown run 'AdaptCache'; known: KIVI + LRU, Recompute"),
    ],
)
def test_plot_refuses_what_has_no_effect(args: str, part: str, swept: Path) -> None:
    """A figure, option or run that does not fit the results is one line and exit code 2."""
    outcome = call("plot", swept, *args.split())
    assert (2, "") == (outcome.exit_code, outcome.stdout)
    (line,) = outcome.stderr.splitlines()
    assert part in line


def test_plot_leaves_out_what_cannot_be_drawn(swept: Path, tmp_path: Path) -> None:
    """Without named figures, one that these results cannot fill is a warning and the others are drawn."""
    outcome = call("plot", swept, "--factor", "trace.rate", "--out", tmp_path)
    assert 0 == outcome.exit_code
    assert outcome.stderr.startswith("simkv: warning: figure capacity-sweep left out: unknown grid factor 'trace.rate'")
    assert 5 == len(outcome.stdout.splitlines())
