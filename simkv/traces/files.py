"""Untrusted trace files as checked text: plain, gzip or zstd, one file or a folder of them.

What it is: the first stop of every reader.  It finds the files, unpacks them within limits, decodes
UTF-8 and hands out lines (or whole documents) that know their place for error messages.
What it is not: a parser; what a line means is the business of the reader of its format.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, NamedTuple

import pyarrow as pa

from simkv.errors import TraceError

__all__ = ["DEFAULT_LIMITS", "Limits", "Place", "Source"]

_CHUNK_BYTES = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_BOM = b"\xef\xbb\xbf"
_TRACE_SUFFIXES = (".jsonl", ".json", ".csv", ".txt")
_PACKED_SUFFIXES = (".gz", ".zst")


@dataclass(frozen=True)
class Limits:
    """How much a file from outside may unpack to before it is refused.

    Attributes:
        total_bytes: unpacked bytes of all files of a trace together.
        line_bytes: one line.
        document_bytes: one file that is read whole, as one JSON document.
        ratio: unpacked / packed bytes of one file, once ``ratio_floor_bytes`` are exceeded.
        ratio_floor_bytes: unpacked bytes up to which any ratio is fine.
        files: files in a folder.
    """

    total_bytes: int = 8 << 30
    line_bytes: int = 64 << 20
    document_bytes: int = 256 << 20
    ratio: int = 1000
    ratio_floor_bytes: int = 256 << 20
    files: int = 100_000


DEFAULT_LIMITS = Limits()


class Place(NamedTuple):
    """Where a record stands: its file and its number, counted from 1 in lines or requests."""

    file: str
    number: int
    unit: str = "line"

    def error(self, problem: str) -> TraceError:
        """The error that names this place and the problem."""
        return TraceError(f"{self.file}, {self.unit} {self.number}: {problem}")

    def bad(self, key: str, value: Any, allowed: str) -> TraceError:
        """The error for a value that is not allowed; long values are cut short."""
        return self.error(f"{key} is {short_repr(value)}, it must be {allowed}")


@dataclass(frozen=True)
class Source:
    """One trace on disk: a file, or a folder whose files are read in the order of their names.

    A folder stands for all files below it that end in .jsonl, .json, .csv or .txt, packed or not; hidden
    ones are left out.

    Raises:
        TraceError: when the path, or a file of it, is missing, unreadable or beyond ``limits``.
    """

    path: Path
    limits: Limits = field(default=DEFAULT_LIMITS)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files, by name; a folder's by their path below it."""
        if self.path.is_file():
            return (self.path,)
        if not self.path.is_dir():
            raise TraceError(f"{self.path}: no such file or folder")
        found = _walk(self.path, self.limits.files)
        if not found:
            raise TraceError(f"{self.path}: the folder holds no {', '.join(_TRACE_SUFFIXES)} files, packed or not")
        return tuple(sorted(found, key=lambda file: file.relative_to(self.path).as_posix()))

    @property
    def name(self) -> str:
        """The name without folders and without the endings of traces and packers."""
        stem = self.path.resolve().name
        for suffixes in (_PACKED_SUFFIXES, _TRACE_SUFFIXES):
            for suffix in suffixes:
                stem = stem.removesuffix(suffix)
        return stem

    @property
    def sha256(self) -> str:
        """SHA-256 of the file as stored; of a folder, of its lines ``<sha256>  <path below it>``."""
        if self.path.is_file():
            return _file_sha256(self.path)
        listing = (f"{_file_sha256(file)}  {file.relative_to(self.path).as_posix()}\n" for file in self.files)
        return hashlib.sha256("".join(listing).encode("utf-8", "surrogateescape")).hexdigest()

    def lines(self) -> Iterator[tuple[Place, str]]:
        """Every line that is not blank, without its end, with its place; of all files in turn."""
        meter = _Meter(self.limits)
        for file in self.files:
            yield from _lines(file, meter)

    def documents(self) -> Iterator[tuple[Path, str]]:
        """The whole text of each file, with its path."""
        meter = _Meter(self.limits)
        for file in self.files:
            yield file, _document(file, meter)

    def head(self, count: int) -> bytes:
        """The first ``count`` stored bytes of the first file."""
        with _open_raw(self.files[0]) as stream:
            return stream.read(count)


