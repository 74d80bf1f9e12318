"""Policies by name, one file each.

The interface is in ``base.py``; ``ordered.py`` has the chain of tiers that the classical ones share.
"""

import hashlib
import importlib
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from simkv.errors import PolicyError, unknown_name
from simkv.simulator.policies.adaptcache import AdaptCache
from simkv.simulator.policies.base import Policy
from simkv.simulator.policies.clairvoyant import Clairvoyant
from simkv.simulator.policies.evicpress import EvicPress
from simkv.simulator.policies.fifo import Fifo
from simkv.simulator.policies.gdsf import Gdsf
from simkv.simulator.policies.hitdensity import HitDensity
from simkv.simulator.policies.impress import Impress
from simkv.simulator.policies.kvserve import KvServe
from simkv.simulator.policies.lfu import Lfu
from simkv.simulator.policies.lru import Lru
from simkv.simulator.policies.recompute import Recompute
from simkv.simulator.policies.s3fifo import S3Fifo

__all__ = ["POLICIES", "Policy", "find_policy", "make_policy"]

POLICIES: dict[str, type[Policy]] = {
    "adaptcache": AdaptCache,
    "clairvoyant": Clairvoyant,
    "evicpress": EvicPress,
    "fifo": Fifo,
    "gdsf": Gdsf,
    "hitdensity": HitDensity,
    "impress": Impress,
    "kvserve": KvServe,
    "lfu": Lfu,
    "lru": Lru,
    "recompute": Recompute,
    "s3fifo": S3Fifo,
}


_IMPORTED: dict[str, str] = {}  # file of an outside policy -> its hash when first used


def find_policy(name: str) -> type[Policy]:
    """The class of a known policy, or of "package.module:Class".

    Raises PolicyError for an unknown name, a module that cannot be imported, or a class that is no Policy.
    """
    if ":" not in name:
        if name not in POLICIES:
            raise PolicyError(unknown_name("policy", name, POLICIES) + ' (or write your own as "module:Class")')
        return POLICIES[name]
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
        _check_unchanged(name, module)
        found = getattr(module, class_name)
    except (ImportError, AttributeError) as error:
        raise PolicyError(f"policy {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise PolicyError(f"policy {name!r} is not a subclass of simkv.simulator.policies.base.Policy")
    return found


def _check_unchanged(name: str, module: ModuleType) -> None:
    """A module edited since it was imported would give results under the identity of code that did not make them."""
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    if _IMPORTED.setdefault(file, digest) != digest:
        raise PolicyError(f"policy {name!r}: {Path(file).name} has changed since it was imported; start Python anew")


def make_policy(name: str, params: dict[str, Any]) -> Policy:
    """A policy with its parameters.  Raises PolicyError for unknown or wrong ones."""
    found = find_policy(name)
    known = {field.name for field in fields(found) if field.init}
    for key in params:
        if key not in known:
            raise PolicyError(unknown_name(f"parameter of policy {name}:", key, known or {"(none)"}))
    _check_types(name, found, params)
    try:
        return found(**params)
    except (TypeError, ValueError) as error:
        raise PolicyError(f"policy {name}: {error}") from error


def _check_types(name: str, found: type[Policy], params: dict[str, Any]) -> None:
    """Refuse values of another type than the field's: the text "false" is true, and would be taken for it.

    Types of outside policies that cannot be resolved or checked are left to the policy.
    """
    try:
        hints = get_type_hints(found)
        checks = {key: TypeAdapter(hints[key]) for key in params}
    except (NameError, PydanticUserError):
        return
    for key, value in params.items():
        try:
            checks[key].validate_python(value, strict=True)
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].replace("Input should be", "it must be")
            raise PolicyError(f"policy {name}: {key} is {value!r}; {wanted}") from error
