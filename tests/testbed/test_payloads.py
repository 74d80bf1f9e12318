"""Payloads in memory and on disk come back as they were, take the bytes that they say, and damage is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from simkv.errors import SimkvError
from simkv.profiler.direct_io import ScratchFile
from simkv.testbed import payloads as module
from simkv.testbed.payloads import DiskPayloads, DramPayloads, Payloads

SIZES = (1, 4095, 4096, 4097, 70_000)


def _noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize("kind", ["dram", "disk", "cached"])
def test_payloads_come_back(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every size comes back byte for byte, in any order, larger ones over smaller ones, with and without O_DIRECT."""
    if kind == "cached":
        monkeypatch.setattr(module, "_DIRECT", 0)
    tier: Payloads = DramPayloads() if kind == "dram" else DiskPayloads(tmp_path)
    for key, size in enumerate(SIZES):
        tier.write(key, _noise(size + 1))
        tier.write(key, _noise(size))
    for key, size in reversed(list(enumerate(SIZES))):
        assert _noise(size) == tier.read(key)
    assert dict(enumerate(SIZES)) == tier.sizes
    tier.drop(0)
    assert set(range(1, len(SIZES))) == tier.sizes.keys()


def test_a_file_system_without_direct_transfers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where O_DIRECT does not pass, payloads still come back, through the page cache, and a warning says so."""

    @contextmanager
    def refusing(folder: Path, size: int) -> Iterator[ScratchFile]:
        yield ScratchFile(-1, size, direct=False)

    monkeypatch.setattr(module, "scratch_file", refusing)
    disk = DiskPayloads(tmp_path)
    disk.write(1, _noise(5000))
    assert _noise(5000) == disk.read(1)
    assert not disk.direct
    assert "refuses direct transfers" in caplog.text


def test_a_file_system_in_memory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where O_DIRECT passes but no disk is behind it, reads are not called direct, and a warning says so."""
    monkeypatch.setattr(module, "in_memory", lambda folder: True)
    disk = DiskPayloads(tmp_path)
    disk.write(1, _noise(5000))
    assert _noise(5000) == disk.read(1)
    assert not disk.direct
    assert "is in memory" in caplog.text


def test_files_take_whole_blocks(tmp_path: Path) -> None:
    """A file is its payload, padded to 4,096 bytes, and goes when it is dropped."""
    disk = DiskPayloads(tmp_path)
    for key, size in enumerate(SIZES):
        disk.write(key, _noise(size))
    found = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert {"0.kv": 4096, "1.kv": 4096, "2.kv": 4096, "3.kv": 8192, "4.kv": 73_728} == found
    for key in list(disk.sizes):
        disk.drop(key)
    assert [] == list(tmp_path.iterdir())


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    """A file that lost its end names itself, and both lengths."""
    disk = DiskPayloads(tmp_path)
    disk.write(5, _noise(9000))
    disk.path(5).write_bytes(_noise(4096))
    with pytest.raises(SimkvError, match=r"5\.kv: holds 4096 bytes, 9000 were written: it is damaged"):
        disk.read(5)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """A file that somebody removed names itself."""
    disk = DiskPayloads(tmp_path)
    disk.write(5, _noise(10))
    disk.path(5).unlink()
    with pytest.raises(SimkvError, match=r"5\.kv: cannot be read"):
        disk.read(5)
