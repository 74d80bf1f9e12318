"""The life of a request, by hand: every case shows its sums.  Round numbers are in ``helpers.py``."""

from dataclasses import replace

import pytest

from simkv.profiles import Line, TierSpec
from simkv.simulator.metrics import requests_frame
from tests.simulator.helpers import (
    DRAM,
    DRAM_NS,
    KIVI4,
    MS,
    PREFILL_NS,
    SSD,
    US,
    Scripted,
    make_profile,
    make_trace,
    rows,
    run,
    stored,
    times,
    two_tiers,
)

LINK = replace(DRAM, name="link")


# --- compute and load -----------------------------------------------------------------------------------------------


def test_recompute() -> None:
    """300 tokens at 10 us are 3 ms of compute; nothing is loaded, nothing waits."""
    engine = run([[0, 1, 2]], "recompute")
    assert [(0, 0, 3 * MS)] == times(engine)
    assert {} == stored(engine)


def test_hit_in_dram() -> None:
    """The second request loads both blocks: 2 x 100,000 bytes at 1 ns = 0.2 ms, and computes nothing."""
    engine = run([[0, 1], [0, 1]])
    assert [(0, 0, 2 * MS), (200 * US, 0, 0)] == times(engine)
    assert (2, 200, (200, 0)) == (rows(engine)[1].hit_blocks, rows(engine)[1].hit_tokens, rows(engine)[1].per_tier)


def test_hit_of_a_prefix() -> None:
    """Of three blocks the first two are stored: 0.2 ms of loading, 1 ms of computing the third."""
    assert (200 * US, 0, MS) == times(run([[0, 1], [0, 1, 2]]))[1]


def test_hit_on_ssd_pays_the_latency_once_per_transfer() -> None:
    """Two blocks in one transfer: 50 us + 2 x 100,000 bytes at 2 ns = 450 us."""
    policy = Scripted({0: "ssd raw", 1: "ssd raw"})
    engine = run([[0, 1], [0, 1]], policy, tiers=two_tiers(latency_s=50e-6))
    assert (450 * US, 0, 0) == times(engine)[1]
    assert (0, 200) == rows(engine)[1].per_tier


def test_hit_split_over_tiers_and_variants() -> None:
    """Three transfers, one for each placement, then decompression and prefill on the GPU.

    DRAM: raw 100 us, then kivi:4 (50,000 bytes) until 150 us.  SSD beside it: kivi:2, 25,000 bytes at 2 ns, 50 us.
    Decompression: kivi:4 100 x 0.2 us = 20 us; kivi:2 50 us + 100 x 0.3 us = 80 us.  Prefill of the last block: 1 ms.
    """
    policy = Scripted({0: "dram raw", 1: "dram kivi:4", 2: "ssd kivi:2"})
    engine = run([[0, 1, 2], [0, 1, 2, 3]], policy)
    row = rows(engine)[1]
    assert (150 * US, 0, 100 * US + PREFILL_NS) == (row.load, row.queue, row.work)
    assert (200, 100) == row.per_tier
    assert 10**9 * 100 + 9 * 10**8 * 100 + 6 * 10**8 * 100 + 10**9 * 100 == row.quality


def test_a_request_takes_one_channel_of_a_tier() -> None:
    """With two channels, raw (100 us) and kivi:4 (50 us) are read one after the other: one request has one path."""
    policy = Scripted({0: "dram raw", 1: "dram kivi:4"})
    tiers = (replace(DRAM, channels=2), SSD)
    assert (150 * US, 0, 20 * US) == times(run([[0, 1], [0, 1]], policy, tiers=tiers))[1]


def test_requests_load_side_by_side_on_two_channels() -> None:
    """Requests at 0, 10 and 20 us, raw then kivi:4 each (150 us), and raw alone, on two channels.

    The first has channel 0 until 150 us, the second channel 1 until 160; the third waits for the first's second part,
    130 us, and then reads for 100.
    """
    policy = Scripted({0: "dram raw", 1: "dram kivi:4", 2: "dram raw"})
    tiers = (replace(DRAM, channels=2), SSD)
    trace = make_trace([[0, 1], [2], [0, 1], [0, 1], [2]], at_us=[0, 1, 10_000, 10_010, 10_020])
    loads = [load for load, _, _ in times(run(trace, policy, tiers=tiers))[2:]]
    assert [150 * US, 150 * US, 230 * US] == loads


