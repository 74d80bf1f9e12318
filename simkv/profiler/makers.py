"""What made a variant, as text: rows of a compressor that has changed meanwhile are never taken for this one's.

What it is: parameters, class, payload format, and a hash of the code of plug-ins.  What it is not: simkv's own code,
which every measurement's identity has (``simkv.version.measuring_identity``).
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from simkv.profiler.compressors.adapters.kvpress import KvpressDropper
from simkv.profiler.compressors.base import Compressor
from simkv.profiler.quality import Setting

__all__ = ["maker_of"]

_NO_PLUG_INS = frozenset({"simkv", "torch"}) | sys.stdlib_module_names


def maker_of(setting: Setting) -> str:
    """What every row of the variant depends on, besides simkv's code."""
    compressor = setting.compressor
    kind = type(compressor)
    text = f"{setting!r} by {kind.__module__}:{kind.__qualname__}, format {compressor.format}"
    modules = sorted({name for made in _classes(compressor) for name in _plug_in(made)})
    return text + "".join(f", {name} {_code_hash(name)}" for name in modules)


def _classes(compressor: Compressor) -> Iterator[type]:
    """Its classes, and those of its parts and of its press."""
    yield from type(compressor).__mro__
    if isinstance(compressor, KvpressDropper):
        yield from type(compressor.press()).__mro__
    for field in fields(compressor):
        part = getattr(compressor, field.name)
        if isinstance(part, Compressor):
            yield from _classes(part)


def _plug_in(kind: type) -> Iterator[str]:
    """The top package, or the loose module, of a class that is nobody's whom simkv knows."""
    top = kind.__module__.partition(".")[0]
    if top not in _NO_PLUG_INS:
        yield top


def _code_hash(name: str) -> str:
    """Of all files of a package, or of a module's one; "of unknown code" without a file."""
    module = sys.modules.get(name)
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    file = getattr(module, "__file__", None)
    paths = sorted(path for folder in folders for path in folder.rglob("*.py")) or ([Path(file)] if file else [])
    if not paths:
        return "of unknown code"
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
