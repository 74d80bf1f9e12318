"""The verbs of ``simkv profile`` on the shipped profiles and on a broken copy."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simkv.cli import app
from simkv.profiles import compose, list_profiles, load_profile
from tests.profiles.test_files import same

ROOT = Path(__file__).resolve().parents[1]
NAME = "adaptcache-a100-1gbps"


def call(*args: Any) -> Any:
    """The outcome of one command, run in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_list_shows_every_profile() -> None:
    """All shipped profiles are listed with their model, as text and as JSON."""
    text = call("profile", "list").stdout.splitlines()
    assert list_profiles() == [line.split()[0] for line in text[1:]]
    rows = {row["name"]: row for row in json.loads(call("profile", "list", "--json").stdout)}
    assert ("llama-3.1-8b", 7, 6) == tuple(rows[NAME][key] for key in ("model", "variants", "tasks"))


def test_list_survives_a_broken_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that cannot be read is a row that says so."""
    (tmp_path / "profiles" / "broken").mkdir(parents=True)
    (tmp_path / "profiles" / "broken" / "profile.toml").write_text("format = 9", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    outcome = call("profile", "list")
    (line,) = (line for line in outcome.stdout.splitlines() if line.startswith("broken "))
    assert "cannot be read: " in line
    assert NAME in outcome.stdout


def test_show_prints_sizes_quality_and_front() -> None:
    """A row per variant: size ratio, quality by task, and a star on the Pareto front; then times and tiers."""
    lines = call("profile", "show", NAME).stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(("raw", "kivi", "streamingllm"))}
    quality = lines.index(
        "variant                 size ratio  qmsum  samsum  triviaqa  hotpotqa  repobench-p    lcc   mean"
    )
    assert ["kivi:4", "*", "0.3125"] == lines[quality + 3].split()[:3]
    assert ["streamingllm:0.7286", "0.7286"] == lines[quality + 5].split()[:2]
    # 1000 * (0.0171 + 8.5467e-06 * 10,000) ms to load a raw context of 10,000 tokens from DRAM
    assert "102.6" == rows["raw"][3]
    squeezed = [" ".join(line.split()) for line in lines]
    assert "dram 97 GiB 15.3 GB/s 15.3 GB/s 0 s 1 fifo -" in squeezed
    assert "load_lines authors-code 7, assumed 7" in squeezed


def test_show_takes_the_other_sizes() -> None:
    """``--sizes nominal`` shows the sizes that the authors charge."""
    facts = json.loads(call("profile", "show", NAME, "--sizes", "nominal", "--json").stdout)
    ratios = {row["variant"]: row["size_ratio"] for row in facts["variants"]}
    assert ("nominal", 0.485714286) == (facts["sizes"], ratios["kivi:4"])


def test_show_json_has_speeds_and_origins() -> None:
    """JSON holds the lines themselves and where each number comes from."""
    facts = json.loads(call("profile", "show", NAME, "--json").stdout)
    raw = facts["variants"][0]
    assert {"per_token_s": 8.5467e-06, "fixed_s": 0.0171} == raw["load"]["dram"]
    assert ["dram", "ssd", "remote"] == [tier["name"] for tier in facts["tiers"]]
    assert "published" == facts["provenance"]["numbers"]["model"]["status"]


@pytest.mark.parametrize("name", list_profiles())
def test_check_accepts_what_is_shipped(name: str) -> None:
    """Every shipped profile passes, and can be shown."""
    outcome = call("profile", "check", ROOT / "profiles" / name)
    assert (0, True) == (outcome.exit_code, outcome.stdout.startswith(f"OK: {name}: "))
    assert 0 == call("profile", "show", name).exit_code


def test_check_names_the_first_mistake(tmp_path: Path) -> None:
    """A wrong number is one line naming file and key, with exit code 2."""
    folder = tmp_path / "mine"
    shutil.copytree(ROOT / "profiles" / NAME, folder)
    text = (folder / "profile.toml").read_text(encoding="utf-8")
    (folder / "profile.toml").write_text(text.replace("layers = 32", "layers = -32"), encoding="utf-8")
    outcome = call("profile", "check", folder)
    assert (2, "") == (outcome.exit_code, outcome.stdout)
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"simkv: error: {folder / 'profile.toml'}")
    assert "layers" in line


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A quality-only profile of six contexts in two tasks: kivi holds, snapkv loses, each at two knobs."""
    folder = tmp_path / "measured"
    folder.mkdir()
    quality = {"kivi:4": 0.95, "kivi:2": 0.85, "snapkv:0.5": 0.65, "snapkv:0.25": 0.35}
    sizes = {"kivi:4": 0.3, "kivi:2": 0.2, "snapkv:0.5": 0.5, "snapkv:0.25": 0.25}
    ratios = ", ".join(f'{{ variant = "{name}", ratio = {size} }}' for name, size in sizes.items())
    (folder / "profile.toml").write_text(
        f'format = 1\nname = "measured"\nvariants = {json.dumps(["raw", *quality])}\n'
        'status = "measured"\nsource = "made"\n'
        '[model]\nname = "toy"\nlayers = 2\nkv_bytes_per_token = 1000\n'
        f'[sizes.measured]\nrows = [{ratios}]\n[quality]\nfile = "q.csv"\n[provenance]\ndevice = "none"\n',
        encoding="utf-8",
    )
    rows = [
        f"{task},{sample},{name},{mean + less + 0.01 * sample - 0.025:.4f},{mean + less:.4f},0.5,1.5,0.1,0.9,1000"
        for task, less in (("qa", 0.0), ("code", 0.04))
        for sample in range(6)
        for name, mean in quality.items()
    ]
    header = "task,sample,variant,quality,quality_train,truth,nll,kl,top1,stored_bytes"
    (folder / "q.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def section(text: str, title: str) -> list[str]:
    """The lines of the table under a title, without the title."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(title)) + 1
    end = next((place for place in range(start, len(lines)) if not lines[place].strip()), len(lines))
    return [" ".join(line.split()) for line in lines[start:end]]


def test_show_groups_variants_by_compressor(measured: Path) -> None:
    """Large to small within each compressor, with the interval of the mean; there are no speeds to show."""
    text = call("profile", "show", measured).stdout
    rows = section(text, "Quality by task")
    names = [row.split()[0] for row in rows]
    assert ["variant", "raw", "kivi:4", "kivi:2", "snapkv:0.5", "snapkv:0.25"] == names
    low, high = rows[2].split()[6], rows[2].split()[8]
    assert (True, "0.970") == (float(low) < 0.970 < float(high), rows[2].split()[5])
    assert "Milliseconds" not in text


def test_show_says_which_compressor_wins_where(measured: Path) -> None:
    """At quality 0.6: kivi at its edge, snapkv between its knobs; at half size kivi; alone where only it arrives."""
    text = call("profile", "show", measured, "--at-quality", "0.6", "--at-quality", "0.9").stdout
    rows = section(text, "Which compressor reaches")
    # snapkv in qa: 0.25 + 0.25 * 0.25 / 0.3 = 0.458, over kivi's 0.2 is 2.29
    assert rows[1].startswith("qa 0.6 kivi <=0.200 snapkv 0.458 2.29 ")
    assert rows[1].endswith(" yes")
    # kivi half way between its knobs
    assert "0.9 kivi 0.250 - - alone - yes" == rows[2]
    assert "qa 0.5 kivi 0.950 snapkv 0.650 0.300 0.300 to 0.300 yes" == section(text, "Which compressor keeps")[1]
    # means: 0.37 at 0.25 and 0.67 at 0.5, so 0.25 + 0.25 * 0.23 / 0.3
    assert "snapkv dropper 0.442 -" in section(text, "Smallest size ratio")
    assert section(text, "Quality at half size")[2].startswith("snapkv dropper 0.650 0.690 0.040 ")
    # six contexts 0.01 apart: sd 0.0187, and training quality that does not vary
    assert section(text, "Spread over contexts")[2].startswith("snapkv:0.5 0.500 2.9 2.7")


def test_show_json_has_the_same_statistics(measured: Path) -> None:
    """Wins, gaps, spread and intervals as plain data; infinite factors are null."""
    facts = json.loads(call("profile", "show", measured, "--json").stdout)
    wins = facts["statistics"]["at_quality"]
    assert 3 * 4 == len(wins)
    low = wins[3]
    assert ("qa", 0.8, "kivi", None, ["kivi"]) == tuple(
        low[key] for key in ("task", "target", "winner", "runner_up", "at_edge")
    )
    assert (None, True) == (low["margin"]["value"], low["significant"])
    assert {"kivi": 0.2} == low["values"]
    assert ["kivi", "snapkv"] == [gap["compressor"] for gap in facts["statistics"]["task_gaps"]]
    assert 2 * 4 == len(facts["statistics"]["context_spread"])
    assert {"qa", "code", "(mean)"} == set(facts["variants"][1]["interval"])


def test_show_draws_quality_over_size(measured: Path, tmp_path: Path) -> None:
    """``--plot`` writes the figure and says where; its options mean nothing without it."""
    path = tmp_path / "quality.png"
    text = call("profile", "show", measured, "--plot", path, "--log-x", "--plot-from", "0.5").stdout
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"figure: {path}" == text.splitlines()[-1]
    for options in (["--log-x"], ["--plot-from", "0.5"]):
        outcome = call("profile", "show", measured, *options)
        assert (2, f"simkv: error: {options[0]} has an effect with --plot only\n") == (
            outcome.exit_code,
            outcome.stderr,
        )


@pytest.mark.parametrize("quality", ["0", "95", "nan"])
def test_show_refuses_what_is_no_quality(quality: str) -> None:
    """Qualities are relative to raw, so percent are a mistake."""
    outcome = call("profile", "show", NAME, "--at-quality", quality)
    assert 2 == outcome.exit_code
    assert f"--at-quality {quality}: it must be above 0 and at most 1.5" in outcome.stderr


def test_compose_writes_a_profile_that_reads_back(measured: Path, tmp_path: Path) -> None:
    """Quality and sizes of one, everything else of the other; what has no counterpart is named on stderr."""
    out = tmp_path / "both"
    outcome = call("profile", "compose", measured, NAME, "--out", out, "--name", "toy-on-a100")
    assert (0, f"{out}: toy-on-a100, quality of measured with speeds of {NAME}; 3 variants, 2 tasks\n") == (
        outcome.exit_code,
        outcome.stdout,
    )
    assert [
        f"simkv: warning: load times of {NAME} belong to other sizes than measured stores: kivi:4 at 0.300 of raw "
        "(loads as at 0.312), kivi:2 at 0.200 of raw (loads as at 0.188)",
        "simkv: left out of measured, for want of speeds: snapkv:0.5, snapkv:0.25",
        f"simkv: left out of {NAME}, for want of quality: "
        "kivi:8, streamingllm:0.7286, streamingllm:0.4857, streamingllm:0.3714",
    ] == outcome.stderr.splitlines()
    expected = replace(compose(load_profile(measured), load_profile(NAME)), name="toy-on-a100")
    same(expected, load_profile(out))
    assert ("llama-3.1-8b", 131_072) == (load_profile(out).model, load_profile(out).kv_bytes_per_token)
    assert 0 == call("profile", "check", out).exit_code


def test_a_composed_profile_says_what_it_is_made_of(measured: Path, tmp_path: Path) -> None:
    """Both sides with their models stand in the provenance and in what is shown; there is an origin for each number."""
    call("profile", "compose", measured, NAME, "--out", tmp_path / "both")
    lines = call("profile", "show", tmp_path / "both").stdout.splitlines()
    squeezed = [" ".join(line.split()) for line in lines]
    assert {"quality of measured (toy)", f"speeds of {NAME} (llama-3.1-8b)"} <= set(squeezed)
    found = load_profile(tmp_path / "both")
    assert f"measured+{NAME}" == found.name
    facts = found.provenance["quality_of"]
    assert ("none", ["snapkv:0.5", "snapkv:0.25"]) == (facts["device"], facts["left_out"])
    assert load_profile(measured).sha256 == facts["profile"]["sha256"]
    numbers = found.provenance["numbers"]
    assert ("measured", "authors-code") == (numbers["quality"]["status"], numbers["prefill"]["status"])
    assert not [place for place in numbers if "streamingllm" in place]


def test_compose_refuses_what_does_not_fit(measured: Path, tmp_path: Path) -> None:
    """Nothing in common, a folder that exists, and a name that is none are one line each, and nothing is written."""
    other = "evicpress-h100-llama-3.1-8b"
    assert "have only raw in common" in call("profile", "compose", NAME, other, "--out", tmp_path / "x").stderr
    assert "never overwritten" in call("profile", "compose", measured, NAME, "--out", tmp_path).stderr
    assert (
        "name is '../x'" in call("profile", "compose", measured, NAME, "--out", tmp_path / "x", "--name", "../x").stderr
    )
    assert [measured] == list(tmp_path.iterdir())
