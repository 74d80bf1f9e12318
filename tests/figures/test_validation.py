"""The validation's distributions show what waits for a processor did, where there were any."""

import pandas as pd

from simkv.figures import validation_cdf


def _titles(unwaited: list[float]) -> list[str]:
    rows = pd.DataFrame(
        {
            "policy": ["lru"] * 2,
            "served_by": ["dram", "recompute"],
            "predicted_ttft_s": [0.001, 0.002],
            "measured_ttft_s": [0.002, 0.004],
            "measured_unwaited_s": unwaited,
        }
    )
    return [" ".join(text.get_text().split()) for text in validation_cdf(rows).legends[0].get_texts()]


def test_times_without_waits_are_a_third_curve() -> None:
    """It is drawn when it differs from what was measured, and not twice over each other when it does not."""
    assert ["measured", "predicted", "measured, without waits for a processor"] == _titles([0.001, 0.003])
    assert ["measured", "predicted"] == _titles([0.002, 0.004])
