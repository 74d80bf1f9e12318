"""Opening untrusted files: packing, limits, encodings, folders."""

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from simkv.errors import TraceError
from simkv.traces.files import Limits, Source


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


def plain(content: bytes) -> bytes:
    return content


def lines_of(path: Path, **limits: int) -> list[tuple[int, str]]:
    return [(place.number, text) for place, text in Source(path, Limits(**limits)).lines()]


def put(folder: Path, content: bytes, name: str = "some.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", [plain, gzip.compress, zstd])
def test_lines_are_the_same_however_they_are_packed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Line ends, a byte-order mark, blank lines and a missing last newline do not matter; numbers count all lines."""
    path = put(tmp_path, pack("\ufeffone\r\n\n  \ntwo é\n\nthree".encode()))
    assert [(1, "one"), (4, "two é"), (6, "three")] == lines_of(path)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_packed_parts_behind_each_other_are_one_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Two gzip members or zstd frames in a file read as their concatenation, also inside a line."""
    assert [(1, "onetwo"), (2, "x")] == lines_of(put(tmp_path, pack(b"one") + pack(b"two\nx")))


def test_lines_longer_than_a_chunk_are_put_together(tmp_path: Path) -> None:
    """A line of three megabytes, read in chunks of one, comes out whole and in order."""
    long = "".join(f"{number:07}" for number in range(450_000))
    assert [(1, "a"), (2, long), (3, "b")] == lines_of(put(tmp_path, f"a\n{long}\nb\n".encode()))


@pytest.mark.parametrize("pack", [plain, gzip.compress, zstd])
def test_empty_files_have_no_lines(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """An empty file is legal, also when it is an empty archive."""
    assert [] == lines_of(put(tmp_path, pack(b"")))


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_a_truncated_archive_is_an_error(tmp_path: Path, pack: Callable[[bytes], bytes], kept: float) -> None:
    """Half a download is never read as a shorter trace."""
    packed = pack(os.urandom(50_000).hex().encode())
    with pytest.raises(TraceError, match="damaged or cut short"):
        lines_of(put(tmp_path, packed[: int(len(packed) * kept)]))


def test_a_damaged_gzip_is_an_error(tmp_path: Path) -> None:
    """A changed byte fails the checksum of the archive."""
    packed = bytearray(gzip.compress(os.urandom(5_000)))
    packed[2_000] ^= 1
    with pytest.raises(TraceError, match="damaged or cut short"):
        lines_of(put(tmp_path, bytes(packed)))


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_decompression_bomb_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Beyond the floor, a file may not unpack to more than ``ratio`` times its size."""
    bomb = put(tmp_path, pack((b"x" * 999 + b"\n") * 8_000))
    with pytest.raises(TraceError, match="more than 100 times its size: a decompression bomb"):
        lines_of(bomb, ratio=100, ratio_floor_bytes=2_000_000)
    assert 8_000 == len(lines_of(bomb, ratio=100, ratio_floor_bytes=8_000_000))


@pytest.mark.parametrize("pack", [plain, gzip.compress, zstd])
def test_the_unpacked_size_is_limited(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """The limit on unpacked bytes holds for all files of a folder together, and is inclusive."""
    put(tmp_path / "folder", pack(b"abc\n" * 100), "a.jsonl")
    put(tmp_path / "folder", pack(b"abc\n" * 100), "b.jsonl")
    assert 200 == len(lines_of(tmp_path / "folder", total_bytes=800))
    with pytest.raises(TraceError, match=r"b.jsonl: unpacks to more than 799 bytes"):
        lines_of(tmp_path / "folder", total_bytes=799)


@pytest.mark.parametrize("content", [b"ok\nabcdef\n", b"ok\nabcdef", b"ok\nabcdef\nok\n"])
def test_the_length_of_a_line_is_limited(tmp_path: Path, content: bytes) -> None:
    """A line above the limit is an error that names it, with or without an end."""
    path = put(tmp_path, content)
    assert "abcdef" == lines_of(path, line_bytes=6)[1][1]
    with pytest.raises(TraceError, match="line 2: longer than 5 bytes"):
        lines_of(path, line_bytes=5)


def test_an_endless_line_stops_at_its_limit(tmp_path: Path) -> None:
    """A line that never ends is refused after the limit, not after the whole file."""
    with pytest.raises(TraceError, match="line 1: longer than 2000000 bytes"):
        lines_of(put(tmp_path, gzip.compress(b"x" * 30_000_000)), line_bytes=2_000_000)


def test_a_document_is_limited_too(tmp_path: Path) -> None:
    """A file that is read whole has a limit of its own."""
    path = put(tmp_path, b'{"a":\n1}')
    assert [(path, '{"a":\n1}')] == list(Source(path).documents())
    with pytest.raises(TraceError, match="longer than 7 bytes, the limit for one document"):
        list(Source(path, Limits(document_bytes=7)).documents())


def test_the_number_of_files_is_limited(tmp_path: Path) -> None:
    """A folder may not hold more files than the limit."""
    for number in range(4):
        put(tmp_path, b"", f"{number}.jsonl")
    with pytest.raises(TraceError, match="more than 3 files"):
        lines_of(tmp_path, files=3)


@pytest.mark.parametrize("pack", [plain, gzip.compress, zstd])
def test_a_git_lfs_pointer_is_recognised(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """A pointer file, the usual result of a raw download, is called what it is."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:3d74\nsize 132054902\n"
    with pytest.raises(TraceError, match="Git LFS pointer"):
        lines_of(put(tmp_path, pack(pointer)))


@pytest.mark.parametrize("content", [b"ok\n\xff\xfe\n", "ok\nö\n".encode("latin-1"), b"ok\n\xc3"])
def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path, content: bytes) -> None:
    """Lines and whole documents both name the line that is not UTF-8."""
    path = put(tmp_path, content)
    with pytest.raises(TraceError, match="some.jsonl, line 2: not UTF-8 text"):
        lines_of(path)
    with pytest.raises(TraceError, match="some.jsonl, line 2: not UTF-8 text"):
        list(Source(path).documents())


