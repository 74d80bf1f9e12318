"""Going on after a kill: only with the same model, device and compressors, plug-ins' code included."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from simkv.errors import SimkvError
from simkv.profiler import measurement
from simkv.profiler.checkpoints import checkpoint_facts
from simkv.profiler.compressors import make_compressor
from simkv.profiler.makers import maker_of
from simkv.profiler.measurement import QualityPlan, measure_quality
from simkv.profiler.quality import Setting
from simkv.profiler.rows import Row, RowFile
from tests.profiler.text_tokenizers import trained

PLUG_IN = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from simkv.profiler.compressors.dropping import Scorer


@dataclass(frozen=True)
class Mine(Scorer):
    name: ClassVar[str] = "mine"

    def score(self, cache, context, layer):
        return torch.arange(cache.shape.tokens){sign}
"""
TINY = QualityPlan(model="", tasks=("qa",), compressors=("int8",), contexts=1, questions=2, length=300)


def _saved(folder: Path, seed: int) -> str:
    """A random model and its tokenizer in a folder."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = trained()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def _killed(plan: QualityPlan, out: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_quality(plan, out, kill)


def test_other_weights_of_the_same_name_do_not_go_on(tmp_path: Path) -> None:
    """Two folders of one name are two models; the same weights in another place are one."""
    plan = replace(TINY, model=_saved(tmp_path / "a/model", 0))
    other = replace(TINY, model=_saved(tmp_path / "b/model", 1))
    _killed(plan, tmp_path / "out")
    with pytest.raises(SimkvError, match="rows of another measurement .weights_sha256 differ"):
        measure_quality(other, tmp_path / "out")
    (tmp_path / "a").rename(tmp_path / "moved")
    profile = measure_quality(replace(plan, model=str(tmp_path / "moved/model")), tmp_path / "out")
    assert 64 == len(profile.provenance["weights_sha256"])


def test_a_tokenizer_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    """Tasks in text depend on it."""
    folder = _saved(tmp_path / "model", 0)
    before = checkpoint_facts(folder, None)
    (tmp_path / "model/tokenizer.json").write_text("{}", encoding="utf-8")
    assert before != checkpoint_facts(folder, None)


def test_a_hub_name_is_the_commit_that_it_was() -> None:
    """As transformers leaves it in the config."""

    class Config:
        _commit_hash = "0123"

    assert {"weights_commit": "0123"} == checkpoint_facts("somebody/some-model", Config())
    assert {"weights_commit": "unknown"} == checkpoint_facts("somebody/some-model", object())


def test_another_device_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile names one."""
    plan = replace(TINY, model="small", length=96)
    _killed(plan, tmp_path / "out")
    monkeypatch.setattr(measurement, "device_name", lambda device: "another")
    with pytest.raises(SimkvError, match="rows of another measurement .device differ"):
        measure_quality(plan, tmp_path / "out")


def test_an_edited_plug_in_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a class outside simkv is what its rows depend on."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    plan = replace(TINY, model="small", length=96, compressors=("edited_compressor:Mine",))
    (tmp_path / "edited_compressor.py").write_text(PLUG_IN.format(sign=""), encoding="utf-8")
    _killed(plan, tmp_path / "out")
    monkeypatch.delitem(sys.modules, "edited_compressor")
    (tmp_path / "edited_compressor.py").write_text(PLUG_IN.format(sign=" * -1"), encoding="utf-8")
    with pytest.raises(SimkvError, match="rows of another measurement .mine:0.1, .* differ"):
        measure_quality(plan, tmp_path / "out")
    monkeypatch.delitem(sys.modules, "edited_compressor")
    (tmp_path / "edited_compressor.py").write_text(PLUG_IN.format(sign=""), encoding="utf-8")
    measure_quality(plan, tmp_path / "out")


def test_every_file_of_a_plug_ins_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class may be in one and what it calls in another; simkv's own code is no plug-in."""
    package = tmp_path / "edited_package"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "mine.py").write_text(PLUG_IN.format(sign=""), encoding="utf-8")
    (package / "helper.py").write_text("A = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    setting = Setting.of(make_compressor("edited_package.mine:Mine"), "0.5")
    before = maker_of(setting)
    (package / "helper.py").write_text("A = 2\n", encoding="utf-8")
    assert before != maker_of(setting)
    assert "by edited_package.mine:Mine, format mine/1, edited_package " in before
    built_in = maker_of(Setting.of(make_compressor("chain:snapkv+kivi"), "0.5+4"))
    assert built_in.endswith("by simkv.profiler.compressors.chain:Chain, format chain:snapkv+kivi/1")


HEAD = '{"identity": {}, "settings": {}}\n'
ROW = '["qa", 0, "kivi:2", 1.0, null, 1, 0.0, 0.0, 1.0, 5, 10, 0.1]\n'


@pytest.mark.parametrize(
    "text",
    [
        '{"identity": {}, "settings": []}\n',
        '{"identity": [], "settings": {}}\n',
        HEAD + ROW.replace("5, 10", '"5", 10'),
        HEAD + ROW.replace("5, 10", "5.5, 10"),
        HEAD + ROW.replace("5, 10", "true, 10"),
        HEAD + ROW.replace('"qa"', "[1]"),
        HEAD + ROW.replace("null, 1,", "null, null,"),
    ],
)
def test_a_damaged_file_of_rows_is_one_clear_error(text: str, tmp_path: Path) -> None:
    """Whatever is of the wrong type; a sound file with a whole number for a score is read."""
    (tmp_path / "sound").write_text(HEAD + ROW, encoding="utf-8")
    sound = RowFile(tmp_path / "sound", {}, {}, Row)
    sound.close()
    assert 5 == sound.rows["qa", 0, "kivi:2"].stored_bytes
    (tmp_path / "damaged").write_text(text, encoding="utf-8")
    with pytest.raises(SimkvError, match="not a file of measured rows"):
        RowFile(tmp_path / "damaged", {}, {}, Row)
