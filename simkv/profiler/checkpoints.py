"""Which weights a checkpoint's name stands for, so that rows of two models of one name never mix.

What it is: the hub's commit, or a hash of the files in a folder.  What it is not: loading (``models.py``).
"""

import hashlib
from pathlib import Path
from typing import Any

__all__ = ["checkpoint_facts"]

_READ = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def checkpoint_facts(name: str, config: Any) -> dict[str, str]:
    """What tells a checkpoint from others of its name: {"weights_sha256": ...} or {"weights_commit": ...}.

    Args:
        name: a folder, of whose config, weights and tokenizer the hash is, or a Hugging Face name.
        config: of the loaded model; knows the commit that a name was.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {"weights_commit": str(getattr(config, "_commit_hash", None) or "unknown")}
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _READ for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return {"weights_sha256": digest.hexdigest()}
