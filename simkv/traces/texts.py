"""Readers of traces that hold prompts or hashes of them instead of block ids.

What it is: ``read_lmcache_agent`` (text), ``read_sharegpt_tokens`` (token ids) and ``read_lookup_hash``
(LMCache's log of looked-up chunk hashes).  What it is not: a tokenizer: text becomes pseudo-tokens of
four UTF-8 bytes, an approximation that the notes of the trace state.

A block's id is the hash of its own content and its parent's id, so equal ids mean equal prefixes.  Only
full blocks have ids: the tail of a prompt is never reused.
"""

import re
from hashlib import blake2b
from reprlib import repr as short_repr
from typing import Any

import numpy as np

from simkv.errors import ConfigError, unknown_name
from simkv.traces.files import Place, Source
from simkv.traces.records import Columns, block_keys, count, moment_ns, option_int, parse_object, required
from simkv.traces.trace import Trace
from simkv.units import NS_PER_S

__all__ = ["read_lmcache_agent", "read_lookup_hash", "read_sharegpt_tokens"]

_SORTED = "requests stand below a later one in the file: sorted by arrival"
_BYTES_PER_PSEUDO_TOKEN = 4
_NS_PER = {"s": NS_PER_S, "ms": 1_000_000, "us": 1_000, "ns": 1}
_HEX = re.compile(r"(0x)?[0-9a-fA-F]{1,256}")


