"""Measuring tiers: what the file says, that refusals of direct transfers are told, and that nothing is left behind."""

import errno
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import socket
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simkv.cli import app
from simkv.errors import ProfileError, SimkvError
from simkv.profiler import direct_io, fio, tiers
from simkv.profiler.direct_io import BLOCK, scratch_file
from simkv.profiler.tiers import TierPlan, machine_name, measure_tiers
from simkv.profiles import load_profile, load_tiers, with_tiers

_DEAD = 2**22 + 1  # beyond the largest process number


def plan(folder: Path | None, **changes: Any) -> TierPlan:
    """A measurement of 2 MiB and a millisecond a point."""
    return replace(TierPlan(folder, 1 << 21, 0.001, quick=True), **changes)


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "compare_with_fio", lambda *_: {})  # takes seconds where it is installed
    monkeypatch.setattr(tiers, "_QUICK_COPY_SIZES", (1 << 16, 1 << 18))


def test_the_file_has_both_tiers_and_every_point(tmp_path: Path) -> None:
    """DRAM and the disk with bandwidths and capacities, a row per size and depth, and it reads back."""
    measured = measure_tiers(plan(tmp_path), tmp_path / "mine.toml")
    assert ["dram", "ssd"] == [tier.name for tier in measured.tiers]
    assert all(tier.read_bytes_per_s > 0 and tier.write_bytes_per_s > 0 for tier in measured.tiers)
    points = {(row["what"], row["bytes"], row["depth"]) for row in measured.measurements if row["tier"] == "ssd"}
    assert set(itertools.product(("read", "write"), (BLOCK, 1 << 20), (1, 8))) == points
    assert {"copy"} == {row["what"] for row in measured.measurements if row["tier"] == "dram"}
    assert measured == load_tiers(tmp_path / "mine.toml")
    assert measured.provenance["file_system"]["type"]
    assert "O_DIRECT" in measured.provenance["direct"]
    assert ["mine.toml"] == [path.name for path in tmp_path.iterdir()]


def test_dram_counts_at_its_largest_size() -> None:
    """Not at one that stays in the processor's caches; and latency is that of one small read."""
    rows = [
        {"tier": "dram", "what": "copy", "bytes": size, "depth": 1, "bytes_per_s": rate, "latency_s": 0.0}
        for size, rate in ((1 << 16, 9000), (1 << 18, 1000))
    ]
    rows += [
        {"tier": "ssd", "what": what, "bytes": size, "depth": depth, "bytes_per_s": rate, "latency_s": latency}
        for what, size, depth, rate, latency in (
            ("read", BLOCK, 1, 10, 1e-4),
            ("read", 1 << 20, 1, 50, 1e-3),
            ("read", 1 << 20, 8, 70, 1e-2),
            ("write", 1 << 20, 8, 60, 1e-5),
        )
    ]
    dram, ssd = tiers._tiers(rows, plan(Path()))
    assert (1000, 70, 60, 1e-4) == (
        dram.read_bytes_per_s,
        ssd.read_bytes_per_s,
        ssd.write_bytes_per_s,
        ssd.latency_s,
    )


def test_without_a_disk_there_is_dram_alone(tmp_path: Path) -> None:
    """And nothing is written anywhere but the file."""
    measured = measure_tiers(plan(None), tmp_path / "mine.toml")
    assert ["dram"] == [tier.name for tier in measured.tiers]


