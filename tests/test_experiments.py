"""Studies: order of the grid, resumption, failures, wholeness of files, and any number of workers."""

import concurrent.futures
import hashlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from simkv.config import RunConfig, StudyConfig, parse_config
from simkv.errors import ConfigError, SimkvError
from simkv.experiment_files import remove_stale, staged
from simkv.experiments import expand, load_runs, load_summary, run_study
from simkv.simulator.metrics import Result
from simkv.traces.trace import Trace

TIERS = [
    {"name": "dram", "capacity": "1 GiB", "read": "15 GB/s", "write": "15 GB/s"},
    {"name": "ssd", "capacity": "8 GiB", "read": "4 GB/s", "write": "4 GB/s"},
]


def study(**changes: Any) -> StudyConfig:
    """A study of two seeds, LRU in two variants and AdaptCache: six runs; ``changes`` replace its tables."""
    tables = {
        "tasks": "triviaqa",
        "trace": {"generate": "zipf", "options": {"requests": 40, "contexts": 8}},
        "profile": {"name": "adaptcache-a100-1gbps"},
        "grid": {"seed": [0, 1]},
        "policies": [
            {"name": "lru", "grid": {"variant": ["raw", "kivi:2"]}},
            {"name": "adaptcache", "label": "AC", "alpha": 1.0},
        ],
        **changes,
    }
    parsed = parse_config({key: value for key, value in tables.items() if value is not None}, "study.toml")
    assert isinstance(parsed, StudyConfig)
    return parsed


def fake_run(config: RunConfig, *, trace: Trace, progress: Callable[[int, int], None] | None = None) -> Result:
    """A result without a simulation: its summary depends on the configuration and on the trace."""
    if progress is not None:
        progress(len(trace), len(trace))
    arrivals = hashlib.sha256(trace.arrival_ns.tobytes()).hexdigest()
    summary = {"policy": config.policy.name, "label": "own", "params": config.policy.params, "seed": config.seed}
    frame = pd.DataFrame({"request": range(len(trace)), "arrival_s": trace.arrival_ns / 1e9})
    return Result(
        frame, frame.head(1), frame.head(2), {"fake": True}, {**summary, "arrivals": arrivals, "nothing": None}
    )


def failing_run(config: RunConfig, *, trace: Trace, progress: Callable[[int, int], None] | None = None) -> Result:
    """Like fake_run, but a user's mistake for AdaptCache and a programming error for KIVI at seed 1."""
    if config.policy.name == "adaptcache":
        raise SimkvError("tiers: too small")
    if config.seed == 1 and config.policy.params["variant"] == "kivi:2":
        raise ZeroDivisionError("in two\nlines")
    return fake_run(config, trace=trace, progress=progress)


def dying_run(config: RunConfig, *, trace: Trace, progress: Callable[[int, int], None] | None = None) -> Result:
    """Like fake_run, but the whole process ends when it meets AdaptCache."""
    if config.policy.name == "adaptcache":
        os._exit(1)
    return fake_run(config, trace=trace, progress=progress)


class CountingRun:
    """fake_run that counts its calls and raises ``error`` in the call after ``most`` good ones."""

    def __init__(self, most: int = 1_000, error: BaseException | None = None) -> None:
        self.calls = 0
        self._most = most
        self._error = error

    def __call__(self, config: RunConfig, **given: Any) -> Result:
        """Count, then raise or go on to fake_run."""
        self.calls += 1
        if self.calls > self._most and self._error is not None:
            raise self._error
        return fake_run(config, **given)


def quiet(asked: StudyConfig, results: Path, **options: Any) -> pd.DataFrame:
    """run_study without a bar, with fake_run unless told otherwise."""
    return run_study(asked, results, **{"progress": False, "runner": fake_run, **options})


def left_over(results: Path) -> list[str]:
    """Names of hidden files and folders anywhere in the results."""
    return sorted(path.name for path in results.rglob(".*"))


def contents(results: Path) -> dict[str, bytes]:
    """Every file of the results with what is in it."""
    return {str(path.relative_to(results)): path.read_bytes() for path in results.rglob("*") if path.is_file()}


def test_grid_order() -> None:
    """Factors of the grid vary slowest, the first of all; then policies; then each policy's own grid."""
    runs = expand(study(grid={"seed": [0, 1], "engine.gpus": [1, 2]}))
    expected = [
        (seed, gpus, label, variant)
        for seed in (0, 1)
        for gpus in (1, 2)
        for label, variant in (("lru", "raw"), ("lru", "kivi:2"), ("AC", None))
    ]
    assert expected == [
        (run.config.seed, run.config.engine.gpus, run.config.policy.title, run.config.policy.params.get("variant"))
        for run in runs
    ]
    assert {"seed": 0, "engine.gpus": 1, "policy.variant": "kivi:2"} == runs[1].factors
    assert {"alpha": 1.0} == runs[2].config.policy.params


