"""Measuring speed: what a row says, that nothing is measured twice, and that the profile is used as it is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from typer.testing import CliRunner

from simkv.cli import app
from simkv.errors import SimkvError
from simkv.models import MODELS, ModelShape
from simkv.profile_types import RAW, Profile, Variant
from simkv.profiler import architectures, speed_measurement, subjects
from simkv.profiler.architectures import Architecture, random_model, weight_bytes
from simkv.profiler.attention import continuing
from simkv.profiler.compressors import COMPRESSORS, make_compressor
from simkv.profiler.compressors.base import PrefillContext, staged
from simkv.profiler.link import host_link_of
from simkv.profiler.model_calls import cache_argument
from simkv.profiler.random_caches import CacheShape, random_cache
from simkv.profiler.rows import SpeedRow
from simkv.profiler.small.settings import load_cached
from simkv.profiler.speed import Grid
from simkv.profiler.speed_measurement import SpeedPlan, measure_speed
from simkv.profiler.speed_model import SpeedModel
from simkv.profiler.subjects import open_subject
from simkv.profiles import compose, load_profile

SHORT = SpeedPlan(
    compressors=("kivi", "streamingllm"), lengths=(64, 96, 128), batches=(1, 2), seconds=0.002, quick=True
)
SHAPE = CacheShape(2, 2, 4, 16)


class TickingClock:
    """A clock on which every look takes a millisecond."""

    def __init__(self) -> None:
        self.looks = 0

    def seconds(self) -> float:
        """A millisecond after the last look."""
        self.looks += 1
        return self.looks / 1000


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ticked(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The small model's profile on a clock that ticks at every look."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("speed") / "mine"
    measure_speed(SHORT, out, clock=TickingClock())
    return load_profile(out)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A shape that is known for the time of a test: six layers of next to nothing."""
    monkeypatch.setitem(MODELS, "tiny", ModelShape("tiny", 6, 2, 16, 256))
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", Architecture(4, 32, 48, 64))
    return "tiny"


def test_every_known_shape_has_an_architecture() -> None:
    """What a cache's shape is known of can be prefilled too."""
    assert MODELS.keys() == architectures.ARCHITECTURES.keys()


def test_weights_are_counted_right(tiny: str) -> None:
    """Bytes of a layer and of the embedding are those of the model that is built, but for its norms."""
    layer, embedding = weight_bytes(tiny, 4)
    model = random_model(tiny, 3, "cpu", torch.float32, 0)
    matrices = sum(weight.numel() * 4 for weight in model.parameters() if weight.ndim > 1)
    assert 3 * layer + embedding == matrices


def test_random_weights_are_seeded(tiny: str) -> None:
    """The same seed gives the same logits, finite ones; another does not."""
    tokens = torch.arange(8)[None]
    first, same, other = (random_model(tiny, 1, "cpu", torch.float32, seed)(tokens).logits for seed in (0, 0, 1))
    assert torch.isfinite(first).all()
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_mixture_of_experts_is_built_and_runs(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its experts' weights counted."""
    monkeypatch.setitem(architectures.ARCHITECTURES, tiny, Architecture(4, 32, 16, 64, experts=4, active=2))
    model = random_model(tiny, 1, "cpu", torch.float32, 0)
    layer, embedding = weight_bytes(tiny, 4)
    router = 4 * 32 * 4
    assert layer + embedding + router == sum(w.numel() * 4 for w in model.parameters() if w.ndim > 1)
    assert torch.isfinite(SpeedModel(model, CacheShape(1, 2, 4, 16), 64).prefill(8, 8)()).all()


def test_continuing_equals_a_whole_prefill() -> None:
    """The last logits are the same whether a prefix was cached or not."""
    model = load_cached().model
    tokens = torch.arange(20, 80)[None]
    cache: Any = DynamicCache()
    with torch.inference_mode():
        whole = model(input_ids=tokens).logits[0, -1]
        model(input_ids=tokens[:, :40], use_cache=True, **cache_argument(model, cache))
        with continuing():
            places = torch.arange(40, 60)[None]
            part = model(input_ids=tokens[:, 40:], position_ids=places, use_cache=True, **cache_argument(model, cache))
    torch.testing.assert_close(whole, part.logits[0, -1], atol=1e-4, rtol=1e-4)


def test_a_step_serves_every_sequence(tiny: str) -> None:
    """Logits [sequences, 1, vocabulary], the same at every call: the cache does not grow."""
    model = SpeedModel(random_model(tiny, 2, "cpu", torch.float32, 0), CacheShape(2, 2, 4, 16), 64)
    call = model.step(3, 40)
    assert (3, 1, 64) == tuple(call().shape)
    assert torch.equal(call(), call())


def test_random_caches_have_outlier_channels_in_keys_only() -> None:
    """The largest key channel dwarfs the median one; no value channel does."""
    cache, _ = random_cache(SHAPE, 256, "cpu", torch.float16, 0)
    for sides, least, most in ((cache.keys, 3.0, 20.0), (cache.values, 1.0, 1.5)):
        spread = sides[0][0].float().abs().mean(0)
        assert least <= float(spread.max() / spread.median()) <= most


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "identity"])
def test_random_caches_suit_every_compressor(name: str) -> None:
    """Side information fits, and every compressor encodes and decodes, staged or not, to the same."""
    cache, context = random_cache(SHAPE, 160, "cpu", torch.float16, 0)
    compressor = make_compressor(name)
    payload = compressor.encode(cache, context, compressor.knobs[-1]).payload
    plain = compressor.decode(payload)
    with staged(compressor, payload, "cpu"):
        quick = compressor.decode(payload)
    assert all(torch.equal(left, right) for left, right in zip(plain.keys, quick.keys, strict=True))


