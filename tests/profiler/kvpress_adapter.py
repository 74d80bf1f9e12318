"""Our adapter beside kvpress itself: run by an interpreter that has both, which ours need not be.

Usage: ``python kvpress_adapter.py``.  Prints one JSON object: for every press, "same" when the adapter keeps exactly
the tokens that kvpress leaves in the cache of a random Llama, at three ratios, "different: ...", or "refused: ...".
"""

import json

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from simkv.profiler.compressors import make_compressor
from simkv.profiler.compressors.adapters.kvpress import KvpressDropper
from simkv.profiler.compressors.base import CompressorError
from simkv.profiler.models import CachedModel

import kvpress  # isort: skip  # after our attention is registered, as on the command line

REMOVED = (0.25, 0.5, 0.75)
TOKENS = 333
# Presses around presses, or with parameters without defaults.
MADE = {
    "AdaKVPress": lambda: kvpress.AdaKVPress(kvpress.KnormPress()),
    "BlockPress": lambda: kvpress.BlockPress(press=kvpress.KnormPress()),
    "CAMPress": lambda: kvpress.CAMPress(kvpress.StreamingLLMPress()),
    "ChunkKVPress": lambda: kvpress.ChunkKVPress(press=kvpress.SnapKVPress()),
    "ChunkPress": lambda: kvpress.ChunkPress(press=kvpress.KnormPress(), chunk_length=100),
    "ComposedPress": lambda: kvpress.ComposedPress([kvpress.KnormPress(), kvpress.TOVAPress()]),
    "CriticalAdaKVPress": lambda: kvpress.CriticalAdaKVPress(kvpress.KnormPress()),
    "CriticalKVPress": lambda: kvpress.CriticalKVPress(kvpress.KnormPress()),
    "DMSPress": lambda: kvpress.DMSPress(kvpress.KnormPress(), threshold=-1.0),
    "DecodingPress": lambda: kvpress.DecodingPress(kvpress.KnormPress()),
    "EntropyGatedChunkKVPress": lambda: kvpress.EntropyGatedChunkKVPress(kvpress.KnormPress()),
    "KeyRerotationPress": lambda: kvpress.KeyRerotationPress(press=kvpress.KnormPress()),
    "MergingPress": lambda: kvpress.MergingPress(kvpress.KnormPress()),
    "RandomPress": lambda: kvpress.RandomPress(seed=1),
}


def main() -> None:
    """Compare every press and print what came of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = CachedModel(LlamaForCausalLM(config), "random")
    tokens = torch.randperm(512)[:TOKENS].tolist()
    skipped = ("BasePress", "ScorerPress")
    names = sorted(name for name in kvpress.__all__ if name.endswith("Press") and name not in skipped)
    print(json.dumps({name: compared(model, tokens, name) for name in names}))


def compared(model: CachedModel, tokens: list[int], name: str) -> str:
    """What came of one press."""
    try:
        dropper = made(name).attached(model)
    except CompressorError as error:
        return f"refused: {error}"
    cache, context = model.prefill(tokens)
    for removed in REMOVED:
        try:
            kept = dropper.choose(cache, context, str(1 - removed))
        except CompressorError as error:
            return f"refused: {error}"
        decoded = dropper.decode(dropper.encode(cache, context, str(1 - removed)).payload)
        assert decoded.kept is not None
        assert [rows.tolist() for rows in kept] == [rows.tolist() for rows in decoded.kept]
        model.answer(decoded, [[1, 2], [3]], 2, None)
        for layer, found in enumerate(inside(model, tokens, dropper.press(), removed)):
            ours = cache.keys[layer].gather(1, kept[layer].expand(2, -1).unsqueeze(-1).expand(-1, -1, 16))
            if [sorted(rows) for rows in found.tolist()] != [sorted(rows) for rows in ours.tolist()]:
                return f"different: layer {layer} at {removed}: {len(found[0])} and {len(ours[0])} tokens"
    return "same"


def made(name: str) -> KvpressDropper:
    """Our dropper of a press, by its name on the command line where that is enough."""
    if name not in MADE:
        return make_compressor(f"kvpress:{name}")

    class Made(KvpressDropper):
        press = staticmethod(MADE[name])

    Made.name = f"kvpress-{name.removesuffix('Press').lower()}"
    return Made()


def inside(model: CachedModel, tokens: list[int], press: kvpress.BasePress, removed: float) -> list[torch.Tensor]:
    """The keys that kvpress leaves in the cache of a prefill, in 16 bit, per layer [H, n, D]."""
    press.compression_ratio = removed
    cache = DynamicCache()
    with torch.inference_mode(), press(model.model):
        model.model.model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    return [layer.keys[0].half() for layer in cache.layers]


if __name__ == "__main__":
    main()
