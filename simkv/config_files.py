"""The tables of a TOML file, bounded in size and not checked any further.

What it is: the one place where a configuration's file is opened.  What it is not: what its keys mean (``config.py`` for
runs and studies, ``simkv.testbed.plan`` for validations).
"""

import tomllib
from pathlib import Path
from typing import Any

from simkv.errors import ConfigError

__all__ = ["read_tables"]

_MAX_FILE_BYTES = 1 << 20


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, unchecked.  Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_FILE_BYTES} bytes; not a configuration")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {' '.join(str(error).split())}") from error