def _refusing(direct: bool, at_open: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses O_DIRECT when a file is opened, or at the first transfer."""
    real_open, real_write = os.open, os.pwritev

    def opened(path: Any, flags: int, *rest: Any) -> int:
        if at_open and flags & direct_io._DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *rest)

    def written(descriptor: int, *rest: Any) -> int:
        if not at_open and direct_io.fcntl.fcntl(descriptor, direct_io.fcntl.F_GETFL) & direct_io._DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(descriptor, *rest)

    monkeypatch.setattr(direct_io.os, "open", opened)
    monkeypatch.setattr(direct_io.os, "pwritev", written)


@pytest.mark.parametrize("at_open", [True, False])
def test_refused_direct_transfers_are_told(
    at_open: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The page cache is measured then, and warning, rows and source say so."""
    _refusing(True, at_open, monkeypatch)
    measured = measure_tiers(plan(tmp_path), tmp_path / "mine.toml")
    assert "refuses direct transfers" in caplog.text
    assert {False} == {row["direct"] for row in measured.measurements if row["tier"] == "ssd"}
    assert measured.origins["tiers"]["source"].endswith("the page cache, not a disk")


def test_other_errors_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is no refusal of direct transfers, and nothing is left then either."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct_io.os, "pwritev", full)
    with pytest.raises(OSError, match="No space left"):
        measure_tiers(plan(tmp_path), tmp_path / "mine.toml")
    assert [] == list(tmp_path.iterdir())


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    """A filled file holds bytes that do not compress, over its whole length, and has no name."""
    with scratch_file(tmp_path, 1 << 20) as file:
        file.fill(0)
        assert [] == list(tmp_path.iterdir())
        with direct_io._aligned(1 << 20) as buffer:
            assert 1 << 20 == os.preadv(file.descriptor, [buffer], 0)
            assert len(set(buffer[:BLOCK])) > 200
            assert len(set(buffer[-BLOCK:])) > 200


def test_a_burst_keeps_every_worker_busy(tmp_path: Path) -> None:
    """Each of four reads at least twice, whatever the time."""
    with scratch_file(tmp_path, 1 << 18) as file:
        file.fill(0)
        ticks = itertools.count()
        burst = file.burst(False, BLOCK, 4, 0.0, lambda: float(next(ticks)), 0)
    assert 8 == len(burst.latencies_s)
    assert min(burst.latencies_s) >= 1


def test_free_space_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes more than half of what is free is refused, with both figures, and not written."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 30, 1 << 29, 3 << 20))
    with pytest.raises(SimkvError, match="3 MiB are free; a file of 2 MiB would take more than half"):
        measure_tiers(plan(tmp_path), tmp_path / "mine.toml")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"disk": Path("/no/such/folder")}, "there is no such folder"),
        ({"size": 5000}, "--size 5000: it must be a multiple of 4096"),
        ({"size": 4096}, "at least 16 of them"),
    ],
)
def test_bad_plans_are_refused_at_once(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    """Before anything is measured or written."""
    with pytest.raises(SimkvError, match=complaint):
        measure_tiers(plan(tmp_path, **changes), tmp_path / "mine.toml")
    assert [] == list(tmp_path.iterdir())


def test_a_measurement_is_never_overwritten(tmp_path: Path) -> None:
    """The file that is there stays."""
    (tmp_path / "mine.toml").write_text("mine", encoding="utf-8")
    with pytest.raises(SimkvError, match="exists already"):
        measure_tiers(plan(tmp_path), tmp_path / "mine.toml")
    assert "mine" == (tmp_path / "mine.toml").read_text(encoding="utf-8")


def test_folders_of_dead_processes_go(tmp_path: Path) -> None:
    """Those of live ones and of other programs stay."""
    home = tmp_path / "simkv-tiers"
    dead, alive, other = (
        home / name
        for name in (
            f".tmp-{_DEAD}-ab-{socket.gethostname()}",
            f".tmp-{os.getpid()}-ab-{socket.gethostname()}",
            "notes",
        )
    )
    for folder in (dead, alive, other):
        folder.mkdir(parents=True)
    (dead / "data").write_bytes(b"rest")
    measure_tiers(plan(tmp_path), tmp_path / "mine.toml")
    assert {alive, other} == set(home.iterdir())


def _measure_the_disk_alone(told: TierPlan, out: Path) -> None:
    tiers._copies = lambda *_: iter(())  # type: ignore[assignment]
    measure_tiers(told, out)


def test_a_kill_leaves_an_empty_folder_and_a_rerun_none(tmp_path: Path) -> None:
    """Even SIGKILL: the file has no name, so its space goes with the process."""
    told = (plan(tmp_path, seconds=30.0), tmp_path / "mine.toml")
    child = multiprocessing.get_context("fork").Process(target=_measure_the_disk_alone, args=told)
    child.start()
    home = tmp_path / "simkv-tiers"
    until = time.monotonic() + 60
    while not list(home.glob(".tmp-*")) and child.is_alive() and time.monotonic() < until:
        time.sleep(0.02)
    child.kill()
    child.join()
    (folder,) = home.iterdir()
    assert f".tmp-{child.pid}-" in folder.name
    assert [] == [path for path in folder.iterdir() if path.name != "data"]
    measure_tiers(plan(tmp_path), tmp_path / "mine.toml")
    assert ["mine.toml"] == [path.name for path in tmp_path.iterdir()]


def test_a_profile_takes_the_tiers(tmp_path: Path) -> None:
    """Instead of its own, with their origins; one whose lines belong to its tiers refuses."""
    measured = measure_tiers(plan(tmp_path), tmp_path / "mine.toml")
    profile = with_tiers(load_profile("llama-3.1-8b-a100"), measured)
    assert measured.tiers == profile.tiers
    assert "measured" == profile.provenance["numbers"]["tiers"]["status"]
    assert not [place for place in profile.provenance["numbers"] if place.startswith("tiers.")]
    with pytest.raises(ProfileError, match="load lines belong to its own tiers"):
        with_tiers(load_profile("adaptcache-a100-1gbps"), measured)


def test_compose_takes_the_tiers(tmp_path: Path) -> None:
    """From the command line, into a profile that reads back."""
    measure_tiers(plan(tmp_path), tmp_path / "mine.toml")
    out = tmp_path / "both"
    told = ["profile", "compose", "llama-3.1-8b-a100", "llama-3.1-8b-a100", "--name", "both", "--out", str(out)]
    done = CliRunner().invoke(app, [*told, "--tiers", str(tmp_path / "mine.toml")])
    assert 0 == done.exit_code, done.output
    assert load_tiers(tmp_path / "mine.toml").tiers == load_profile(out).tiers


def test_command_line(tmp_path: Path) -> None:
    """The verb writes the file and prints rows for a run's configuration."""
    told = ["profile", "tiers", "--ssd", str(tmp_path), "--size", "2 MiB", "--seconds", "0.001", "--quick"]
    done = CliRunner().invoke(app, [*told, "--out", str(tmp_path / "mine.toml")])
    assert 0 == done.exit_code, done.output
    assert 2 == done.stdout.count("[[tiers]]")
    rows = CliRunner().invoke(app, [*told, "--out", str(tmp_path / "other.toml"), "--json"])
    assert 12 == len(json.loads(rows.stdout[rows.stdout.index("{") :])["measurements"])


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", "intel-xeon-e5-2690-v4-4-cores"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-64-core-processor-4-cores"),
        ("...", "machine-4-cores"),
    ],
)
def test_the_machine_is_named_after_its_processor(processor: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file may be called."""
    monkeypatch.setattr(tiers, "device_name", lambda device: processor)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert name == machine_name()


def test_files_do_not_tell_where_they_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the host's name, nor a folder, nor the device or server of a mount."""
    monkeypatch.setattr(platform, "node", lambda: "secrethost")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"secretserver:/export {tmp_path} nfs rw 0 0\n", encoding="utf-8")
    opened = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **how: opened(mounts if str(path) == "/proc/mounts" else path, **how)
    )
    (tmp_path / "disk").mkdir()
    measured = measure_tiers(plan(tmp_path / "disk"), tmp_path / "mine.toml")
    text = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    assert "nfs" == measured.provenance["file_system"]["type"]
    assert not [word for word in ("secrethost", "secretserver", tmp_path.name, "/dev/") if word in text]


