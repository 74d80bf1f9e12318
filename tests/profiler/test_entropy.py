"""Entropy coders: round trips, sizes against the entropy, references in plain Python, and damaged bytes."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from simkv.profiler.compressors import ans, chunks
from simkv.profiler.compressors.chunks import chunk_words
from simkv.profiler.compressors.huffman import CHUNK_WORDS, Codebook
from simkv.profiler.compressors.payload import PayloadError

# streams with few levels, many levels, and everything between
STREAMS = st.integers(0, 255).flatmap(
    lambda top: arrays.arrays(np.uint8, st.integers(0, 300), elements=st.integers(0, top))
)


@pytest.fixture(autouse=True, scope="module")
def _uncompiled() -> Iterator[None]:
    """A compiler takes too long for a test."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "compiled", lambda function: function)
        yield


def _gaussian(deviation: float, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Codes as a quantiser of that many steps per standard deviation makes them."""
    codes = np.rint(np.random.default_rng(seed).normal(0, deviation, count)).astype(np.int64)
    return (codes - codes.min()).astype(np.uint8)


def _entropy_bytes(symbols: NDArray[np.uint8]) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _again(book: Codebook, symbols: NDArray[np.uint8]) -> list[int]:
    """There and back."""
    data, bits = book.encode(symbols)
    return book.decode(_bytes(data), bits, len(symbols)).tolist()  # type: ignore[no-any-return]


def _side_by_side(book: Codebook, data: NDArray[np.uint8], bits: NDArray[np.int16], count: int) -> list[int]:
    """The symbols of the words that ``chunk_words`` finds."""
    words = chunk_words(book, torch.from_numpy(data.copy()), torch.from_numpy(bits), count).tolist()
    places = list(reversed(range(book.word)))
    return [word // book.levels**place % book.levels for word in words for place in places][:count]


def _slowly_decoded(book: Codebook, data: bytes, count: int) -> tuple[list[int], list[int]]:
    """The stream as its docstring describes it, read bit by bit; and at which bit each chunk ends."""
    codes: dict[str, int] = {}
    code, before = 0, 0
    for length, word in sorted((int(n), word) for word, n in enumerate(book.lengths) if n):
        code <<= length - before
        codes[f"{code:0{length}b}"] = word
        code, before = code + 1, length
    symbols: list[int] = []
    ends: list[int] = []
    seen = ""
    for place, bit in enumerate("".join(f"{byte:08b}" for byte in data), start=1):
        seen += bit
        if seen in codes and len(symbols) < count:
            symbols += [codes[seen] // book.levels**power % book.levels for power in reversed(range(book.word))]
            seen = ""
            if len(symbols) % (book.word * CHUNK_WORDS) == 0 or len(symbols) >= count:
                ends.append(place)
    return symbols[:count], ends


@given(STREAMS, st.booleans())
def test_huffman_gives_back_every_stream(symbols: NDArray[np.uint8], unseen: bool) -> None:
    """Any bytes at all, with a codebook that went through its own bytes."""
    book = Codebook.from_bytes(Codebook.fitted(symbols, unseen=unseen).to_bytes())
    assert symbols.tolist() == _again(book, symbols)


@pytest.mark.parametrize("deviation", [0.4, 1.0, 6.0])
def test_huffman_streams_are_as_documented(deviation: float) -> None:
    """A reader written from the docstring alone finds the same symbols and ends of chunks, with words of any length."""
    symbols = _gaussian(deviation, 30_001)
    book = Codebook.fitted(symbols)
    data, bits = book.encode(symbols)
    assert (symbols.tolist(), np.cumsum(bits.astype(int)).tolist()) == _slowly_decoded(book, data, len(symbols))


@pytest.mark.parametrize("deviation", [0.4, 1.0, 6.0])
def test_chunks_decode_side_by_side(deviation: float) -> None:
    """The same symbols as one after the other: of one chunk, of whole chunks, and with one word or symbol more."""
    noise = _gaussian(deviation, 30_001)
    word = Codebook.fitted(noise).word
    chunk = CHUNK_WORDS * word
    for count in (1, 33 * word, chunk, chunk + 1, 2 * chunk + word):
        symbols = noise[:count]
        book = Codebook.fitted(noise, unseen=True)
        data, bits = book.encode(symbols)
        assert -(-count // chunk) == len(bits)
        assert symbols.tolist() == _side_by_side(book, _bytes(data), bits, count)


@pytest.mark.parametrize("deviation", [0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 10.0, 25.0])
def test_huffman_stays_within_two_percent_of_the_entropy(deviation: float) -> None:
    """From one to seven bits per symbol; the table and the chunks are extra, below 1 and .4 % of 200,000 symbols'."""
    symbols = _gaussian(deviation, 200_000)
    book = Codebook.fitted(symbols)
    data, bits = book.encode(symbols)
    assert len(data) <= 1.02 * _entropy_bytes(symbols)
    assert len(book.to_bytes()) <= 0.01 * len(data)
    assert bits.nbytes <= 0.004 * len(data)


def test_one_symbol_takes_no_bits() -> None:
    """A constant stream is empty, whatever its length; a stream of any bytes is then refused."""
    symbols = np.full(1000, 7, np.uint8)
    book = Codebook.fitted(symbols)
    data, bits = book.encode(symbols)
    assert (b"", 0) == (data, len(bits))
    assert symbols.tolist() == book.decode(_bytes(b""), bits, 1000).tolist()
    with pytest.raises(PayloadError):
        book.decode(_bytes(b"\0"), bits, 1000)
    with pytest.raises(PayloadError):
        book.decode(_bytes(b""), np.zeros(1, np.int16), 1000)


def test_long_codes_are_cut_to_fifteen_bits() -> None:
    """Counts that nearly double from symbol to symbol would need codes of 21 bits."""
    symbols = np.repeat(np.arange(22, dtype=np.uint8), [int(1.8**power) for power in range(22)])
    book = Codebook.fitted(symbols, levels=100)  # too many for words of two
    assert 1 == book.word
    assert 13 <= int(book.lengths.max()) <= 15
    assert len(book.encode(symbols)[0]) <= 1.02 * _entropy_bytes(symbols)
    assert symbols.tolist() == _again(book, symbols)


def test_a_shared_codebook_knows_unseen_symbols() -> None:
    """Fitted to few symbols with a wider alphabet, it codes all of them; without ``unseen`` it refuses."""
    few, all_symbols = np.array([3, 3, 4], np.uint8), np.arange(12, dtype=np.uint8)
    book = Codebook.fitted(few, levels=12, unseen=True)
    assert all_symbols.tolist() == _again(book, all_symbols)
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
        symbols = book.decode(_bytes(data), np.array([8 * len(data)], np.int16), 17)
    except PayloadError:
        return
    assert 17 == len(symbols)
    assert int(symbols.max()) < book.levels


@pytest.mark.parametrize("deviation", [0.5, 3.0])
def test_damaged_huffman_streams_are_refused(deviation: float) -> None:
    """Cut, longer, for another number of symbols, and with chunks of other lengths; side by side alike."""
    count = 20_000
    symbols = _gaussian(deviation, count)
    book = Codebook.fitted(symbols)
    data, bits = book.encode(symbols)
    shifted, negative = bits.copy(), bits.copy()
    shifted[:2] += np.array([1, -1], np.int16)
    negative[0] = -1
    for damaged, lengths, wanted in (
        (data[:-1], bits, count),
        (data + b"\0", bits, count),
        (data[:-1] + bytes([data[-1] ^ 255]), bits, count),
        (data, bits, count + 100),
        (data, bits, count - 100),
        (b"", bits, count),
        (data, shifted, count),
        (data, negative, count),
        (data, bits[:-1], count),
        (data, np.append(bits, np.int16(0)), count),
    ):
        with pytest.raises(PayloadError):
            book.decode(_bytes(damaged), lengths, wanted)
        with pytest.raises(PayloadError):
            _side_by_side(book, _bytes(damaged), lengths, wanted)


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
