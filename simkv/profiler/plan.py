"""What is to be measured: the variants, by names and parameters as a user gives them.

What it is: text to compressors with their knobs.  What it is not: their calibration (``fitting.py``), or the measuring.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simkv.errors import SimkvError
from simkv.profile_types import RAW, Variant
from simkv.profiler.compressors import COMPRESSORS, make_compressor
from simkv.profiler.compressors.base import Compressor, CompressorError
from simkv.profiler.compressors.chain import Chain
from simkv.profiler.quality import Setting

__all__ = [
    "Parameters",
    "Rates",
    "built",
    "default_names",
    "further_knobs",
    "parsed_parameters",
    "parts_of",
    "settings_of",
]

Parameters = Mapping[str, Mapping[str, Any]]
"""Parameters by compressor name: {"kivi": {"residual": 32}}."""

Rates = Mapping[str, Sequence[str]]
"""Further knobs by compressor name: {"kivi": ["5", "6"]}."""

_CHAIN = "chain:"
_UNMEASURED = "identity"


def parsed_parameters(texts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{"kivi.residual": "32"} as parameters by compressor; numbers where they are numbers.

    Raises:
        SimkvError: a key that is not of the form "compressor.parameter".
    """
    found: dict[str, dict[str, Any]] = {}
    for key, text in texts.items():
        compressor, dot, parameter = key.rpartition(".")
        if not dot or not compressor or not parameter:
            raise SimkvError(f"--set {key}={text}: write it as COMPRESSOR.PARAMETER=VALUE, like kivi.residual=32")
        found.setdefault(compressor, {})[parameter] = _value(text)
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def built(names: Iterable[str], parameters: Parameters) -> list[Compressor]:
    """Compressors by name with their parameters; the parts of a chain take theirs too.

    Raises:
        CompressorError: an unknown name or parameter, or parameters of a compressor that is not among ``names``.
    """
    made = [_made(name, parameters) for name in names]
    used = {part for compressor in made for part in (compressor.name, *getattr(compressor, "parts", "").split("+"))}
    for name in parameters:
        if name not in used:
            raise CompressorError(f"parameters of {name}, which is not measured; measured: {', '.join(sorted(used))}")
    return made


def parts_of(names: Iterable[str]) -> set[str]:
    """Names of compressors, and of the parts of those that are chains."""
    found = set(names)
    for name in names:
        if name == "chain" or name.startswith(_CHAIN):
            found |= set(_chain_name(name).removeprefix(_CHAIN).split("+"))
    return found


def _chain_name(name: str) -> str:
    return f"{_CHAIN}{Chain().parts}" if name == "chain" else name


def _made(name: str, parameters: Parameters) -> Compressor:
    name = _chain_name(name)
    if not name.startswith(_CHAIN):
        return make_compressor(name, **parameters.get(name, {}))
    plain = make_compressor(name)
    assert isinstance(plain, Chain)
    dropper, coder = (make_compressor(part, **parameters.get(part, {})) for part in plain.parts.split("+"))
    return Chain(dropper, coder)  # type: ignore[arg-type]


def settings_of(
    compressors: Sequence[Compressor], further: Sequence[Sequence[str]] = (), quick: bool = False
) -> list[Setting]:
    """Every compressor at its own knobs and at ``further`` ones, a list for each, every variant once.

    With ``quick`` of a compressor's own knobs only the second and the last.

    Raises:
        CompressorError: two compressors of the same name and knob.
    """
    settings: dict[Variant, Setting] = {}
    for compressor, more in zip(compressors, further or [()] * len(compressors), strict=True):
        if compressor.name == _UNMEASURED:
            continue
        own = [*compressor.knobs[1:2], compressor.knobs[-1]] if quick else compressor.knobs
        for knob in dict.fromkeys([*own, *more]):
            setting = Setting.of(compressor, knob)
            if setting.variant in settings or setting.variant == RAW:
                raise CompressorError(f"variant {setting.variant} would be measured twice")
            settings[setting.variant] = setting
    return list(settings.values())


def further_knobs(
    names: Sequence[str], compressors: Sequence[Compressor], usual: Rates, asked: Rates, quick: bool = False
) -> list[list[str]]:
    """Knobs beyond its own of every compressor.

    Args:
        names: as the user gave them, one for each compressor.
        compressors: made of them.
        usual: knobs that suit the model, by compressor name; left out with ``quick``.
        asked: the user's further knobs, by the compressor's own name or by the one that the user gave.

    Raises:
        CompressorError: asked for a compressor that is not among them.
    """
    both = list(zip(names, compressors, strict=True))
    pairs = [(name, knob) for name, knobs in asked.items() for knob in knobs]
    for name, knob in pairs:
        if all(_knob(*pair, name, knob) is None for pair in both):
            what = f"{name}:{knob.rpartition(':')[0]}" if name == Chain.name and ":" in knob else name
            raise CompressorError(f"further knobs of {what}, which is not measured; measured: {', '.join(names)}")
    found = []
    for pair in both:
        wanted = [_knob(*pair, name, knob) for name, knob in pairs]
        own = () if quick else usual.get(pair[1].name, ())
        found.append([*own, *(knob for knob in wanted if knob is not None)])
    return found


def _knob(given: str, compressor: Compressor, name: str, knob: str) -> str | None:
    """The knob of a variant "name:knob" if it is the compressor's, which the user has named ``given``."""
    if name == compressor.name:
        parts = knob.rpartition(":")[0]
        return knob if not isinstance(compressor, Chain) or parts in ("", compressor.parts) else None
    text = f"{name}:{knob}"
    return text.removeprefix(f"{given}:") if text.startswith(f"{given}:") else None


def default_names() -> list[str]:
    """Names of all built-in compressors but the one that does nothing, which is what raw is."""
    return [name for name in COMPRESSORS if name != _UNMEASURED]