GOOD = """format = 1
name = "mine"
[tiers]
status = "measured"
source = "test"
rows = [{ name = "dram", capacity = "1 GiB", read = "5 GB/s", write = 5000000000, latency = "1 us" }]
[host_link]
status = "measured"
source = "test"
read = "25 GB/s"
write = "25 GB/s"
[measurements]
status = "measured"
source = "test"
rows = [
  { tier = "dram", what = "copy", bytes = 1, depth = 1, bytes_per_s = 1, latency_s = 1.0, p95_s = 1.0, direct = true },
]
"""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("format = 1", "format = 2", "the only format"),
        ('name = "mine"', 'nmae = "mine"', "did you mean 'name'"),
        ("rows = [{ name", "rows = []\nx = [{ name", "unknown key 'x'"),
        ('source = "test"\nrows = [{ name', "rows = [{ name", "status and source go together"),
        ('[tiers]\nstatus = "measured"\nsource = "test"', "[tiers]", "no status and source"),
        ('capacity = "1 GiB"', 'capacity = "1 Gib"', "Gib"),
        ("direct = true", "direct = 1", "true or false"),
        ("bytes_per_s = 1", "bytes_per_s = -1", "of at least 0"),
        ("[tiers]", "[tiers", "not a TOML file"),
    ],
)
def test_damaged_files_are_one_line(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    """Naming the file and what is wrong; the undamaged one reads."""
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert 25_000_000_000 == load_tiers(path).host_link.read_bytes_per_s  # type: ignore[union-attr]
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ProfileError, match=complaint) as caught:
        load_tiers(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fio_is_asked_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its JSON gives bandwidth and median latency; without it, or when it fails, there is nothing."""
    done = {"total_ios": 9, "bw_bytes": 5e8, "clat_ns": {"percentile": {"50.000000": 80_000}}}
    told = {"jobs": [{"read": {"total_ios": 0}, "write": done}]}
    script = tmp_path / "fio"
    script.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(script))
    found = fio.compare_with_fio(tmp_path, 1 << 20, 0.1)
    assert {"bytes_per_s": 5e8, "latency_s": 8e-5} == found["write_4KiB_depth_1"]
    script.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert {} == fio.compare_with_fio(tmp_path, 1 << 20, 0.1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert {} == fio.compare_with_fio(tmp_path, 1 << 20, 0.1)