def test_folders_are_read_by_name_and_without_other_files(tmp_path: Path) -> None:
    """Files come in the order of their path below the folder; hidden files and other endings stay out."""
    for name in (
        "b.jsonl",
        "a.jsonl.gz",
        "c/a.json.zst",
        "c/.hidden.json",
        ".git/x.json",
        "README.md",
        "a.jsonl.arrow",
    ):
        put(tmp_path, name.encode(), name)
    names = [file.relative_to(tmp_path).as_posix() for file in Source(tmp_path).files]
    assert ["a.jsonl.gz", "b.jsonl", "c/a.json.zst"] == names


def test_sha256_is_of_the_stored_bytes(tmp_path: Path) -> None:
    """A file's hash is what sha256sum prints; a folder's is that of the listing sha256sum prints."""
    first, second = put(tmp_path, b"1", "f/a.json"), put(tmp_path, gzip.compress(b"2"), "f/b.json.gz")
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (first, second)]
    assert digests[1] == Source(second).sha256
    listing = f"{digests[0]}  a.json\n{digests[1]}  b.json.gz\n"
    assert hashlib.sha256(listing.encode()).hexdigest() == Source(tmp_path / "f").sha256


@pytest.mark.parametrize(
    ("name", "expected"), [("x.jsonl.gz", "x"), ("x.csv", "x"), ("x.y.json.zst", "x.y"), ("x", "x")]
)
def test_the_name_lacks_the_endings(tmp_path: Path, name: str, expected: str) -> None:
    """A trace is called after its file, without the endings of formats and packers."""
    assert expected == Source(put(tmp_path, b"", name)).name


def test_missing_and_odd_paths_are_errors(tmp_path: Path) -> None:
    """A path that is not there, an empty folder and a pipe each give one clear error."""
    with pytest.raises(TraceError, match="no such file or folder"):
        lines_of(tmp_path / "absent.jsonl")
    with pytest.raises(TraceError, match=r"the folder holds no .jsonl"):
        lines_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(TraceError, match="not a regular file"):
        lines_of(tmp_path)
