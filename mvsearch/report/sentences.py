"""What calibration and confirmation say, in plain sentences: for the terminal, the page and the cards."""

from __future__ import annotations

from mvsearch.analysis.calibration import AMBER, GREEN, RED, TOP, Calibration, RankCorrelation
from mvsearch.analysis.confirmation import Confirmation
from mvsearch.analysis.noise import DOMINATED, UNDECIDED
from mvsearch.analysis.plans import MIN_LAYOUTS
from mvsearch.report.words import listed, percent, plural

_MEANING = {
    GREEN: "the proxy ranks layouts much as long training does",
    AMBER: "the proxy ranks layouts roughly as long training does; small differences on the front may turn round",
    RED: "the proxy does not rank layouts as long training does, so the front cannot be trusted",
}


def calibration_words(calibration: Calibration) -> list[str]:
    """What a calibration says, in plain sentences."""
    rest = [plural(calibration.unfinished, "layout") + " not finished"] if calibration.unfinished else []
    rest += [f"{calibration.failed} failed"] if calibration.failed else []
    what = (
        f"{plural(len(calibration.layouts), 'layout')} trained for {plural(calibration.long_epochs, 'epoch')} with "
        f"{plural(calibration.seeds, 'seed')} each, against the proxy's {plural(calibration.epochs, 'epoch')}"
        if calibration.layouts
        else "No layout is trained long with every seed yet"
    ) + (f" ({listed(rest)})." if rest else ".")
    if calibration.tau is None or calibration.ceiling is None or calibration.regret is None:
        return [what, f"Under {MIN_LAYOUTS} layouts a rank correlation says nothing, so there is no verdict."]
    regret = f"{calibration.measure.scale * calibration.regret:.3g} {calibration.measure.long_unit}"
    in_sd = (
        f", {calibration.regret_in_sd:.1f} standard deviations between seeds"
        if calibration.regret_in_sd is not None
        else ""
    )
    return [
        what,
        f"Kendall's tau between proxy and long training is {_interval(calibration.tau)}; between the proxy and the "
        f"same proxy with fresh seeds it is {_interval(calibration.ceiling)}, which is about as far as any agreement "
        "can go.",
        f"The best of the proxy's top {TOP} is {regret} short of the best of all, trained long{in_sd}.",
        f"Verdict {calibration.verdict}: {_MEANING[calibration.verdict or RED]}.",
    ]


def calibration_short(calibration: Calibration) -> str:
    """``"verdict green, Kendall's tau 0.71 (95 % interval 0.52 to 0.85)"``, or that the layouts are too few."""
    if calibration.tau is None:
        return f"no verdict under {MIN_LAYOUTS} layouts"
    return f"verdict {calibration.verdict}, Kendall's tau {_interval(calibration.tau)}"


def confirmation_short(confirmation: Confirmation) -> str:
    """The front's hypervolume on the test images and as searched, and how many members are not confirmed."""
    missing = f"{len(confirmation.missing)} of the present front not confirmed" if confirmation.missing else ""
    if confirmation.hypervolume is None:
        return missing or "no layout of the front confirmed"
    volume = confirmation.hypervolume
    searched = f"the front's hypervolume {volume.test:.3f} on the test images, {volume.observed:.3f} as searched"
    return f"{searched}; {missing}" if missing else searched


def confirmation_words(confirmation: Confirmation) -> list[str]:
    """What a confirmation says, in plain sentences."""
    members = [one for one in confirmation.layouts if one.on_front]
    images = confirmation.layouts[0].test.images if confirmation.layouts else 0
    what = (
        f"{plural(len(members), 'layout')} of the front and {len(confirmation.layouts) - len(members)} hand-made "
        f"beside it, trained again with {plural(confirmation.seeds, 'fresh seed')} each and measured on {images:,} "
        "test images"
        f"{f'; {len(confirmation.missing)} of the present front not confirmed' if confirmation.missing else ''}"
        f"{f'; {confirmation.failed} failed' if confirmation.failed else ''}."
    )
    said = [what]
    if confirmation.hypervolume is not None:
        volume = confirmation.hypervolume
        baselines = confirmation.baselines_hypervolume
        against = (
            f", the hand-made layouts' {baselines.observed:.3f}, {baselines.val:.3f} and {baselines.test:.3f}"
            if baselines
            else ""
        )
        said.append(
            f"The front's hypervolume was {volume.observed:.3f} as searched, is {volume.val:.3f} with fresh seeds on "
            f"the same validation images, and {volume.test:.3f} on the test images{against}."
        )
        if volume.val > 0:
            beside = (
                f"; the hand-made layouts, which were not chosen, by {_share(baselines.optimism)}, so that much is the "
                "search's seeds and not the choice"
                if baselines and baselines.val > 0
                else ""
            )
            said.append(f"The search overstated the front by {_share(volume.optimism)} of the confirmed{beside}.")
    if members and all(one.standing for one in members):
        names = [one.key for one in members if one.standing and one.standing.verdict == UNDECIDED]
        worse = [one.key for one in members if one.standing and one.standing.verdict == DOMINATED]
        if names:
            said.append(f"Cannot be told apart from a faster layout by its seeds: {listed(names)}.")
        if worse:
            said.append(f"Worse than a faster layout: {listed(worse)}.")
        if not names and not worse:
            said.append("Each member is better than every faster layout beyond what seeds make.")
    return said


def _share(value: float) -> str:
    return percent(value).replace("-", "−")


def _interval(correlation: RankCorrelation) -> str:
    return f"{correlation.tau:.2f} (95 % interval {correlation.low:.2f} to {correlation.high:.2f})".replace("-", "−")
