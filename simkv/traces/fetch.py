"""Fetch public traces on demand, each checked against the registry ``traces/registry.toml``.

What it is: the registry, and a download that ends in a verified file or in one clear error and nothing
on disk.  What it is not: a reader; hand the path that comes back to ``load_trace``.  A folder of
fetched traces served over HTTP is a mirror: ``<mirror>/<trace>/<file>``.
"""

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO
from uuid import uuid4

import pandas as pd
import pooch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from simkv.errors import TraceError, unknown_name
from simkv.traces.shipped import shipped_file

__all__ = ["MIRROR_VARIABLE", "TraceFile", "TraceSource", "fetch_trace", "list_traces", "registry"]

MIRROR_VARIABLE = "SIMKV_TRACE_MIRROR"
_MAX_BYTES = 8 << 30
_MAX_REGISTRY_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30
_POINTER = b"version https://git-lfs.github.com/spec/v1"
_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$"


class TraceFile(BaseModel):
    """One file of a trace: its size in bytes and checksums, as far as they are known."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size_bytes: int | None = Field(default=None, ge=0, le=_MAX_BYTES)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    git_blob_sha1: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")

    @property
    def verifiable(self) -> bool:
        """Whether a checksum is known."""
        return bool(self.sha256 or self.git_blob_sha1)


class TraceSource(BaseModel):
    """One registered trace.

    ``format`` names the reader, ``reuse`` says whether the trace tells which blocks recur, ``base`` is the address
    that file names are appended to (None: only by hand or from a mirror).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=_NAME)]
    format: str
    licence: str
    what: str
    reuse: bool
    base: Annotated[str, Field(pattern=r"^https?://\S+/$")] | None = None
    files: dict[Annotated[str, Field(pattern=_NAME)], TraceFile] = Field(min_length=1, max_length=10_000)


def registry(path: Path | None = None) -> dict[str, TraceSource]:
    """The registered traces by name, from ``path`` or the registry that simkv ships.

    Raises TraceError naming file and key when it is missing, too large or malformed.
    """
    path = shipped_file("registry.toml") if path is None else path
    try:
        if path.stat().st_size > _MAX_REGISTRY_BYTES:
            raise TraceError(f"{path}: larger than {_MAX_REGISTRY_BYTES} bytes; not a registry of traces")
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"{path}: cannot read the registry of traces: {_first_line(error)}") from error
    return {name: _source(path, name, table) for name, table in tables.items()}


def list_traces(known: Mapping[str, TraceSource] | None = None) -> pd.DataFrame:
    """One row per registered trace: name, format, files, size_bytes, licence, reuse, fetch, what.

    ``size_bytes`` is missing where unknown; ``fetch`` is "verified", "unverified" (no checksum: needs
    ``allow_unverified``) or "manual" (no address: by hand or from a mirror).
    """
    rows = []
    for source in (registry() if known is None else known).values():
        sizes = [file.size_bytes for file in source.files.values()]
        verifiable = all(file.verifiable for file in source.files.values())
        rows.append(
            {
                "name": source.name,
                "format": source.format,
                "files": len(sizes),
                "size_bytes": sum(size or 0 for size in sizes) if None not in sizes else pd.NA,
                "licence": source.licence,
                "reuse": source.reuse,
                "fetch": ("verified" if verifiable else "unverified") if source.base else "manual",
                "what": source.what,
            }
        )
    return pd.DataFrame(rows).astype({"size_bytes": "Int64"})


