"""Plans of a measurement: which compressors, parameters and further knobs a user's text asks for."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from simkv.cli import app
from simkv.cli_profile_quality import rates_of
from simkv.errors import SimkvError
from simkv.profiler.compressors import make_compressor
from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.dropping import Scorer
from simkv.profiler.measurement import QualityPlan, measure_quality
from simkv.profiler.plan import built, further_knobs, parsed_parameters, settings_of

EVERY_OTHER = f"{__name__}:EveryOther"


@dataclass(frozen=True)
class EveryOther(Scorer):
    """A plug-in with parameters of several types."""

    name: ClassVar[str] = "every-other"

    label: str = "a"
    step: int | None = None
    mode: Literal["odd", "even"] = "odd"

    def score(self, cache: KVCache, context: PrefillContext, layer: int) -> Tensor:
        """Every second token first."""
        return torch.arange(cache.shape.tokens) % 2


def _variants(names: list[str], asked: str, quick: bool = False, usual: Iterable[str] = ()) -> list[str]:
    compressors = built(names, {})
    further = further_knobs(names, compressors, {"kivi": tuple(usual)}, rates_of(asked), quick)
    return [str(setting.variant) for setting in settings_of(compressors, further, quick)]


def test_further_knobs_of_a_plug_in_go_by_either_name() -> None:
    """Its own, as profiles have it, and the one that it was asked for by."""
    assert "every-other:0.3" == _variants([EVERY_OTHER], "every-other:0.3")[-1]
    assert "every-other:0.3" == _variants([EVERY_OTHER], f"{EVERY_OTHER}:0.3")[-1]


def test_further_knobs_of_a_chain_are_those_of_its_parts() -> None:
    """Of two chains each takes its own."""
    names = ["chain:h2o+kivi", "chain:knorm+fp8"]
    found = _variants(names, "chain:h2o+kivi:0.5+2")
    assert "chain:h2o+kivi:0.5+2" == found[4]
    assert not [variant for variant in found[5:] if "h2o" in variant]
    assert "chain:snapkv+kivi:0.3+2" == _variants(["chain"], "chain:snapkv+kivi:0.3+2")[-1]


def test_further_knobs_of_what_is_not_measured_are_refused() -> None:
    """By a message that says what is."""
    cases = {"int8:g16": "knobs of int8,", "chain:h2o+kivi:0.5+2": "knobs of chain:h2o.kivi,"}
    for asked, message in cases.items():
        with pytest.raises(SimkvError, match=f"{message} which is not measured; measured: kivi, chain:knorm.fp8"):
            _variants(["kivi", "chain:knorm+fp8"], asked)


def test_a_quick_look_keeps_the_knobs_that_were_asked_for() -> None:
    """Thin is the ladder, not the wish; what only suits the model is left out."""
    assert ["kivi:4", "kivi:2", "kivi:5", "kivi:6"] == _variants(["kivi"], "kivi:5,kivi:6", True, ["7"])
    assert "kivi:7" in _variants(["kivi"], "kivi:5", False, ["7"])


def test_quick_measures_a_further_variant(tmp_path: Path) -> None:
    """As the command line takes it."""
    given = ["--tasks", "qa", "--compressors", "int8,chain:knorm+fp8", "--questions", "2", "--tokens", "96"]
    asked = ["--quick", "--variants", "chain:knorm+fp8:0.3+e4m3"]
    done = CliRunner().invoke(app, ["profile", "quality", *given, *asked, "--out", str(tmp_path / "p"), "--json"])
    assert 0 == done.exit_code, done.output
    assert "chain:knorm+fp8:0.3+e4m3" in done.stdout


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("knorm.keep", "hgh", "parameter keep is 'hgh'; it must be low or high"),
        ("cachegen.delta", "maybe", "parameter delta is 'maybe'; it must be true or false"),
        ("cachegen.delta", "1", "parameter delta is 1; it must be true or false"),
        ("h2o.recent", "true", "parameter recent is True; it must be a finite number"),
        ("h2o.recent", "nan", "parameter recent is nan; it must be a finite number"),
        ("kivi.residual", "abc", "parameter residual is 'abc'; it must be a whole number"),
        ("kivi.residual", "32.5", "parameter residual is 32.5; it must be a whole number"),
        ("kvcomp.books", "3", "unknown parameter of compressor kvcomp 'books'"),
        ("cachegen.tables", "x", "unknown parameter of compressor cachegen 'tables'"),
        ("streamingllm.sinks", "-3", "-3 sinks; it must be 0 to"),
        ("chain.coder", "kivi", "parameter coder is 'kivi'; it must be a Compressor"),
        ("packkv.order", "4", "parameter order is 4; it must be text"),
        (f"{EVERY_OTHER}.step", "x", "parameter step is 'x'; it must be a whole number or nothing"),
        (f"{EVERY_OTHER}.mode", "od", "parameter mode is 'od'; it must be odd or even"),
    ],
)
def test_values_that_a_parameter_cannot_have_are_one_clear_error(key: str, text: str, message: str) -> None:
    """Before anything is measured, whatever the compressor would make of them."""
    name = key.rpartition(".")[0]
    with pytest.raises(CompressorError) as caught:
        [make_compressor(name, **found) for found in parsed_parameters({key: text}).values()]
    assert message in str(caught.value)


def test_values_of_the_right_type_are_taken() -> None:
    """A whole number is a number, and true is true."""
    assert 1 == make_compressor("h2o", recent=1).recent  # type: ignore[attr-defined]
    assert make_compressor("cachegen", delta=True).delta  # type: ignore[attr-defined]
    assert 3 == make_compressor(EVERY_OTHER, step=3).step  # type: ignore[attr-defined]


@pytest.mark.parametrize("device", ["tpu", "cuda", "cuda:7", "cpu:0", ""])
def test_a_device_that_is_not_there_is_one_clear_error(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named, with what is allowed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    known = device in ("cuda", "cuda:7")
    with pytest.raises(SimkvError, match=f"device .?{device}.?: " + ("this machine has no" if known else "it must")):
        measure_quality(QualityPlan(device=device), tmp_path / "p")


def test_a_gpu_beyond_the_last_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are numbered from 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SimkvError, match="device cuda:2: this machine has 2"):
        measure_quality(QualityPlan(device="cuda:2"), tmp_path / "p")
