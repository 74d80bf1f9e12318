"""Tokenizers made here, without a download: bytes, bytes with a start mark, byte pairs, a trained byte-level BPE."""

from collections.abc import Iterable
from functools import cache

import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from simkv.profiler.tasks.text import text_tasks


class BareBytes:
    """One token per byte, and neither BOS nor EOS."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return list(text.encode())

    def decode(self, token_ids: Iterable[int]) -> str:
        return bytes(token for token in token_ids if token < 256).decode(errors="replace")


class Bytes(BareBytes):
    """One token per byte, with BOS and EOS."""

    bos_token_id, eos_token_id = 256, 257


class MarkedBytes(Bytes):
    """As some tokenizers do, marks the start of every text that is encoded with a token of its own."""

    mark = 258

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self.mark, *super().encode(text, add_special_tokens)]


class BytePairs:
    """Two bytes to a token: no text's tokens begin with those of an odd part of it."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        raw = [byte + 1 for byte in text.encode()] + [0]
        return [a * 257 + b for a, b in zip(raw[::2], raw[1::2], strict=False)]

    def decode(self, token_ids: Iterable[int]) -> str:
        return bytes(byte - 1 for token in token_ids for byte in divmod(token, 257) if byte).decode(errors="replace")


@cache
def trained() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,000 tokens with BOS and EOS, trained on the tasks' own text."""
    rng = np.random.default_rng(0)
    texts = [
        BareBytes().decode(task.generate(rng, 20_000).tokens) for task in text_tasks(BareBytes()).values() for _ in "ab"
    ]
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
