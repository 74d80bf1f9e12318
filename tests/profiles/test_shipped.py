"""The profiles that the repository ships: they load, say where numbers come from, and give hand-checked values."""

from pathlib import Path

import pytest

from simkv.models import find_model
from simkv.profiles import RAW, Profile, Variant, list_profiles, load_profile

ADAPTCACHE = ("adaptcache-a100-1gbps", "adaptcache-a100-4gbps", "llama-3.1-8b-a100")
EVICPRESS = ("llama-3.1-8b", "mistral-7b-v0.3", "qwen2.5-14b", "qwen3-30b-a3b", "longchat-7b")
SHIPPED = (*ADAPTCACHE, *(f"evicpress-h100-{model}" for model in EVICPRESS))


def seconds(profile: Profile, tier: str, variant: str, tokens: int) -> float:
    """Seconds of one load line."""
    return profile.load_lines[tier, Variant.parse(variant)].seconds(tokens)


def test_all_are_listed() -> None:
    """Every shipped profile is found by name."""
    assert set(SHIPPED) <= set(list_profiles())


@pytest.mark.parametrize("name", SHIPPED)
def test_loads_complete(name: str) -> None:
    """Each is complete for simulation, named as its folder, and of a known model's KV bytes and layers."""
    profile = load_profile(name)
    profile.require_speeds()
    shape = find_model(profile.model)
    assert (name, shape.kv_bytes_per_token, shape.layers) == (profile.name, profile.kv_bytes_per_token, profile.layers)
    assert all(tier.capacity_bytes is None for tier in profile.tiers if tier.name == "remote")
    assert all(profile.quality_matrix(task).shape[0] == 1 for task in profile.tasks)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_section_has_an_origin(name: str) -> None:
    """Status and source are known for every table of numbers (that rows have them is checked on loading)."""
    numbers = load_profile(name).provenance["numbers"]
    assert {"model", "quality", "sizes.nominal", "decode_lines", "encode_lines", "prefill", "tiers.ssd"} <= set(numbers)
    assert all(len(origin["source"]) > 5 for origin in numbers.values())


def test_adaptcache_lines() -> None:
    """Lines of arXiv 2509.00105 by hand: 2 bit on the 1 GB/s SSD at 14,300 tokens, prefill of 12,930 and 500."""
    profile = load_profile("adaptcache-a100-1gbps")
    assert pytest.approx(2.3640e-5 * 14_300 + 0.3193) == seconds(profile, "ssd", "kivi:2", 14_300)
    assert pytest.approx(8.5467e-6 * 14_300 + 0.0171) == seconds(profile, "dram", "raw", 14_300)
    assert pytest.approx(1.381, abs=5e-4) == profile.prefill.seconds(12_930)
    assert 0 == profile.prefill.seconds(500)


def test_adaptcache_streamingllm_is_the_raw_line_at_the_kept_tokens() -> None:
    """The authors compute its delay as a * (tokens * rate) + b with the raw coefficients."""
    profile = load_profile("adaptcache-a100-1gbps")
    for tier, a, b in (("dram", 8.5467e-6, 0.0171), ("ssd", 1.34390e-4, -0.0006)):
        assert pytest.approx(a * 10_000 * 0.485714286 + b) == seconds(profile, tier, "streamingllm:0.4857", 10_000)


def test_adaptcache_faster_disk_divides_ssd_lines_by_four() -> None:
    """SSD lines are a quarter, DRAM and remote lines are the same."""
    slow, fast = (load_profile(name) for name in ADAPTCACHE[:2])
    for (tier, variant), line in slow.load_lines.items():
        divisor = 4 if tier == "ssd" else 1
        assert pytest.approx((line.per_token_s / divisor, line.fixed_s / divisor), rel=1e-9) == (
            fast.load_lines[tier, variant].per_token_s,
            fast.load_lines[tier, variant].fixed_s,
        )


def test_adaptcache_profiles_share_their_quality(repository: Path) -> None:
    """The three copies of the quality table are byte-equal; two entries are the published ones."""
    tables = {(repository / "profiles" / name / "quality.csv").read_bytes() for name in ADAPTCACHE}
    assert 1 == len(tables)
    profile = load_profile(ADAPTCACHE[0])
    assert 0.5112 == profile.mean_quality("repobench-p", Variant.parse("kivi:2"))
    assert 0.3910 == profile.mean_quality("lcc", Variant.parse("streamingllm:0.4857"))
    assert ("qmsum", "samsum", "triviaqa", "hotpotqa", "repobench-p", "lcc") == profile.tasks
    assert 0.8780 == profile.mean_quality("qmsum", RAW)


