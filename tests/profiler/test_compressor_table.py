"""Finding compressors: built in, from a module, and from installed packages that may be broken or quarrel."""

import sys
from pathlib import Path

import pytest

from simkv.profiler.compressors import COMPRESSORS, compressor_names, find_compressor, make_compressor
from simkv.profiler.compressors.base import CompressorError
from simkv.profiler.compressors.chain import Chain
from simkv.profiler.compressors.kivi import Kivi

CLASS = """
from simkv.profiler.compressors.identity import Identity

class Mine(Identity):
    name = "{name}"

class Needy(Mine):
    def __init__(self, size):
        pass

number = 7
"""


def install(folder: Path, package: str, entries: dict[str, str], code: str) -> None:
    """What pip leaves of a package: a module and the metadata that names its entry points."""
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[simkv.compressors]", *lines]) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_table_names_classes_by_their_own_name() -> None:
    """A compressor is found under the name that it writes into payloads, and can be made without parameters."""
    for name, kind in COMPRESSORS.items():
        assert kind is find_compressor(name)
        assert name == kind.name
        assert isinstance(make_compressor(name), kind)


def test_unknown_name_is_answered_with_the_nearest() -> None:
    """A typing error meets a suggestion."""
    with pytest.raises(CompressorError, match="did you mean 'kivi'"):
        find_compressor("kivvi")


def test_chain_of_two_is_made_by_its_parts() -> None:
    """ "chain:snapkv+kivi" is an instance of chain with those parts."""
    made = make_compressor("chain:streamingllm+kivi")
    assert isinstance(made, Chain)
    assert ("streamingllm", Kivi()) == (made.dropper.name, made.coder)


def test_class_of_any_module(site: Path) -> None:
    """A module and a class in it need no packaging."""
    (site / "loose_compressor.py").write_text(CLASS.format(name="mine"))
    assert "mine" == find_compressor("loose_compressor:Mine").name
    assert "mine" == make_compressor("loose_compressor:Mine").name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:Mine", "cannot be imported: ModuleNotFoundError: No module named"),
        ("loose_again:Missing", "cannot be imported: AttributeError: module 'loose_again' has no attribute"),
        ("loose_again:", "not of the form"),
        (":Mine", "not of the form"),
        ("loose again:Mine", "not of the form"),
        ("loose_again:number", "is not a subclass"),
        ("loose_again:Mine", "calls itself 'kivi', which is built in"),
    ],
)
def test_wrong_class_is_one_line(site: Path, name: str, says: str) -> None:
    """What cannot be imported, is no compressor, or takes a built-in's name is a CompressorError that says so."""
    (site / "loose_again.py").write_text(CLASS.format(name="kivi"))
    with pytest.raises(CompressorError, match=says) as caught:
        find_compressor(name)
    assert "\n" not in str(caught.value)


def test_class_with_parameters_is_refused(site: Path) -> None:
    """A class that cannot be made without parameters says so when it is to be made."""
    (site / "needy_compressor.py").write_text(CLASS.format(name="needy"))
    with pytest.raises(CompressorError, match="cannot be made"):
        make_compressor("needy_compressor:Needy")


def test_plug_ins_are_listed_without_loading(site: Path) -> None:
    """An installed plug-in is known by name, and imported only when asked for."""
    install(site, "lazy_plugin", {"lazy": "lazy_plugin:Mine"}, CLASS.format(name="lazy"))
    assert "lazy" in compressor_names()
    assert "lazy_plugin" not in sys.modules
    assert "lazy" == find_compressor("lazy").name
    assert "lazy_plugin" in sys.modules


def test_broken_plug_in_breaks_nothing_else(site: Path) -> None:
    """A plug-in that fails to import is an error for who asks for it, and for nobody else."""
    install(site, "broken_plugin", {"broken": "broken_plugin:Mine"}, "raise RuntimeError('half\\ninstalled')")
    install(site, "sound_plugin", {"sound": "sound_plugin:Mine"}, CLASS.format(name="sound"))
    assert {"broken", "sound", "kivi"} <= set(compressor_names())
    assert "sound" == find_compressor("sound").name
    assert Kivi is find_compressor("kivi")
    with pytest.raises(CompressorError, match="'broken' cannot be imported: RuntimeError") as caught:
        find_compressor("broken")
    assert "\n" not in str(caught.value)


def test_two_packages_of_one_name_are_refused(site: Path) -> None:
    """Neither wins; both can be named by module and class."""
    for package in ("first_plugin", "second_plugin"):
        install(site, package, {"double": f"{package}:Mine"}, CLASS.format(name="double"))
    with pytest.raises(CompressorError, match="claimed by first_plugin:Mine, second_plugin:Mine"):
        find_compressor("double")
    assert "double" == find_compressor("second_plugin:Mine").name


def test_plug_in_cannot_take_a_built_in_name(site: Path) -> None:
    """A package that claims "kivi" makes that name ambiguous, and says so; the others still work."""
    install(site, "thief_plugin", {"kivi": "thief_plugin:Mine"}, CLASS.format(name="kivi"))
    with pytest.raises(CompressorError, match=r"claimed by simkv.profiler.compressors.kivi:Kivi, thief_plugin:Mine"):
        find_compressor("kivi")
    assert Kivi is find_compressor("simkv.profiler.compressors.kivi:Kivi")
    assert COMPRESSORS["int8"] is find_compressor("int8")


def test_plug_in_that_calls_itself_differently_is_refused(site: Path) -> None:
    """The name in the package's metadata and the name in payloads must agree."""
    install(site, "masked_plugin", {"outside": "masked_plugin:Mine"}, CLASS.format(name="inside"))
    with pytest.raises(CompressorError, match="calls itself 'inside'"):
        find_compressor("outside")
