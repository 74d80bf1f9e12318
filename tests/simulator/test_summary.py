"""The summary: every figure recomputed from the rows alone, what is measured, and the bootstrap interval."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simkv.errors import ConfigError
from simkv.simulator.metrics import Result, requests_frame
from simkv.simulator.run import simulate
from simkv.simulator.summary import measured_rows
from simkv.traces.generate import generate_trace
from simkv.traces.trace import Trace
from tests.simulator.helpers import make_profile, make_trace, run
from tests.simulator.test_metrics import result_of


@pytest.fixture(scope="module")
def chats() -> Trace:
    """Chats in blocks of 512 tokens."""
    return generate_trace("sessions", seed=1, sessions=20)


@pytest.fixture(scope="module")
def result(chats: Trace) -> Result:
    """A run that compresses, demotes and evicts, of which a part is measured."""
    return result_of(chats, measure="revisits", warmup="10 %")


# --- the summary ------------------------------------------------------------------------------------------------------


def test_summary_from_the_rows_alone(result: Result) -> None:
    """Every figure of the summary recomputed in plain Python from the saved rows and moves."""
    rows = result.requests[result.requests["measured"]].to_dict("records")
    assert 0 < len(rows) < len(result.requests)
    ttft = sorted(row["ttft_s"] for row in rows)
    tokens = sum(row["input_tokens"] for row in rows)
    moves = result.moves.astype(str).to_dict("records")
    written = {tier: sum(int(m["bytes"]) for m in moves if m["to_tier"] == tier) for tier in ("dram", "ssd")}
    expected = {
        "requests": len(rows),
        "ttft_mean_s": math.fsum(ttft) / len(ttft),
        "ttft_p50_s": _quantile(ttft, 0.5),
        "ttft_p90_s": _quantile(ttft, 0.9),
        "ttft_p99_s": _quantile(ttft, 0.99),
        "queue_mean_s": math.fsum(row["queue_s"] for row in rows) / len(rows),
        "quality_mean": math.fsum(row["quality"] for row in rows) / len(rows),
        "token_hit_ratio": sum(row["hit_tokens"] for row in rows) / tokens,
        "block_hit_ratio": sum(row["hit_blocks"] for row in rows) / sum(row["blocks"] for row in rows),
        **{f"request_share_{name}": _share(rows, name) for name in ("dram", "ssd", "recompute")},
        **{f"token_share_{name}": sum(row[f"tokens_{name}"] for row in rows) / tokens for name in ("dram", "ssd")},
        **{f"written_bytes_{name}": written[name] for name in ("dram", "ssd")},
        "ssd_written_bytes": written["ssd"],
        "recodings": sum(m["from_tier"] != "" != m["to_tier"] and m["from_variant"] != m["to_variant"] for m in moves),
        "makespan_s": max(row["arrival_s"] + row["ttft_s"] for row in result.requests.to_dict("records")),
    }
    for name in ("ssd_written_bytes", "recodings"):
        expected[f"{name}_per_request"] = expected[name] / len(result.requests)
    expected["ssd_lifetime_years"] = 10**13 / (written["ssd"] / expected["makespan_s"]) / (365.25 * 86_400)
    assert expected == pytest.approx({name: result.summary[name] for name in expected}, rel=1e-9)
    assert min(written.values()) > 0 and expected["recodings"] > 0


def _quantile(values: list[float], share: float) -> float:
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def _share(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row["served_by"] == name for row in rows) / len(rows)


def test_summary_names_what_ran(result: Result) -> None:
    """Policy, its parameters and the seed are in the summary."""
    assert ("adaptcache", 100.0, 3) == (
        result.summary["policy"],
        result.summary["params"]["alpha"],
        result.summary["seed"],
    )


def test_lifetime_without_endurance_is_unknown() -> None:
    """No endurance budget, no lifetime."""
    assert simulate(make_trace([[0]]), make_profile()).summary["ssd_lifetime_years"] is None


def test_measured_rows() -> None:
    """Warm-up by share of the requests or by seconds of the trace; revisits only on demand; never nothing."""
    revisit, arrival = np.array([False, True, False, True]), np.array([0.0, 1.0, 2.0, 3.0])
    assert [True] * 4 == measured_rows(revisit, arrival, "all", ("s", 0.0)).tolist()
    assert [False, True, True, True] == measured_rows(revisit, arrival, "all", ("s", 1.0)).tolist()
    assert [False, False, True, True] == measured_rows(revisit, arrival, "all", ("share", 0.5)).tolist()
    assert [False, False, False, True] == measured_rows(revisit, arrival, "revisits", ("s", 1.5)).tolist()
    with pytest.raises(ConfigError, match="leave none of 4 requests"):
        measured_rows(revisit, arrival, "revisits", ("s", 4.0))


def test_revisits_are_blocks_of_earlier_requests() -> None:
    """A request is a revisit if an earlier one asked for one of its blocks; asking twice does not make it one."""
    engine = run(make_trace([[0, 0], [1], [], [2, 1]]))
    assert [False, False, False, True] == requests_frame(engine)["revisit"].tolist()


def test_warm_up_leaves_the_run_alone(chats: Trace, result: Result) -> None:
    """Leaving requests out of the summary changes nothing else."""
    whole = result_of(chats)
    columns = [name for name in whole.requests if name != "measured"]
    pd.testing.assert_frame_equal(whole.requests[columns], result.requests[columns])
    pd.testing.assert_frame_equal(whole.moves, result.moves)