def test_adaptcache_sizes() -> None:
    """Measured sizes are the default; both accountings hold the published fractions."""
    sizes = {which: load_profile(ADAPTCACHE[0], sizes=which).size_ratio for which in (None, "measured", "nominal")}
    kivi = [Variant.parse(f"kivi:{bits}") for bits in (8, 4, 2)]
    assert [0.5625, 0.3125, 0.1875] == [sizes[None][variant] for variant in kivi]
    assert sizes["measured"] == sizes[None]
    assert [0.728571429, 0.485714286, 0.371428571] == [sizes["nominal"][variant] for variant in kivi]


@pytest.mark.parametrize(
    ("bits", "size", "line"),
    [(8, 0.5625, (1.4922e-5, 0.0917)), (4, 0.3125, (1.3366e-5, 0.0960)), (2, 0.1875, (1.4192e-5, 0.0819))],
)
def test_physical_profile_adds_up_to_the_dram_lines(bits: int, size: float, line: tuple[float, float]) -> None:
    """Bytes / bandwidth + decoding + the stack's 0.0171 s give the published KIVI line in DRAM."""
    profile = load_profile("llama-3.1-8b-a100")
    decode = profile.decode_lines[Variant("kivi", str(bits))]
    dram = profile.tiers[0]
    for tokens in (2_000, 14_300, 40_000):
        load_s = size * tokens * profile.kv_bytes_per_token / dram.read_bytes_per_s + decode.seconds(tokens) + 0.0171
        assert pytest.approx(line[0] * tokens + line[1], rel=1e-6) == load_s
    assert {} == profile.load_lines
    assert min(decode.per_token_s, decode.fixed_s) > 0
    assert pytest.approx(1.17926e-4 * 1_000) == profile.prefill.seconds(1_000, 7_000)


def test_evicpress_worked_examples() -> None:
    """The paper's numbers: 0.050 s and 0.051 s from DRAM, utilities 0.607 and 0.621 at alpha 1."""
    profile = load_profile("evicpress-h100-llama-3.1-8b")
    for task, variant, tokens, load_s, utility in (
        ("2wikimqa", "keydiff:0.4", 7_016, 0.050, 0.607),
        ("narrativeqa", "keydiff:0.1", 26_157, 0.051, 0.621),
    ):
        found_s = seconds(profile, "dram", variant, tokens)
        assert pytest.approx(load_s, abs=0.002) == found_s
        assert pytest.approx(utility, abs=0.005) == profile.mean_quality(task, Variant.parse(variant)) - found_s


@pytest.mark.parametrize(
    ("model", "tokens", "prefill_s", "ssd_raw_s"),
    [
        (
            "llama-3.1-8b",
            2_496,
            -0.0229 + 29.559e-6 * 2_496 + 4.452e-10 * 2_496**2,
            0.1064 + 0.1804 * 2_496 * 131_072e-9,
        ),
        ("qwen2.5-14b", 10_000, 1.755 * (-0.0229 + 0.29559 + 0.04452), 0.100 + 0.205 * 1.96608),
        ("longchat-7b", 500, 0.020, 0.050 + 0.180 * 0.262144),
    ],
)
def test_evicpress_cost_lines(model: str, tokens: int, prefill_s: float, ssd_raw_s: float) -> None:
    """Prefill polynomial with its floor and the SSD line in stored GB, by hand."""
    profile = load_profile(f"evicpress-h100-{model}")
    assert pytest.approx(prefill_s, rel=1e-6) == profile.prefill.seconds(tokens)
    assert pytest.approx(ssd_raw_s, rel=1e-6) == seconds(profile, "ssd", "raw", tokens)


@pytest.mark.parametrize("model", EVICPRESS)
def test_evicpress_lines_grow_with_the_kept_fraction(model: str) -> None:
    """A load costs the tier's constant plus the raw slope times the fraction kept, on every tier."""
    profile = load_profile(f"evicpress-h100-{model}")
    for (tier, variant), line in profile.load_lines.items():
        raw = profile.load_lines[tier, RAW]
        kept = 1.0 if variant == RAW else float(variant.knob)
        assert kept == profile.size_ratio[variant]
        assert pytest.approx((raw.per_token_s * kept, raw.fixed_s), rel=1e-8) == (line.per_token_s, line.fixed_s)