def test_grid_over_the_tiers_of_the_profile() -> None:
    """A study without tiers of its own can vary those of its profile, by name."""
    runs = expand(study(grid={"tiers.dram.capacity": ["1 GiB", "unlimited"]}, policies=[{"name": "lru"}]))
    assert [2**30, None] == [run.config.tiers[0].capacity_bytes for run in runs]
    assert ["dram", "ssd", "remote"] == [tier.name for tier in runs[0].config.tiers]


def test_equal_runs_are_left_out_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    """A value that is written twice, in two ways, is one run."""
    capacities = {"tiers.dram.capacity": ["1 GiB", "1024 MiB", "2 GiB"]}
    runs = expand(study(grid=capacities, tiers=TIERS, policies=[{"name": "lru"}]))
    assert ["1 GiB", "2 GiB"] == [run.factors["tiers.dram.capacity"] for run in runs]
    assert ["study.toml: 1 of 3 runs equal another one and are left out"] == caplog.messages


def test_a_point_that_is_not_allowed_is_named(tmp_path: Path) -> None:
    """The error says where it was in the grid, and nothing has been run."""
    runner = CountingRun()
    wrong = study(grid={"seed": [0, 1], "engine.gpus": [1, 0]})
    with pytest.raises(ConfigError, match=r"study\.toml: at seed = 0, engine\.gpus = 0, .*: engine\.gpus: 0: it"):
        quiet(wrong, tmp_path, runner=runner)
    with pytest.raises(ConfigError, match="did you mean 'engine'"):
        quiet(study(grid={"engin.gpus": [1]}), tmp_path, runner=runner)
    with pytest.raises(ConfigError, match="workers is 0"):
        quiet(study(), tmp_path, runner=runner, workers=0)
    assert 0 == runner.calls


def test_endless_grids_are_refused() -> None:
    """A product of more than 100,000 runs is an error, found before any of them is made."""
    with pytest.raises(ConfigError, match=r"study\.toml: grid: 3000000 runs, more than 100000"):
        expand(study(grid={"seed": list(range(1000)), "engine.gpus": list(range(1, 1001))}))


def test_the_table_has_a_row_per_run_in_grid_order(tmp_path: Path) -> None:
    """Labels and factors come from the study, the rest from the run; what is written is what is returned."""
    table = quiet(study(), tmp_path)
    assert ["lru", "lru", "AC"] * 2 == table["label"].tolist()
    assert [0, 0, 0, 1, 1, 1] == table["seed"].tolist()
    assert ["raw", "kivi:2", None] * 2 == [
        value if isinstance(value, str) else None for value in table["policy.variant"]
    ]
    assert ["run", "policy", "label", "params", "seed", "policy.variant"] == table.columns[:6].tolist()
    assert '{"alpha": 1.0}' == table["params"][2]
    pd.testing.assert_frame_equal(table, load_summary(tmp_path))
    assert table["run"].tolist() == pd.read_csv(tmp_path / "summary.csv")["run"].tolist()
    assert sorted(table["run"]) == sorted(path.name for path in (tmp_path / "runs").iterdir())


def test_runs_load_with_their_rows(tmp_path: Path) -> None:
    """Figures get each row together with the frames of its run."""
    quiet(study(), tmp_path)
    loaded = list(load_runs(tmp_path))
    assert [0, 0, 0, 1, 1, 1] == [row["seed"] for row, _ in loaded]
    assert all(40 == len(result.requests) and result.summary["seed"] == row["seed"] for row, result in loaded)


def test_all_policies_see_the_same_arrivals(tmp_path: Path) -> None:
    """The trace is prepared once per seed and is the same for every policy."""
    table = quiet(study(), tmp_path)
    assert [1, 1] == table.groupby("seed")["arrivals"].nunique().tolist()
    assert 2 == table["arrivals"].nunique() == len(list((tmp_path / "traces").iterdir()))


def test_a_seed_that_draws_nothing_shares_the_trace(tmp_path: Path) -> None:
    """A file that is neither sampled nor jittered is prepared once for all seeds, and anew when it changes."""
    file = tmp_path / "trace.jsonl"
    line = '{"timestamp": %d, "input_length": 512, "output_length": 1, "hash_ids": [%d]}\n'
    file.write_text("".join(line % (1000 * index, index % 3) for index in range(9)), encoding="utf-8")
    asked = study(trace={"file": str(file)})
    first = quiet(asked, tmp_path / "results")
    assert 1 == len(list((tmp_path / "results" / "traces").iterdir()))
    file.write_text(file.read_text(encoding="utf-8") + line % (9000, 1), encoding="utf-8")
    second = quiet(asked, tmp_path / "results")
    assert set(first["run"]).isdisjoint(second["run"])
    assert 2 == len(list((tmp_path / "results" / "traces").iterdir()))


