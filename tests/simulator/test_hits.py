"""Untimed hit counts: published tables, other implementations, and laws of caching."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simkv.errors import ConfigError, PolicyError, TraceError
from simkv.simulator import hits_kernels
from simkv.simulator.hits import HIT_POLICIES, count_hits
from simkv.traces import load_trace
from simkv.traces.trace import Trace
from tests.conftest import make_trace
from tests.simulator.hits_reference import S3Fifo, reference_hits

MOONCAKE = {  # hits at 1,000 / 10,000 / 30,000 / 50,000 / 100,000 blocks and unlimited, forward touch
    "lru": [12_831, 60_921, 93_967, 102_290, 104_924, 105_710],
    "fifo": [12_559, 53_812, 87_152, 98_096, 103_651, 105_710],
    "lfu": [13_871, 38_013, 79_595, 99_189, 104_755, 105_710],
    "clairvoyant": [54_994, 105_710, 105_710, 105_710, 105_710, 105_710],
}
MOONCAKE_CAPACITIES: list[int | str | None] = [1_000, 10_000, 30_000, 50_000, 100_000, "unlimited"]
WEKA = {  # hits of LRU at 8 / 16 / ... / 512 GiB of 128 blocks each, and unlimited
    "forward": [85_172, 509_739, 1_158_189, 2_464_319, 2_984_170, 3_112_547, 3_127_496, 3_131_602],
    "reverse": [342_744, 684_577, 1_407_985, 2_557_109, 2_996_473, 3_113_372, 3_127_496, 3_131_602],
}
WEKA_CAPACITIES: list[int | str | None] = [*(gib * 128 for gib in (8, 16, 32, 64, 128, 256, 512)), "unlimited"]


@pytest.fixture(scope="module")
def mooncake(shared_traces: Path) -> Trace:
    """The Mooncake conversation trace."""
    return load_trace(shared_traces / "mooncake" / "conversation_trace.jsonl.gz")


@pytest.fixture(scope="module")
def weka(shared_traces: Path) -> Trace:
    """The agentic sessions, merged by the documented rule."""
    return load_trace(shared_traces / "weka_agentic", format="sessions")


@pytest.fixture(scope="module")
def bailian(shared_traces: Path) -> Trace:
    """The derived file in the Qwen-Bailian schema."""
    return load_trace(shared_traces / "derived" / "bailian_schema_from_weka.jsonl.gz")


# --- Known counts of real traces --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", sorted(MOONCAKE))
def test_mooncake_table(mooncake: Trace, policy: str) -> None:
    """Every policy reproduces the known hit counts of the Mooncake conversation trace."""
    assert MOONCAKE[policy] == count_hits(mooncake, policy, MOONCAKE_CAPACITIES).hits.tolist()


def test_mooncake_denominators(mooncake: Trace) -> None:
    """An unlimited cache reuses 36.64 % of the blocks and 37.36 % of the tokens."""
    counts = count_hits(mooncake, "lru", ["unlimited"])
    assert (288_500, 144_793_823) == (counts.requested_blocks, counts.input_tokens)
    assert (0.3664, 0.3736) == (round(counts.block_hit_ratio[0], 4), round(counts.token_hit_ratio[0], 4))


def test_mooncake_back_to_front(mooncake: Trace) -> None:
    """Touching a request's blocks back to front changes the LRU count slightly."""
    assert [12_847] == count_hits(mooncake, "lru", [1_000], touch="reverse").hits.tolist()


@pytest.mark.parametrize("touch", ["forward", "reverse"])
def test_weka_table(weka: Trace, touch: str) -> None:
    """LRU reproduces the known counts of the merged agentic sessions in both touch orders."""
    counts = count_hits(weka, "lru", WEKA_CAPACITIES, touch=touch)
    assert WEKA[touch] == counts.hits.tolist()
    assert 3_262_925 == counts.requested_blocks


def test_bailian_row(bailian: Trace) -> None:
    """LRU reproduces the known counts of the derived Bailian-schema file."""
    counts = count_hits(bailian, "lru", [8_192, 32_768, 65_536, None])
    assert [533_616, 789_988, 809_928, 809_928] == counts.hits.tolist()


