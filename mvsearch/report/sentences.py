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


def calibration_words(found: Calibration) -> list[str]:
    """What a calibration says, in plain sentences."""
    rest = [plural(found.unfinished, "layout") + " not finished"] if found.unfinished else []
    rest += [f"{found.failed} failed"] if found.failed else []
    what = (
        f"{plural(len(found.layouts), 'layout')} trained for {plural(found.long_epochs, 'epoch')} with "
        f"{plural(found.seeds, 'seed')} each, against the proxy's {plural(found.epochs, 'epoch')}"
        if found.layouts
        else "No layout is trained long with every seed yet"
    ) + (f" ({listed(rest)})." if rest else ".")
    if found.tau is None or found.ceiling is None or found.regret is None:
        return [what, f"Under {MIN_LAYOUTS} layouts a rank correlation says nothing, so there is no verdict."]
    regret = f"{found.measure.scale * found.regret:.3g} {found.measure.long_unit}"
    in_sd = f", {found.regret_in_sd:.1f} standard deviations between seeds" if found.regret_in_sd is not None else ""
    return [
        what,
        f"Kendall's tau between proxy and long training is {_interval(found.tau)}; between the proxy and the same "
        f"proxy with fresh seeds it is {_interval(found.ceiling)}, which is about as far as any agreement can go.",
        f"The best of the proxy's top {TOP} is {regret} short of the best of all, trained long{in_sd}.",
        f"Verdict {found.verdict}: {_MEANING[found.verdict or RED]}.",
    ]


def calibration_short(found: Calibration) -> str:
    """Its verdict in a few words."""
    if found.tau is None:
        return f"no verdict under {MIN_LAYOUTS} layouts"
    return f"verdict {found.verdict}, Kendall's tau {_interval(found.tau)}"


def confirmation_short(found: Confirmation) -> str:
    """What became of the hypervolume, in a few words."""
    missing = f"{len(found.missing)} of the present front not confirmed" if found.missing else ""
    if found.hypervolume is None:
        return missing or "no layout of the front confirmed"
    volume = found.hypervolume
    searched = f"the front's hypervolume {volume.test:.3f} on the test images, {volume.observed:.3f} as searched"
    return f"{searched}; {missing}" if missing else searched


def confirmation_words(found: Confirmation) -> list[str]:
    """What a confirmation says, in plain sentences."""
    members = [one for one in found.layouts if one.on_front]
    images = found.layouts[0].test.images if found.layouts else 0
    what = (
        f"{plural(len(members), 'layout')} of the front and {len(found.layouts) - len(members)} hand-made beside it, "
        f"trained again with {plural(found.seeds, 'fresh seed')} each and measured on {images:,} test images"
        f"{f'; {len(found.missing)} of the present front not confirmed' if found.missing else ''}"
        f"{f'; {found.failed} failed' if found.failed else ''}."
    )
    said = [what]
    if found.hypervolume is not None:
        volume = found.hypervolume
        baselines = found.baselines_hypervolume
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


def _interval(found: RankCorrelation) -> str:
    return f"{found.tau:.2f} (95 % interval {found.low:.2f} to {found.high:.2f})".replace("-", "−")
