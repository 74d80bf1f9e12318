"""Packing of codes: every width against arithmetic on one large integer, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simkv.profiler.compressors.bits import pack_bits, packed_bytes, unpack_bits
from simkv.profiler.compressors.payload import PayloadError


@st.composite
def coded(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A width and codes that fit it."""
    width = draw(st.integers(1, 16))
    return width, draw(st.lists(st.integers(0, (1 << width) - 1), max_size=40))


@given(coded())
def test_codes_are_the_digits_of_one_number(case: tuple[int, list[int]]) -> None:
    """The bytes are those of sum(code << width * place), little endian, and unpacking gives the codes back."""
    width, codes = case
    number = sum(code << width * place for place, code in enumerate(codes))
    packed = pack_bits(torch.tensor(codes, dtype=torch.int32), width)
    assert number.to_bytes(packed_bytes(len(codes), width), "little") == bytes(packed.tolist())
    assert codes == unpack_bits(packed, width, len(codes)).tolist()


def test_worked_example() -> None:
    """Codes 1, 2, 3 of 3 bits: 1 + 2 * 8 + 3 * 64 = 209 = 0xd1, and a padded second byte."""
    assert [0xD1, 0x00] == pack_bits(torch.tensor([1, 2, 3], dtype=torch.uint8), 3).tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_any_integers_of_any_shape_are_taken_in_flat_order(dtype: torch.dtype) -> None:
    """Shape and memory order of the codes do not matter, and they are not changed."""
    codes = torch.arange(24, dtype=dtype).reshape(4, 6).T
    packed = pack_bits(codes, 5)
    assert codes.flatten().tolist() == unpack_bits(packed, 5, 24).tolist()
    assert torch.equal(torch.arange(24, dtype=dtype).reshape(4, 6).T, codes)


def test_codes_that_do_not_fit_are_refused() -> None:
    """Too large or negative codes, and impossible widths, are a ValueError."""
    for codes, width in (([4], 2), ([-1], 8), ([0], 0), ([0], 17)):
        with pytest.raises(ValueError, match="bits"):
            pack_bits(torch.tensor(codes), width)
    with pytest.raises(ValueError, match="bits"):
        unpack_bits(torch.zeros(0, dtype=torch.uint8), 0, 0)


@pytest.mark.parametrize("length", [0, 2, 4])
def test_data_of_another_length_is_refused(length: int) -> None:
    """Eight codes of three bits are three bytes, no more and no less."""
    with pytest.raises(PayloadError, match="8 codes of 3 bits"):
        unpack_bits(torch.zeros(length, dtype=torch.uint8), 3, 8)