@pytest.mark.parametrize("touch", ["forward", "reverse"])
@pytest.mark.parametrize("name", ["mooncake", "weka", "bailian"])
def test_lookups_agree_for_lru_on_prefix_hashes(name: str, touch: str, request: pytest.FixtureRequest) -> None:
    """On true prefix-hash traces LRU never keeps a block whose predecessor is absent when it is looked up."""
    trace = request.getfixturevalue(name)
    by_block, by_prefix = (
        count_hits(trace, "lru", [1_000, 8_192, 30_000], touch=touch, lookup=lookup) for lookup in ("block", "prefix")
    )
    assert by_block.hits.tolist() == by_prefix.hits.tolist()
    assert by_block.token_hits.tolist() == by_prefix.token_hits.tolist()


# --- Hand-made cases --------------------------------------------------------------------------------------------


def test_touch_orders_by_hand() -> None:
    """Twice blocks A B C through 2 places: forward each pushes out the next; reverse A and B stay.

    Forward: C evicts A, then A evicts B, B evicts C, C evicts A: no hit.
    Reverse touches C B A, where A evicts C: the second request finds A and B.
    """
    trace = make_trace([[0, 1, 2], [0, 1, 2]])
    assert [0] == count_hits(trace, "lru", [2]).hits.tolist()
    assert [2] == count_hits(trace, "lru", [2], touch="reverse").hits.tolist()


def test_prefix_lookup_stops_at_the_first_absent_block() -> None:
    """With A evicted and B, C resident, the request A B C has two block hits but no prefix hit."""
    trace = make_trace([[0], [1, 2, 3], [0, 1, 2]])
    assert [2] == count_hits(trace, "lru", [3], touch="reverse").hits.tolist()
    assert [0] == count_hits(trace, "lru", [3], touch="reverse", lookup="prefix").hits.tolist()


def test_block_larger_than_the_capacity_is_never_admitted() -> None:
    """A block of 5 bytes does not fit 4 bytes, and does not push out the one that does."""
    trace = make_trace([[0], [1], [0], [1]])
    counts = count_hits(trace, "lru", [4, 9], sizes=np.array([4, 5]))
    assert ([1, 2], "bytes") == (counts.hits.tolist(), counts.capacity_unit)


def test_token_hits_are_capped_at_the_input() -> None:
    """A hit on a block that is partial in this request counts the request's tokens only."""
    trace = make_trace([[0], [0]], tokens=512)
    trace = trace.transformed("shorter prompts", input_tokens=np.array([512, 100], dtype=np.int32))
    counts = count_hits(trace, "lru", [1])
    assert (1, 100, 612, 612) == (
        counts.hits[0],
        counts.token_hits[0],
        counts.requested_block_tokens,
        counts.input_tokens,
    )


def test_frame_names_denominators_and_conventions() -> None:
    """Each row says capacity, counts, denominators, touch order and lookup; unlimited is a missing capacity."""
    counts = count_hits(make_trace([[0, 1], [0, 1]]), "fifo", [0, 2, "unlimited"], touch="reverse", lookup="prefix")
    frame = counts.frame()
    conventions = ["policy", "requested_blocks", "input_tokens", "capacity_unit", "touch", "lookup", "block_unit"]
    assert [0, 2, -1] == frame.capacity.fillna(-1).tolist()
    assert [0.0, 0.5, 0.5] == frame.block_hit_ratio.tolist()
    assert 3 * [["fifo", 4, 2048, "blocks", "reverse", "prefix", "block"]] == frame[conventions].to_numpy().tolist()
    assert (
        "hand-made: fifo, cold start, touched reverse, prefix lookup; by block of 4 requested blocks (unit: block), "
        "by token of 2,048 input tokens"
    ) == counts.describe()