def test_staging_does_not_outlast_its_block() -> None:
    """A damaged payload is refused again afterwards."""
    compressor = make_compressor("int8")
    cache, _ = random_cache(SHAPE, 16, "cpu", torch.float16, 0)
    payload = compressor.encode(cache, PrefillContext(), "g16").payload
    with staged(compressor, payload, "cpu"):
        pass
    with pytest.raises(SimkvError, match="damaged"):
        compressor.decode(payload[:-1] + b"\0")


def test_a_profile_of_the_small_model(ticked: Profile) -> None:
    """On a clock that ticks at every look each timing is a millisecond, so lines are flat, and all fit."""
    profile = ticked
    assert (RAW, Variant("kivi", "4"), Variant("kivi", "2")) == profile.variants[:3]
    line = profile.decode_lines[Variant("kivi", "4")]
    assert (pytest.approx(1e-3), pytest.approx(0.0, abs=1e-9), ()) == (line.fixed_s, line.per_token_s, line.points)
    assert pytest.approx(1e-3) == profile.prefill.seconds(100)
    assert [(1, 64), (1, 96), (1, 128), (2, 64), (2, 96), (2, 128)] == [step[:2] for step in profile.decode_steps]
    assert "reference" in profile.provenance["numbers"]["decode_lines"]["source"]
    profile.require_speeds()


def test_the_profile_composes(ticked: Profile) -> None:
    """A quality profile takes its speeds, with the measured rows of the common variants only."""
    quality = load_profile("small-model-cpu")
    both = compose(replace(quality, variants=quality.variants[:42]), ticked)
    assert (RAW, Variant("kivi", "4"), Variant("kivi", "2")) == (*both.variants[:2], both.variants[-1])
    assert ticked.decode_steps == both.decode_steps
    assert {"", *(str(variant) for variant in both.variants[1:])} == set(both.speed_rows["variant"])
    both.require_speeds()


def test_payload_bytes_stand_in_the_rows(ticked: Profile) -> None:
    """And the size ratio is that of the longest cache."""
    profile = ticked
    rows = profile.speed_rows
    (longest,) = rows.loc[(rows["variant"] == "kivi:2") & (rows["what"] == "decode") & (rows["tokens"] == 128), "bytes"]
    assert longest / (128 * profile.kv_bytes_per_token) == profile.size_ratio[Variant("kivi", "2")]


def test_a_killed_measurement_goes_on(tmp_path: Path) -> None:
    """Rows that are there are not measured again, and the file goes when the profile is written."""
    out = tmp_path / "mine"
    counts: list[int] = []

    def killer(done: int, of: int) -> None:
        counts.append(done)
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_speed(SHORT, out, killer, TickingClock())
    kept = (tmp_path / "mine.rows.jsonl").read_text(encoding="utf-8")
    assert not out.exists()
    profile = measure_speed(SHORT, out, lambda done, of: counts.append(done), TickingClock())
    assert 9 == counts[10]
    assert ["mine"] == [path.name for path in tmp_path.iterdir()]
    assert 9 == len(kept.splitlines()) - 1
    assert counts[-1] == len(profile.speed_rows)


