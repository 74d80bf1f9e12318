"""Files of the small model: committed weights to an ordinary LlamaForCausalLM, and the trainer's resumable state.

Weights are fp16 safetensors beside a ``config.json``; both are written whole or not at all.  No pickle.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from simkv.errors import SimkvError
from simkv.profiler.small.outliers import add_outliers

__all__ = ["ModelError", "load_small", "load_state", "save_small", "save_state", "write_text"]

_MOST_BYTES = 64 << 20
_MOST_CONFIG = 1 << 16
_LIMITS = {"num_hidden_layers": 64, "max_position_embeddings": 1 << 24}  # other sizes are those of the weights


class ModelError(SimkvError):
    """A folder without a small model in it, or with one that does not fit its config."""


def save_small(folder: Path, model: LlamaForCausalLM) -> None:
    """Write ``model.safetensors`` (fp16) and ``config.json``."""
    tensors = {name: p.detach().half().contiguous() for name, p in model.named_parameters()}
    _save(folder / "model.safetensors", tensors, {"format": "pt"})
    write_text(folder / "config.json", model.config.to_json_string())


def load_small(folder: Path, outliers: bool = True, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The model in a folder, in evaluation mode.

    ``outliers`` gives some key channels the large values real models have, without changing the function (see
    ``outliers.py``); False leaves the weights as trained.  Raises ModelError.
    """
    path = folder / "model.safetensors"
    if not path.is_file() or not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no small model; it needs model.safetensors and config.json")
    if path.stat().st_size > _MOST_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes; a small model has at most {_MOST_BYTES}")
    facts, tensors = _config(folder / "config.json"), _read(path)[0]
    with torch.device("meta"):  # no memory is given to sizes that the weights do not have
        _check_fit(_built(facts, folder / "config.json"), tensors, path)
    model = _built(facts, folder / "config.json")
    _fill(model, tensors, path)
    if outliers:
        add_outliers(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def save_state(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], owner: str, step: int
) -> None:
    """Everything that the next step depends on; ``owner`` says whose state it is."""
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}/{index}/{name}": value for name, value in state.items()}
    facts = {"owner": owner, "step": str(step)}
    _save(path, {name: value.contiguous() for name, value in tensors.items()}, facts)


def load_state(path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], owner: str) -> int:
    """Restore what ``save_state`` wrote and return its step; 0, and nothing changed, when there is none.

    Raises ModelError for a file that is not such a state, or is another owner's.
    """
    if not path.exists():
        return 0
    tensors, facts = _read(path)
    if facts.get("owner") != owner:
        raise ModelError(f"{path}: the state of another training run; give another folder or the same arguments")
    _fill(model, {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}, path)
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, *rest = name.split("/")
            if group == str(number):
                state.setdefault(int(rest[0]), {})[rest[1]] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(facts["step"])


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _config(path: Path) -> dict[str, Any]:
    """What the file says.  Raises ModelError where it cannot be a small model's."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MOST_CONFIG else None
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path}: not a model's config: {error}") from error
    if not isinstance(facts, dict) or facts.get("model_type") != "llama":
        raise ModelError(f"{path}: not the config of a Llama model")
    for name, most in _LIMITS.items():
        if type(facts.get(name)) is not int or not 0 < facts[name] <= most:
            found = repr(facts.get(name))[:80]
            raise ModelError(f"{path}: {name} is {found}; allowed: whole numbers from 1 to {most}")
    return facts


def _built(facts: dict[str, Any], path: Path) -> LlamaForCausalLM:
    try:
        return LlamaForCausalLM(LlamaConfig(**facts))
    except Exception as error:  # transformers raises anything for a config that makes no sense
        raise ModelError(f"{path}: not a model's config: {' '.join(str(error).split())[:200]}") from error


def _save(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, temporary, metadata=facts)
    os.replace(temporary, path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file: {error}") from error


def _check_fit(model: LlamaForCausalLM, tensors: dict[str, Tensor], path: Path) -> None:
    own = dict(model.named_parameters())
    if own.keys() != tensors.keys() or any(own[name].shape != value.shape for name, value in tensors.items()):
        raise ModelError(f"{path}: its tensors do not fit the config beside it")


@torch.no_grad()
def _fill(model: LlamaForCausalLM, tensors: dict[str, Tensor], path: Path) -> None:
    _check_fit(model, tensors, path)
    own = dict(model.named_parameters())
    for name, value in tensors.items():
        own[name].copy_(value)
