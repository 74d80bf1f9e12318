"""Measuring quality: what a row says, that nothing is measured twice, and that the profile is used as it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from simkv.cli import app
from simkv.errors import SimkvError
from simkv.profile_types import RAW, Profile, Variant
from simkv.profiler.compressors import make_compressor
from simkv.profiler.compressors.base import CompressorError, DecodedCache
from simkv.profiler.compressors.identity import Identity
from simkv.profiler.measurement import QualityPlan, measure_quality
from simkv.profiler.models import CachedModel
from simkv.profiler.plan import built, parsed_parameters, settings_of
from simkv.profiler.quality import Setting, answer_score, halves, measured_rows
from simkv.profiler.rows import Row, RowFile
from simkv.profiler.small.settings import load_cached
from simkv.profiler.tasks import TASKS, Question
from simkv.profiler.tasks.base import END
from simkv.profiler.workloads import calibration_contexts, generated
from simkv.profiles import load_profile
from tests.profiler.text_tokenizers import trained

SHORT = QualityPlan(tasks=("qa",), compressors=("kivi", "streamingllm"), contexts=2, questions=6, length=192)


@pytest.fixture(scope="module")
def model() -> CachedModel:
    """The committed model."""
    torch.set_num_threads(1)
    return load_cached()


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """What the quick measurement of the command line writes."""
    out = tmp_path_factory.mktemp("quick") / "mine"
    done = CliRunner().invoke(app, ["profile", "quality", "--quick", "--out", str(out)])
    assert 0 == done.exit_code, done.output
    return load_profile(out)


def _never(task: str, sample: int, variant: str) -> bool:
    return False


def _rows(model: CachedModel, settings: list[Setting], task: str = "qa", aware: bool = False) -> dict[str, Row]:
    workload = generated(TASKS[task], 1, 12, 256, 5, END)
    return {row.variant: row for row in measured_rows(model, workload, settings, _never, aware)}


def test_quick_measures_every_compressor_on_every_task(quick: Profile) -> None:
    """All built-in compressors at two knobs, five tasks, four contexts, and nothing is missing."""
    compressors = {variant.compressor for variant in quick.variants} - {"raw"}
    assert 17 <= len(compressors)
    assert set(TASKS) == set(quick.tasks)
    assert 5 * 4 * len(quick.variants) == len(quick.quality)
    assert not quick.quality.isna().any().any()


def test_raw_is_one_by_definition(quick: Profile) -> None:
    """And does not diverge from itself; against the truth it is what the model can do."""
    raw = quick.quality[quick.quality["variant"] == "raw"]
    assert {1.0} == set(raw["quality"]) == set(raw["quality_train"]) == set(raw["top1"])
    assert {0.0} == set(raw["kl"])
    assert 0.9 < raw["truth"].mean() <= 1.0


def test_tasks_separate_in_the_quick_measurement(quick: Profile) -> None:
    """Dropping half of the tokens costs some task at least 0.3 more than another."""
    means = [quick.mean_quality(task, Variant("streamingllm", "0.5")) for task in quick.tasks]
    assert 0.3 <= max(means) - min(means)


def test_provenance_says_where_the_numbers_come_from(quick: Profile) -> None:
    """Device, versions, commit, seed, date, wall time, and every compressor's parameters."""
    facts = quick.provenance
    assert {"device", "versions", "commit", "seed", "date", "wall_time_s", "weights_sha256"} <= facts.keys()
    assert "residual=32" in facts["parameters"]["kivi"]
    assert 0 < facts["shared_bytes"]["kvcomp"]
    assert {"measured"} == {origin["status"] for origin in facts["numbers"].values()}


def test_sizes_are_lengths_of_payloads(model: CachedModel) -> None:
    """A row's stored bytes are what encoding the context gives."""
    kivi = make_compressor("kivi", residual=32)
    row = _rows(model, [Setting.of(kivi, "4")])["kivi:4"]
    context = generated(TASKS["qa"], 1, 12, 256, 5, END).context(0)
    cache, side = model.prefill(context.tokens.tolist())
    assert len(kivi.encode(cache, side, "4").payload) == row.stored_bytes
    assert cache.shape.raw_bytes == row.raw_bytes


