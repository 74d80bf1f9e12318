"""A second decode model, one token at a time: no stretches, no closed forms, no events, no shared code.

GPUs are advanced one action (a prefill, or a step) after the other in plain loops over plain lists.  Times are whole
ns, so that rounding cannot hide a difference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Sent:
    """A request without blocks, and what became of it."""

    id: int
    arrival: int
    prompt: int
    output: int
    first: int = -1
    last: int = -1
    done: int = 0  # prompt tokens
    made: int = 0  # output tokens
    work: int = 0  # own work so far, ns


@dataclass
class Card:
    """A GPU: what it decodes, what it prefills, and when its present action ends."""

    batch: list[Sent] = field(default_factory=list)
    prompt: Sent | None = None
    until: int = 0
    action: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Rules:
    """Limits and durations; ``step_ns`` takes sequences and cached tokens, ``chunk`` None prefills whole prompts.

    A piece of a prompt from one position to another, run as one prefill, takes ``fixed_ns`` and the tokens' own time,
    ``token_ns`` each and ``square_ns`` by the square of the position, but no less than ``floor_ns``.
    """

    max_batch: int
    chunk: int | None
    step_ns: Callable[[int, int], int]
    shared_ns: int
    token_ns: int = 10_000
    square_ns: int = 0
    fixed_ns: int = 0
    floor_ns: int = 0

    def piece_ns(self, begin: int, end: int) -> int:
        """A prefill of at least one token."""
        up_to_end, up_to_begin = (self.token_ns * x + self.square_ns * x * x for x in (end, begin))
        return max(self.floor_ns, self.fixed_ns + up_to_end - up_to_begin)


def replay(requests: Sequence[tuple[int, int, int]], gpus: int, rules: Rules) -> list[Sent]:
    """What becomes of each (arrival ns, prompt tokens of at least 1, output tokens), in an open loop.

    At one instant: what ends on each GPU, in order, which may then take the head of the line; who arrives, in order;
    what begins.
    """
    sent = [Sent(index, *request) for index, request in enumerate(requests)]
    cards = [Card() for _ in range(gpus)]
    line: list[Sent] = []
    coming = list(sent)
    while coming or any(card.action for card in cards):
        now = min([*(card.until for card in cards if card.action), *(request.arrival for request in coming[:1])])
        for card in cards:
            if card.action and card.until == now:
                end, card.action = card.action, None
                end(now)
                if line and _able(card, rules):
                    card.prompt = line.pop(0)
        while coming and coming[0].arrival == now:
            request = coming.pop(0)
            able = [card for card in cards if _able(card, rules)]
            if able:
                min(able, key=lambda card: len(card.batch)).prompt = request
            else:
                line.append(request)
        for card in cards:
            if not card.action and (card.batch or card.prompt):
                _begin(card, now, rules)
    return sent


def _able(card: Card, rules: Rules) -> bool:
    return card.prompt is None and len(card.batch) < rules.max_batch


def _begin(card: Card, now: int, rules: Rules) -> None:
    """One prefill of all that is left, or one step with or without a chunk."""
    prompt, batch = card.prompt, list(card.batch)
    amount = 0 if prompt is None else prompt.prompt - prompt.done
    if rules.chunk is not None and batch:
        amount = min(amount, rules.chunk)
    alone = prompt is not None and (rules.chunk is None or not batch)
    own = took = 0 if prompt is None else rules.piece_ns(prompt.done, prompt.done + amount)
    if not alone:
        step = rules.step_ns(len(batch), sum(request.prompt + request.made - 1 for request in batch))
        took = step if prompt is None else max(took, rules.shared_ns) + step - rules.shared_ns

    def end(at: int) -> None:
        for request in [] if alone else batch:
            request.made += 1
            if request.made == request.output:
                request.last = at
                card.batch.remove(request)
        if prompt is not None:
            prompt.done += amount
            prompt.work += own
            if prompt.done == prompt.prompt:
                card.prompt = None
                prompt.first, prompt.made = at, 1
                if prompt.output > 1:
                    card.batch.append(prompt)
                else:
                    prompt.last = at

    card.action, card.until = end, now + took