def test_another_plan_is_refused(tmp_path: Path) -> None:
    """Rows of another seed do not mix."""

    def killer(done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_speed(SHORT, tmp_path / "mine", killer, TickingClock())
    with pytest.raises(SimkvError, match="seed"):
        measure_speed(replace(SHORT, seed=1), tmp_path / "mine", clock=TickingClock())


def test_rows_of_other_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names both, and says what to do; the same code goes on."""

    def killer(done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_speed(SHORT, tmp_path / "mine", killer, TickingClock())
    ours = speed_measurement.measuring_identity()
    with monkeypatch.context() as edited, pytest.raises(SimkvError, match="remove the file") as caught:
        edited.setattr(speed_measurement, "measuring_identity", lambda: "another")
        measure_speed(SHORT, tmp_path / "mine", clock=TickingClock())
    assert f"rows measured by other code ({ours}; this is another)" in str(caught.value)
    measure_speed(SHORT, tmp_path / "mine", clock=TickingClock())


def test_fewer_layers_are_multiplied(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six layers from two: three times what is beyond the head's millisecond, and the provenance says so."""
    monkeypatch.setattr(subjects, "_CPU_CACHE_BYTES", 2 * 4 * 2 * 16 * 128)
    profile = measure_speed(replace(SHORT, model=tiny, compressors=("int8",)), tmp_path / "mine", clock=TickingClock())
    assert {"model": 6, "cache": 2, "timed": 2} == profile.provenance["layers"]
    assert pytest.approx(3e-3) == profile.decode_lines[profile.variants[1]].seconds(128)
    assert pytest.approx(1e-3) == profile.prefill.seconds(128)  # nothing is left when the head takes all
    assert 6 * 4 * 2 * 16 == profile.kv_bytes_per_token
    assert 0.5 < profile.size_ratio[profile.variants[1]] < 0.6


def test_what_takes_too_long_is_left_out(tmp_path: Path) -> None:
    """A second a call on a patience of 0.15 s: longer caches are not tried, and that is said."""

    class SlowClock(TickingClock):
        def seconds(self) -> float:
            return 1000 * super().seconds()

    plan = replace(SHORT, seconds=0.15)
    profile = measure_speed(plan, tmp_path / "mine", clock=SlowClock())
    assert {64} == set(profile.speed_rows.loc[profile.speed_rows["what"] == "decode", "tokens"])
    assert 64 == profile.provenance["too_slow_beyond_tokens"]["kivi:4"]


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (SpeedPlan(model="nothing-like-it"), "shapes that need no checkpoint: small, llama-3.1-8b"),
        (SpeedPlan(device="cuda"), "no CUDA device"),
        (SpeedPlan(lengths=(1,)), "at least 2 tokens"),
        (SpeedPlan(lengths=(10**6,)), "window of|take"),
        (SpeedPlan(compressors=("kivy",)), "did you mean 'kivi'"),
        (SpeedPlan(compressors=("kvpress:KnormPress",)), "not measured apart"),
        (SpeedPlan(compressors=("kivi",), rates={"int8": ["g16"]}), "further knobs of int8"),
    ],
)
def test_bad_plans_are_one_line(
    plan: SpeedPlan, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be measured is said before anything is."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if plan.device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(SimkvError, match=complaint) as caught:
        measure_speed(plan, tmp_path / "mine")
    assert "\n" not in str(caught.value)


def test_memory_is_looked_at_first(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With next to none, a layer's weights and a layer's cache are refused with both figures."""
    monkeypatch.setattr(subjects, "free_bytes", lambda device: 1000)
    with pytest.raises(SimkvError, match="one layer and the embedding take"):
        open_subject(tiny, "cpu", 64, 0)
    with pytest.raises(SimkvError, match="give shorter --tokens"):
        open_subject("small", "cpu", 1 << 20, 0)


def test_the_grid_has_whole_and_cached_prompts() -> None:
    """Every length whole, its half after half, its eighth after the rest; every batch at every length."""
    grid = Grid.of([64, 16], [2, 1])
    assert ((16, 0), (64, 0), (8, 8), (32, 32), (2, 14), (8, 56)) == grid.prefills
    assert ((1, 16), (1, 64), (2, 16), (2, 64)) == grid.steps


def test_the_host_link_is_the_pinned_one() -> None:
    """Bandwidth of all long copies at once, latency of the shortest beyond its bytes; nothing without rows."""
    rows = [
        SpeedRow(what, "", 0, 0, at_once, size, seconds, seconds, 3, kind)
        for what, kind, at_once, size, seconds in (
            ("h2d", "pinned", 1, 1 << 18, 1e-5 + (1 << 18) / 5e10),
            ("h2d", "pinned", 2, 1 << 28, (2 << 28) / 5e10),
            ("d2h", "pinned", 1, 1 << 28, (1 << 28) / 4e10),
            ("h2d", "pageable", 1, 1 << 28, (1 << 28) / 9e10),
        )
    ]
    link = host_link_of(rows)
    assert link is not None
    assert (50_000_000_000, 40_000_000_000) == (round(link.read_bytes_per_s, -6), round(link.write_bytes_per_s, -6))
    assert pytest.approx(1e-5, rel=1e-3) == link.latency_s
    assert host_link_of([]) is None


def test_command_line(tmp_path: Path) -> None:
    """The verb writes a profile, prints its variants, and JSON when asked."""
    out = tmp_path / "mine"
    told = ["profile", "speed", "--compressors", "int8", "--tokens", "32,48,64", "--seconds", "0.002", "--quick"]
    done = CliRunner().invoke(app, [*told, "--out", str(out), "--json"])
    assert 0 == done.exit_code, done.output
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert ["int8:g16", "int8:head"] == [row["variant"] for row in found["variants"]]
    again = CliRunner().invoke(app, [*told, "--out", str(out)])
    assert 2 == again.exit_code
    assert "exists already" in again.output
    wrong = CliRunner().invoke(app, ["profile", "speed", "--tokens", "12,x", "--out", str(tmp_path / "other")])
    assert "--tokens 12,x: it must be positive whole numbers" in wrong.output
