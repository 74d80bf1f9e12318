"""Background transfers by hand: what admissions, demotions, promotions and recompressions cost, and who waits."""

from dataclasses import replace

import pytest

from simkv.profiles import Line
from simkv.simulator.metrics import moves_frame, requests_frame
from simkv.simulator.summary import summarize
from tests.simulator.helpers import (
    DRAM,
    KIVI4,
    MS,
    SIZE,
    SSD,
    TWO,
    US,
    Scripted,
    Ticking,
    make_profile,
    make_trace,
    quality_rows,
    ready_ns,
    rows,
    run,
    stored,
    times,
    two_tiers,
)

LINK = replace(DRAM, name="link", read_bytes_per_s=5 * 10**8)  # to the GPU 2 ns per byte, from it 1 ns
FAIR = (replace(DRAM, discipline="fair"), replace(SSD, write_bytes_per_s=10**10))
COLD = replace(SSD, name="cold", read_bytes_per_s=10**8, write_bytes_per_s=10**8)  # 10 ns per byte
LATE_US = 40_000  # after every background transfer of these tests


# --- admissions -----------------------------------------------------------------------------------------------------


def test_hit_waits_for_bytes_under_way() -> None:
    """Computed at 1 ms, written to SSD until 1.4 ms.  A request at 1.1 ms waits 0.3 ms, then reads for 0.2 ms."""
    trace = make_trace([[0], [0]], at_us=[0, 1_100])
    engine = run(trace, Scripted({0: "ssd raw"}))
    assert (500 * US, 0, 0) == times(engine)[1]


def test_hit_after_the_bytes_have_arrived() -> None:
    """The same at exactly 1.4 ms does not wait."""
    trace = make_trace([[0], [0]], at_us=[0, 1_400])
    assert (200 * US, 0, 0) == times(run(trace, Scripted({0: "ssd raw"})))[1]


def test_admitting_compressed_adds_encoding() -> None:
    """kivi:4 on SSD: 50,000 bytes at 4 ns = 200 us of writing and 100 x 3 us of encoding: ready 0.5 ms after 1 ms."""
    engine = run([[0]], Scripted({0: "ssd kivi:4"}))
    assert MS + 500 * US == ready_ns(engine, 0)


def test_blocks_of_one_step_share_a_transfer() -> None:
    """Two blocks to SSD are one write of 50 us + 2 x 400 us, ready together."""
    engine = run([[0, 1]], Scripted({0: "ssd raw", 1: "ssd raw"}), tiers=two_tiers(latency_s=50e-6))
    assert [2 * MS + 850 * US] * 2 == [ready_ns(engine, block) for block in (0, 1)]


def test_host_link_from_the_gpu_is_a_channel_of_its_own() -> None:
    """A new block of 100,000 bytes leaves the GPU in 100 us beside a load that holds the link towards it.

    With a write to DRAM of 100 us beside it the block is ready at 1.1 ms; with a link of 5 ns per byte at 1.5 ms.
    """
    assert 1_100 * US == ready_ns(run([[0]], Scripted({0: "dram raw"}), link=LINK), 0)
    slow = replace(LINK, write_bytes_per_s=2 * 10**8)
    assert 1_500 * US == ready_ns(run([[0]], Scripted({0: "dram raw"}), link=slow), 0)


# --- moves ----------------------------------------------------------------------------------------------------------


def moved(to: str, **options: object) -> int:
    """Time from a move of block 0 at 10 ms, out of DRAM raw unless ``start`` says otherwise, until it is ready."""
    start = str(options.pop("start", "dram raw"))
    trace = make_trace([[0], [1]], at_us=[0, LATE_US])
    engine = run(trace, Ticking({0: start}, at=[(10_000, 0, to)]), **options)
    assert to == stored(engine)[0]
    return ready_ns(engine, 0) - 10 * MS


def test_demotion() -> None:
    """Read from DRAM (100 us) and write to SSD (400 us) run side by side."""
    assert 400 * US == moved("ssd raw")


def test_promotion() -> None:
    """Read from SSD (200 us) and write to DRAM (100 us) run side by side."""
    assert 200 * US == moved("dram raw", start="ssd raw")


def test_recompression_in_place() -> None:
    """Raw to kivi:2 in DRAM: the read of 100 us is longest; encoding takes 100 + 100 x 4 us: 600 us."""
    assert 600 * US == moved("dram kivi:2")