def test_a_request_takes_one_channel_of_the_link() -> None:
    """Of three channels of the link, two groups of 100,000 bytes at 1 ns take one: 200 us, after 100 ns of DRAM."""
    fast = tuple(replace(tier, read_bytes_per_s=10**12) for tier in (DRAM, SSD))
    link = TierSpec("host_link", None, 10**9, 10**9, channels=3)
    engine = run([[0, 1], [0, 1]], Scripted({0: "dram raw", 1: "ssd raw"}), tiers=fast, link=link)
    assert 200 * US + 100 == times(engine)[1][0]


def test_a_late_group_without_length_ends_with_the_one_before_it() -> None:
    """Block 0, raw on SSD, arrives at 102.3 ms; the constant of its load line, -600 us, leaves nothing of its 300 us.

    It is part 0 of the third request and queues behind part 1, kivi:4, which ends at the same instant but after it.
    """
    raw, *others = make_profile().variants
    constants = {raw: -6e-4, **dict.fromkeys(others, 0.0)}
    lines = {(tier, variant): Line(3e-6, fixed) for tier in ("dram", "ssd") for variant, fixed in constants.items()}
    trace = make_trace([[0, 1], [0, 1], [0, 1]], at_us=[0, 100_000, 102_200])
    policy = Scripted({(0, 1): "ssd kivi:4", (1, 0): "ssd raw"})
    engine = run(trace, policy, profile=make_profile(load_lines=lines), tiers=two_tiers(10, 30), gpus=4)
    assert (300 * US, 0, 0) == times(engine)[2]


def test_fifo_loads_of_two_requests() -> None:
    """Loads of 100 us that start at 0 and 50 us: the second waits for the first and takes 150 us."""
    trace = make_trace([[0], [1], [0], [1]], at_us=[0, 0, 10_000, 10_050])
    assert [(100 * US, 0, 0), (150 * US, 0, 0)] == times(run(trace))[2:]


def test_fair_loads_of_two_requests() -> None:
    """The same on a shared channel: 50 us alone, then both at half speed.

    The first has 50 us left, which takes 100: 150 us.  By then the second has 50 us left, alone: it ends at 200 us.
    """
    trace = make_trace([[0], [1], [0], [1]], at_us=[0, 0, 10_000, 10_050])
    tiers = (replace(DRAM, discipline="fair"), SSD)
    assert [(150 * US, 0, 0), (150 * US, 0, 0)] == times(run(trace, tiers=tiers))[2:]


def test_host_link_is_shared_first_come_first_served() -> None:
    """Every load crosses the link too, here at 2 ns per byte, in the order in which tiers deliver.

    DRAM delivers at 100 us and holds the link until 300; SSD delivers at 200, waits, and crosses until 500 us.
    """
    policy = Scripted({0: "ssd raw", 1: "dram raw"})
    link = replace(LINK, read_bytes_per_s=5 * 10**8)
    assert (500 * US, 0, 0) == times(run([[0, 1], [0, 1]], policy, link=link))[1]


def test_host_link_latency_counts_per_transfer() -> None:
    """A link of 1 ns per byte and 30 us: DRAM 100 + 130; SSD 200, waits until 230, + 130 = 360 us."""
    policy = Scripted({0: "ssd raw", 1: "dram raw"})
    link = replace(LINK, latency_s=30e-6)
    assert (360 * US, 0, 0) == times(run([[0, 1], [0, 1]], policy, link=link))[1]


def test_a_transfer_of_negative_length_takes_no_time() -> None:
    """A load line of -1 ms + 1 us per token gives 0, not -0.9 ms, for 100 tokens; likewise a decode line."""
    lines = {(tier, v): Line(1e-6, -1e-3) for tier in ("dram", "ssd") for v in make_profile().variants}
    assert (0, 0, 0) == times(run([[0], [0]], profile=make_profile(load_lines=lines)))[1]
    decode = {**make_profile().decode_lines, KIVI4: Line(1e-6, -1e-3)}
    engine = run([[0], [0]], params={"variant": "kivi:4"}, profile=make_profile(decode_lines=decode))
    assert (50 * US, 0, 0) == times(engine)[1]


# --- queueing for the GPU -------------------------------------------------------------------------------------------


def test_gpu_serves_one_at_a_time() -> None:
    """Three prompts of 1 ms at 0, 0 and 1.5 ms: the second waits 1 ms, the third 0.5 ms."""
    trace = make_trace([[0], [1], [2]], at_us=[0, 0, 1_500])
    assert [(0, 0, MS), (0, MS, MS), (0, 500 * US, MS)] == times(run(trace, "recompute"))