class _Meter:
    """Unpacked bytes so far, in all files and in the present one, against the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.total = 0

    def add(self, file: Path, stored_bytes: int, of_file: int, more: int) -> None:
        self.total += more
        if self.total > self.limits.total_bytes:
            raise TraceError(f"{file}: unpacks to more than {self.limits.total_bytes} bytes, the limit")
        if of_file > max(self.limits.ratio_floor_bytes, self.limits.ratio * stored_bytes):
            raise TraceError(f"{file}: unpacks to more than {self.limits.ratio} times its size: a decompression bomb?")


def _walk(folder: Path, most: int) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            bare = name.removesuffix(".gz").removesuffix(".zst")
            if bare.endswith(_TRACE_SUFFIXES) and not name.startswith("."):
                found.append(Path(parent, name))
        if len(found) > most:
            raise TraceError(f"{folder}: more than {most} files, the limit")
    return found


def _open_raw(file: Path) -> BufferedReader:
    # Opening a pipe or a device could block or never end, so only regular files are opened.
    if not file.is_file():
        raise TraceError(f"{file}: not a regular file")
    try:
        return open(file, "rb")
    except OSError as error:
        raise TraceError(f"{file}: cannot be opened: {error.strerror}") from error


def _file_sha256(file: Path) -> str:
    with _open_raw(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpacker(file: Path, raw: BufferedReader) -> Any:
    magic = raw.read(len(_LFS_POINTER))
    raw.seek(0)
    if magic == _LFS_POINTER:
        raise TraceError(f"{file}: a Git LFS pointer, not the data; fetch the file itself (git lfs pull)")
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw)
    if magic.startswith(_ZSTD):
        return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return raw


def _chunks(file: Path, meter: _Meter) -> Iterator[bytes]:
    stored_bytes, of_file = file.stat().st_size, 0
    with _open_raw(file) as raw:
        stream = _unpacker(file, raw)
        while True:
            try:
                chunk = stream.read(_CHUNK_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                raise TraceError(f"{file}: damaged or cut short: {error}") from error
            if not chunk:
                return
            if of_file == 0 and chunk.startswith(_LFS_POINTER):
                raise TraceError(f"{file}: a packed Git LFS pointer, not the data")
            of_file += len(chunk)
            meter.add(file, stored_bytes, of_file, len(chunk))
            yield chunk.removeprefix(_BOM) if of_file == len(chunk) else chunk


def _lines(file: Path, meter: _Meter) -> Iterator[tuple[Place, str]]:
    carry: list[bytes] = []
    carried = number = 0
    for chunk in _chunks(file, meter):
        first, *rest = chunk.split(b"\n")
        carry.append(first)
        if rest:
            for raw in (b"".join(carry), *rest[:-1]):
                number += 1
                _check_line(file, number, len(raw), meter.limits)
                if text := _text(raw, file, number):
                    yield Place(str(file), number), text
            carry, carried = [rest[-1]], 0
        carried += len(carry[-1])
        _check_line(file, number + 1, carried, meter.limits)
    if text := _text(b"".join(carry), file, number + 1):
        yield Place(str(file), number + 1), text


def _check_line(file: Path, number: int, length: int, limits: Limits) -> None:
    if length > limits.line_bytes:
        raise Place(str(file), number).error(f"longer than {limits.line_bytes} bytes, the limit for a line")


def _document(file: Path, meter: _Meter) -> str:
    parts: list[bytes] = []
    size = 0
    for chunk in _chunks(file, meter):
        parts.append(chunk)
        size += len(chunk)
        if size > meter.limits.document_bytes:
            raise TraceError(f"{file}: longer than {meter.limits.document_bytes} bytes, the limit for one document")
    raw = b"".join(parts)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Place(str(file), raw.count(b"\n", 0, error.start) + 1).error("not UTF-8 text") from error


def _text(raw: bytes, file: Path, number: int) -> str:
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise Place(str(file), number).error("not UTF-8 text") from error
