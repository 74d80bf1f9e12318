"""Which compressors are measured on a model: calibrated where they ask for it, tried before any row, or left out."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from simkv.cli import app
from simkv.errors import SimkvError
from simkv.profile_types import Profile
from simkv.profiler import fitting, measurement
from simkv.profiler.compressors import make_compressor
from simkv.profiler.compressors.adapters.kvpress import KvpressDropper
from simkv.profiler.compressors.base import CompressorError, KVCache, PrefillContext
from simkv.profiler.compressors.identity import Identity
from simkv.profiler.compressors.payload import Encoded
from simkv.profiler.fitting import calibration_caches
from simkv.profiler.measurement import QualityPlan, measure_quality
from simkv.profiler.models import CachedModel
from simkv.profiler.tasks.longbench import read_longbench
from tests.profiler.text_tokenizers import trained

SIZES = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PLAN = QualityPlan(tasks=("qa",), contexts=1, questions=2, length=192)


@pytest.fixture(scope="module")
def cohere(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model whose rotary embedding pairs neighbouring channels, which kvquant cannot take."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where, tokenizer = tmp_path_factory.mktemp("hf") / "cohere", trained()
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = CohereConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **SIZES, **ids)
    CohereForCausalLM(config).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return str(where)


def _default(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(measurement, "default_names", lambda: list(names))


def test_a_built_in_that_cannot_take_the_model_is_left_out_and_named(
    cohere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has asked for it; the others are measured."""
    _default(monkeypatch, "kvquant", "int8")
    given = ["--model", cohere, "--tasks", "qa", "--contexts", "1", "--questions", "2", "--tokens", "300"]
    done = CliRunner().invoke(app, ["profile", "quality", *given, "--quick", "--out", str(tmp_path / "p"), "--json"])
    assert 0 == done.exit_code, done.output
    told = json.loads(done.stdout)
    assert ["raw", "int8:g16", "int8:head"] == [row["variant"] for row in told["variants"]]
    assert ["kvquant"] == list(told["refused"])
    assert "variant kvquant:4: compressor kvquant:" in told["refused"]["kvquant"]


def test_one_that_was_asked_for_ends_the_run_before_the_first_row(cohere: str, tmp_path: Path) -> None:
    """However late in the list."""
    plan = replace(PLAN, model=cohere, compressors=("int8", "kvquant"), length=300)
    told: list[int] = []
    with pytest.raises(CompressorError, match="variant kvquant:4-1%: compressor kvquant"):
        measure_quality(plan, tmp_path / "p", lambda done, total: told.append(done))
    assert not told and not list(tmp_path.iterdir())


def test_a_knob_that_does_not_exist_ends_the_run_before_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a built-in compressor that was not asked for by itself."""
    _default(monkeypatch, "kivi")
    with pytest.raises(CompressorError, match="variant kivi:99"):
        measure_quality(replace(PLAN, rates={"kivi": ["99"]}), tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_contexts_too_short_to_calibrate_on_leave_a_built_in_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codebooks need a whole block; who asks for it by name is told."""
    _default(monkeypatch, "kvcomp", "int8")
    short = replace(PLAN, length=100, quick=True, parameters={"kvcomp": {"buffer": 128}})
    profile = measure_quality(short, tmp_path / "p")
    assert {"kvcomp"} == profile.provenance["refused"].keys()
    with pytest.raises(CompressorError, match="no cache to fit codebooks to has a whole block"):
        measure_quality(replace(short, compressors=("kvcomp",)), tmp_path / "q")


@dataclass(frozen=True)
class Greedy(Identity):
    """Asks for calibration and remembers on how many tokens."""

    name: ClassVar[str] = "greedy"
    knobs: ClassVar[tuple[str, ...]] = ("1",)
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    seen: tuple[int, ...] = ()

    def encode(self, cache: KVCache, context: PrefillContext, knob: str) -> Encoded:
        """As identity."""
        return Identity().encode(cache, context, "")

    @property
    def format(self) -> str:
        """That of identity."""
        return Identity().format

    def fit(self, caches: Any) -> "Greedy":
        """A copy that knows the lengths."""
        return replace(self, seen=tuple(cache.shape.tokens for cache in caches))


def _file(path: Path, words: int) -> Path:
    rows = [{"context": f"{number} red door " * words, "question": "Which?", "answers": ["red"]} for number in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_alone_needs_no_generated_task(tmp_path: Path) -> None:
    """Contexts too short for a task to be made, and calibration on the file's own contexts, which the profile says."""
    torch.manual_seed(0)
    tokenizer = trained()
    folder = tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **SIZES)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    path = _file(tmp_path / "mine.jsonl", 9)
    made = [f"{__name__}:Greedy", "int8"]
    plan = QualityPlan(str(folder), files=(path,), contexts=3, questions=2, length=40, compressors=made)
    profile = measure_quality(plan, tmp_path / "p")
    lengths = [len(read_longbench(path, tokenizer, 40).context(number).tokens) for number in range(2)]
    assert ("mine",) == profile.tasks
    assert f"seen=({lengths[0]}, {lengths[1]})" in profile.provenance["parameters"]["greedy"]
    assert "measured too" in profile.provenance["calibration"]


def test_caches_to_calibrate_on_are_made_only_when_asked_for_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """None for compressors that do not calibrate; as many as fit otherwise, at least one, evenly spread."""
    torch.manual_seed(0)
    model = CachedModel(LlamaForCausalLM(LlamaConfig(vocab_size=50, **SIZES)), "tiny")
    contexts = [[number] * (10 - number) for number in range(5)]

    def never() -> list[list[int]]:
        raise AssertionError

    def lengths() -> list[int]:
        return [cache.shape.tokens for cache in calibration_caches(model, [Greedy()], lambda: contexts)]

    assert [] == calibration_caches(model, [make_compressor("int8")], never)
    assert [10, 9, 8, 7, 6] == lengths()
    monkeypatch.setattr(fitting, "_MOST_BYTES", 3 * 10 * model.kv_bytes_per_token)
    assert [10, 8, 6] == lengths()
    monkeypatch.setattr(fitting, "_MOST_BYTES", 1)
    assert [10] == lengths()


def test_entropy_coders_ask_for_calibration() -> None:
    """They alone, and chains with them."""
    asking = [name for name in measurement.default_names() if "calibration" in make_compressor(name).needs]
    assert ["cachegen", "kvcomp"] == asking
    assert {"queries", "calibration"} == make_compressor("chain:snapkv+kvcomp").needs


class _Press:
    compression_ratio = 0.0


@dataclass(frozen=True)
class Pressed(KvpressDropper):
    """A press that never comes to act."""

    name: ClassVar[str] = "kvpress-none"

    @staticmethod
    def press() -> Any:
        """A new one."""
        return _Press()


def test_a_press_cannot_be_measured_query_aware(tmp_path: Path) -> None:
    """It acts while the context alone is prefilled, so its rows would not be what the profile says."""
    plan = replace(PLAN, compressors=(f"{__name__}:Pressed",), query_aware=True)
    with pytest.raises(SimkvError, match="compressor kvpress-none: a press cannot be measured query-aware"):
        measure_quality(plan, tmp_path / "p")


def test_wall_time_is_that_of_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading, calibration and saving included, and the rows of a call before that was killed."""
    ticks = iter([100.0, 107.0])
    monkeypatch.setattr(measurement, "perf_counter", lambda: next(ticks))
    profile: Profile = measure_quality(replace(PLAN, compressors=("int8",)), tmp_path / "p")
    assert 7.0 == profile.provenance["wall_time_s"]
