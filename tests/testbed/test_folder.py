"""Folders of a validation: only ours are used, emptied and removed, and never on a full disk."""

from pathlib import Path

import pytest

from simkv.errors import SimkvError
from simkv.testbed.folder import payload_folder, report_folder

NAMES = ("table.csv", "profiles", "report.json")


def test_payload_folder_is_gone_at_the_end(tmp_path: Path) -> None:
    """The folder is empty when given, and neither it nor anything else is left, also after an error."""
    with pytest.raises(ZeroDivisionError), payload_folder(tmp_path, 1) as home:
        assert [".simkv-testbed"] == [path.name for path in home.iterdir()]
        (home / "7.kv").write_bytes(b"x")
        raise ZeroDivisionError
    assert [] == list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """Payloads beside the marker belong to nobody any more."""
    home = tmp_path / "simkv-testbed"
    home.mkdir()
    (home / ".simkv-testbed").touch()
    (home / "3.kv").write_bytes(b"old")
    with payload_folder(tmp_path, 1) as given:
        assert not (given / "3.kv").exists()
    assert [] == list(tmp_path.iterdir())


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    """A run killed before it wrote its marker leaves an empty folder, which the next one uses."""
    (tmp_path / "simkv-testbed").mkdir()
    with payload_folder(tmp_path, 1) as home:
        assert home.is_dir()


@pytest.mark.parametrize(
    "files", [["3.kv"], [".simkv-testbed", "thesis.tex"], ["thesis.tex"]], ids=["no marker", "a file more", "foreign"]
)
def test_a_foreign_folder_is_refused_and_kept(tmp_path: Path, files: list[str]) -> None:
    """Without the marker, or with a file that we did not write, nothing is touched."""
    home = tmp_path / "simkv-testbed"
    home.mkdir()
    for name in files:
        (home / name).write_text("mine")
    with pytest.raises(SimkvError, match=r"simkv-testbed: holds .*which validate did not write"):
        payload_folder(tmp_path, 1).__enter__()
    assert sorted(files) == sorted(path.name for path in home.iterdir())


def test_a_link_is_refused(tmp_path: Path) -> None:
    """A link may lead to somebody else's folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "simkv-testbed").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SimkvError, match="no folder of simkv's"):
        payload_folder(tmp_path, 1).__enter__()


def test_too_little_room_is_refused(tmp_path: Path) -> None:
    """More than half of what is free is never taken, and nothing is left behind."""
    with pytest.raises(SimkvError, match="more than half of that"):
        payload_folder(tmp_path, 1 << 60).__enter__()
    assert [] == list(tmp_path.iterdir())


def test_a_missing_disk_is_refused(tmp_path: Path) -> None:
    """--ssd must be there already."""
    with pytest.raises(SimkvError, match="there is no such folder"):
        payload_folder(tmp_path / "none", 1).__enter__()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """Two validations never share payloads."""
    with payload_folder(tmp_path, 1), pytest.raises(SimkvError, match="another validation is using it"):
        payload_folder(tmp_path, 1).__enter__()


def test_a_report_appears_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    """Parts are moved to their place at the end; a report that failed leaves the older one as it was."""
    out = tmp_path / "out"
    for text in ("old", "new"):
        with report_folder(out, NAMES, "report.json") as part:
            (part / "profiles").mkdir()
            for name in ("table.csv", "profiles/one", "report.json"):
                (part / name).write_text(text)
    with pytest.raises(ZeroDivisionError), report_folder(out, NAMES, "report.json") as part:
        (part / "report.json").write_text("half")
        raise ZeroDivisionError
    assert {"new"} == {(out / name).read_text() for name in ("table.csv", "profiles/one", "report.json")}
    assert {".simkv-testbed", *NAMES} == {path.name for path in out.iterdir()}


def test_a_report_never_goes_into_a_foreign_folder(tmp_path: Path) -> None:
    """A folder with anything else in it is refused before anything is written."""
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(SimkvError, match=r"holds table\.csv"):
        report_folder(tmp_path, NAMES, "report.json").__enter__()
    assert ["table.csv"] == [path.name for path in tmp_path.iterdir()]
