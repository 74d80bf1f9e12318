"""Compressors by name, one file each.

The interface is in ``base.py``, the bytes in ``payload.py``.  Others come from installed packages, through the
entry-point group "simkv.compressors" (loaded only when asked for by name), from any module as "module:Class", or
from kvpress as "kvpress:Press" (``adapters/kvpress.py``).
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from simkv.errors import unknown_name
from simkv.profiler.compressors.base import Compressor, CompressorError
from simkv.profiler.compressors.cachegen import CacheGen
from simkv.profiler.compressors.chain import Chain, chain
from simkv.profiler.compressors.fp8 import Fp8
from simkv.profiler.compressors.h2o import H2O
from simkv.profiler.compressors.identity import Identity
from simkv.profiler.compressors.int8 import Int8
from simkv.profiler.compressors.keydiff import KeyDiff
from simkv.profiler.compressors.kivi import Kivi
from simkv.profiler.compressors.knorm import Knorm
from simkv.profiler.compressors.kvcomp import KVComp
from simkv.profiler.compressors.kvquant import KVQuant
from simkv.profiler.compressors.lowrank import LowRank
from simkv.profiler.compressors.packkv import PackKV
from simkv.profiler.compressors.parameters import check_parameters
from simkv.profiler.compressors.pyramidinfer import PyramidInfer
from simkv.profiler.compressors.pyramidkv import PyramidKV
from simkv.profiler.compressors.snapkv import SnapKV
from simkv.profiler.compressors.streamingllm import StreamingLLM
from simkv.profiler.compressors.tova import TOVA
from simkv.profiler.compressors.turboquant import TurboQuant

__all__ = ["COMPRESSORS", "Compressor", "compressor_names", "find_compressor", "make_compressor"]

COMPRESSORS: dict[str, type[Compressor]] = {
    "cachegen": CacheGen,
    "chain": Chain,
    "fp8": Fp8,
    "h2o": H2O,
    "identity": Identity,
    "int8": Int8,
    "keydiff": KeyDiff,
    "kivi": Kivi,
    "knorm": Knorm,
    "kvcomp": KVComp,
    "kvquant": KVQuant,
    "lowrank": LowRank,
    "packkv": PackKV,
    "pyramidinfer": PyramidInfer,
    "pyramidkv": PyramidKV,
    "snapkv": SnapKV,
    "streamingllm": StreamingLLM,
    "tova": TOVA,
    "turboquant": TurboQuant,
}

_CHAIN = "chain:"
_KVPRESS = "kvpress:"
_GROUP = "simkv.compressors"


def compressor_names() -> list[str]:
    """Names of the built-in compressors and of installed plug-ins, which are not loaded for it."""
    return sorted({*COMPRESSORS, *(plugin.name for plugin in entry_points(group=_GROUP))})


def find_compressor(name: str) -> type[Compressor]:
    """The class of a known compressor, of an installed plug-in, of "package.module:Class", or of "kvpress:Press".

    Raises CompressorError for an unknown name, a name that two packages claim, a module that cannot be imported, or a
    class that is no Compressor or calls itself by another's name.
    """
    if ":" in name:
        where = f"{__name__}.adapters.{name}" if name.startswith(_KVPRESS) else name
        return _imported(name, EntryPoint("", where, _GROUP))
    plugins = sorted(entry_points(group=_GROUP).select(name=name), key=lambda plugin: plugin.value)
    values = [plugin.value for plugin in plugins]
    if name in COMPRESSORS:
        built_in = COMPRESSORS[name]
        values.insert(0, f"{built_in.__module__}:{built_in.__name__}")
    if len(values) > 1:
        raise CompressorError(f"compressor {name!r} is claimed by {', '.join(values)}: name the one you mean like this")
    if name in COMPRESSORS:
        return COMPRESSORS[name]
    if not plugins:
        raise CompressorError(
            unknown_name("compressor", name, compressor_names()) + ' (or write your own as "module:Class")'
        )
    found = _imported(name, plugins[0])
    if found.name != name:
        raise CompressorError(f"compressor {name!r}: the class {values[0]} calls itself {found.name!r}")
    return found


def make_compressor(name: str, **parameters: Any) -> Compressor:
    """A compressor by a name as in ``find_compressor`` or "chain:dropper+coder", the latter without parameters.

    ``parameters`` replace the class's defaults.  Raises CompressorError, also for a value of another type.
    """
    if name.startswith(_CHAIN):
        return chain(name.removeprefix(_CHAIN), COMPRESSORS)
    kind = find_compressor(name)
    check_parameters(name, kind, parameters)
    try:
        return kind(**parameters)
    except TypeError as error:  # abstract, or parameters without defaults
        raise CompressorError(f"compressor {name!r} cannot be made: {error}") from error


def _imported(name: str, where: EntryPoint) -> type[Compressor]:
    if EntryPoint.pattern.fullmatch(where.value) is None:
        raise CompressorError(f'compressor {name!r}: {where.value!r} is not of the form "package.module:Class"')
    try:
        found = where.load()
    except Exception as error:  # a plug-in's code may fail in any way
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CompressorError(f"compressor {name!r} cannot be imported: {what}") from error
    if not (isinstance(found, type) and issubclass(found, Compressor)):
        raise CompressorError(f"compressor {name!r} is not a subclass of simkv.profiler.compressors.base.Compressor")
    taken = COMPRESSORS.get(getattr(found, "name", ""))
    if taken not in (None, found):
        raise CompressorError(f"compressor {name!r}: its class calls itself {found.name!r}, which is built in")
    return found
