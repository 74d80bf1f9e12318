"""Reading with every check, saving, and finding profiles by name."""

import hashlib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simkv.errors import ProfileError
from simkv.profiles import (
    RAW,
    UNMEASURED_PREFILL,
    Line,
    Profile,
    TierSpec,
    Variant,
    list_profiles,
    load_profile,
    save_profile,
)

KIVI2 = Variant("kivi", "2")


def refuse(folder: Path, **options: str) -> str:
    """The message with which loading fails: one line that begins with a path in the folder."""
    with pytest.raises(ProfileError) as caught:
        load_profile(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first ``old`` of a text file, which must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def same(first: Profile, second: Profile) -> None:
    """All attributes are equal, except for the hash of the files and the tables' layout in memory."""
    for item in fields(Profile):
        if item.name == "quality":
            pd.testing.assert_frame_equal(first.quality, second.quality, check_dtype=False, check_exact=True)
        elif item.name == "speed_rows":
            pd.testing.assert_frame_equal(first.speed_rows, second.speed_rows, check_exact=True)
        elif item.name != "sha256":
            assert getattr(first, item.name) == getattr(second, item.name), item.name


def test_every_section_is_read(tiny: Path) -> None:
    """Numbers arrive in base units, RAW's implied values are filled in, and origins are inherited."""
    profile = load_profile(tiny / "profile.toml")
    assert ("tiny", "toy", 1000, 2, "measured") == (
        profile.name,
        profile.model,
        profile.kv_bytes_per_token,
        profile.layers,
        profile.size_accounting,
    )
    assert (TierSpec("dram", 2**30, 10**10, 5 * 10**9, 1e-5, endurance_bytes=10**12),) == profile.tiers
    assert TierSpec("host_link", None, 25 * 10**9, 25 * 10**9, 1e-6, 2, "fair") == profile.host_link
    assert Line(1e-6, 0.01) == profile.load_lines["dram", KIVI2]
    assert Line(0.0, 0.0) == profile.decode_lines[RAW] == profile.encode_lines[RAW]
    numbers = profile.provenance["numbers"]
    assert {"status": "measured", "source": "payloads"} == numbers["sizes.measured"]
    assert {"status": "inferred", "source": "kept"} == numbers["sizes.measured.keydiff:0.4"]
    assert "hand-made" == profile.provenance["summary"]
    files = (tiny / "profile.toml").read_bytes() + (tiny / "quality.csv").read_bytes()
    assert hashlib.sha256(files).hexdigest() == profile.sha256


def test_sizes_are_chosen(tiny: Path) -> None:
    """Measured is the default where it exists; the other accounting must be complete when asked for."""
    assert (0.19, 0.37) == tuple(load_profile(tiny, sizes=which).size_ratio[KIVI2] for which in (None, "nominal"))
    edit(tiny / "profile.toml", '{ variant = "kivi:2", ratio = 0.37 }, ', "")
    load_profile(tiny)
    assert "[sizes.nominal] has no ratio of kivi:2" in refuse(tiny, sizes="nominal")
    assert "unknown size accounting 'mesured' (did you mean 'measured'?)" in refuse(tiny, sizes="mesured")
    edit(tiny / "profile.toml", "[sizes.measured]", "[sizes.nominal2]")
    assert "unknown key 'nominal2' (did you mean 'nominal'?)" in refuse(tiny)


BAD_TOML = [
    ("format = 1", "format = 2", "format is 2; it must be 1"),
    ("format = 1\n", "", "the key 'format' is missing"),
    ("format = 1", "format = 1\nformt = 2", "unknown key 'formt' (did you mean 'format'?)"),
    ("format = 1", "format = 1\nstatus = 'published'", "status and source go together"),
    ('name = "tiny"', 'name = "../x"', "name is '../x'; it must be a name"),
    ('name = "tiny"', "name = 3", "name is 3; it must be text"),
    ('["raw", "kivi:2"', '["kivi:2", "raw"', "a list without repetition that begins with 'raw'"),
    ('["raw", "kivi:2"', '["raw", "kivi:2", "kivi:2"', "a list without repetition"),
    ('["raw", "kivi:2"', '["raw", "Kivi 2"', "'Kivi 2' is not a variant"),
    ('["raw", "kivi:2"', '["raw", 2', "it must be a list of texts"),
    ("layers = 2", "layers = 0", "[model]: layers is 0; it must be a whole number from 1"),
    ("kv_bytes_per_token = 1000", "kv_bytes_per_token = -1", "kv_bytes_per_token is -1"),
    ("kv_bytes_per_token = 1000", "kv_bytes_per_token = 1e3", "kv_bytes_per_token is 1000.0"),
    ("kv_bytes_per_token = 1000", "kv_bytes_per_token = true", "kv_bytes_per_token is True"),
    (
        "kv_bytes_per_token = 1000",
        "kv_bytes_per_tokens = 1",
        "unknown key 'kv_bytes_per_tokens' (did you mean 'kv_bytes_per_token'?)",
    ),
    ('source = "model card"', "", "[model]: status and source go together"),
    ('status = "published"\nsource = "model card"', "", "[model]: its numbers have no status and source"),
    (
        'status = "published"\nsource = "model card"',
        'status = "publishd"\nsource = "x"',
        "unknown status 'publishd' (did you mean 'published'?)",
    ),
    ('status = "fitted"\nsource = "fit"\nrows', "rows", "[load_lines] row 1: its numbers have no status and source"),
    ("ratio = 0.19", "ratio = 0", "[sizes.measured] row 1: ratio is 0; it must be a number above 0 and at most 1"),
    ("ratio = 0.19", "ratio = 1.01", "ratio is 1.01"),
    ("ratio = 0.19", "ratio = nan", "ratio is nan"),
    ("ratio = 0.19", "ratio = '0.19'", "ratio is '0.19'"),
    ("ratio = 0.19", f"ratio = {10**400}", "ratio is 1000"),
    ('variant = "kivi:2", ratio = 0.19', 'variant = "raw", ratio = 0.5', "ratio is 0.5; it must be 1 for raw"),
    (
        'variant = "kivi:2", ratio = 0.19',
        'variant = "kivi:3", ratio = 0.5',
        "unknown variant 'kivi:3' (did you mean 'kivi:2'?)",
    ),
    ('variant = "kivi:2", ratio = 0.19', 'variant = "keydiff:0.4", ratio = 0.5', "a second row for keydiff:0.4"),
    (
        "per_token_s = 1e-6",
        "per_token_s = -1e-6",
        "[load_lines] row 2: per_token_s is -1e-06; it must be a number of at least 0",
    ),
    ("fixed_s = 0.01", "fixed_s = inf", "fixed_s is inf"),
    ("fixed_s = 0.01", "fixd_s = 0.01", "unknown key 'fixd_s' (did you mean 'fixed_s'?)"),
    (
        'tier = "dram", variant = "kivi:2"',
        'tier = "drma", variant = "kivi:2"',
        "unknown tier 'drma' (did you mean 'dram'?)",
    ),
    ('tier = "dram", variant = "kivi:2"', 'tier = "D RAM", variant = "kivi:2"', "tier is 'D RAM'"),
    (
        '{ variant = "kivi:2", per_token_s = 1e-5, fixed_s = 0.07 },',
        "",
        "incomplete speeds, missing decode line of kivi:2",
    ),
    ("base_s = -0.1", "base_s = nan", "[prefill]: base_s is nan"),
    ("per_token_s = 1e-4", "per_token_s = -1e-4", "[prefill]: per_token_s is -0.0001"),
    ('capacity = "1 GiB"', "capacity = 0", "capacity is 0; it must be positive"),
    ('capacity = "1 GiB"', "capacity = -5", "[tiers] row 1: capacity: -5 is out of range"),
    ('capacity = "1 GiB"', 'capacity = "1 GiBi"', "capacity: unit 'GiBi'"),
    ('read = "10 GB/s"', 'read = "0 GB/s"', "read: '0 GB/s' is not a bandwidth: it must be positive"),
    ('write = "5 GB/s", ', "", "the key 'write' is missing"),
    ('latency = "10 us"', 'latency = "ten"', "latency: 'ten' is not a duration"),
    ('latency = "10 us"', "latency = -1", "latency is -1"),
    ('endurance = "1 TB"', "endurance = 0", "endurance is 0; it must be positive"),
    ("channels = 2", "channels = 0", "[host_link]: channels is 0"),
    ('discipline = "fair"', 'discipline = "lifo"', "discipline is 'lifo'; it must be 'fifo' or 'fair'"),
    (
        '  { name = "dram", capacity = "1 GiB"',
        '  { name = "slow", capacity = "unlimited", read = 1, write = 1 },\n  { name = "dram", capacity = "1 GiB"',
        "only the last tier may be unlimited",
    ),
    ('file = "quality.csv"', 'file = "../quality.csv"', "file is '../quality.csv'"),
    ('file = "quality.csv"', 'file = "other.csv"', "other.csv: there is no such file"),
    ('summary = "hand-made"', "date = 2025-01-01", "[provenance]: only text, numbers"),
    ('summary = "hand-made"', "numbers = 1", "'numbers' is reserved"),
    ("[model]", "[[model]]", "[model]: must be a table, found list"),
    ("[provenance]", "[provenance", "not a TOML file"),
]


@pytest.mark.parametrize(("old", "new", "complaint"), BAD_TOML)
def test_bad_toml(tiny: Path, old: str, new: str, complaint: str) -> None:
    """Each mistake is one line that names the file, the key, the value and what is allowed."""
    edit(tiny / "profile.toml", old, new)
    assert complaint in refuse(tiny)


def test_rows_that_are_not_rows(tiny: Path) -> None:
    """Sections of rows want a list of tables."""
    edit(tiny / "profile.toml", "[tiers]", "[tiers]\nrows = 3\n[tiers2]")
    edit(tiny / "profile.toml", "[tiers2]", "[tiers.sub]")
    assert "[tiers]: unknown key 'sub'" in refuse(tiny)
    (tiny / "profile.toml").write_text(
        (tiny / "profile.toml").read_text().split("[prefill]")[0] + '[tiers]\nstatus="assumed"\nsource="x"\nrows=[3]\n'
    )
    assert "[tiers] row 1: must be a table, found int" in refuse(tiny)


BAD_CSV = [
    ("task,sample", "tsk,sample", "line 1: unknown column 'tsk' (did you mean 'task'?)"),
    (",quality,quality_train", ",quality,quality", "line 1: the header must name each"),
    ("qa,0,kivi:2,,0.7,0.6", "qa,0,kivi:2,,0.7", "line 3: 5 fields; the header has 6"),
    ("qa,0,kivi:2,,0.7,0.6", "qa,0,kivi:2,,0.7,0.6,1", "line 3: 7 fields"),
    ("qa,0,kivi:2,,0.7,0.6", "", "line 3: 0 fields"),
    ("qa,0,kivi:2", "q a,0,kivi:2", "line 3: task is 'q a'"),
    ("qa,0,kivi:2", "qa,-1,kivi:2", "line 3: sample is '-1'; it must be a whole number"),
    ("qa,0,kivi:2", "qa,0,kivi:4", "line 3: unknown variant 'kivi:4' (did you mean 'kivi:2'?)"),
    ("qa,0,kivi:2", "qa,0,raw", "line 3: a second row for task qa, sample 0, variant raw"),
    (
        "qa,0,kivi:2,,0.7",
        "qa,0,kivi:2,,70",
        "line 3: quality is '70'; it must be a number from 0 to 1.5, since quality is relative to raw",
    ),
    ("qa,0,kivi:2,,0.7", "qa,0,kivi:2,,nan", "quality is 'nan'"),
    ("qa,0,kivi:2,,0.7", "qa,0,kivi:2,,", "quality is ''"),
    ("qa,0,kivi:2,,0.7", "qa,0,kivi:2,,__import__('os')", "quality is \"__import__('os')\""),
    ("0.7,0.6", "0.7,-0.1", "quality_train is '-0.1'"),
    (
        "keydiff:0.4,0.6",
        "keydiff:0.4,0.4",
        "removed is '0.4' for keydiff:0.4; it must be 1 - knob (knob = fraction kept)",
    ),
    ("raw,0,", "raw,0.1,", "removed is '0.1' for raw"),
    ("qa,1,kivi:2,,0.6,0.5\n", "", "task qa, sample 1 has no row for variant kivi:2"),
    ("sum,5", '"sum,5', "not a CSV file"),
]


@pytest.mark.parametrize(("old", "new", "complaint"), BAD_CSV)
def test_bad_quality(tiny: Path, old: str, new: str, complaint: str) -> None:
    """Each mistake in the table is one line that names the file and the line."""
    edit(tiny / "quality.csv", old, new)
    assert complaint in refuse(tiny)


def test_files_that_are_not_text_or_too_large(tiny: Path) -> None:
    """Size is bounded before parsing; other encodings and an empty table are refused."""
    (tiny / "quality.csv").write_text("task,sample,variant,quality\n")
    assert "there are no quality rows" in refuse(tiny)
    (tiny / "quality.csv").write_bytes(b"task,sample,variant,quality\n\xff\xfe")
    assert "not a text file in UTF-8" in refuse(tiny)
    with (tiny / "quality.csv").open("wb") as handle:
        handle.truncate((64 << 20) + 1)
    assert "larger than 67108864 bytes" in refuse(tiny)
    (tiny / "profile.toml").write_bytes(b"\xff")
    assert "not a TOML file" in refuse(tiny)
    (tiny / "profile.toml").write_text("x = " + "[" * 100_000)
    assert "not a TOML file" in refuse(tiny)
    with (tiny / "profile.toml").open("wb") as handle:
        handle.truncate((4 << 20) + 1)
    assert "larger than 4194304 bytes" in refuse(tiny)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_never_end_in_a_traceback(tiny: Path, data: st.DataObject) -> None:
    """Bytes replaced, removed or inserted anywhere give a profile or a ProfileError, nothing else."""
    name = data.draw(st.sampled_from(["profile.toml", "quality.csv"]))
    original = (tiny / name).read_bytes()
    start = data.draw(st.integers(0, len(original)))
    stop = min(len(original), start + data.draw(st.integers(0, 12)))
    junk = data.draw(st.binary(max_size=6) | st.sampled_from([b"1e999", b"-1", b"\x00", b'"', b"[", b"\n", b"true"]))
    (tiny / name).write_bytes(original[:start] + junk + original[stop:])
    try:
        assert load_profile(tiny).variants[0] == RAW
    except ProfileError as error:
        assert "\n" not in str(error)
    finally:
        (tiny / name).write_bytes(original)


@pytest.mark.parametrize("name", [*list_profiles(), "tiny"])
def test_round_trip(tiny: Path, tmp_path: Path, name: str) -> None:
    """What is saved is read back exactly, origins included, and twice the same bytes."""
    first = load_profile(tiny if name == "tiny" else name)
    save_profile(first, tmp_path / "copy")
    second = load_profile(tmp_path / "copy", sizes=first.size_accounting)
    same(first, second)
    save_profile(second, tmp_path / "again")
    assert second.sha256 == load_profile(tmp_path / "again").sha256


def test_round_trip_of_measured_numbers(tiny: Path, tmp_path: Path) -> None:
    """Floats keep every bit, numpy scalars and odd text in the facts survive."""
    profile = load_profile(tiny)
    seed = np.random.default_rng(0)
    line = Line(np.float64(seed.random() / 3), float(seed.random()))
    facts = {
        "driver": 'a "b"\\c\x7f é',
        "versions": {"torch 2": "2.4"},
        "seed": np.int64(3),
        "list": [1, 2.5, True],
        "numbers": profile.provenance["numbers"],
    }
    quality = profile.quality.assign(quality=seed.random(len(profile.quality)))
    measured = replace(profile, decode_lines={**profile.decode_lines, KIVI2: line}, provenance=facts, quality=quality)
    save_profile(measured, tmp_path / "deep" / "copy")
    same(measured, load_profile(tmp_path / "deep" / "copy"))


def test_quality_only_and_speeds_only(tiny: Path, tmp_path: Path) -> None:
    """Either half may stand alone, keeps its round trip, and says what it lacks; together they compose."""
    profile = load_profile(tiny)
    quality = replace(
        profile, load_lines={}, decode_lines={}, encode_lines={}, prefill=UNMEASURED_PREFILL, tiers=(), host_link=None
    )
    save_profile(quality, tmp_path / "quality")
    save_profile(replace(profile, quality=profile.quality.iloc[:0]), tmp_path / "speeds")
    with pytest.raises(ProfileError, match=r"profile tiny: incomplete speeds, missing prefill, decode line of kivi:2"):
        load_profile(tmp_path / "quality").require_speeds()
    speeds = load_profile(tmp_path / "speeds")
    assert () == speeds.tasks
    with pytest.raises(ProfileError, match="unknown task 'qa'"):
        speeds.quality_matrix("qa")


def test_saving_is_all_or_nothing(tiny: Path, tmp_path: Path) -> None:
    """A profile that would not load leaves nothing behind, and a folder is never overwritten."""
    profile = load_profile(tiny)
    before = sorted(path.name for path in tmp_path.iterdir())
    for bad, complaint in (
        (replace(profile, decode_lines={KIVI2: Line(-1.0)}), "per_token_s is -1.0"),
        (replace(profile, provenance={}), "have no status and source"),
        (replace(profile, provenance={**profile.provenance, "device": object()}), "cannot be written to a profile"),
    ):
        with pytest.raises(ProfileError, match=complaint):
            save_profile(bad, tmp_path / "new")
    assert before == sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ProfileError, match="exists already"):
        save_profile(profile, tiny)
    with pytest.raises(ProfileError, match="cannot be written"):
        save_profile(profile, tiny / "profile.toml" / "below")


def test_names_are_looked_up(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path wins, then ./profiles, then the shipped ones; an unknown name says where it was looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine").symlink_to(tiny, target_is_directory=True)
    (tmp_path / "llama-3.1-8b-a100").mkdir()
    assert "tiny" == load_profile("mine").name == load_profile("tiny").name == load_profile(Path("tiny")).name
    assert "llama-3.1-8b-a100" == load_profile("llama-3.1-8b-a100").name
    assert {"mine", "llama-3.1-8b-a100"} <= set(list_profiles())
    for unknown, hint in (
        ("llama-3.1-8b-a10", "did you mean 'llama-3.1-8b-a100'?"),
        ("", "unknown profile ''"),
        ("a\0b", "known: "),
        ("x" * 5000, "looked for it"),
    ):
        with pytest.raises(ProfileError, match="unknown profile") as caught:
            load_profile(unknown)
        assert hint in str(caught.value)
        assert "share/simkv/profiles" in str(caught.value)
