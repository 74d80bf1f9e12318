"""Whether a profile's numbers agree with one another, for ``simkv profile check``.

What it is: measured size ratios against the stored bytes in the rows.  What it is not: the checks of single values,
which every reading of a profile makes (``profile_files.py``).
"""

from simkv.errors import ProfileError
from simkv.profile_types import RAW, Profile

__all__ = ["check_sizes"]

_TOLERANCE = 1e-6
_PLACE = ["task", "sample"]


def check_sizes(profile: Profile) -> None:
    """Raises ProfileError where a measured size ratio is not stored / raw bytes over the rows that have both."""
    ratios, rows = profile.size_ratios.get("measured"), profile.quality
    if ratios is None or "stored_bytes" not in rows:
        return
    raw = rows[rows["variant"] == str(RAW)].set_index(_PLACE)["stored_bytes"]
    if raw.empty:
        return
    for variant, ratio in ratios.items():
        stored = rows[rows["variant"] == str(variant)].set_index(_PLACE)["stored_bytes"]
        both = stored.index.intersection(raw.index)
        if both.empty:
            continue
        found = float(stored[both].sum() / raw[both].sum())
        if abs(found - ratio) > _TOLERANCE * found:
            raise ProfileError(
                f"profile {profile.name}: [sizes.measured] has a ratio of {ratio:g} for {variant}; "
                f"the stored bytes of its rows are {found:g} of raw"
            )
