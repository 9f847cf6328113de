"""Insight in words and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


from mambavision.layout import Letter
from mvsearch.analysis.insight import MODEL, PAIRS, REFERENCE, Effect, FactorComparison, Insight
from mvsearch.analysis.model import MIN_MODEL, MIN_SKILL
from mvsearch.analysis.pairs import MIN_TRIALS
from mvsearch.report.words import listed, plural
from mvsearch.study.measure import Measure

NOT_ENOUGH = "not enough trials to say"
OUTCOME_NAMES: dict[str, str] = {**{measure: measure.label for measure in Measure}, "throughput": "throughput"}
MATCH_NAMES = {"params": "at equal parameters", "throughput": "at equal throughput", "rest": "all else equal"}


def factor_words(factor: str, placed: Letter) -> str:
    """What a factor is called, e.g. ``"placement of attention"``, after the letter whose share and place are told."""
    return {
        "share": f"{placed.word} share",
        "placement": f"placement of {placed.noun or placed.word}",
        "state": "state size",
        "width": "width of stage 1",
    }[factor]


def displayed(value: float, outcome: str) -> float:
    """From an outcome's unit to the one that is shown: a factor for throughput, points for top-1, NLL as itself."""
    if outcome == "throughput":
        return float(2**value)
    return Measure(outcome).shown(value)


def effect_words(effect: Effect, outcome: str) -> str:
    """An effect and its interval in words, e.g. ``"1.120× (1.050× to 1.200×)"``; `NOT_ENOUGH` without them.

    NLL is given as itself, so that a lower one is better.
    """
    if effect.source == REFERENCE:
        return "the reference"
    if effect.value is None or effect.low is None or effect.high is None:
        return NOT_ENOUGH
    value = displayed(effect.value, outcome)
    ends = sorted((displayed(effect.low, outcome), displayed(effect.high, outcome)))
    if outcome == "throughput":
        return f"{value:.3f}× ({ends[0]:.3f}× to {ends[1]:.3f}×)"
    measure = Measure(outcome)
    texts = [f"{v:+.{measure.digits}f}".replace("-", "−") for v in (value, *ends)]
    return f"{texts[0]} {measure.unit} ({texts[1]} to {texts[2]})"


def effect_short(effect: Effect, outcome: str) -> str:
    """An effect for a narrow table, ``"−0.014 ±0.020 p110"`` (from 110 pairs) or ``"1.037× ±0.019 m"`` (the model)."""
    if effect.source == REFERENCE:
        return "reference"
    if effect.value is None or effect.low is None or effect.high is None:
        return "–"
    half = abs(displayed(effect.high, outcome) - displayed(effect.low, outcome)) / 2
    value = displayed(effect.value, outcome)
    digits = 3 if outcome == "throughput" else Measure(outcome).digits
    text = f"{value:.{digits}f}×" if outcome == "throughput" else f"{value:+.{digits}f}"
    source = f"p{effect.pairs}" if effect.source == PAIRS else "m"
    return f"{text} ±{half:.{digits}f} {source}".replace("-", "−")


def source_words(effect: Effect) -> str:
    """Where an effect comes from, e.g. ``"12 pairs"``, ``"model"``; empty without an interval."""
    if effect.low is None:
        return ""
    return plural(effect.pairs, "pair") if effect.source == PAIRS else "model"


def comparison_words(comparison: FactorComparison) -> str:
    """What a comparison says, and what it cannot say, as one sentence without its subject."""
    better, worse = ("faster", "slower") if comparison.outcome == "throughput" else ("better", "worse")
    what = f"{OUTCOME_NAMES[comparison.outcome]} {MATCH_NAMES[comparison.matched]}"
    texts = []
    for word, some in (
        (better, [e for e in comparison.known if e.clear and (e.value or 0) > 0]),
        (worse, [e for e in comparison.known if e.clear and (e.value or 0) < 0]),
    ):
        if some:
            each = [f"{e.label} by {_inside(effect_words(e, comparison.outcome))}, {source_words(e)}" for e in some]
            texts.append(f"{word} than {comparison.reference}: {'; '.join(each)}")
    unclear = [e for e in comparison.known if not e.clear]
    if unclear:
        sources = listed(sorted({"the model" if e.source == MODEL else PAIRS for e in unclear}))
        texts.append(f"cannot be told from {comparison.reference}: {listed([e.label for e in unclear])} (by {sources})")
    silent = [e.label for e in comparison.effects if e.source is None and e.label != comparison.reference]
    if not comparison.known:
        return f"{what}: {NOT_ENOUGH}."
    if silent:
        texts.append(f"{NOT_ENOUGH} about {listed(silent)}")
    return f"{what}: {'; '.join(texts)}."


