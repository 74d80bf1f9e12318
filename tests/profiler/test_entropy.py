"""Entropy coders: round trips, sizes against the entropy, references in plain Python, and damaged bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from simkv.profiler.compressors import ans
from simkv.profiler.compressors.huffman import Codebook
from simkv.profiler.compressors.payload import PayloadError

# streams with few levels, many levels, and everything between
STREAMS = st.integers(0, 255).flatmap(
    lambda top: arrays.arrays(np.uint8, st.integers(0, 300), elements=st.integers(0, top))
)


def _gaussian(deviation: float, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Codes as a quantiser of that many steps per standard deviation makes them."""
    codes = np.rint(np.random.default_rng(seed).normal(0, deviation, count)).astype(np.int64)
    return (codes - codes.min()).astype(np.uint8)


def _entropy_bytes(symbols: NDArray[np.uint8]) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _slowly_decoded(book: Codebook, data: bytes, count: int) -> list[int]:
    """The stream as its docstring describes it, read bit by bit."""
    codes: dict[str, int] = {}
    code, before = 0, 0
    for length, word in sorted((int(n), word) for word, n in enumerate(book.lengths) if n):
        code <<= length - before
        codes[f"{code:0{length}b}"] = word
        code, before = code + 1, length
    symbols: list[int] = []
    seen = ""
    for bit in "".join(f"{byte:08b}" for byte in data):
        seen += bit
        if seen in codes and len(symbols) < count:
            symbols += [codes[seen] // book.levels**place % book.levels for place in reversed(range(book.word))]
            seen = ""
    return symbols[:count]


@given(STREAMS, st.booleans())
def test_huffman_gives_back_every_stream(symbols: NDArray[np.uint8], unseen: bool) -> None:
    """Any bytes at all, with a codebook that went through its own bytes."""
    book = Codebook.from_bytes(Codebook.fitted(symbols, unseen=unseen).to_bytes())
    assert symbols.tolist() == book.decode(_bytes(book.encode(symbols)), len(symbols)).tolist()


@pytest.mark.parametrize("deviation", [0.4, 1.0, 6.0])
def test_huffman_streams_are_as_documented(deviation: float) -> None:
    """A reader written from the docstring alone finds the same symbols, with words of several lengths."""
    symbols = _gaussian(deviation, 5001)
    book = Codebook.fitted(symbols)
    assert symbols.tolist() == _slowly_decoded(book, book.encode(symbols), len(symbols))


@pytest.mark.parametrize("deviation", [0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 10.0, 25.0])
def test_huffman_stays_within_two_percent_of_the_entropy(deviation: float) -> None:
    """From one to seven bits per symbol; the table is extra and below 1 % of 200,000 symbols' stream."""
    symbols = _gaussian(deviation, 200_000)
    book = Codebook.fitted(symbols)
    stream = len(book.encode(symbols))
    assert stream <= 1.02 * _entropy_bytes(symbols)
    assert len(book.to_bytes()) <= 0.01 * stream


def test_one_symbol_takes_no_bits() -> None:
    """A constant stream is empty, whatever its length; a stream of any bytes is then refused."""
    symbols = np.full(1000, 7, np.uint8)
    book = Codebook.fitted(symbols)
    assert b"" == book.encode(symbols)
    assert symbols.tolist() == book.decode(_bytes(b""), 1000).tolist()
    with pytest.raises(PayloadError):
        book.decode(_bytes(b"\0"), 1000)


def test_long_codes_are_cut_to_fifteen_bits() -> None:
    """Counts that nearly double from symbol to symbol would need codes of 21 bits."""
    symbols = np.repeat(np.arange(22, dtype=np.uint8), [int(1.8**power) for power in range(22)])
    book = Codebook.fitted(symbols, levels=100)  # too many for words of two
    assert 1 == book.word
    assert 13 <= int(book.lengths.max()) <= 15
    assert len(book.encode(symbols)) <= 1.02 * _entropy_bytes(symbols)
    assert symbols.tolist() == book.decode(_bytes(book.encode(symbols)), len(symbols)).tolist()


def test_a_shared_codebook_knows_unseen_symbols() -> None:
    """Fitted to few symbols with a wider alphabet, it codes all of them; without ``unseen`` it refuses."""
    few, all_symbols = np.array([3, 3, 4], np.uint8), np.arange(12, dtype=np.uint8)
    book = Codebook.fitted(few, levels=12, unseen=True)
    assert all_symbols.tolist() == book.decode(_bytes(book.encode(all_symbols)), 12).tolist()
    with pytest.raises(ValueError, match="no code"):
        Codebook.fitted(few, levels=12).encode(all_symbols)
    with pytest.raises(ValueError, match="12 levels"):
        book.encode(np.array([12], np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x01",
        b"\x01\x00\x11",  # words of no symbols
        b"\x01\x07\x11",  # words of seven symbols
        b"\xff\x02" + b"\x11" * 32768,  # 65,536 words
        b"\x01\x01\x11\x11",  # a byte too many
        b"\x01\x01\x00",  # no symbol has a code
        b"\x02\x01\x11\x01",  # three codes of one bit
        b"\x02\x01\x12\x00",  # one code of two bits and one of one: incomplete
        b"\x02\x01\x21\x12",  # a length after the last symbol
    ],
)
def test_bad_codebooks_are_refused(data: bytes) -> None:
    """Sizes that do not fit, and lengths that are no complete prefix code."""
    with pytest.raises(PayloadError):
        Codebook.from_bytes(data)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_codebook_or_refused(data: bytes) -> None:
    """What is accepted gives the same bytes again and decodes noise to symbols below its levels, or refuses it."""
    try:
        book = Codebook.from_bytes(data)
    except PayloadError:
        return
    assert data == book.to_bytes()
    try:
        symbols = book.decode(_bytes(data), 17)
    except PayloadError:
        return
    assert 17 == len(symbols)
    assert int(symbols.max()) < book.levels


@pytest.mark.parametrize("deviation", [0.5, 3.0])
def test_damaged_huffman_streams_are_refused(deviation: float) -> None:
    """Cut, longer, and for another number of symbols."""
    symbols = _gaussian(deviation, 1000)
    book = Codebook.fitted(symbols)
    data = book.encode(symbols)
    for damaged, count in ((data[:-1], 1000), (data + b"\0", 1000), (data, 2000), (data, 900), (b"", 1000)):
        with pytest.raises(PayloadError):
            book.decode(_bytes(damaged), count)


def _tables(symbols: NDArray[np.uint8], bins: int) -> NDArray[np.uint8]:
    return ans.grades_of(np.stack([np.bincount(row, minlength=bins) for row in symbols]))


@given(
    st.integers(1, 256).flatmap(
        lambda bins: arrays.arrays(
            np.uint8, st.tuples(st.integers(1, 5), st.integers(0, 80)), elements=st.integers(0, bins - 1)
        ).map(lambda symbols: (symbols, bins))
    )
)
def test_ans_gives_back_every_matrix(given: tuple[NDArray[np.uint8], int]) -> None:
    """Any symbols, each row with its own distribution; frequencies sum to 4096 and no seen symbol has none."""
    symbols, bins = given
    if not symbols.size:
        symbols = np.zeros((1, 1), np.uint8)
    grades = _tables(symbols, bins)
    frequencies = ans.frequencies(grades)
    assert [4096] * len(symbols) == frequencies.sum(axis=1).tolist()
    assert bool(((frequencies > 0) == (grades > 0)).all())
    assert (
        symbols.tolist()
        == ans.decode_rows(_bytes(ans.encode_rows(symbols, frequencies)), frequencies, symbols.shape[1]).tolist()
    )


def test_ans_streams_are_as_documented() -> None:
    """A decoder in plain integers, written from the docstring, finds the same symbols and ends where it began."""
    symbols = np.stack([_gaussian(deviation, 300, seed=3)[:300] for deviation in (0.5, 2.0, 5.0)])
    frequencies = ans.frequencies(_tables(symbols, int(symbols.max()) + 1))
    data = ans.encode_rows(symbols, frequencies)
    state, words = int.from_bytes(data[:4], "little"), list(np.frombuffer(data[4:], "<u2"))
    found: list[list[int]] = []
    for row in frequencies.tolist():
        found.append([])
        for _ in range(symbols.shape[1]):
            slot, symbol, start = state % 4096, 0, 0
            while start + row[symbol] <= slot:
                start += row[symbol]
                symbol += 1
            found[-1].append(symbol)
            state = row[symbol] * (state // 4096) + slot - start
            if state < 1 << 16:
                state = state << 16 | int(words.pop(0))
    assert symbols.tolist() == found
    assert (1 << 16, []) == (state, words)


@pytest.mark.parametrize("tokens", [256, 512, 8192])
def test_ans_stays_within_two_percent_of_the_entropy(tokens: int) -> None:
    """Channels of very different spread, each against the entropy of its own counts."""
    source = np.random.default_rng(1)
    spread = source.uniform(0.7, 5, (64, 1))
    symbols = np.clip(np.rint(source.normal(0, 1, (64, tokens)) * spread) + 15, 0, 30).astype(np.uint8)
    frequencies = ans.frequencies(_tables(symbols, 31))
    assert len(ans.encode_rows(symbols, frequencies)) <= 1.02 * sum(_entropy_bytes(row) for row in symbols)


def test_ans_refuses_what_it_cannot_code() -> None:
    """A symbol without frequency, and a distribution without symbols."""
    frequencies = ans.frequencies(np.array([[1, 0, 15]], np.uint8))
    for symbol in (1, 3):
        with pytest.raises(ValueError, match="never occurs"):
            ans.encode_rows(np.array([[symbol]], np.uint8), frequencies)
    with pytest.raises(PayloadError):
        ans.frequencies(np.zeros((2, 5), np.uint8))


def test_damaged_ans_streams_are_refused() -> None:
    """Cut, longer, odd, for another number of symbols, and impossibly many of them."""
    symbols = _gaussian(3.0, 1000)[None]
    frequencies = ans.frequencies(_tables(symbols, int(symbols.max()) + 1))
    data = ans.encode_rows(symbols, frequencies)
    for damaged, length in ((data[:-2], 1000), (data + b"\0\0", 1000), (data[:-1], 1000), (data[:3], 1000)):
        with pytest.raises(PayloadError):
            ans.decode_rows(_bytes(damaged), frequencies, length)
    for length in (999, 1001, 1 << 40):
        with pytest.raises(PayloadError):
            ans.decode_rows(_bytes(data), frequencies, length)


@given(st.binary(min_size=4, max_size=60), st.integers(0, 50))
def test_any_bytes_are_a_stream_or_refused(data: bytes, length: int) -> None:
    """Noise never reads beyond its end nor writes symbols that the tables do not have."""
    frequencies = ans.frequencies(np.array([[3, 0, 9, 15], [15, 15, 0, 0]], np.uint8))
    try:
        symbols = ans.decode_rows(_bytes(data), frequencies, length)
    except PayloadError:
        return
    assert (2, length) == symbols.shape
    assert bool((frequencies[[[0], [1]], symbols] > 0).all())
