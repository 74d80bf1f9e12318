"""What a stored cache really answers: every question that requests may ask of its context, put to the bytes loaded.

What it is: the measured quality of a hit.  One answer per request would be mostly luck, so that all questions are put
to each payload, side by side, when its replay is over.  What it is not: the answers that requests were given while
the clock ran (``replay.py``), which are scored too, and beside which these can be seen to be the same.
"""

from hashlib import blake2b

from simkv.profiler.compressors.base import DecodedCache
from simkv.testbed.bench import Bench
from simkv.testbed.server import Server

__all__ = ["Examiner"]


class Examiner:
    """Puts a context's questions to its payloads, to each payload once.

    Args:
        bench: contexts and questions.
        server: whose model answers, and whose compressors decode.
    """

    def __init__(self, bench: Bench, server: Server) -> None:
        self._bench, self._server = bench, server
        self._known: dict[tuple[int, int, bytes], tuple[float, ...]] = {}

    def scores(self, context: int, variant: int, payload: bytes) -> tuple[float, ...]:
        """Quality in [0, 1] of the answer to each question that requests ask about a context.

        Args:
            context: number of the context.
            variant: index of the payload's variant.
            payload: that a request loaded.
        """
        place = context, variant, blake2b(payload).digest()
        if place not in self._known:
            self._known[place] = self._asked(context, variant, payload)
        return self._known[place]

    def _asked(self, context: int, variant: int, payload: bytes) -> tuple[float, ...]:
        bench, model = self._bench, self._server.model
        cache: DecodedCache = self._server.settings[variant].compressor.decode(payload, model.device)
        queries = [question.query for question in bench.asked(context)]
        answers = model.answer(cache, queries, bench.longest(context), bench.stop(context))
        return tuple(bench.score(model, context, which, answer) for which, answer in enumerate(answers))