def test_scores_are_those_of_plain_greedy_answers(model: CachedModel) -> None:
    """Confirming the uncompressed answers in one pass gives what generating every answer gives."""
    setting = Setting.of(make_compressor("kivi", residual=32), "2")
    for name, task in TASKS.items():
        row = _rows(model, [setting], name)["kivi:2"]
        context = generated(task, 1, 12, 256, 5, END).context(0)
        cache, side = model.prefill(context.tokens.tolist())
        decoded = setting.compressor.decode(setting.compressor.encode(cache, side, "2").payload)
        longest = max(len(question.answer) for question in context.questions)
        outputs = model.answer(decoded, [question.query for question in context.questions], longest, END)
        scores = [task.score(output, question) for output, question in zip(outputs, context.questions, strict=True)]
        _, scored = halves(len(scores))
        assert pytest.approx(sum(scores[scored]) / len(scores[scored]), abs=1e-5) == row.truth


def test_a_lossless_compressor_scores_as_raw_does(model: CachedModel) -> None:
    """Quality 1, no divergence, the same likelihood of the truth."""
    rows = _rows(model, [Setting(Variant("same", "1"), Identity(), "")], "code")
    assert 1.0 == rows["same:1"].quality == rows["same:1"].top1
    assert pytest.approx(0.0, abs=1e-5) == rows["same:1"].kl
    assert pytest.approx(rows["raw"].nll, abs=1e-4) == rows["same:1"].nll
    assert rows["raw"].truth == rows["same:1"].truth


def test_harsher_variants_diverge_more(model: CachedModel) -> None:
    """Likelihood and divergence follow the bits."""
    kivi = make_compressor("kivi", residual=32)
    rows = _rows(model, [Setting.of(kivi, "8"), Setting.of(kivi, "2")], "code")
    assert rows["kivi:8"].kl < rows["kivi:2"].kl
    assert rows["kivi:8"].nll < rows["kivi:2"].nll
    assert rows["kivi:8"].stored_bytes > rows["kivi:2"].stored_bytes


def test_a_compressor_that_knows_the_question_keeps_its_answer(model: CachedModel) -> None:
    """SnapKV is better when it may look at the question first, and says no more bytes for it."""
    setting = Setting.of(make_compressor("snapkv", window=4), "0.25")
    agnostic = _rows(model, [setting])["snapkv:0.25"]
    aware = _rows(model, [setting], aware=True)["snapkv:0.25"]
    assert agnostic.truth + 0.2 < aware.truth
    assert agnostic.stored_bytes == aware.stored_bytes


def test_an_uncompressed_answer_of_nothing_is_matched_by_nothing() -> None:
    """When the uncompressed cache answers nothing, saying something is wrong, and no metric divides by its length."""
    workload = generated(TASKS["needle"], 1, 2, 128, 0, END)
    question = Question((5,), (END,))
    assert 1.0 == answer_score(workload, [], question)
    assert 0.0 == answer_score(workload, [200, 201], question)


def test_half_of_the_questions_are_for_policies() -> None:
    """A single question scores."""
    assert (slice(0, 8), slice(8, 16)) == halves(16)
    assert (slice(0, 0), slice(0, 1)) == halves(1)


def test_calibration_contexts_are_none_of_the_measured(model: CachedModel) -> None:
    """Codebooks are not fitted to what they are scored on."""
    measured = generated(TASKS["qa"], 3, 2, 96, 0, END)
    calibration = calibration_contexts(TASKS["qa"], 3, 96, 0)
    texts = [tuple(measured.context(i).tokens.tolist()) for i in range(3)]
    assert 6 == len({*texts, *(tuple(context.tokens.tolist()) for context in calibration)})


