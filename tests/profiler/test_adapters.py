"""Other projects' compressors: LMCache-style serializers under all laws, and kvpress presses on a random model."""

import itertools
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from simkv.profiler.compressors import find_compressor, make_compressor
from simkv.profiler.compressors.adapters.kvpress import KvpressDropper
from simkv.profiler.compressors.adapters.lmcache import SerializerCompressor, serializer_compressor
from simkv.profiler.compressors.base import CompressorError, KVCache
from simkv.profiler.compressors.chain import Chain
from simkv.profiler.compressors.dropping import kept_tokens
from simkv.profiler.compressors.payload import PayloadError, pack
from simkv.profiler.models import CachedModel
from tests.profiler import compressor_laws as laws

KVPRESS_PYTHON = os.environ.get("SIMKV_KVPRESS_PYTHON", "")
SCRIPT = Path(__file__).with_name("kvpress_adapter.py")
TOKENS = 50
CONTEXT = list(range(7, 7 + TOKENS))


class Deflated(SerializerCompressor):
    """An example: each token's row rounded to so many levels of its largest magnitude, then deflated."""

    name = "deflated"
    knobs = ("127", "31", "7", "1")

    def serialize(self, tensor: Tensor, knob: str) -> bytes:
        """Scales in float32, then codes."""
        if not tensor.isfinite().all():
            raise ValueError("not finite")
        scale = tensor.float().abs().amax(-1, keepdim=True) / int(knob)
        codes = (tensor.float() / scale).nan_to_num(0.0).round().to(torch.int8)
        return zlib.compress(scale.numpy().tobytes() + codes.numpy().tobytes())

    def deserialize(self, data: bytes, like: Tensor, knob: str) -> Tensor:
        """Codes times scales."""
        rows = like.shape[:-1].numel()
        raw = bytearray(zlib.decompressobj().decompress(data, 4 * rows + like.numel() + 1))
        if len(raw) != 4 * rows + like.numel():
            raise ValueError(f"{len(raw)} bytes")
        scale = torch.frombuffer(raw, dtype=torch.float32, count=rows).view(*like.shape[:-1], 1)
        codes = torch.frombuffer(raw, dtype=torch.int8, offset=4 * rows).view(like.shape)
        return (codes * scale).clamp(-(most := torch.finfo(like.dtype).max), most).to(like.dtype)


def test_serializer_obeys_the_laws() -> None:
    """The example round-trips at any length, shape and dtype, falls in size, and refuses what it must."""
    laws.assert_refuses_knobs(Deflated())
    laws.assert_survives_nonfinite(Deflated())
    for tokens, heads, dtype in ((1, 2, torch.float16), (33, 1, torch.bfloat16), (161, 8, torch.float32)):
        cache, context = laws.sample(tokens, heads, dtype=dtype)
        sizes = [laws.assert_decodes(Deflated(), cache, context, knob) for knob in Deflated.knobs]
        assert sorted(sizes, reverse=True) == sizes
    for knob in ("127", "1"):
        encoded = Deflated().encode(*laws.sample(40), knob)
        laws.assert_refuses_damage(Deflated(), encoded)
        laws.assert_survives_forgery(Deflated(), encoded)


def test_serializer_is_given_tokens_by_heads_and_channels() -> None:
    """The tensor is [keys or values, layers, tokens, heads x head dimension], contiguous, and comes back as it was."""
    cache, context = laws.sample(5, heads=3, head_dim=4)
    given: list[Tensor] = []

    def serialize(tensor: Tensor) -> bytes:
        given.append(tensor.clone())
        assert tensor.is_contiguous()
        return tensor.numpy().tobytes()

    def deserialize(data: bytes, like: Tensor) -> Tensor:
        assert like.is_meta
        return torch.frombuffer(bytearray(data), dtype=like.dtype).view(like.shape)

    kind = serializer_compressor("raw-bytes", serialize, deserialize)
    encoded = kind().encode(cache, context, "")
    assert [2, 2, 5, 12] == list(given[0].shape)
    assert cache.keys[1][2, 3].tolist() == given[0][0, 1, 3, 8:12].tolist()
    assert cache.values[0][1, 4].tolist() == given[0][1, 0, 4, 4:8].tolist()
    assert 2 * 2 * 5 * 12 * 2 == encoded.sections["data"]
    decoded = kind().decode(encoded.payload)
    for before, after in zip((*cache.keys, *cache.values), (*decoded.keys, *decoded.values), strict=True):
        assert torch.equal(before, after)


