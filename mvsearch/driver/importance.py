"""Importance of the factors of a layout, by Optuna's PED-ANOVA, computed from records alone.

The parameters a sampler sees (flip slots, rules) are not what people ask about, so a study in memory is made of what
they do ask about: width, and of each stage its attention share (parallel share, …), placement, state and depth.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from mvsearch.analysis.facts import StageFacts, comparable, placed_letter
from mvsearch.study.data import StudyData
from mvsearch.study.front import point_of

MIN_LAYOUTS_RANKED = 20
"""Fewer layouts say nothing."""


BEST_SHARE = 0.1
"""The share of the layouts that counts as the best: of five at least, as Optuna advises."""


def importances(study: StudyData) -> dict[str, dict[str, float]] | None:
    """Share of each factor that varies, adding up to 1, for quality, for throughput, and for both (rank of dominance).

    Returns:
        ``{"quality": {"width": 0.6, "stage 2 attention share": …}, "throughput": …, "both": …}``; None where fewer than
        `MIN_LAYOUTS_RANKED` layouts can be compared, or nothing varies.
    """
    trials = []
    layouts = comparable(study)
    pairs = [(r, facts, point) for r, facts in layouts if (point := point_of(r, study.measure))]
    if len(pairs) < MIN_LAYOUTS_RANKED:
        return None
    words = {fact.number: placed_letter(layouts, fact.number).word for fact in pairs[0][1]}
    rows = [_factors(facts, words) for _, facts, _ in pairs]
    distributions = _distributions(rows)
    if not distributions:
        return None
    for row, (_, _, point) in zip(rows, pairs, strict=True):
        known = {name: value for name, value in row.items() if name in distributions}
        trials.append(
            optuna.trial.create_trial(
                params=known,
                distributions={name: distributions[name] for name in known},
                values=[-point.quality, -point.throughput],
            )
        )
    # PED-ANOVA asks what reaches low values, whatever the directions of the study, so both are turned around.
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(directions=["minimize", "minimize"])
    optuna.logging.set_verbosity(verbosity)
    made.add_trials(trials)
    targets = {"quality": lambda t: t.values[0], "throughput": lambda t: t.values[1], "both": None}
    quantile = max(BEST_SHARE, 5 / len(trials))
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, target in targets.items():
            evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
            shares = optuna.importance.get_param_importances(
                made, evaluator=evaluator, params=list(distributions), target=target
            )
            found[name] = dict(shares)
    return found


def _factors(facts: Sequence[StageFacts], words: Mapping[int, str]) -> dict[str, float | str]:
    """The factors of one layout by name; `words` are those of the letters whose share is told, by stage."""
    row: dict[str, float | str] = {"width": float(facts[0].dim)}
    for fact in facts:
        name = f"stage {fact.number}"
        row[f"{name} depth"] = float(len(fact.blocks))
        if fact.number > 1:
            row[f"{name} width over stage 1"] = fact.dim / facts[0].dim
        if fact.hybrid:
            row[f"{name} {words[fact.number]} share"] = fact.share
            row[f"{name} placement"] = fact.placement
            if fact.state is not None:
                row[f"{name} state"] = float(fact.state)
    return row


def _distributions(rows: Sequence[Mapping[str, float | str]]) -> dict[str, BaseDistribution]:
    """A distribution for each factor that varies."""
    values: dict[str, set[float | str]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, set()).add(value)
    found: dict[str, BaseDistribution] = {}
    for name, seen in values.items():
        if len(seen) < 2:
            continue
        if any(isinstance(value, str) for value in seen):
            found[name] = CategoricalDistribution(sorted(str(value) for value in seen))
        else:
            numbers = [float(value) for value in seen]
            found[name] = FloatDistribution(min(numbers), max(numbers))
    return found
