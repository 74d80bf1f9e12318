"""Canonical storage: a Trace as Parquet, and as an Arrow file that is mapped into memory.

What it is: ``save_trace`` / ``read_trace`` for Parquet, one row per request, readable by any table tool;
``save_arrow`` / ``open_arrow`` for the same arrays without decoding, shared by the processes of a sweep.
What it is not: a reader of published formats (``formats.py``).

``read_trace`` keeps an Arrow copy beside the Parquet file and uses it while it matches.  Files are
written whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simkv.errors import TraceError
from simkv.traces.trace import Trace, build_trace

__all__ = ["open_arrow", "read_trace", "save_arrow", "save_trace"]

_VERSION = 1
_KEY = b"simkv_trace"
_MAX_BLOCKS = 10**9
_ROWS_AT_ONCE = 10_000
_SCHEMA = pa.schema(
    [
        pa.field("arrival_ns", pa.int64(), nullable=False),
        pa.field("input_tokens", pa.int32(), nullable=False),
        pa.field("output_tokens", pa.int32(), nullable=False),
        pa.field("session", pa.int32(), nullable=False),
        pa.field("task", pa.int16(), nullable=False),
        pa.field("block_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("block_tokens", pa.list_(pa.int32()), nullable=False),
    ]
)
_ARRAYS = {
    "arrival_ns": pa.int64(),
    "input_tokens": pa.int32(),
    "output_tokens": pa.int32(),
    "block_offsets": pa.int64(),
    "block_ids": pa.int32(),
    "block_tokens": pa.int32(),
    "session": pa.int32(),
    "task": pa.int16(),
}
_META_KINDS: dict[str, type] = {
    **dict.fromkeys(("name", "format", "source", "sha256", "unit", "clock"), str),
    **dict.fromkeys(("task_names", "transforms", "notes"), list),
    "block_size": int,
    "reuse": bool,
}
_READ_ERRORS = (
    *(pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError),
)


def save_trace(trace: Trace, path: str | Path) -> None:
    """Write ``trace`` as Parquet: one row per request, its facts as JSON in the schema's metadata.

    ``block_tokens`` is written for every requested block, so that a row can be read alone.

    Raises:
        TraceError: when the blocks are not numbered by first appearance, the facts are not JSON, or the file
            cannot be written.
    """
    path = Path(path)
    codes, uniques = pd.factorize(trace.block_ids)
    if len(codes) > _MAX_BLOCKS:
        raise TraceError(f"{path}: {len(codes)} requested blocks, at most {_MAX_BLOCKS} can be stored")
    if len(uniques) != trace.n_blocks or not np.array_equal(codes, trace.block_ids):
        raise TraceError(f"{path}: block ids must be numbered 0.. by first appearance, every block requested")
    offsets = pa.array(trace.block_offsets.astype(np.int32))
    columns = [pa.array(getattr(trace, name)) for name in _SCHEMA.names[:5]]
    columns += [
        pa.ListArray.from_arrays(offsets, pa.array(flat)) for flat in (trace.block_ids, trace.block_tokens[codes])
    ]
    table = pa.Table.from_arrays(columns, schema=_SCHEMA.with_metadata({_KEY: _header(trace, path)}))
    _write_whole(path, lambda file: pq.write_table(table, file, compression="zstd", write_page_checksum=True))


def read_trace(path: str | Path, cache: bool = True) -> Trace:
    """Read a Parquet file of ``save_trace``.

    Args:
        path: the Parquet file.
        cache: use the Arrow copy ``<path>.arrow`` if it is of this very file, else make it; where the folder
            cannot be written, or the copy is damaged, the Parquet file is read.

    Returns:
        The trace; its arrays are read-only views of the mapped file when the copy was used.

    Raises:
        TraceError: when the file is missing, damaged, or not a stored trace.
    """
    path = Path(path)
    _require_file(path)
    if not cache:
        return _read_parquet(path)
    copy = path.with_name(path.name + ".arrow")
    with contextlib.suppress(TraceError, *_READ_ERRORS):
        return _open_arrow(copy, lambda origin: _is_of(origin, path))
    origin = _origin(path)
    trace = _read_parquet(path)
    # A folder that cannot be written costs the speed of the next read, nothing else.
    with contextlib.suppress(TraceError):
        save_arrow(trace, copy, origin=origin)
    return trace


def save_arrow(trace: Trace, path: str | Path, *, origin: dict[str, Any] | None = None) -> None:
    """Write the arrays of ``trace`` as one Arrow record batch for ``open_arrow``.

    Args:
        trace: any trace.
        path: where to.
        origin: of which file it is a copy: ``size``, ``mtime_ns`` and ``sha256``.

    Raises:
        TraceError: when the facts are not JSON or the file cannot be written.
    """
    path = Path(path)
    columns = []
    for name, kind in _ARRAYS.items():
        values = pa.array(getattr(trace, name), type=kind)
        columns.append(pa.LargeListArray.from_arrays(pa.array([0, len(values)], type=pa.int64()), values))
    batch = pa.record_batch(columns, names=list(_ARRAYS))
    batch = batch.replace_schema_metadata({_KEY: _header(trace, path, origin=origin or {})})

    def write(file: Path) -> None:
        with pa.ipc.new_file(str(file), batch.schema) as writer:
            writer.write_batch(batch)

    _write_whole(path, write)


def open_arrow(path: str | Path) -> Trace:
    """Map a file of ``save_arrow``: all arrays are read-only views of it, nothing is copied.

    Raises:
        TraceError: when the file is missing, damaged, or not a stored trace.
    """
    path = Path(path)
    _require_file(path)
    try:
        return _open_arrow(path, lambda origin: True)
    except _READ_ERRORS as error:
        raise TraceError(f"{path}: not a stored trace, or damaged: {_first_line(error)}") from error


def _open_arrow(path: Path, accept: Callable[[dict[str, Any]], bool]) -> Trace:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
        header = _parse_header(reader.schema.metadata or {}, path)
        if not accept(header["origin"]) or reader.num_record_batches != 1:
            raise TraceError(f"{path}: a copy of another file")
        batch = reader.get_batch(0)
    batch.validate(full=True)
    arrays = {}
    for name, kind in _ARRAYS.items():
        column = batch.column(name)
        if column.type != pa.large_list(kind) or len(column) != 1 or column.null_count:
            raise TraceError(f"{path}: column {name} must be one list of {kind}")
        arrays[name] = column[0].values.to_numpy(zero_copy_only=True)
    return _checked(Trace(**arrays, meta=header["meta"]), header, path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise TraceError(f"{path}: no such file")


def _read_parquet(path: Path) -> Trace:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        header = _parse_header(file.schema_arrow.metadata or {}, path)
        trace = _from_table(_read_table(file, path), path)
        return _checked(replace(trace, meta=header["meta"]), header, path)
    except _READ_ERRORS as error:
        raise TraceError(f"{path}: not a stored trace, or damaged: {_first_line(error)}") from error


def _read_table(file: pq.ParquetFile, path: Path) -> pa.Table:
    """The seven columns, in parts, so that a file that unpacks to too much is refused before memory runs out."""
    # The footer announces these sizes too, but pyarrow aborts the process on some damaged footers when asked.
    parts, values = [], 0
    for part in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=_SCHEMA.names):
        parts.append(part.select(_SCHEMA.names).cast(_SCHEMA))
        values += part.num_rows + len(pc.list_flatten(part["block_ids"]))
        if values > _MAX_BLOCKS:
            raise TraceError(f"{path}: more than {_MAX_BLOCKS} requests and requested blocks, the limit")
    return pa.Table.from_batches(parts, schema=_SCHEMA)


def _from_table(table: pa.Table, path: Path) -> Trace:
    counts = pc.list_value_length(table["block_ids"]).to_numpy()
    if not np.array_equal(counts, pc.list_value_length(table["block_tokens"]).to_numpy()):
        raise TraceError(f"{path}: block_ids and block_tokens differ in length")
    arrival_ns = table["arrival_ns"].to_numpy()
    if (np.diff(arrival_ns) < 0).any():
        raise TraceError(f"{path}: arrival_ns must not decrease")
    ids, tokens = (pc.list_flatten(table[name]) for name in ("block_ids", "block_tokens"))
    if ids.null_count or tokens.null_count:
        raise TraceError(f"{path}: block_ids and block_tokens must not hold nulls")
    return build_trace(
        arrival_ns=arrival_ns,
        input_tokens=table["input_tokens"].to_numpy(),
        output_tokens=table["output_tokens"].to_numpy(),
        block_counts=counts,
        block_keys=ids.to_numpy(),
        occurrence_tokens=tokens.to_numpy(),
        session=table["session"].to_numpy(),
        task=table["task"].to_numpy(),
        meta={"name": path.name},
    )


def _header(trace: Trace, path: Path, **more: Any) -> bytes:
    try:
        facts = {"version": _VERSION, "meta": trace.meta, "crc32": _crc32(trace), **more}
        return json.dumps(facts, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise TraceError(f"{path}: the facts of the trace are not JSON: {error}") from error


def _crc32(trace: Trace) -> int:
    """Checksum of arrays and facts: formats check their parts, but a changed footer can still pass as another trace."""
    crc = zlib.crc32(json.dumps(trace.meta).encode())
    for name in _ARRAYS:
        crc = zlib.crc32(np.ascontiguousarray(getattr(trace, name)).data, crc)
    return crc


def _checked(trace: Trace, header: dict[str, Any], path: Path) -> Trace:
    if header["crc32"] != _crc32(trace):
        raise TraceError(f"{path}: not a stored trace, or damaged: the contents do not match their checksum")
    return trace


def _parse_header(metadata: dict[bytes, bytes], path: Path) -> dict[str, Any]:
    """The stored facts, checked, and the checksum.  Raises TraceError, or ValueError where they are not JSON."""
    if _KEY not in metadata:
        raise TraceError(f"{path}: not a stored trace: no simkv_trace in its metadata")
    header = json.loads(metadata[_KEY])
    if not isinstance(header, dict) or header.get("version") != _VERSION:
        raise TraceError(f"{path}: stored by another version of simkv; this one reads version {_VERSION}")
    meta, origin = header.get("meta"), header.get("origin", {})
    if not isinstance(meta, dict) or not isinstance(origin, dict):
        raise TraceError(f"{path}: the stored facts are not an object")
    for key, kind in _META_KINDS.items():
        if key in meta and type(meta[key]) is not kind:
            raise TraceError(f"{path}: the stored fact {key} must be {kind.__name__}, not {type(meta[key]).__name__}")
    return {"meta": meta, "origin": origin, "crc32": header.get("crc32")}


def _origin(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": _sha256(path)}


def _is_of(origin: dict[str, Any], path: Path) -> bool:
    """Whether a copy of ``origin`` is of the file as it is now: same size and time, or else same content."""
    status = path.stat()
    if (origin.get("size"), origin.get("mtime_ns")) == (status.st_size, status.st_mtime_ns):
        return True
    return origin.get("size") == status.st_size and origin.get("sha256") == _sha256(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, pa.ArrowException) as error:
        raise TraceError(f"{path}: cannot be written: {_first_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