def test_an_interrupted_sweep_resumes(tmp_path: Path) -> None:
    """After Ctrl-C in the fourth run three results stay; the next sweep computes the other three only."""
    with pytest.raises(KeyboardInterrupt):
        quiet(study(), tmp_path / "a", runner=CountingRun(3, KeyboardInterrupt()))
    assert 3 == len(list((tmp_path / "a" / "runs").iterdir()))
    assert not (tmp_path / "a" / "summary.parquet").exists()
    rest = CountingRun()
    quiet(study(), tmp_path / "a", runner=rest)
    assert 3 == rest.calls
    quiet(study(), tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert [] == left_over(tmp_path)


def test_existing_results_are_not_computed_again_unless_asked(tmp_path: Path) -> None:
    """A second sweep does nothing, one with more seeds only what is new, a fresh one everything."""
    quiet(study(), tmp_path)
    again, more, fresh = CountingRun(), CountingRun(), CountingRun()
    quiet(study(), tmp_path, runner=again)
    quiet(study(grid={"seed": [0, 1, 2]}), tmp_path, runner=more)
    quiet(study(), tmp_path, runner=fresh, fresh=True)
    assert (0, 3, 6) == (again.calls, more.calls, fresh.calls)


def test_labels_do_not_make_new_runs(tmp_path: Path) -> None:
    """A renamed policy keeps its results, and the table shows the new name."""
    quiet(study(), tmp_path)
    runner = CountingRun()
    table = quiet(study(policies=[{"name": "adaptcache", "label": "New", "alpha": 1.0}]), tmp_path, runner=runner)
    assert 0 == runner.calls
    assert ["New", "New"] == table["label"].tolist()


def test_a_damaged_result_is_computed_again(tmp_path: Path) -> None:
    """A folder without its facts is not a result; facts that cannot be read are an error that names them."""
    table = quiet(study(), tmp_path)
    (tmp_path / "runs" / table["run"][0] / "meta.json").unlink()
    runner = CountingRun()
    pd.testing.assert_frame_equal(table, quiet(study(), tmp_path, runner=runner))
    assert 1 == runner.calls
    (tmp_path / "runs" / table["run"][1] / "meta.json").write_text("{", encoding="utf-8")
    with pytest.raises(SimkvError, match="a damaged result"):
        quiet(study(), tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_failing_runs_do_not_take_the_others_with_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """Each failure is one line; the study ends with their number, and the rest is in the table."""
    with pytest.raises(SimkvError, match=r"study\.toml: 3 of 6 runs failed; the first: ") as caught:
        quiet(study(), tmp_path, runner=failing_run, workers=workers)
    assert 1 == len(str(caught.value).splitlines())
    kept = load_summary(tmp_path)
    assert [(0, "raw"), (0, "kivi:2"), (1, "raw")] == list(zip(kept["seed"], kept["policy.variant"], strict=True))
    users = [message for message in caplog.messages if "ZeroDivisionError" not in message]
    assert ["AC, seed = 0: tiers: too small", "AC, seed = 1: tiers: too small"] == sorted(users)
    assert any("ZeroDivisionError: in two lines (traceback in " in message for message in caplog.messages)
    (file,) = (tmp_path / "errors").iterdir()
    assert "failing_run" in file.read_text(encoding="utf-8")
    assert [] == left_over(tmp_path)
    repaired = CountingRun()
    assert 6 == len(quiet(study(), tmp_path, runner=repaired))
    assert 3 == repaired.calls


def test_bad_inputs_fail_their_own_runs_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A profile or trace that is missing at one point of the grid costs the runs of that point."""
    shipped = "adaptcache-a100-1gbps"
    wrong = study(grid={"profile.name": [shipped, "absent"], "trace.sample": [1.0, 1e-9]}, policies=[{"name": "lru"}])
    with pytest.raises(SimkvError, match="3 of 4 runs failed"):
        quiet(wrong, tmp_path)
    assert [shipped] == load_summary(tmp_path)["profile.name"].tolist()
    assert 3 == len(caplog.messages)


def test_a_dying_worker_ends_the_sweep_with_an_error(tmp_path: Path) -> None:
    """A worker killed from outside, as for memory, is told in one line and does not hang the sweep."""
    with pytest.raises(SimkvError, match="a worker process died"):
        quiet(study(), tmp_path, runner=dying_run, workers=2)


def test_a_result_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full in the middle of a result, nothing of it is left."""

    def full(self: Result, folder: Path) -> None:
        folder.mkdir()
        (folder / "requests.parquet").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Result, "save", full)
    with pytest.raises(SimkvError, match="6 of 6 runs failed; the first: lru, .* No space left on device"):
        quiet(study(), tmp_path)
    assert [] == list((tmp_path / "runs").iterdir())
    assert not (tmp_path / "summary.parquet").exists()


def test_two_sweeps_may_write_the_same_run(tmp_path: Path) -> None:
    """Temporary names differ, and the result that was there first stays whole."""
    target = tmp_path / "runs" / "0123"
    with staged(target) as one, staged(target) as two:
        assert one != two
        for folder, text in ((one, "one"), (two, "two")):
            folder.mkdir()
            (folder / "meta.json").write_text(text, encoding="utf-8")
    assert {"runs/0123/meta.json": b"two"} == contents(tmp_path)


def test_what_dead_sweeps_left_is_removed(tmp_path: Path) -> None:
    """Temporary folders of dead processes go; those of living ones, and young ones of other hosts, stay."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = socket.gethostname()
    names = [
        f".tmp-{dead.pid}-aa-{here}",
        f".tmp-{os.getpid()}-aa-{here}",
        ".tmp-1-aa-else-where",
        ".tmp-2-aa-else-where",
    ]
    for parent in ("", "runs", "traces"):
        for name in [*names, "kept"]:
            (tmp_path / parent / name / "half").mkdir(parents=True)
        long_ago = time.time() - 100_000
        os.utime(tmp_path / parent / names[3], (long_ago, long_ago))
    remove_stale(tmp_path)
    for parent in ("", "runs", "traces"):
        found = {path.name for path in (tmp_path / parent).iterdir()} - {"runs", "traces"}
        assert {names[1], names[2], "kept"} == found


def test_workers_change_nothing_but_the_time(tmp_path: Path) -> None:
    """Two processes, a given executor and none leave the same bytes behind."""
    quiet(study(), tmp_path / "serial")
    quiet(study(), tmp_path / "processes", workers=2)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        quiet(study(), tmp_path / "threads", executor=threads)
    assert contents(tmp_path / "serial") == contents(tmp_path / "processes")
    assert contents(tmp_path / "serial") == contents(tmp_path / "threads")


def test_real_runs_in_parallel_equal_serial_ones(tmp_path: Path) -> None:
    """Invariant 6 on the simulator itself: equal tables but for the wall time, equal frames."""
    asked = study(grid={"tiers.dram.capacity": ["1 GiB", "4 GiB"]})
    serial, parallel = (
        run_study(asked, tmp_path / str(workers), workers=workers, progress=False).drop(columns="wall_s")
        for workers in (1, 2)
    )
    pd.testing.assert_frame_equal(serial, parallel)
    assert 6 == len(serial)
    assert serial["ttft_mean_s"].nunique() > 1
    for (_, one), (_, two) in zip(load_runs(tmp_path / "1"), load_runs(tmp_path / "2"), strict=True):
        pd.testing.assert_frame_equal(one.requests, two.requests)
        pd.testing.assert_frame_equal(one.moves, two.moves)


def test_factors_of_any_kind_fit_the_table(tmp_path: Path) -> None:
    """Numbers stay numbers; a factor of numbers and texts becomes text, tables become JSON."""
    table = quiet(
        study(
            tiers=TIERS,
            grid={"tiers.dram.capacity": [0, "1 GiB"], "trace.rate": [1, 0.5], "tasks": ["qa", {"qa": 1, "code": 2}]},
            policies=[{"name": "lru"}],
        ),
        tmp_path,
    )
    assert ["0"] * 4 + ["1 GiB"] * 4 == table["tiers.dram.capacity"].tolist()
    assert [1, 1, 0.5, 0.5] * 2 == table["trace.rate"].tolist()
    assert ["qa", '{"code": 2, "qa": 1}'] * 4 == table["tasks"].tolist()
    pd.testing.assert_frame_equal(table, load_summary(tmp_path))


def test_nothing_is_printed_when_stderr_is_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sweep in a pipe is silent."""
    run_study(study(), tmp_path, runner=fake_run)
    assert ("", "") == tuple(capfd.readouterr())


def test_tables_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """A folder without a table, or with a broken one, is told in one line."""
    with pytest.raises(SimkvError, match=r"summary\.parquet: cannot read the table"):
        load_summary(tmp_path)
    (tmp_path / "summary.parquet").write_bytes(b"PAR1")
    with pytest.raises(SimkvError, match=r"summary\.parquet: cannot read the table"):
        load_summary(tmp_path)


def test_the_log_names_an_interruption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C says that the same sweep goes on from there."""
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        quiet(study(), tmp_path, runner=CountingRun(0, KeyboardInterrupt()))
    assert "interrupted" in caplog.messages[-1]