def headlines(insight: Insight) -> list[str]:
    """What a study says about placement and ratio in quality, at equal parameters, a sentence a stage and factor."""
    said = []
    for stage in insight.stages:
        what = insight.placed(stage).noun or insight.placed(stage).word
        for factor, question in (("placement", f"where {what} stands"), ("share", f"how much {what}")):
            one = insight.compare(stage, factor, insight.study.measure, "params")
            if len(one.effects) < 2:
                continue
            clear = [e for e in one.known if e.clear]
            start = f"Stage {stage}, {question}: "
            if not one.known:
                said.append(f"{start}{NOT_ENOUGH}.")
            elif not clear:
                said.append(
                    f"{start}no difference to “{one.reference}” that can be told "
                    f"({listed([e.label for e in one.known])} compared)."
                )
            else:
                each = [
                    f"“{e.label}” is {'better' if (e.value or 0) > 0 else 'worse'} than “{one.reference}” by "
                    f"{_size_words(e, one.outcome)}"
                    for e in clear
                ]
                said.append(f"{start}{'; '.join(each)}.")
    return said


def _size_words(effect: Effect, outcome: str) -> str:
    """The size of a clear effect on quality, e.g. ``"0.016 nats (95 %: 0.001 to 0.031)"``."""
    value, *ends = (abs(displayed(v or 0.0, outcome)) for v in (effect.value, effect.low, effect.high))
    measure = Measure(outcome)
    low, high = (f"{end:.{measure.digits}f}" for end in sorted(ends))
    return f"{value:.{measure.digits}f} {measure.unit} (95 %: {low} to {high})"


def _inside(words: str) -> str:
    """``"a (b to c)"`` for use among commas, ``"a [b to c]"``."""
    return words.replace("(", "[").replace(")", "]")


def insight_table(insight: Insight) -> pd.DataFrame:
    """Every effect as a row, in the units that are shown: nats of NLL, points of top-1, a factor of throughput."""
    import pandas as pd

    rows = []
    for one in insight.comparisons:
        for effect in one.effects:
            values = [None if v is None else displayed(v, one.outcome) for v in (effect.value, effect.low, effect.high)]
            known = sorted(value for value in values[1:] if value is not None)
            rows.append(
                {
                    "stage": one.stage or None,
                    "factor": one.factor,
                    "outcome": one.outcome,
                    "matched": one.matched,
                    "reference": one.reference,
                    "kind": effect.label,
                    "layouts": effect.trials,
                    "pairs": effect.pairs,
                    "source": effect.source,
                    "difference": values[0],
                    "low": known[0] if known else None,
                    "high": known[-1] if known else None,
                }
            )
    columns = ["stage", "factor", "outcome", "matched", "reference", "kind", "layouts", "pairs", "source"]
    return pd.DataFrame(rows, columns=[*columns, "difference", "low", "high"]).astype({"stage": "Int64"})


def unsupported(insight: Insight) -> list[str]:
    """What a study does not support, as sentences."""
    study, said = insight.study, []
    if not insight.stages:
        return ["No complete layout has a hybrid stage, so there is no ratio or placement to speak of."]
    for stage in insight.stages:
        for factor in ("share", "placement", "state"):
            kinds = insight.kinds(stage, factor)
            if len(kinds) < 2:
                only = f" ({kinds.pop()})" if kinds else ""
                name = factor_words(factor, insight.placed(stage))
                said.append(f"Stage {stage}: its {name} was the same in every layout{only}.")
    if len({facts[0].dim for _, facts in insight.layouts}) > 1:
        said.append(
            "Width cannot be compared at equal parameters or throughput: it decides both. It is compared between "
            "layouts of equal blocks and states instead, and costs what it costs."
        )
    else:
        said.append("All layouts have one width, so nothing can be said about it.")
    used = {e.source for one in insight.comparisons for e in one.known}
    for outcome, matched in ((study.measure, "params"), (study.measure, "throughput"), ("throughput", "params")):
        asked = any(
            e.source is None and e.trials >= MIN_TRIALS
            for one in insight.comparisons
            if (one.outcome, one.matched) == (outcome, matched)
            for e in one.effects
        )
        if asked and len(insight.layouts) < MIN_MODEL:
            break
        skill = insight.skill(outcome, matched) if asked or MODEL in used else None
        if skill is not None and skill < MIN_SKILL:
            name = f"{OUTCOME_NAMES[outcome]} {MATCH_NAMES[matched]}"
            said.append(
                f"The model of {name} explains {max(0, round(100 * skill))} % of the variance of layouts it has not "
                f"seen; under {round(100 * MIN_SKILL)} % it is not used."
            )
    if len(insight.layouts) < MIN_MODEL:
        said.append(
            f"{plural(len(insight.layouts), 'layout')} can be compared: too few for a model (it takes {MIN_MODEL})."
        )
    if study.setting("search", "design"):
        said.append(
            "A design compares exactly its own layouts, at one width and state: its intervals are those of the noise "
            "between trainings, and another width may answer otherwise."
        )
    if study.seeds <= 1:
        said.append(
            "Each layout was trained once, so the noise between seeds is in the intervals, but its size is not known."
        )
    left_out = len(study.complete) - len(insight.layouts)
    if left_out:
        said.append(f"{plural(left_out, 'layout')} of another sequence of conv and hybrid stages were not compared.")
    return said