def fetch_trace(
    name: str,
    folder: str | Path | None = None,
    progress: bool = False,
    *,
    mirror: str | None = None,
    allow_unverified: bool = False,
    known: Mapping[str, TraceSource] | None = None,
) -> Path:
    """Download a registered trace into ``<folder>/<name>/`` unless it is there already, and return its path.

    Args:
        name: a trace of the registry.
        folder: by default the user's cache folder for simkv.
        progress: draw a progress bar on standard error.
        mirror: base address used instead of the registered one (default: environment SIMKV_TRACE_MIRROR).
        allow_unverified: accept files for which no checksum is known.
        known: used instead of the shipped registry.

    Returns:
        The file, or the folder of a trace of several files.

    Raises:
        TraceError: for an unknown name, no address, a refused or failed download, too large a body, a Git LFS
            pointer in place of data, or a wrong size or checksum; the file at fault is not left behind.
    """
    sources = registry() if known is None else known
    if name not in sources:
        raise TraceError(unknown_name("trace", str(name), sources))
    source = sources[name]
    unverified = [file for file, facts in source.files.items() if not facts.verifiable]
    if unverified and not allow_unverified:
        raise TraceError(
            f"{name}: no checksum is known for {unverified[0]}; pass allow_unverified to take it as it comes"
        )
    target = Path(pooch.os_cache("simkv") if folder is None else folder) / name
    missing = [file for file, facts in source.files.items() if not _is_there(target / file, facts)]
    if missing:
        base = _base(source, os.environ.get(MIRROR_VARIABLE) if mirror is None else mirror)
        total = sum(source.files[file].size_bytes or 0 for file in missing) or None
        with _bar(progress) as bar:
            task = bar.add_task(name, total=total)
            for file in missing:
                _download(base + file, target / file, source.files[file], bar, task)
    return target / next(iter(source.files)) if len(source.files) == 1 else target


class _Limited:
    """A file for pooch to write to, which refuses more bytes than expected and moves the progress bar."""

    def __init__(self, file: BinaryIO, limit: int, bar: Progress, task: TaskID) -> None:
        self.file, self.limit, self.bar, self.task = file, limit, bar, task

    def write(self, data: bytes) -> int:
        """Write ``data``.  Raises TraceError when the file would become too large."""
        if self.file.tell() + len(data) > self.limit:
            raise TraceError(f"the server sent more than the {self.limit} bytes expected")
        self.bar.advance(self.task, len(data))
        return self.file.write(data)

    def flush(self) -> None:
        """Nothing to do: the file is closed before it is read."""


def _download(url: str, target: Path, facts: TraceFile, bar: Progress, task: TaskID) -> None:
    """Download to a temporary name beside ``target``, check, and only then move it there."""
    limit = _MAX_BYTES if facts.size_bytes is None else facts.size_bytes
    part = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            pooch.HTTPDownloader(chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_S)(
                url, _Limited(file, limit, bar, task), None
            )
        _verify(part, facts)
        part.replace(target)
    except (OSError, ValueError, TraceError) as error:
        raise TraceError(f"{target.parent.name}/{target.name}: not fetched from {url}: {_first_line(error)}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
            target.parent.rmdir()  # refused unless empty


def _verify(path: Path, facts: TraceFile) -> None:
    """Raise TraceError unless the file's size and checksums are those of ``facts``, as far as known."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= 1024 and file.read(len(_POINTER)) == _POINTER and facts.size_bytes != size:
            raise TraceError("the server sent a Git LFS pointer instead of the data")
    if facts.size_bytes not in (None, size):
        raise TraceError(f"it has {size} bytes, expected {facts.size_bytes}")
    if facts.sha256:
        _compare("SHA-256", hashlib.sha256(), path, facts.sha256)
    if facts.git_blob_sha1:
        _compare("git blob SHA-1", hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), path, facts.git_blob_sha1)


def _compare(kind: str, digest: "hashlib._Hash", path: Path, expected: str) -> None:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise TraceError(f"its {kind} is {digest.hexdigest()}, expected {expected}")


def _is_there(path: Path, facts: TraceFile) -> bool:
    """Whether the file exists and passes its checks; one that does not is fetched again."""
    try:
        _verify(path, facts)
    except (OSError, TraceError):
        return False
    return True


def _base(source: TraceSource, mirror: str | None) -> str:
    if mirror:
        if not re.match(r"https?://[^\s/]", mirror):
            raise TraceError(f"mirror {mirror!r} must be an address that begins with http:// or https://")
        return f"{mirror.rstrip('/')}/{source.name}/"
    if source.base is None:
        raise TraceError(f"{source.name}: no address is registered ({source.what}); give a mirror")
    return source.base


def _bar(progress: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not progress)


def _source(path: Path, name: str, table: object) -> TraceSource:
    if not isinstance(table, dict):
        raise TraceError(f"{path}: {name} must be a table")
    try:
        return TraceSource.model_validate({**table, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (name, *first["loc"]))
        raise TraceError(f"{path}: {key}: {first['msg']}, found {str(first['input'])[:60]!r}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
