"""Expected hypervolume improvement in closed form, for many layouts at once.

The same sum over the segments of the front as `mvsearch.samplers.halving.expected_hypervolume_gain`, which explains it.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from mvsearch.study.front import Point, pareto_front


def expected_excess(mean: np.ndarray, deviation: np.ndarray, level: np.ndarray) -> np.ndarray:
    """E[max(0, Y − level)] for normal Y, over arrays that broadcast; a deviation of 0 means that Y is known."""
    gap = mean - level
    known = deviation < 1e-12
    safe = np.where(known, 1.0, deviation)
    # Beyond 30 standard deviations nothing is left of the tail, and squares would overflow.
    z = np.clip(gap / safe, -30.0, 30.0)
    uncertain = gap * ndtr(z) + safe * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return np.maximum(0.0, np.where(known, gap, uncertain))


def expected_hypervolume_gains(
    mean: np.ndarray,
    deviation: np.ndarray,
    throughput: np.ndarray,
    throughput_deviation: np.ndarray,
    front: list[Point],
    reference: tuple[float, float],
) -> np.ndarray:
    """Hypervolume that each of n layouts is expected to add to a front.

    Quality and throughput are normal and independent, so the expectation of a product is the product of expectations:
    of each segment of the front, E[width below the layout's throughput] × E[quality above the front's level].

    Args:
        mean: of the quality, (n,).
        deviation: its standard deviation, 0 or more, (n,).
        throughput: mean of log2 ratio, (n,).
        throughput_deviation: its standard deviation, (n,); 0 where it was measured.
        front: any points; dominated ones do not matter.
        reference: (quality, throughput) of the corner from which hypervolume is measured.

    Returns:
        The gains, (n,), 0 or more.
    """
    low_quality, low_throughput = reference
    members = pareto_front(p for p in front if p.quality > low_quality and p.throughput > low_throughput)
    edges = np.array([low_throughput, *(p.throughput for p in members)])
    levels = np.array([*(p.quality for p in members), low_quality])
    beyond = expected_excess(throughput[:, None], throughput_deviation[:, None], edges)
    # The width of a segment below the throughput is what exceeds its left edge minus what exceeds its right one.
    widths = beyond - np.concatenate([beyond[:, 1:], np.zeros((len(mean), 1))], axis=1)
    return (widths * expected_excess(mean[:, None], deviation[:, None], levels)).sum(axis=1)