def test_recompression_of_something_compressed_decodes_it() -> None:
    """kivi:4 to kivi:2: read 50 us; decode 20 us, encode 500 us: 570 us."""
    assert 570 * US == moved("dram kivi:2", start="dram kivi:4")


def test_recompression_crosses_the_link_both_ways() -> None:
    """Raw bytes to the GPU take 200 us, longer than the read; with 500 us of encoding 700 us."""
    assert 700 * US == moved("dram kivi:2", link=LINK)


def test_demotion_does_not_cross_the_link() -> None:
    """Bytes that are not recoded stay off the GPU, however slow its link."""
    assert 400 * US == moved("ssd raw", link=replace(LINK, read_bytes_per_s=10**6, write_bytes_per_s=10**9))


def test_recoding_never_takes_negative_time() -> None:
    """An encode line of -1 ms + 1 us per token counts 0: the read of 100 us is all.

    A decode line like that counts 0 as well, and not against the encoding: 50 us of reading and 500 us.
    """
    lines = {**make_profile().encode_lines, KIVI4: Line(1e-6, -1e-3)}
    assert 100 * US == moved("dram kivi:4", profile=make_profile(encode_lines=lines))
    lines = {**make_profile().decode_lines, KIVI4: Line(1e-6, -1e-3)}
    assert 550 * US == moved("dram kivi:2", start="dram kivi:4", profile=make_profile(decode_lines=lines))


def test_what_the_request_has_loaded_is_not_read_again() -> None:
    """Promoted right after its hit, a block costs the write to DRAM only: 100 us."""
    trace = make_trace([[0], [0], [1]], at_us=[0, 10_000, LATE_US])
    engine = run(trace, Scripted({0: "ssd raw", (1, 0): "dram raw"}))
    assert 10_000 * US + 200 * US + 100 * US == ready_ns(engine, 0)
    assert [0, 0] == engine.mover.counts.background_read


def test_background_read_delays_a_load() -> None:
    """A move reads DRAM from 10 to 10.1 ms; a load of 0.1 ms that comes at 10.02 ms waits 0.08 ms for it."""
    trace = make_trace([[0], [1], [1]], at_us=[0, 0, 10_020])
    engine = run(trace, Ticking({0: "dram raw", 1: "dram raw"}, at=[(10_000, 0, "ssd raw")]))
    assert (180 * US, 0, 0) == times(engine)[2]


# --- waiting on a shared channel, where the end is not known in advance ---------------------------------------------


def test_hit_waits_for_a_transfer_on_a_shared_channel() -> None:
    """The move of block 0 reads DRAM from 10 ms: 50 us alone, then beside the load of block 1, until 10.15 ms.

    The request at 10.02 ms waits for that, then reads SSD for 0.2 ms: 0.33 ms.  Block 1 has 50 us left at 10.15: 0.15.
    """
    trace = make_trace([[0], [1], [0], [1]], at_us=[0, 0, 10_020, 10_050])
    engine = run(trace, Ticking({0: "dram raw", 1: "dram raw"}, at=[(10_000, 0, "ssd raw")]), tiers=FAIR)
    assert [(330 * US, 0, 0), (150 * US, 0, 0)] == times(engine)[2:]


def test_hit_waits_for_recoding_after_a_shared_channel() -> None:
    """The same into kivi:4: 300 us of encoding follow the read that ends at 10.1 ms; 100 us of reading SSD."""
    trace = make_trace([[0], [0]], at_us=[0, 10_020])
    engine = run(trace, Ticking({0: "dram raw"}, at=[(10_000, 0, "ssd kivi:4")]), tiers=FAIR)
    assert ((100 + 300 + 100 - 20) * US, 0, 20 * US) == times(engine)[1]


# --- moved before it has arrived ------------------------------------------------------------------------------------


def test_moved_before_it_arrived() -> None:
    """Written to a slow tier from 1 to 2 ms; moved to DRAM at 1.2 ms.  It is there no sooner than 2 ms.

    The request of 1.5 ms waits 0.5 ms and reads DRAM for 0.1 ms.
    """
    trace = make_trace([[0], [0]], at_us=[0, 1_500])
    engine = run(trace, Ticking({0: "cold raw"}, at=[(1_200, 0, "dram raw")]), tiers=(DRAM, COLD))
    # The background read of the slow tier, 1 ms from 1.2 ms, is later still.
    assert (2_200 - 1_500 + 100) * US == rows(engine)[1].load


