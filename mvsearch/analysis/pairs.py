"""Effects by least squares on the differences of matched pairs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


MIN_TRIALS = 3
"""A kind with fewer layouts (for pairs: fewer that have a partner of another kind) is not compared."""


MIN_FREEDOM = 4
"""Fewer degrees of freedom left after the fit give intervals too wide to read."""


def joined_within(sets: Sequence[Hashable], costs: Sequence[float], caliper: float | None) -> NDArray[np.bool_]:
    """Whether two layouts are a pair, shape (n, n): of one set, and close in log cost."""
    known = {one: number for number, one in enumerate(dict.fromkeys(sets))}
    group = np.array([known[one] for one in sets])
    joined: NDArray[np.bool_] = group[:, None] == group[None, :]
    if caliper is not None:
        cost = np.array(costs)
        joined &= np.abs(cost[:, None] - cost[None, :]) <= caliper
    np.fill_diagonal(joined, False)
    return joined


def paired_differences(
    kinds: Sequence[str],
    values: NDArray[np.float64],
    joined: NDArray[np.bool_],
    reference: str,
    covariates: Sequence[NDArray[np.float64]] = (),
) -> dict[str, tuple[int, tuple[float, float, float]]]:
    """Each kind minus the reference kind, by least squares on the differences of matched pairs.

    Args:
        kinds: of each layout, length n.
        values: outcome of each layout, shape (n,); noise is taken as independent between layouts.
        joined: which layouts are pairs, symmetric, shape (n, n).
        reference: the kind that others are compared with.
        covariates: numbers of each layout that are held equal linearly, each of shape (n,).

    Returns:
        For each kind that can be told: its number of pairs with layouts of another kind, and (value, low, high), the
        ends at 95 %. Kinds with fewer than `MIN_TRIALS` paired layouts, kinds that no chain of pairs joins to the
        reference, and everything where fewer than `MIN_FREEDOM` degrees of freedom are left, are left out.
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.special import stdtrit

    paired = joined.any(axis=1)  # of a thousand layouts most may have no partner
    kind, values, joined = np.array(kinds)[paired], values[paired], joined[np.ix_(paired, paired)]
    covariates = [column[paired] for column in covariates]
    differs = joined & (kind[:, None] != kind[None, :])
    kept = {str(k) for k in set(kind) if differs[kind == k].any(axis=1).sum() >= MIN_TRIALS}
    inside = np.array([k in kept for k in kind], dtype=bool)
    joined = joined & inside[:, None] & inside[None, :]
    differs &= joined
    if reference not in kept:
        return {}
    # Kinds that a chain of pairs joins to the reference.
    names = sorted(kept)
    links = [[bool(differs[np.ix_(kind == a, kind == b)].any()) for b in names] for a in names]
    part = connected_components(np.array(links), directed=False)[1]
    names = [name for name, p in zip(names, part, strict=True) if p == part[names.index(reference)]]
    inside = np.isin(kind, names)
    joined = joined & inside[:, None] & inside[None, :]
    others = [name for name in names if name != reference]
    if not others:
        return {}
    degree = joined.sum(axis=1)
    # In a set where all pair with all of m, each pair weighs 1/m: the least squares of a fixed effect of the set.
    weights = np.where(joined, 2.0 / (degree[:, None] + degree[None, :] + 2.0), 0.0)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    columns = [(kind == name).astype(float) for name in others] + [c for c in covariates if np.ptp(c[inside]) > 0]
    design = np.column_stack(columns)
    normal = design.T @ laplacian @ design
    sets = connected_components(joined, directed=False)[0] - int((degree == 0).sum())
    rank = int(np.linalg.matrix_rank(normal, tol=1e-9 * max(1.0, float(np.abs(normal).max()))))
    freedom = int((degree > 0).sum()) - sets - rank
    if freedom < MIN_FREEDOM:
        return {}
    inverse = np.linalg.pinv(normal, hermitian=True, rcond=1e-9)
    coefficients = inverse @ design.T @ laplacian @ values
    residuals = values - design @ coefficients
    middle = design.T @ laplacian @ laplacian @ design
    spare = float(np.trace(laplacian) - np.trace(inverse @ middle))
    variance = float(residuals @ laplacian @ residuals) / spare
    covariance = variance * inverse @ middle @ inverse
    quantile = float(stdtrit(freedom, 0.975))
    determined = np.isclose(np.diag(inverse @ normal), 1.0, atol=1e-6)
    found = {}
    for position, name in enumerate(others):
        if not determined[position]:
            continue
        value = float(coefficients[position])
        half = quantile * math.sqrt(max(float(covariance[position, position]), 0.0))
        number = int(differs[kind == name].sum())
        found[name] = (number, (value, value - half, value + half))
    return found