def read_lmcache_agent(source: Source, *, tokenizer: str = "bytes4", block_size: int = 256) -> Trace:
    """LMCache agent JSONL: ``timestamp`` (us), ``input``, ``output``, ``session_id``; lines in any order of time.

    Args:
        source: the files.
        tokenizer: "bytes4", the only one: a token is four bytes of UTF-8, the last one of a text may be shorter.
        block_size: tokens of a block.

    Raises:
        TraceError: for a record that is not valid.
        ConfigError: for a bad option.
    """
    if tokenizer != "bytes4":
        raise ConfigError(unknown_name("tokenizer", str(tokenizer), ["bytes4"]))
    block_bytes = option_int("block_size", block_size) * _BYTES_PER_PSEUDO_TOKEN
    columns = Columns(block_size, ordered=False)
    sessions: dict[str, int] = {}
    for place, line in source.lines():
        record = parse_object(line, place)
        prompt, answer = _text(record, "input", place), _text(record, "output", place)
        columns.add(
            place,
            arrival_ns=moment_ns(record, "timestamp", place, 1_000),
            input_tokens=-(-len(prompt) // _BYTES_PER_PSEUDO_TOKEN),
            output_tokens=-(-len(answer) // _BYTES_PER_PSEUDO_TOKEN),
            keys=_chained(prompt, block_bytes),
            session=sessions.setdefault(_text(record, "session_id", place).hex(), len(sessions)),
        )
    columns.note(
        len(columns), "requests are counted in pseudo-tokens of 4 UTF-8 bytes (tokenizer bytes4), not real ones"
    )
    columns.note(columns.early, _SORTED)
    return columns.trace(source, "lmcache-agent", partial_tail=False, epoch=True)


def read_sharegpt_tokens(source: Source, *, block_size: int = 16) -> Trace:
    """LLMServingSim JSONL: ``input_tok_ids``, ``output_toks``, ``arrival_time_ns``, in time order.

    Args:
        source: the files.
        block_size: tokens of a block.

    Raises:
        TraceError: for a record that is not valid, or arrives before the one above it.
        ConfigError: for a bad option.
    """
    columns = Columns(option_int("block_size", block_size))
    mismatched = 0
    for place, line in source.lines():
        record = parse_object(line, place)
        tokens = np.array(block_keys(record, "input_tok_ids", place, largest=2**32 - 1), dtype="<u4")
        mismatched += count({"input_toks": len(tokens), **record}, "input_toks", place) != len(tokens)
        columns.add(
            place,
            arrival_ns=moment_ns(record, "arrival_time_ns", place, 1),
            input_tokens=len(tokens),
            output_tokens=count(record, "output_toks", place),
            keys=_chained(tokens.tobytes(), block_size * tokens.itemsize),
        )
    columns.note(mismatched, "requests list another number of token ids than input_toks: the ids are used as given")
    return columns.trace(source, "sharegpt-tokens", partial_tail=False)


def read_lookup_hash(
    source: Source, *, block_size: int | None = None, time_unit: str = "s", model: str | None = None
) -> Trace:
    """LMCache lookup-hash JSONL: the hashes of a prompt's full chunks, and lengths; lines in any order of time.

    Keys, the first that is there: ``timestamp``; ``seq_len``, ``input_length`` or ``total_tokens``;
    ``output_length`` (0 if missing); ``chunk_hashes`` or ``hash_ids``, each a whole number or hex text;
    ``chunk_size``; ``model_name``.

    Args:
        source: the files.
        block_size: tokens of a chunk; default: ``chunk_size`` of the records, else 256.
        time_unit: of ``timestamp``: "s" (what LMCache writes), "ms", "us" or "ns".
        model: keep only records of this ``model_name``; needed when the log holds several.

    Raises:
        TraceError: for a record that is not valid, and for several models without ``model``.
        ConfigError: for a bad option.
    """
    if time_unit not in _NS_PER:
        raise ConfigError(unknown_name("time_unit", str(time_unit), _NS_PER))
    columns = Columns(0 if block_size is None else option_int("block_size", block_size), ordered=False)
    numbers: dict[int | str, int] = {}
    other_models = no_output = 0
    only = model
    for place, line in source.lines():
        record = parse_object(line, place)
        name = record.get("model_name", only)
        if model is not None and name != model:
            other_models += 1
            continue
        if only is not None and name != only:
            raise place.error(
                f"model_name is {short_repr(name)}, above it was {short_repr(only)}: choose one with option model"
            )
        only = name
        columns.agree_on_block_size({"chunk_size": columns.block_size or 256, **record}, "chunk_size", place)
        no_output += "output_length" not in record
        columns.add(
            place,
            arrival_ns=moment_ns(record, "timestamp", place, _NS_PER[time_unit]),
            input_tokens=count(record, _first(record, ("seq_len", "input_length", "total_tokens")), place),
            output_tokens=count({"output_length": 0, **record}, "output_length", place),
            keys=_numbered(record, _first(record, ("chunk_hashes", "hash_ids")), place, numbers),
        )
    if other_models:
        columns.notes.append(f"{other_models} records of other models than {model!r} are left out")
    columns.note(no_output, "records have no output_length: 0 is used")
    columns.note(columns.early, _SORTED)
    return columns.trace(source, "lookup-hash", partial_tail=False, epoch=True)


def _chained(content: bytes, block_bytes: int) -> list[int]:
    """Ids of the full blocks of ``content``: 64-bit hashes, each of the block and the id before it."""
    ids: list[int] = []
    parent = b""
    for start in range(0, len(content) - block_bytes + 1, block_bytes):
        parent = blake2b(content[start : start + block_bytes], digest_size=8, key=parent).digest()
        ids.append(int.from_bytes(parent, "little", signed=True))
    return ids


def _text(record: dict[str, Any], key: str, place: Place) -> bytes:
    value = required(record, key, place)
    if type(value) is not str:
        raise place.bad(key, value, "text")
    # JSON can spell half of a surrogate pair, which strict UTF-8 cannot.
    return value.encode("utf-8", "surrogatepass")


def _numbered(record: dict[str, Any], key: str, place: Place, numbers: dict[int | str, int]) -> list[int]:
    """Chunk hashes as numbers in order of first appearance.  Raises TraceError."""
    value = required(record, key, place)
    if type(value) is not list:
        raise place.bad(key, value, "a list of hashes")
    for item in value:
        if type(item) is not int and not (type(item) is str and _HEX.fullmatch(item)):
            raise place.bad(f"an item of {key}", item, "a whole number or hex text")
    return [numbers.setdefault(item, len(numbers)) for item in value]


def _first(record: dict[str, Any], keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in record), keys[0])
