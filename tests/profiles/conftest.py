"""A small hand-made profile on disk that tests of files and look-ups start from."""

from pathlib import Path

import pytest

TOML = """format = 1
name = "tiny"
variants = ["raw", "kivi:2", "keydiff:0.4"]

[model]
name = "toy"
layers = 2
kv_bytes_per_token = 1000
status = "published"
source = "model card"

[sizes.nominal]
status = "notes"
source = "a note"
rows = [{ variant = "kivi:2", ratio = 0.37 }, { variant = "keydiff:0.4", ratio = 0.4 }]

[sizes.measured]
status = "measured"
source = "payloads"
rows = [
  { variant = "kivi:2", ratio = 0.19 },
  { variant = "keydiff:0.4", ratio = 0.4, status = "inferred", source = "kept" },
]

[quality]
file = "quality.csv"
status = "measured"
source = "evaluation"

[load_lines]
status = "fitted"
source = "fit"
rows = [
  { tier = "dram", variant = "raw", per_token_s = 2e-6, fixed_s = -0.001 },
  { tier = "dram", variant = "kivi:2", per_token_s = 1e-6, fixed_s = 0.01 },
  { tier = "dram", variant = "keydiff:0.4", per_token_s = 8e-7, fixed_s = 0.0 },
]

[decode_lines]
status = "assumed"
source = "guess"
rows = [
  { variant = "kivi:2", per_token_s = 1e-5, fixed_s = 0.07 },
  { variant = "keydiff:0.4", per_token_s = 0.0, fixed_s = 0.0 },
]

[encode_lines]
status = "assumed"
source = "guess"
rows = [
  { variant = "kivi:2", per_token_s = 1e-5, fixed_s = 0.0 },
  { variant = "keydiff:0.4", per_token_s = 0.0, fixed_s = 0.0 },
]

[prefill]
base_s = -0.1
per_token_s = 1e-4
status = "fitted"
source = "fit"

[tiers]
status = "published"
source = "data sheet"
rows = [
  { name = "dram", capacity = "1 GiB", read = "10 GB/s", write = "5 GB/s", latency = "10 us", endurance = "1 TB" },
]

[host_link]
read = "25 GB/s"
write = "25 GB/s"
latency = 1e-6
channels = 2
discipline = "fair"
status = "assumed"
source = "PCIe"

[provenance]
summary = "hand-made"
"""

CSV = """task,sample,variant,removed,quality,quality_train
qa,0,raw,0,0.9,0.8
qa,0,kivi:2,,0.7,0.6
qa,0,keydiff:0.4,0.6,0.5,0.4
qa,1,raw,,1.0,1.0
qa,1,kivi:2,,0.6,0.5
qa,1,keydiff:0.4,0.6,0.3,0.2
sum,5,kivi:2,,0.25,0.25
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Folder of a valid profile with a RAW row below 1, a task without RAW, and every section."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "profile.toml").write_text(TOML)
    (folder / "quality.csv").write_text(CSV)
    return folder
