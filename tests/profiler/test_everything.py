"""Quality, speed and tiers in one go: the profile that comes of it, and going on after a kill."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from simkv.cli import app
from simkv.errors import SimkvError
from simkv.profiler import everything, tiers
from simkv.profiler.everything import WholePlan, measure_all
from simkv.profiler.measurement import QualityPlan
from simkv.profiler.speed_measurement import SpeedPlan
from simkv.profiler.tiers import TierPlan
from simkv.profiles import load_profile, load_tiers

NAMES = ("int8",)


def whole(disk: Path, seed: int = 0) -> WholePlan:
    """The smallest measurement of all three."""
    return WholePlan(
        QualityPlan(tasks=("qa",), compressors=NAMES, contexts=1, questions=2, length=64, seed=seed, quick=True),
        SpeedPlan(compressors=NAMES, lengths=(32, 48, 64), batches=(1,), seconds=0.002, seed=seed, quick=True),
        TierPlan(disk, 1 << 20, 0.001, seed, quick=True),
    )


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(tiers, "compare_with_fio", lambda *_: {})  # takes seconds where it is installed
    monkeypatch.setattr(tiers, "_QUICK_COPY_SIZES", (1 << 16,))


def test_a_killed_measurement_goes_on_and_ends_in_one_profile(tmp_path: Path) -> None:
    """Finished parts are taken as they are, the profile has all three, and few files are left."""
    out, seen = tmp_path / "mine", []

    @contextmanager
    def bars(what: str) -> Iterator[Callable[[int, int], None]]:
        seen.append(what)

        def tell(done: int, of: int) -> None:
            if what == "quality" and seen.count("quality") == 1 and done == 1:
                raise KeyboardInterrupt

        yield tell

    with pytest.raises(KeyboardInterrupt):
        measure_all(whole(tmp_path), out, bars)
    assert not out.exists()
    with pytest.raises(SimkvError, match="parts of another measurement"):
        measure_all(whole(tmp_path, seed=1), out, bars)
    measure_all(whole(tmp_path), out, bars)
    assert ["tiers", "speeds", "quality", "quality"] == seen
    profile = load_profile(out)
    assert (("qa",), ["dram", "ssd"]) == (profile.tasks, [tier.name for tier in profile.tiers])
    profile.require_speeds()
    assert profile.decode_steps
    assert profile.tiers == load_tiers(out / "tiers.toml").tiers
    assert {"profile.toml", "quality.csv", "speeds.csv", "tiers.toml"} == {path.name for path in out.iterdir()}
    assert ["mine"] == [path.name for path in tmp_path.iterdir()]


def test_parts_of_other_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names both codes."""
    (tmp_path / "mine.parts").mkdir()
    (tmp_path / "mine.parts/plan.txt").write_text(f"older\n{whole(tmp_path)!r}", encoding="utf-8")
    monkeypatch.setattr(everything, "measuring_identity", lambda: "newer")
    with pytest.raises(SimkvError, match="measured by other code .older; this is newer"):
        measure_all(whole(tmp_path), tmp_path / "mine", lambda what: nullcontext(lambda done, of: None))


def test_command_line_refuses_a_folder_that_exists(tmp_path: Path) -> None:
    """Before anything is measured."""
    done = CliRunner().invoke(app, ["profile", "all", "--out", str(tmp_path)])
    assert 2 == done.exit_code
    assert "exists already" in done.output
