"""PyramidKV: SnapKV with budgets that fall from the first layer to the last."""

from dataclasses import dataclass
from typing import ClassVar

from simkv.profiler.compressors.base import CompressorError, Shape
from simkv.profiler.compressors.dropping import kept_tokens
from simkv.profiler.compressors.snapkv import SnapKV

__all__ = ["PyramidKV"]


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """PyramidKV (https://arxiv.org/abs/2406.02069): SnapKV's choice, an arithmetic sequence of budgets.

    With B tokens per layer to spend besides the window, the last layer gets B / ``beta``, the first as much more than B
    as the last has less; when that exceeds the context, the first keeps all of it and the last gets more.  Layers
    end up with different lengths.

    Knob: retention ratio, the fraction of tokens kept, mean over layers, the window included.
    """

    name: ClassVar[str] = "pyramidkv"

    beta: float = 20.0

    def __post_init__(self) -> None:
        """Raises CompressorError for a pyramid upside down, see SnapKV too."""
        super().__post_init__()
        if not self.beta >= 1:
            raise CompressorError(f"compressor pyramidkv: beta {self.beta} is below 1")

    def counts(self, shape: Shape, retention: float) -> list[int]:
        """Tokens kept per layer; their sum is that of SnapKV, up to rounding."""
        kept = kept_tokens(shape.tokens, retention)
        budget = kept - self.window
        if budget <= 0 or shape.layers == 1:
            return [kept] * shape.layers
        first = min(2 * budget - budget / self.beta, shape.tokens - self.window)
        last = 2 * budget - first
        step = (first - last) / (shape.layers - 1)
        return [self.window + max(1, round(first - layer * step)) for layer in range(shape.layers)]