@pytest.mark.parametrize(
    ("model", "variants"),
    [("llama-3.1-8b", 19), ("mistral-7b-v0.3", 28), ("qwen2.5-14b", 16), ("qwen3-30b-a3b", 25), ("longchat-7b", 9)],
)
def test_evicpress_has_only_published_points(model: str, variants: int) -> None:
    """Points of the figures that are points; the lines cut at the figure's edge are not among them."""
    profile = load_profile(f"evicpress-h100-{model}")
    assert variants == len(profile.variants)
    assert (12 if model.startswith("llama") else 1) == len(profile.tasks)


def test_evicpress_fig7_is_the_context_mean_of_fig12() -> None:
    """Llama's per-dataset means, weighted by contexts, give the published overall quality (two points)."""
    counts = {"narrativeqa": 38, "qasper": 53, "multifieldqa_en": 46, "hotpotqa": 58, "2wikimqa": 44, "musique": 36}
    counts |= {"gov_report": 43, "qmsum": 48, "multi_news": 47, "trec": 46, "triviaqa": 48, "samsum": 48}
    profile = load_profile("evicpress-h100-llama-3.1-8b")
    for variant, overall in (("keydiff:0.1", 0.3782), ("snapkv:0.6", 0.7902)):
        total = sum(count * profile.mean_quality(task, Variant.parse(variant)) for task, count in counts.items())
        assert pytest.approx(overall, abs=5e-4) == total / 555


def test_small_model_profile_is_whole() -> None:
    """The measured profile: 19 compressors of four knobs or more, five tasks, 64 contexts each, held-out halves."""
    profile = load_profile("small-model-cpu")
    knobs: dict[str, int] = {}
    for variant in profile.variants[1:]:
        knobs[variant.compressor] = knobs.get(variant.compressor, 0) + 1
    assert 18 == len(knobs)  # the nineteenth, identity, is raw
    assert 4 <= min(knobs.values())
    assert [64] * 5 == [profile.samples(task) for task in profile.tasks]
    assert (64, len(profile.variants)) == profile.quality_matrix("qa", train=True).shape
    assert {1.0} == set(profile.quality_matrix("code")[:, 0])
    assert profile.provenance["commit"] and profile.provenance["device"]


def test_small_model_tasks_separate() -> None:
    """At half size, dropping costs some task at least 0.3 more than another, and no dropper is best everywhere."""
    profile = load_profile("small-model-cpu")
    droppers = ["h2o", "keydiff", "pyramidinfer", "snapkv", "streamingllm", "tova"]
    quality = {
        task: {name: profile.mean_quality(task, Variant(name, "0.5")) for name in droppers} for task in profile.tasks
    }
    for name in droppers:
        means = [quality[task][name] for task in profile.tasks]
        assert 0.2 < max(means) - min(means)
    assert 0.5 < quality["aggregation"]["streamingllm"] - quality["tracking"]["streamingllm"]
    assert 3 <= len({max(row, key=lambda name: row[name]) for row in quality.values()})


def test_kvserve_strategies() -> None:
    """MixHQ + ANS with 16 levels: 8.26 times smaller, 99.47 %; at 16,384 tokens an H100 decodes in 12.3 + 3.9 ms."""
    profile = load_profile("kvserve-h100-qasper")
    profile.require_speeds()
    variant = Variant.parse("mixhq-ans:0.9-16-16-6-6")
    assert pytest.approx(1 / 8.26, abs=1e-6) == profile.size_ratio[variant]
    assert 0.9947 == profile.quality_matrix("qasper")[0, profile.variants.index(variant)]
    assert pytest.approx(0.0162) == profile.decode_lines[variant].seconds(16_384)
    transformed = Variant.parse("hadamard-mixhq-ans:0.8-16-6-6-4")
    assert pytest.approx(0.0162 + 0.0122) == profile.decode_lines[transformed].seconds(16_384)
    for name in ("kvserve-rtx4090-qasper", "kvserve-rtx4090-humaneval"):
        load_profile(name).require_speeds()
