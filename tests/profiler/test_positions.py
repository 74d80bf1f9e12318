"""Kept positions as bytes: round trips, the shorter of two forms, and false facts refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simkv.profiler.compressors.base import Shape
from simkv.profiler.compressors.payload import PayloadError
from simkv.profiler.compressors.positions import pack_positions, unpack_positions


@st.composite
def kept_sets(draw: st.DrawFn) -> tuple[list[Tensor], Shape]:
    """Kept positions of any kind: shared, per layer, per head, of equal or unequal lengths."""
    tokens, layers, heads = draw(st.integers(1, 200)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    source = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["shared", "layer", "head"]))
    kept = []
    for _ in range(layers):
        count = draw(st.integers(1, tokens))
        ranked = torch.rand(heads, tokens, generator=source).argsort(dim=1)[:, :count].sort(dim=1).values
        kept.append(ranked if kind == "head" else ranked[0])
    return (kept[:1] * layers if kind == "shared" else kept), Shape(layers, heads, tokens, 8, "f16")


@settings(max_examples=60)
@given(kept_sets())
def test_positions_survive_and_take_the_shorter_form(case: tuple[list[Tensor], Shape]) -> None:
    """unpack(pack) is the same, and never more than a bitmap."""
    kept, shape = case
    facts, data = pack_positions(kept, shape.tokens)
    found = unpack_positions(facts, data, shape)
    assert [positions.tolist() for positions in kept] == [positions.tolist() for positions in found]
    rows = sum(positions.numel() // positions.shape[-1] for positions in kept)
    assert len(data) <= (rows * shape.tokens + 7) // 8


def test_positions_of_a_long_context_with_wide_gaps() -> None:
    """A gap that 16 bits cannot hold falls back to the bitmap."""
    kept = [torch.tensor([0, 99_999])]
    facts, data = pack_positions(kept, 100_000)
    assert (0, 12_500) == (facts["gap_bits"], len(data))
    assert torch.equal(kept[0], unpack_positions(facts, data, Shape(1, 1, 100_000, 8, "f16"))[0])


@pytest.mark.parametrize("kept", [[[0, 1, 5]], [[3]], [[0, 2, 4, 5, 6]]], ids=["gaps", "one", "bitmap"])
@pytest.mark.parametrize(
    "change",
    [
        {"counts": [4]},
        {"counts": [0]},
        {"counts": [99]},
        {"counts": [3.0]},
        {"counts": []},
        {"counts": None},
        {"sets": "both"},
        {"sets": []},
        {"sets": "head"},
        {"gap_bits": 17},
        {"gap_bits": -1},
        {"gap_bits": True},
        {"gap_bits": None},
    ],
    ids=str,
)
def test_false_facts_about_positions_are_refused(kept: list[list[int]], change: dict[str, object]) -> None:
    """Counts, kinds and widths that do not fit the bytes raise PayloadError and nothing else."""
    facts, data = pack_positions([torch.tensor(row) for row in kept], 8)
    with pytest.raises(PayloadError):
        unpack_positions({**facts, **change}, data, Shape(1, 2, 8, 8, "f16"))


def test_positions_beyond_the_cache_or_too_many_are_refused() -> None:
    """A last gap that leads past the end, and a bitmap with a bit too many, raise PayloadError."""
    facts, data = pack_positions([torch.tensor([0, 7])], 9)
    assert 0 < facts["gap_bits"]
    with pytest.raises(PayloadError, match="beyond"):
        unpack_positions(facts, data, Shape(1, 1, 7, 8, "f16"))
    facts, data = pack_positions([torch.tensor([0, 2, 4, 5, 6])], 8)
    assert 0 == facts["gap_bits"]
    with pytest.raises(PayloadError, match="bitmap"):
        unpack_positions(facts, data | 128, Shape(1, 1, 8, 8, "f16"))