def test_a_killed_measurement_goes_on_and_gives_the_same_profile(tmp_path: Path) -> None:
    """Finished pairs are not measured again, and the profile's rows are those of an undisturbed run."""

    def kill(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_quality(SHORT, tmp_path / "cut", kill)
    rows = tmp_path / "cut.rows.jsonl"
    assert 1 + 7 == len(rows.read_text().splitlines())
    with rows.open("a") as file:
        file.write('["qa", 1, "ki')
    told: list[int] = []
    measure_quality(SHORT, tmp_path / "cut", lambda done, total: told.append(done))
    whole = measure_quality(SHORT, tmp_path / "whole")
    assert 7 == told[0]
    assert (tmp_path / "whole/quality.csv").read_bytes() == (tmp_path / "cut/quality.csv").read_bytes()
    assert len(whole.quality) == told[-1]
    assert not rows.exists()


def test_rows_of_another_measurement_are_refused(tmp_path: Path) -> None:
    """Another seed, or the same variant with other parameters; new variants may join."""
    path = tmp_path / "x.rows.jsonl"
    row = Row("qa", 0, "kivi:2", 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 5, 10, 0.1)
    first = RowFile(path, {"seed": 1}, {"kivi:2": "Kivi(residual=32)"}, Row)
    first.add(row)
    first.close()
    with pytest.raises(SimkvError, match="rows of another measurement .seed differ"):
        RowFile(path, {"seed": 2}, {"kivi:2": "Kivi(residual=32)"}, Row)
    with pytest.raises(SimkvError, match="kivi:2 differ"):
        RowFile(path, {"seed": 1}, {"kivi:2": "Kivi(residual=64)"}, Row)
    with pytest.raises(SimkvError, match="measured by other code .unknown; this is 1.0.aa"):
        RowFile(path, {"seed": 1, "code": "1.0+aa"}, {"kivi:2": "Kivi(residual=32)"}, Row)
    more = RowFile(path, {"seed": 1}, {"int8:g16": "Int8()"}, Row)
    more.close()
    assert {("qa", 0, "kivi:2"): row} == more.rows
    again = RowFile(path, {"seed": 1}, {"kivi:2": "Kivi(residual=32)"}, Row)
    again.close()
    assert more.rows == again.rows


@pytest.mark.parametrize("text", ["nonsense\n", "[1]\n", '{"identity": {}}\n', '{"identity": 1, "settings": {}}\n[]\n'])
def test_files_that_hold_no_rows_are_one_clear_error(tmp_path: Path, text: str) -> None:
    """Whatever is in them."""
    path = tmp_path / "x.rows.jsonl"
    path.write_text(text)
    with pytest.raises(SimkvError, match="not a file of measured rows"):
        RowFile(path, {}, {}, Row)


def test_plans_that_cannot_be_carried_out_are_one_clear_error(tmp_path: Path) -> None:
    """Unknown tasks, compressors, parameters and knobs, too few questions, and a folder that exists."""
    cases = {
        "unknown task 'qaa'": QualityPlan(tasks=("qaa",)),
        "unknown compressor 'kiwi'": QualityPlan(compressors=("kiwi",)),
        "unknown parameter of compressor kivi 'rest'": QualityPlan(
            compressors=("kivi",), parameters={"kivi": {"rest": 1}}
        ),
        "parameters of int8, which is not measured": QualityPlan(
            compressors=("kivi",), parameters={"int8": {"group": 1}}
        ),
        "further knobs of int8, which is not measured": QualityPlan(compressors=("kivi",), rates={"int8": ["g16"]}),
        "1 questions per context": QualityPlan(questions=1),
        "knob '99'": QualityPlan(tasks=("qa",), compressors=("kivi",), rates={"kivi": ["99"]}, contexts=1, length=128),
    }
    for message, plan in cases.items():
        with pytest.raises(SimkvError, match=message):
            measure_quality(plan, tmp_path / "none")
    (tmp_path / "there").mkdir()
    with pytest.raises(SimkvError, match="exists already"):
        measure_quality(SHORT, tmp_path / "there")


@dataclass(frozen=True)
class _Shrunk(Identity):
    """A compressor that loses a head."""

    name: ClassVar[str] = "shrunk"

    def decode(self, payload: bytes, device: torch.device | str = "cpu") -> DecodedCache:
        """One head fewer than there were."""
        whole = Identity().decode(payload, device)
        return DecodedCache([k[:1] for k in whole.keys], [v[:1] for v in whole.values], whole.next_position)

    @property
    def format(self) -> str:
        """That of identity."""
        return Identity().format


def test_a_cache_that_does_not_fit_the_model_is_refused(model: CachedModel) -> None:
    """A plug-in's mistake is named, not averaged."""
    with pytest.raises(CompressorError, match="variant shrunk: its decoded cache does not fit"):
        _rows(model, [Setting(Variant("shrunk"), _Shrunk(), "")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with multi-head attention and a tokenizer, as a user's folder has them."""
    where = tmp_path_factory.mktemp("hf") / "tiny"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = trained()
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **sizes))
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def test_any_model_is_measured_on_text_and_on_a_users_file(folder: Path, tmp_path: Path) -> None:
    """A Hugging Face folder answers generated text tasks and a LongBench-format file, by the command line."""
    rows = [
        {"context": "The key of the door is red. " * 30, "question": f"Which {i}?", "answers": ["red"]}
        for i in range(4)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ["--contexts", "2", "--questions", "4", "--tokens", "600", "--compressors", "kivi,snapkv", "--json"]
    given = ["--tasks", "needle", "--file", str(tmp_path / "mine.jsonl"), "--out", str(tmp_path / "p"), *few]
    done = CliRunner().invoke(app, ["profile", "quality", "--model", str(folder), *given])
    assert 0 == done.exit_code, done.output
    profile = load_profile(tmp_path / "p")
    assert ("needle", "mine") == profile.tasks
    assert 2 == profile.samples("needle") and 1 == profile.samples("mine")
    assert 2 * 2 * 64 * 2 == profile.kv_bytes_per_token
    assert {"mine"} == profile.provenance["files"].keys()
    mildest, harshest = (profile.mean_quality("needle", Variant.parse(name)) for name in ("kivi:8", "snapkv:0.1"))
    assert harshest < mildest <= 1.0


def test_questions_must_fit_the_window(folder: Path, tmp_path: Path) -> None:
    """A context that leaves no room for its questions is refused before anything is wrong."""
    plan = QualityPlan(model=str(folder), tasks=("qa",), compressors=("int8",), contexts=1, length=2040)
    with pytest.raises(SimkvError, match="has a window of 2048"):
        measure_quality(plan, tmp_path / "p")
    with pytest.raises(SimkvError, match="text needs another model"):
        measure_quality(QualityPlan(files=(tmp_path / "x.jsonl",)), tmp_path / "p")


def test_parameters_reach_a_chains_parts() -> None:
    """Given by the part's name; numbers are numbers."""
    given = parsed_parameters({"kivi.residual": "32", "snapkv.window": "16"})
    (chain,) = built(["chain:snapkv+kivi"], given)
    assert 32 == chain.coder.residual and 16 == chain.dropper.window  # type: ignore[attr-defined]
    with pytest.raises(SimkvError, match="COMPRESSOR.PARAMETER=VALUE"):
        parsed_parameters({"residual": "32"})


def test_every_compressor_has_four_knobs() -> None:
    """But the one that does nothing; a variant never appears twice."""
    for setting in settings_of(built(["fp8", "int8", "kivi"], {}), {}):
        assert RAW != setting.variant
        assert 4 <= len(setting.compressor.knobs)


def test_json_output_and_profile_check(tmp_path: Path) -> None:
    """The verb prints one JSON object, and the profile passes the check."""
    out = tmp_path / "p"
    given = ["--tasks", "qa", "--compressors", "int8", "--contexts", "1", "--questions", "2", "--tokens", "128"]
    done = CliRunner().invoke(app, ["profile", "quality", *given, "--out", str(out), "--json"])
    assert 0 == done.exit_code, done.output
    assert ["qa"] == json.loads(done.stdout)["tasks"]
    assert "OK: p: 6 variants, 1 tasks" in CliRunner().invoke(app, ["profile", "check", str(out)]).stdout
