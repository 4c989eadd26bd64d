"""Curves drawn in one line with Unicode blocks."""

from collections.abc import Sequence

import numpy as np
from rich.console import ConsoleOptions, RenderResult
from rich.measure import Measurement

from nanoevolve_jax.terminal.console import Console, plain

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-~=+*#"  # for terminals whose encoding lacks blocks
GAP = " "  # for values that are not finite
_LEVEL = 3  # level of a constant curve


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """Returns the values as blocks, the lowest as ▁ and the highest as █.

    Args:
      values: Evenly spaced values; those that are not finite leave a gap.
      width: Maximum number of characters. More values are averaged in that many equal parts.
      blocks: Characters from the lowest level to the highest.

    Returns:
      One character per value, and at most `width`.
    """
    heights = np.asarray(values, np.float64)
    finite = np.isfinite(heights)
    if width < 1 or not finite.any():
        return GAP * max(0, min(width, len(heights)))
    largest = np.abs(heights[finite]).max()
    heights = np.where(finite, heights, 0.0) / (largest or 1.0)  # now no sum can overflow
    parts = min(width, len(heights))
    sums, counts = (
        np.array([part.sum() for part in np.array_split(x, parts)]) for x in (heights, finite)
    )
    shown = counts > 0
    means = sums / np.maximum(counts, 1)
    low, high = means[shown].min(), means[shown].max()
    if low == high:
        return "".join(blocks[_LEVEL] if there else GAP for there in shown)
    share = np.clip((means - low) / (high - low), 0.0, 1.0)
    level = np.minimum(share * len(blocks), len(blocks) - 1).astype(int)
    return "".join(blocks[i] if there else GAP for i, there in zip(level, shown, strict=True))


class Curve:
    """A sparkline that takes the available width."""

    def __init__(self, values: Sequence[float], most: int = 60):
        """Stores the values; `most` is the maximum width in characters."""
        self._values, self._most = values, most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        blocks = ASCII if options.ascii_only else BLOCKS
        width = min(options.max_width, self._most)
        yield plain(sparkline(self._values, width, blocks), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, min(options.max_width, self._most)))