@pytest.mark.parametrize("policy", sorted(HIT_POLICIES))
def test_memory_mapped_columns_are_not_compiled_for_again(policy: str, tmp_path: Path) -> None:
    """Read-only memory-mapped columns give the same counts through the same compiled signature."""
    trace = make_trace([[0, 1, 2], [0, 1, 3], [0, 4]])
    expected = count_hits(trace, policy, [3]).hits.tolist()
    signatures = len(getattr(hits_kernels, policy).signatures)
    columns = {}
    for name in ("block_ids", "block_offsets", "block_tokens", "input_tokens"):
        np.save(tmp_path / f"{name}.npy", getattr(trace, name))
        columns[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    sizes = np.ones(trace.n_blocks, dtype=np.int64)
    sizes.flags.writeable = False
    mapped = trace.transformed("memory-mapped", **columns)
    for touch in ("forward", "reverse"):
        assert count_hits(trace, policy, [3], touch=touch).hits.tolist() == (
            count_hits(mapped, policy, [3], touch=touch, sizes=sizes).hits.tolist()
        )
    assert expected == count_hits(mapped, policy, [3]).hits.tolist()
    assert signatures == len(getattr(hits_kernels, policy).signatures)


# --- Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [make_trace([[0], [0]], reuse=False), make_trace([[], []]), make_trace([])])
def test_no_reuse_information_is_an_error(trace: Trace) -> None:
    """A trace without blocks, or whose blocks mean nothing, has no hit ratio."""
    with pytest.raises(TraceError, match=r"hand-made: the trace has no reuse information .* use a trace with"):
        count_hits(trace, "lru", [1])


def test_unknown_names_are_errors() -> None:
    """Unknown policy, touch order and lookup name the nearest known one."""
    trace = make_trace([[0]])
    with pytest.raises(PolicyError, match=r"unknown policy 'lruu' .did you mean 'lru'"):
        count_hits(trace, "lruu", [1])
    with pytest.raises(ConfigError, match=r"unknown touch order 'backward'.* known: forward, reverse"):
        count_hits(trace, "lru", [1], touch="backward")
    with pytest.raises(ConfigError, match=r"unknown lookup 'blocks' .did you mean 'block'"):
        count_hits(trace, "lru", [1], lookup="blocks")


@pytest.mark.parametrize("capacity", [-1, 1.5, True, "10 GiB", 2**62])
def test_impossible_capacities_are_errors(capacity: object) -> None:
    """A capacity is a whole number within range, or unlimited."""
    with pytest.raises(ConfigError, match="must be a whole number from 0 to"):
        count_hits(make_trace([[0]]), "lru", [capacity])  # type: ignore[list-item]


@pytest.mark.parametrize("sizes", [[1], [1, 0], [1.0, 2.0], [[1, 2]]])
def test_impossible_sizes_are_errors(sizes: list[object]) -> None:
    """Sizes are one positive whole number per distinct block."""
    with pytest.raises(ConfigError, match="sizes must be 2 positive whole numbers of bytes"):
        count_hits(make_trace([[0, 1]]), "lru", [1], sizes=np.array(sizes))


def test_sizes_beyond_int64_are_errors() -> None:
    """Sizes whose sum would overflow are refused."""
    with pytest.raises(ConfigError, match="add up to more than"):
        count_hits(make_trace([[0, 1]]), "lru", [1], sizes=np.array([2**61, 2**61]))


# --- Plain reference implementations and laws -------------------------------------------------------------------


REQUESTS = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=25).filter(any)
SMALL_SIZES = st.lists(st.integers(1, 9), min_size=10, max_size=10)


@pytest.mark.parametrize("policy", sorted(HIT_POLICIES))
@settings(max_examples=150)
@given(
    requests=REQUESTS,
    sizes=st.none() | SMALL_SIZES,
    capacity=st.integers(0, 30),
    touch=st.sampled_from(["forward", "reverse"]),
    lookup=st.sampled_from(["block", "prefix"]),
)
def test_policies_equal_plain_references(
    policy: str, requests: list[list[int]], sizes: list[int] | None, capacity: int, touch: str, lookup: str
) -> None:
    """Each compiled policy counts exactly what a definition-by-scan counts, also for blocks repeated in a request."""
    trace = make_trace(requests)
    dense = [trace.blocks_of(request).tolist() for request in range(len(trace))]
    given_sizes = None if sizes is None else np.array(sizes[: trace.n_blocks])
    expected = reference_hits(dense, policy, capacity, sizes or [1] * 10, touch, lookup)
    assert expected == count_hits(trace, policy, [capacity], touch=touch, lookup=lookup, sizes=given_sizes).hits[0]


def best_hits(string: tuple[int, ...], capacity: int, held: frozenset[int] = frozenset()) -> int:
    """Most hits of any policy that admits every miss, by trying every victim."""
    if not string:
        return 0
    block, rest = string[0], string[1:]
    if block in held:
        return 1 + best_hits(rest, capacity, held)
    victims = [None] if len(held) < capacity else sorted(held)
    return max(best_hits(rest, capacity, (held - {victim}) | {block}) for victim in victims)


@settings(max_examples=100)
@given(string=st.lists(st.integers(0, 4), min_size=1, max_size=9), capacity=st.integers(1, 3))
def test_clairvoyant_is_optimal(string: list[int], capacity: int) -> None:
    """For unit sizes no choice of victims gives more hits than the farthest next touch."""
    trace = make_trace([string])
    assert best_hits(tuple(string), capacity) == count_hits(trace, "clairvoyant", [capacity]).hits[0]


