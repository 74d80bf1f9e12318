"""What the server computes equals what the profiler's model says of the same caches."""

import torch

from simkv.profiler.compressors.base import DecodedCache
from tests.testbed.conftest import Rig


def test_answers_are_the_models_own(rig: Rig) -> None:
    """From every variant's payload, and from context and question prefilled at once, answers are those of the model."""
    server, bench, model = rig.server, rig.bench, rig.source.model
    for number in range(4):
        context = bench.contexts[number].tokens.tolist()
        longest, stop = bench.longest(number), bench.stop(number)
        cache, _ = model.prefill(context)
        for question in bench.asked(number):
            query = list(question.query)
            for variant in range(len(server.settings)):
                payload = server.encoded(cache, variant)
                oracle = server.settings[variant].compressor.decode(payload)
                started = server.decoded(payload, variant, len(query) + longest)
                found = server.answer(started, server.next_token(started, query), longest, stop)
                assert model.answer(oracle, [query], longest, stop) == [found]
            started = server.empty(len(context) + len(query) + longest)
            found = server.answer(started, server.next_token(started, [*context, *query]), longest, stop)
            raw = DecodedCache(cache.keys, cache.values, len(context))
            assert model.answer(raw, [query], longest, stop) == [found]


def test_a_computed_prompt_leaves_its_contexts_cache(rig: Rig) -> None:
    """The first tokens of a prompt's cache are the cache of the context alone, to 16-bit rounding."""
    context = rig.bench.contexts[0].tokens.tolist()
    query = list(rig.bench.asked(0)[0].query)
    started = rig.server.empty(len(context) + len(query))
    rig.server.next_token(started, [*context, *query])
    found, (wanted, _) = rig.server.cache(started, len(context)), rig.source.model.prefill(context)
    assert wanted.shape == found.shape
    for left, right in zip((*wanted.keys, *wanted.values), (*found.keys, *found.values), strict=True):
        torch.testing.assert_close(left, right, rtol=2e-3, atol=2e-3)


def test_recompression_starts_from_what_is_stored(rig: Rig) -> None:
    """4 to 2 bits gives the 2-bit payload of the decoded 4-bit cache, not of the original."""
    cache, _ = rig.source.model.prefill(rig.bench.contexts[1].tokens.tolist())
    four, two = 1, 2
    stored = rig.server.encoded(cache, four)
    decoded = rig.server.settings[four].compressor.decode(stored)
    again = rig.server.reencoded(stored, four, two)
    cache.keys, cache.values = decoded.keys, decoded.values
    assert rig.server.encoded(cache, two) == again


def test_rewinding_forgets_what_came_after(rig: Rig) -> None:
    """A question after a rewind gets the token that it got the first time."""
    context = rig.bench.contexts[0].tokens.tolist()
    questions = [list(question.query) for question in rig.bench.asked(0)]
    cache, _ = rig.source.model.prefill(context)
    started = rig.server.decoded(rig.server.encoded(cache, 0), 0, 8)
    first = []
    for _ in "ab":
        for query in questions:
            started.rewind(len(context))
            first.append(rig.server.next_token(started, query))
    assert first[: len(questions)] == first[len(questions) :]