def test_serializer_is_tried_out_once_per_shape_and_knob() -> None:
    """The first cache of a shape and knob is serialized twice, later ones once."""
    calls: list[str] = []

    class Counted(Deflated):
        def serialize(self, tensor: Tensor, knob: str) -> bytes:
            calls.append(knob)
            return super().serialize(tensor, knob)

    counted = Counted()
    for tokens, knob in ((9, "7"), (9, "7"), (9, "1"), (8, "1"), (8, "1")):
        counted.encode(*laws.sample(tokens), knob)
    assert ["7"] * 3 + ["1"] * 5 == calls


def _fails(*_: Any) -> Any:
    raise RuntimeError("out of\nluck")


def _same(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _back(data: bytes, like: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=like.dtype).view(like.shape)


_COUNT = itertools.count()


@pytest.mark.parametrize(
    ("serialize", "deserialize", "says"),
    [
        (_fails, _back, "wrong: serialize failed: RuntimeError: out of luck"),
        (lambda tensor: tensor, _back, "wrong: serialize gave Tensor, not bytes"),
        (lambda tensor: _same(tensor) + bytes([next(_COUNT)]), _back, "other bytes for the same cache"),
        (_same, _fails, "wrong: deserialize failed: RuntimeError: out of luck"),
        (_same, lambda data, like: data, "deserialize gave bytes"),
        (_same, lambda data, like: like, "deserialize gave Tensor without values"),
        (_same, lambda data, like: _back(data, like).flatten(), r"torch.float16 \[2560\], not .* \[2, 2, 10, 64\]"),
        (_same, lambda data, like: _back(data, like).float(), "deserialize gave torch.float32"),
        (_same, lambda data, like: _back(data, like) + next(_COUNT), "another tensor for the same bytes"),
    ],
)
def test_serializer_that_is_wrong_is_refused_at_once(
    serialize: Callable[[Tensor], Any], deserialize: Callable[[bytes, Tensor], Any], says: str
) -> None:
    """Exceptions, other types and shapes, and results that do not repeat are one line when the first cache comes."""
    kind = serializer_compressor("wrong", serialize, deserialize)
    with pytest.raises(CompressorError, match=says) as caught:
        kind().encode(*laws.sample(10), "")
    assert "\n" not in str(caught.value)


def test_deserializer_is_not_asked_for_more_than_its_bytes_can_hold() -> None:
    """A header that claims 2 TB is refused before the user's code sees it."""
    facts = {"shape": [32, 32, 1 << 20, 512], "dtype": "f16", "knob": "7"}
    with pytest.raises(PayloadError, match="claim to hold"):
        Deflated().decode(pack("deflated/1", facts, {"data": b"1"}).payload)


@dataclass
class BasePress:
    """The part of kvpress's interface that presses have, named as there."""

    compression_ratio: float = 0.0

    def post_init_from_model(self, model: Any) -> None:
        assert model.model.layers[0].self_attn.rotary_emb is model.model.rotary_emb

    def forward_hook(self, *_: Any) -> Any:
        raise AssertionError("the adapter calls compress")

    def __call__(self, model: Any) -> Any:
        raise AssertionError("the adapter calls compress")

    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        raise NotImplementedError("compress method must be\nimplemented")


@dataclass
class LoudPress(BasePress):
    """Keeps, highest first, the tokens whose pre-RoPE queries have the largest norm in each KV head's first query."""

    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        assert attentions is None and "position_embeddings" in given
        scores = module.q_proj(hidden).unflatten(-1, (4, 16))[:, :, ::2].norm(dim=-1).transpose(1, 2)
        count = max(1, int(keys.shape[2] * (1 - self.compression_ratio)))
        rows = scores.topk(count, dim=-1).indices.unsqueeze(-1).expand(-1, -1, -1, 16)
        keys.mul_(1.0)
        return keys.gather(2, rows), values.gather(2, rows)


@dataclass
class EvenPress(BasePress):
    """Keeps the last tokens, in every head; fewer in deeper layers."""

    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        count = int(keys.shape[2] * (1 - self.compression_ratio)) - module.layer_idx
        return keys[:, :, -count:], values[:, :, -count:]


def press_of(kind: Callable[[], Any]) -> KvpressDropper:
    """Our dropper of a press."""

    class Pressed(KvpressDropper):
        name: ClassVar[str] = "kvpress-fake"
        press = staticmethod(kind)

    return Pressed()


@pytest.fixture(scope="module")
def model() -> CachedModel:
    """A random model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256}
    return CachedModel(LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.3)), "random")


def loud_positions(model: CachedModel, count: int) -> list[list[list[int]]]:
    """What LoudPress keeps, from the model's own hidden states: per layer and KV head."""
    hidden = model.model.model(torch.tensor([CONTEXT]), output_hidden_states=True).hidden_states
    kept = []
    for layer, states in zip(model.model.model.layers, hidden, strict=False):
        queries = layer.self_attn.q_proj(layer.input_layernorm(states))[0].unflatten(-1, (4, 16))
        kept.append([queries[:, 2 * head].norm(dim=-1).topk(count).indices.sort().values.tolist() for head in (0, 1)])
    return kept


@pytest.mark.parametrize(("knob", "count"), [("0.75", 37), ("0.5", 25), ("0.1", 5), ("0.001", 1)])
def test_press_chooses_from_what_the_model_computed(model: CachedModel, knob: str, count: int) -> None:
    """The press sees each layer's module, hidden states, keys and values; the knob is what it keeps, not removes."""
    dropper = press_of(LoudPress).attached(model)
    cache, context = model.prefill(CONTEXT)
    with torch.inference_mode():
        expected = loud_positions(model, count)
    laws.assert_decodes(dropper, cache, context, knob)
    decoded = dropper.decode(dropper.encode(cache, context, knob).payload)
    assert decoded.kept is not None
    assert expected == [rows.tolist() for rows in decoded.kept]
    rows = decoded.kept[2][1]
    assert torch.equal(cache.values[2][1, rows], decoded.values[2][1])


def test_press_that_chooses_for_all_heads_stores_positions_once(model: CachedModel) -> None:
    """Heads that keep the same tokens share their positions; layers may keep different numbers."""
    dropper = press_of(EvenPress).attached(model)
    cache, context = model.prefill(CONTEXT)
    expected = [list(range(TOKENS - count, TOKENS)) for count in (25, 24, 23)]
    assert expected == [rows.tolist() for rows in dropper.choose(cache, context, "0.5")]


def test_answers_between_prefill_and_encoding_change_nothing(model: CachedModel) -> None:
    """Questions answered from a decoded cache are no prefill, and a chain takes the press as its dropper."""
    dropper = press_of(LoudPress).attached(model)
    cache, context = model.prefill(CONTEXT)
    before = dropper.encode(cache, context, "0.5").payload
    model.answer(dropper.decode(before), [[1, 2, 3], [4]], 3, None)
    assert before == dropper.encode(cache, context, "0.5").payload
    chained = Chain(dropper, make_compressor("int8"))
    assert TOKENS == chained.decode(chained.encode(cache, context, "0.5+head").payload).next_position


def test_other_caches_than_the_last_prefills_are_refused(model: CachedModel) -> None:
    """Not attached, not yet prefilled, another context's cache, or a part of it: CompressorError, never a guess."""
    first, context = model.prefill(CONTEXT)
    dropper = press_of(EvenPress)
    attached = dropper.attached(model)
    for unready in (dropper, attached):
        with pytest.raises(CompressorError, match="not the cache of the last prefill"):
            unready.encode(first, context, "0.5")
    second, _ = model.prefill(CONTEXT[:-1])
    part = KVCache([key[:, :-1] for key in second.keys], [value[:, :-1] for value in second.values])
    for other in (first, part, KVCache(second.keys[:2], second.values[:2])):
        with pytest.raises(CompressorError, match="not the cache of the last prefill"):
            attached.encode(other, context, "0.5")
    assert TOKENS - 1 == attached.decode(attached.encode(second, context, "0.5").payload).next_position


class MaskingPress(BasePress):
    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        module.masked_key_indices = (torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
        return keys, values


class ZeroingPress(BasePress):
    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        keys[..., 3] = 0
        return keys, values


class LazyPress(BasePress):
    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        return keys, values


class TwicePress(BasePress):
    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        return keys[:, :, [1, 1, 2]], values[:, :, [1, 1, 2]]


class NarrowPress(BasePress):
    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        return keys[:, :, :9, :8], values[:, :, :9]


class EmptyPress(BasePress):
    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        return keys[:, :, :0], values[:, :, :0]


class SwappedPress(BasePress):
    def compress(self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, given: Any) -> Any:
        return keys[:, :, :9], values[:, :, 1:10]


class HookedPress(LoudPress):
    def forward_hook(self, *_: Any) -> Any:
        return None


class FixedPress(LoudPress):
    def __init__(self) -> None:
        pass

    @property
    def compression_ratio(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (BasePress, "the press failed: NotImplementedError: compress method must be implemented"),
        (MaskingPress, "masks tokens, so it frees no memory"),
        (ZeroingPress, "it changes keys or values"),
        (LazyPress, "drops no tokens, so it frees no memory"),
        (TwicePress, "not exactly one token"),
        (SwappedPress, "not exactly one token"),
        (NarrowPress, r"the press made \[2, 9, 24\] of \[2, 50, 32\]"),
        (EmptyPress, r"the press made \[2, 0, 32\] of"),
        (FixedPress, "the press cannot be set: AttributeError"),
    ],
)
def test_presses_that_do_not_drop_tokens_are_refused(model: CachedModel, kind: type, says: str) -> None:
    """Masks, zeroed channels, changed rows, other shapes and no ratio: one line, and no trace is left."""
    dropper = press_of(kind).attached(model)
    cache, context = model.prefill(CONTEXT)
    with pytest.raises(CompressorError, match=says) as caught:
        dropper.encode(cache, context, "0.5")
    assert "\n" not in str(caught.value)
    assert all(getattr(layer.self_attn, "masked_key_indices", None) is None for layer in model.model.model.layers)


def test_presses_that_cannot_work_are_refused_when_they_are_made() -> None:
    """A press that lacks parameters, or whose own hooks do more, is refused before any model is loaded."""
    with pytest.raises(CompressorError, match="the press cannot be made: TypeError"):
        press_of(lambda: BasePress(wrapped=1))
    with pytest.raises(CompressorError, match="HookedPress has a forward_hook of its own"):
        press_of(HookedPress)


def test_a_press_is_recorded_with_its_parameters(model: CachedModel) -> None:
    """What profiles record of a compressor names the press and its parameters, attached or not."""
    dropper = press_of(lambda: LoudPress(compression_ratio=0.25))
    assert "kvpress-fake(LoudPress(compression_ratio=0.25))" == repr(dropper) == repr(dropper.attached(model))


def test_tokens_that_are_equal_cannot_be_told_apart(model: CachedModel) -> None:
    """Two rows with the same key and value: refused when one is kept, harmless when both are dropped."""
    dropper = press_of(EvenPress).attached(model)
    cache, context = model.prefill(CONTEXT)
    assert dropper._prefill is not None
    layers = dropper._prefill.layers.values()
    computed = [side[0] for layer in layers for side in (layer.keys, layer.values)]
    with torch.inference_mode():
        for side in (*computed, *cache.keys, *cache.values):
            side[:, 3] = side[:, 7]
    assert 3 == len(dropper.choose(cache, context, "0.5"))
    with pytest.raises(CompressorError, match="two tokens are equal"):
        dropper.choose(cache, context, "0.99")


def test_knob_one_keeps_everything_and_impossible_knobs_are_refused(model: CachedModel) -> None:
    """At 1 a press is asked to remove nothing; a single token that cannot be dropped is no mask."""
    cache, context = model.prefill(CONTEXT)
    dropper = press_of(LoudPress).attached(model)
    cache, context = model.prefill(CONTEXT)
    assert dropper.decode(dropper.encode(cache, context, "1").payload).kept is None
    for knob in laws.BAD_KNOBS:
        with pytest.raises(CompressorError, match="is not a number from 0.001 to 1"):
            dropper.encode(cache, context, knob)
    single, context = model.prefill(CONTEXT[:1])
    assert dropper.decode(dropper.encode(single, context, "0.5").payload).kept is None


def test_press_counts_are_ours(model: CachedModel) -> None:
    """The fraction removed, as floats have it, costs no token: 0.1 of 50 is 5, as for our own droppers."""
    dropper = press_of(LoudPress).attached(model)
    cache, context = model.prefill(CONTEXT)
    for percent in range(1, 101):
        kept = dropper.choose(cache, context, str(percent / 100))
        assert kept_tokens(TOKENS, percent / 100) == kept[0].shape[-1]


@pytest.mark.parametrize(
    ("press", "name"),
    [
        ("ExpectedLoudPress", "kvpress-expected-loud"),
        ("SnapperKVPress", "kvpress-snapperkv"),
        ("TAVOPress", "kvpress-tavo"),
        ("KVLoudPress", "kvpress-kvloud"),
    ],
)
def test_presses_are_found_by_their_names_in_kvpress(monkeypatch: pytest.MonkeyPatch, press: str, name: str) -> None:
    """ "kvpress:ExpectedLoudPress" is a compressor named "kvpress-expected-loud" that makes that press."""
    library = ModuleType("kvpress")
    vars(library).update({"__all__": [press], press: LoudPress})
    monkeypatch.setitem(sys.modules, "kvpress", library)
    made = make_compressor(f"kvpress:{press}")
    assert name == made.name
    assert isinstance(made, KvpressDropper)
    assert LoudPress() == made.press()


def test_unknown_press_is_answered_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error meets a suggestion; what is no press is not taken for one."""
    library = ModuleType("kvpress")
    vars(library).update({"__all__": ["EvenPress", "other"], "EvenPress": EvenPress, "other": 7})
    monkeypatch.setitem(sys.modules, "kvpress", library)
    for name, says in (("EvanPress", "did you mean 'EvenPress'"), ("other", "has no attribute 'other'")):
        with pytest.raises(CompressorError, match=says) as caught:
            find_compressor(f"kvpress:{name}")
        assert "\n" not in str(caught.value)


def test_without_kvpress_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A press asked for where kvpress is missing names the extra."""
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(CompressorError, match=r"kvpress cannot be imported .* the extra simkv\[kvpress\]") as caught:
        find_compressor("kvpress:NotThereEitherPress")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not KVPRESS_PYTHON, reason="SIMKV_KVPRESS_PYTHON names no interpreter that has kvpress")
def test_presses_keep_what_they_keep_inside_kvpress() -> None:
    """Every press with default parameters keeps the tokens that kvpress itself leaves in the cache, or is refused."""
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [KVPRESS_PYTHON, str(SCRIPT)],
        env={**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert 0 == ran.returncode, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    same = {name for name, outcome in found.items() if outcome == "same"}
    different = {name: outcome for name, outcome in found.items() if outcome.startswith("different")}
    assert {} == different
    named = ("Knorm", "KeyDiff", "SnapKV", "TOVA", "ExpectedAttention", "PyramidKV", "StreamingLLM")
    assert {f"{name}Press" for name in named} <= same
    for name in ("KVzipPress", "DMSPress", "ThinKPress", "CAMPress", "ObservedAttentionPress", "AdaKVPress"):
        assert found[name].startswith("refused"), found[name]
