"""The model of quality: a Gaussian process over the features of a layout."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel, Matern, WhiteKernel

RESTARTS = 2
_JITTER = 1e-8


@dataclass(frozen=True)
class Hyperparameters:
    """What the likelihood decides.

    Attributes:
        kernel: constant × Matern 5/2, in units of the standardised quality.
        noise: variance of one training's quality, in the same units.
    """

    kernel: Kernel
    noise: float


def fit_hyperparameters(rows: np.ndarray, values: np.ndarray, variances: np.ndarray, seed: int) -> Hyperparameters:
    """Maximise the marginal likelihood, from one start and `RESTARTS` random ones.

    Trainings of one layout with several seeds are rows of their own: equal features with unequal values are what tells
    noise from signal.

    Args:
        rows: features, (n, features).
        values: qualities, (n,).
        variances: what each is less certain by than a full training, (n,).
        seed: of the restarts.
    """
    centre, scale = _standard(values)
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(3.0, (0.3, 100.0), nu=2.5) + WhiteKernel(0.1, (1e-4, 2.0))
    process = GaussianProcessRegressor(
        kernel, alpha=variances / scale**2 + _JITTER, n_restarts_optimizer=RESTARTS, random_state=seed
    )
    with warnings.catch_warnings():
        # A value at its bound (no noise to be seen in few trials) is no news.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(rows, (values - centre) / scale)
    return Hyperparameters(process.kernel_.k1, float(process.kernel_.k2.noise_level))


def _standard(values: np.ndarray) -> tuple[float, float]:
    scale = float(values.std())
    return float(values.mean()), scale if scale > 0 else 1.0


class QualityModel:
    """The posterior given some trainings, of the quality without its noise.

    Args:
        rows: features, (n, features).
        values: qualities, (n,).
        variances: what each is less certain by than a full training, (n,).
        hyperparameters: from `fit_hyperparameters`, of these or of fewer trainings.
    """

    def __init__(
        self, rows: np.ndarray, values: np.ndarray, variances: np.ndarray, hyperparameters: Hyperparameters
    ) -> None:
        self._rows = rows
        self._kernel, self._noise = hyperparameters.kernel, hyperparameters.noise
        self._centre, self._scale = _standard(values)
        self._own_noise = self._noise + variances / self._scale**2 + _JITTER
        covariance = self._kernel(rows)
        covariance[np.diag_indices_from(covariance)] += self._own_noise
        self._factor = cholesky(covariance, lower=True)
        standard = (values - self._centre) / self._scale
        half = solve_triangular(self._factor, standard, lower=True)
        self._weights = solve_triangular(self._factor, half, lower=True, trans=1)
        self._standard_values = standard

    def fitted(self) -> np.ndarray:
        """Posterior mean at each of its own rows, (n,)."""
        return self._centre + self._scale * (self._standard_values - self._own_noise * self._weights)

    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation that the model would predict for each value without it, noise included, (n,)."""
        inverse = solve_triangular(self._factor, np.eye(len(self._weights)), lower=True)
        precision = (inverse**2).sum(axis=0)
        means = self._standard_values - self._weights / precision
        return self._centre + self._scale * means, self._scale / np.sqrt(precision)

    def predict(self, rows: np.ndarray) -> Predictions:
        """The posterior at other rows, (m, features)."""
        across = self._kernel(self._rows, rows)
        explained = solve_triangular(self._factor, across, lower=True, check_finite=False)
        variance = self._kernel.diag(rows) - np.einsum("ij,ij->j", explained, explained)
        means = self._centre + self._scale * (self._weights @ across)
        return Predictions(self._kernel, rows, means, variance, explained, self._noise, self._scale)


class Predictions:
    """The posterior at m rows, which learns that some of them are being trained.

    Attributes:
        means: (m,).
    """

    def __init__(
        self,
        kernel: Kernel,
        rows: np.ndarray,
        means: np.ndarray,
        variance: np.ndarray,
        explained: np.ndarray,
        noise: float,
        scale: float,
    ) -> None:
        self.means = means
        self._kernel, self._rows, self._noise, self._scale = kernel, rows, noise, scale
        self._variance = variance
        self._explained = explained
        self._learnt = np.zeros((0, len(rows)))

    @property
    def deviations(self) -> np.ndarray:
        """Standard deviations, (m,)."""
        return self._scale * np.sqrt(np.maximum(self._variance, 0.0))

    def expect(self, indices: Sequence[int]) -> None:
        """Take rows as trained, with their means for results: no mean changes, what is near is better known."""
        if not len(indices):
            return
        chosen = list(indices)
        covariance = self._kernel(self._rows[chosen], self._rows)
        covariance -= self._explained[:, chosen].T @ self._explained
        covariance -= self._learnt[:, chosen].T @ self._learnt
        own = covariance[:, chosen]
        own[np.diag_indices_from(own)] = np.maximum(np.diag(own), 0.0) + self._noise + _JITTER
        learnt = solve_triangular(cholesky(own, lower=True), covariance, lower=True)
        self._learnt = np.concatenate([self._learnt, learnt])
        self._variance = self._variance - np.einsum("ij,ij->j", learnt, learnt)


def modelled(fronts: Sequence[int], limit: int) -> list[int]:
    """Which of many layouts the model holds: half of them nearest the front, half the most recent.

    Args:
        fronts: of each layout, in the order of time, on how many-th front it lies.
        limit: how many to keep.

    Returns:
        Indices, rising.
    """
    if len(fronts) <= limit:
        return list(range(len(fronts)))
    recent = set(range(len(fronts) - limit // 2, len(fronts)))
    nearest = sorted((i for i in range(len(fronts)) if i not in recent), key=lambda i: (fronts[i], -i))
    return sorted(recent | set(nearest[: limit - len(recent)]))
