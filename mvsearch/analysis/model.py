"""Effects by a Gaussian process over features of a layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mvsearch.analysis.facts import LayoutFacts, StageFacts, log_cost, outcome_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


MIN_MODEL = 20
"""Fewer layouts do not make a model."""


MIN_SKILL = 0.3
"""A model that explains less of the variance of layouts it has not seen is not used: of 40 layouts of pure noise a fit
of a dozen features seems to explain a fifth."""


_FIT_ON = 150


def feature(fact: StageFacts, name: str) -> float:
    """One number about a stage.

    ``"share"`` of attention blocks (0 to 1), their ``"centre"`` (0 to 1; 0.5 where there are none), ``"turns"``
    (changes of letter over neighbours), ``"depth"`` (blocks), else log2 of the state size (nan where nothing scans).
    """
    if name == "share":
        return fact.share
    if name == "centre":
        return 0.5 if fact.centre is None else fact.centre
    if name == "turns":
        changes = sum(a != b for a, b in zip(fact.blocks, fact.blocks[1:], strict=False))
        return changes / max(1, len(fact.blocks) - 1)
    if name == "depth":
        return float(len(fact.blocks))
    return math.nan if fact.state is None else math.log2(fact.state)


@dataclass
class OutcomeModel:
    """A Gaussian process of an outcome over features of a layout, the matched cost among them; width is not, so that
    "at equal parameters" means: as wide as the parameters allow."""

    names: list[tuple[int, str]]
    outcome: str
    matched: str
    means: NDArray[np.float64]
    scales: NDArray[np.float64]
    centre: float
    spread: float
    process: Any
    skill: float
    widening: float

    @classmethod
    def fit(cls, pairs: Sequence[LayoutFacts], outcome: str, matched: str) -> OutcomeModel | None:
        import warnings

        from scipy.special import stdtrit
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

        pairs = pairs[:: max(1, -(-len(pairs) // 600))]
        facts = pairs[0][1]
        names = [
            (fact.number, name)
            for fact in facts
            for name in (("share", "centre", "turns", "depth", "state") if fact.hybrid else ("depth",))
        ] + [(fact.number, "dim") for fact in facts[1:]]
        names.append((0, matched))
        raw = feature_table(pairs, names)
        means = np.nan_to_num(np.nanmean(raw, axis=0))
        raw = np.where(np.isnan(raw), means, raw)
        scales = raw.std(axis=0)
        kept = scales > 1e-9
        if not kept[-1]:
            return None
        names = [name for name, keep in zip(names, kept, strict=True) if keep]
        x = (raw[:, kept] - means[kept]) / scales[kept]
        values = np.array([outcome_of(record, outcome) or 0.0 for record, _ in pairs])
        spread = float(values.std())
        if spread == 0:
            return None
        y = (values - values.mean()) / spread
        # A long length scale calls a feature irrelevant and so any effect of it certain to be nought. The linear part
        # keeps every feature open: a standard deviation of it may move the outcome by a quarter of one, at least.
        curved = ConstantKernel(0.5, (0.01, 20.0)) * Matern(np.full(x.shape[1], 3.0), (0.5, 20.0), nu=2.5)
        linear = ConstantKernel(0.1, (0.06, 2.0)) * DotProduct(0.0, "fixed")
        kernel = curved + linear + WhiteKernel(0.1, (1e-4, 2.0))
        some = np.random.default_rng(0).permutation(len(y))[:_FIT_ON]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = GaussianProcessRegressor(kernel, random_state=0).fit(x[some], y[some])
            process = GaussianProcessRegressor(fitted.kernel_, optimizer=None).fit(x, y)
        inverse = np.linalg.inv(process.kernel_(x))
        left_out = (inverse @ y) / np.diag(inverse)  # errors of leaving one out, in closed form
        skill = 1.0 - float(np.mean(left_out**2) / np.mean(y**2))
        # The posterior takes the fitted noise for the true one, which is too small by what the fit has used up.
        noise = float(process.kernel_.k2.noise_level)
        freedom = max(2.0, noise * float(np.trace(inverse)))
        widening = float(stdtrit(freedom, 0.975)) * math.sqrt(len(y) / freedom)
        return cls(
            names, outcome, matched, means[kept], scales[kept], float(values.mean()), spread, process, skill, widening
        )

    def contrasts(
        self, contexts: Sequence[LayoutFacts], settings: Sequence[dict[tuple[int, str], float]]
    ) -> list[tuple[float, float, float]]:
        """Each setting after the first, minus the first, averaged over contexts, with its 95 % interval.

        Args:
            contexts: layouts whose other features and cost are kept.
            settings: values of features by (stage, name).
        """
        base = feature_table(contexts, self.names)
        base = np.where(np.isnan(base), self.means, base)
        rows = []
        for setting in settings:
            changed = base.copy()
            for name, value in setting.items():
                if name in self.names:
                    changed[:, self.names.index(name)] = value
            rows.append((changed - self.means) / self.scales)
        noise_free = self.process.kernel_.k1
        n = len(contexts)
        x, known = np.vstack(rows), self.process.X_train_
        cross = noise_free(x, known)
        mean = cross @ self.process.alpha_
        from scipy.linalg import cho_solve

        cov = noise_free(x) - cross @ cho_solve((self.process.L_, True), cross.T)
        found = []
        for number in range(1, len(settings)):
            pick = np.zeros(len(x))
            pick[number * n : (number + 1) * n] = 1 / n
            pick[:n] = -1 / n
            value = self.spread * float(pick @ mean.ravel())
            half = self.widening * self.spread * math.sqrt(max(float(pick @ cov @ pick), 0.0))
            found.append((value, value - half, value + half))
        return found


def feature_table(pairs: Sequence[LayoutFacts], names: Sequence[tuple[int, str]]) -> NDArray[np.float64]:
    """Features of layouts, shape (layouts, names); nan where a stage has no state."""
    rows = []
    for record, facts in pairs:
        row = []
        for stage, name in names:
            if stage == 0:
                row.append(log_cost(record, name))
            elif name == "dim":
                row.append(math.log2(facts[stage - 1].dim / facts[0].dim))
            else:
                row.append(feature(facts[stage - 1], name))
        rows.append(row)
    return np.array(rows, dtype=float).reshape(len(pairs), len(names))