@settings(max_examples=100)
@given(requests=REQUESTS)
def test_clairvoyant_bounds_the_others(requests: list[list[int]]) -> None:
    """At every capacity of at least one block no policy beats the clairvoyant one, and unlimited ones are equal."""
    trace = make_trace(requests)
    capacities = [*range(1, 11), "unlimited"]
    bound = count_hits(trace, "clairvoyant", capacities).hits
    for policy in HIT_POLICIES:
        hits = count_hits(trace, policy, capacities).hits
        assert (bound >= hits).all()
        assert len(trace.block_ids) - trace.n_blocks == hits[-1]


@pytest.mark.parametrize("policy", ["lru", "clairvoyant"])
@settings(max_examples=100)
@given(requests=REQUESTS)
def test_stack_policies_are_monotone(policy: str, requests: list[list[int]]) -> None:
    """More capacity never costs LRU or the clairvoyant policy a hit."""
    hits = count_hits(make_trace(requests), policy, range(12)).hits
    assert (np.diff(hits) >= 0).all()


# --- libCacheSim ------------------------------------------------------------------------------------------------


def zipf_trace(blocks: int = 1_000, references: int = 15_000, seed: int = 7) -> Trace:
    """Requests of 5 blocks, block k with probability proportional to 1 / (k + 1)."""
    source = random.Random(seed)
    weights = [1 / (k + 1) for k in range(blocks)]
    keys = source.choices(range(blocks), weights, k=references)
    return make_trace([keys[start : start + 5] for start in range(0, references, 5)])


def libcachesim_hits(policy: str, trace: Trace, capacity: int, sizes: list[int]) -> int:
    """Hits of libCacheSim's policy of that name on the trace's reference string."""
    library = pytest.importorskip("libcachesim", reason="libcachesim (the test extra) is not installed")
    cache = getattr(library, policy)(cache_size=capacity, hashpower=12)
    hits = 0
    for block in trace.block_ids.tolist():
        request = library.Request()
        request.obj_id, request.obj_size, request.clock_time = block + 1, sizes[block], 0
        hits += bool(cache.get(request))
    return hits


def sizes_of(trace: Trace, sized: bool) -> list[int]:
    """Ones, or sizes from 1 to 32."""
    source = random.Random(1)
    return [source.randint(1, 32) if sized else 1 for _ in range(trace.n_blocks)]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("policy", "theirs"), [("lru", "LRU"), ("fifo", "FIFO"), ("lfu", "LFU")])
def test_classical_policies_equal_libcachesim(policy: str, theirs: str, sized: bool, share: float) -> None:
    """LRU, FIFO and LFU (ties to the least recent) agree with libCacheSim hit for hit."""
    trace = zipf_trace()
    sizes = sizes_of(trace, sized)
    capacity = int(sum(sizes) * share)
    expected = libcachesim_hits(theirs, trace, capacity, sizes)
    assert expected == count_hits(trace, policy, [capacity], sizes=np.array(sizes)).hits[0]


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("sized", [False, True])
def test_gdsf_is_close_to_libcachesim(sized: bool, share: float) -> None:
    """GDSF is within half a per cent of libCacheSim's, which lets a newcomer be its own victim."""
    trace = zipf_trace()
    sizes = sizes_of(trace, sized)
    capacity = int(sum(sizes) * share)
    expected = libcachesim_hits("GDSF", trace, capacity, sizes)
    assert expected == pytest.approx(count_hits(trace, "gdsf", [capacity], sizes=np.array(sizes)).hits[0], rel=0.005)


@pytest.mark.parametrize("sized", [False, True])
def test_s3fifo_equals_libcachesim_but_for_its_start(sized: bool) -> None:
    """One plain S3-FIFO equals libCacheSim with its start-up rule and the compiled policy without it."""
    trace = zipf_trace(blocks=400, references=6_000)
    sizes = sizes_of(trace, sized)
    capacity = sum(sizes) // 50 * 10  # a multiple of ten: libCacheSim rounds its shares otherwise
    library_like, published = S3Fifo(capacity, sizes, overflow=True), S3Fifo(capacity, sizes)
    hits = [0, 0]
    for now, block in enumerate(trace.block_ids.tolist()):
        for which, cache in enumerate((library_like, published)):
            hits[which] += block in cache
            cache.touch(now, block)
    assert hits == [
        libcachesim_hits("S3FIFO", trace, capacity, sizes),
        count_hits(trace, "s3fifo", [capacity], sizes=np.array(sizes)).hits[0],
    ]