def test_two_gpus() -> None:
    """Three prompts of 1 ms at once on two GPUs: only the third waits."""
    trace = make_trace([[0], [1], [2]], at_us=[0, 0, 0])
    assert [0, 0, MS] == [row.queue for row in rows(run(trace, "recompute", gpus=2))]


def test_gpu_order_is_that_of_loading() -> None:
    """A request that loads for 200 us is overtaken by one that arrives 100 us later and loads nothing."""
    trace = make_trace([[0], [0, 1], [2]], at_us=[0, 10_000, 10_100])
    engine = run(trace, Scripted({0: "ssd raw"}))
    assert [(200 * US, 900 * US, MS), (0, 0, MS)] == times(engine)[1:]


# --- closed loop ----------------------------------------------------------------------------------------------------


def test_closed_loop_of_one() -> None:
    """Each first token sends the next request: 1 ms, 1 ms, and a hit of 0.1 ms; trace times do not matter."""
    engine = run([[0], [1], [0]], arrivals="closed")
    assert [0, MS, 2 * MS] == [row.arrival for row in rows(engine)]
    assert [(0, 0, MS), (0, 0, MS), (DRAM_NS, 0, 0)] == times(engine)
    assert 2 * MS + DRAM_NS == engine.now_ns


def test_closed_loop_of_three() -> None:
    """Three at 0 end at 1, 2, 3 ms; the fourth is sent at 1 ms and waits for the GPU until 3 ms."""
    engine = run([[0], [1], [2], [3]], "recompute", arrivals="closed", concurrency=3)
    assert [0, 0, 0, MS] == [row.arrival for row in rows(engine)]
    assert [0, MS, 2 * MS, 2 * MS] == [row.queue for row in rows(engine)]


def test_closed_loop_with_more_places_than_requests() -> None:
    """A concurrency of ten sends two requests, both at 0."""
    engine = run([[0], [1]], "recompute", arrivals="closed", concurrency=10)
    assert [0, 0] == [row.arrival for row in rows(engine)]


# --- odd requests ---------------------------------------------------------------------------------------------------


def test_empty_prompt() -> None:
    """A request without tokens takes no time and counts as answered perfectly."""
    engine = run(make_trace([[0], [], [0]], gap_us=10_000))
    assert (0, 0, 0) == times(engine)[1]
    assert 1.0 == requests_frame(engine)["quality"][1]


def test_prompt_without_blocks_is_computed() -> None:
    """50 tokens outside of any block are 0.5 ms of compute, stored nowhere."""
    engine = run(make_trace([[0], []], inputs=[100, 50]))
    assert (0, 0, 500 * US) == times(engine)[1]


def test_prompt_longer_than_its_blocks() -> None:
    """A stored block of 100 tokens and 30 tokens outside: 0.1 ms of loading, 0.3 ms of computing."""
    assert (100 * US, 0, 300 * US) == times(run(make_trace([[0], [0]], inputs=[100, 130])))[1]


def test_prompt_shorter_than_its_blocks() -> None:
    """Reused tokens are cut off at the prompt's length; the whole block is loaded all the same."""
    engine = run(make_trace([[0], [0]], inputs=[100, 70]))
    assert (100 * US, 0, 0) == times(engine)[1]
    assert (70, (70, 0)) == (rows(engine)[1].hit_tokens, rows(engine)[1].per_tier)


@pytest.mark.parametrize("touch", ["forward", "reverse"])
def test_block_twice_in_one_request(touch: str) -> None:
    """A block asked for twice is stored once, loaded twice, and no pin is left behind."""
    engine = run([[0, 0], [0, 0]], touch=touch)
    assert (200 * US, 0, 0) == times(engine)[1]
    assert {0: "dram raw"} == stored(engine)
    assert (0, 1) == (engine.store.residents[0].pins, engine.store.residents[0].hits)  # type: ignore[union-attr]


def test_thirty_days_later() -> None:
    """A hit after thirty days of idling takes the same 0.1 ms, to the nanosecond."""
    day_us = 86_400_000_000
    engine = run(make_trace([[0], [0], [1], [0]], at_us=[0, 10_000, 30 * day_us, 30 * day_us + 7]))
    assert [(0, 0, MS), (DRAM_NS, 0, 0), (0, 0, MS)] == times(engine)[:3]
    assert (DRAM_NS, 893 * US, 0) == times(engine)[3]