@pytest.mark.parametrize("discipline", ["fifo", "fair"])
def test_recompressed_before_it_arrived(discipline: str) -> None:
    """A move out of a slow tier takes from 10 to 11 ms; recompressing its result at 10.1 ms takes 0.5 ms at most.

    The result is ready at 11 ms under both disciplines: recoding is not added to the earlier transfer.
    """
    tiers = (replace(DRAM, read_bytes_per_s=10**8, discipline=discipline), SSD)
    trace = make_trace([[0], [1]], at_us=[0, LATE_US])
    engine = run(trace, Ticking({0: "dram raw"}, at=[(10_000, 0, "ssd raw"), (10_100, 0, "ssd kivi:4")]), tiers=tiers)
    assert 11 * MS == ready_ns(engine, 0)


# --- pristine copies, quality, wear ---------------------------------------------------------------------------------

FINER = make_profile(quality=quality_rows({"raw": [1.0], "kivi:4": [0.6], "kivi:2": [0.7]}))


def test_recompression_compounds_without_pristine_copies() -> None:
    """kivi:4 (0.6) recompressed to kivi:2 (0.7 from raw) keeps the lower quality, 0.6."""
    trace = make_trace([[0], [0]], at_us=[0, LATE_US])
    engine = run(trace, Ticking({0: "dram kivi:4"}, at=[(10_000, 0, "dram kivi:2")]), profile=FINER)
    assert 600_000_000 * 100 == rows(engine)[1].quality
    assert 0 == engine.mover.counts.pristine_read_bytes


def test_recompression_from_a_pristine_copy_does_not_compound() -> None:
    """With a raw copy on the last tier, kivi:2 has its own 0.7; the raw bytes are read there."""
    trace = make_trace([[0], [0]], at_us=[0, LATE_US])
    policy = Ticking({0: "dram kivi:4"}, at=[(10_000, 0, "dram kivi:2")])
    engine = run(trace, policy, profile=FINER, tiers=(*TWO, COLD), pristine=True)
    assert 700_000_000 * 100 == rows(engine)[1].quality
    assert (SIZE, [0, 0, SIZE]) == (engine.mover.counts.pristine_read_bytes, engine.mover.counts.background_read)
    assert [50_000 + 25_000, 0, SIZE] == engine.mover.counts.written


def test_recompression_of_a_raw_entry_needs_no_pristine_copy() -> None:
    """Raw in DRAM is as good as the pristine copy, and nearer."""
    trace = make_trace([[0], [1]], at_us=[0, LATE_US])
    policy = Ticking({0: "dram raw"}, at=[(10_000, 0, "dram kivi:2")])
    engine = run(trace, policy, tiers=(*TWO, COLD), pristine=True)
    assert (0, [SIZE, 0, 0]) == (engine.mover.counts.pristine_read_bytes, engine.mover.counts.background_read)


def test_pristine_copies_are_written_once() -> None:
    """Stored, evicted and stored again, a block has been written to the last tier once, the second time for free."""
    engine = run([[0], [1], [0]], tiers=(*two_tiers(1, 0.5), COLD), pristine=True)
    assert {0: "dram raw"} == stored(engine)
    assert [3 * SIZE, 0, 2 * SIZE] == engine.mover.counts.written


def test_ssd_wear() -> None:
    """LRU with room for one block in DRAM: blocks 0 and 1 are demoted once each, as blocks 1 and 2 come.

    200,000 bytes in the 2.001 s until the last first token, against 10^12 bytes of endurance.
    """
    engine = run([[0], [1], [2]], tiers=two_tiers(1, endurance_bytes=10**12))
    summary = summarize(engine, requests_frame(engine), 0)
    assert (2 * SIZE, 3 * SIZE) == (summary["ssd_written_bytes"], summary["written_bytes_dram"])
    years = 10**12 / (2 * SIZE / 2.001) / (365.25 * 86_400)
    assert years == pytest.approx(summary["ssd_lifetime_years"], rel=1e-12)


def test_bytes_moved_and_back_in_one_step_are_not_written() -> None:
    """A promotion that finds no room leaves no trace in the moves: only net changes count."""
    trace = make_trace([[0], [1], [1, 0]], gap_us=LATE_US)
    engine = run(trace, Scripted({0: "dram raw", 1: "ssd raw", (2, 1): "dram raw"}), tiers=two_tiers(1))
    assert {0: "dram raw", 1: "ssd raw"} == stored(engine)
    assert (1, 2) == (engine.store.counts.refused, len(moves_frame(engine)))
