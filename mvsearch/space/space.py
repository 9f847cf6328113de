"""SearchSpace: the layouts of a study, with all that a search asks of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mambavision.layout import HybridLayout
from mvsearch.space import check, hand_made
from mvsearch.space.layouts import LayoutSpace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


class SearchSpace(LayoutSpace):
    """All layouts of a study.

    Layouts of a space are equal exactly if their keys are: what has no effect on the network (the state of a stage
    without Mamba, the heads of one without attention) is set to one fixed value.

    Args:
        config: the study.
        num_classes: classes of the data set, 1 or more; it bears on the cost of a layout.
        in_chans: channels of its images, 1 or more.
    """

    def distributions(self) -> dict[str, BaseDistribution]:
        """The distribution of each of the `parameters`, by name."""
        from mvsearch.space.parameters import distributions  # Optuna is not needed to look at a space

        return distributions(self)

    def suggest(self, trial: BaseTrial) -> HybridLayout:
        """Ask a trial for every parameter, and build the layout of them."""
        from mvsearch.space.parameters import suggest

        return suggest(self, trial)

    def baselines(self) -> dict[str, HybridLayout]:
        """The hand-made layouts, by name; see `hand_made.baselines`."""
        return hand_made.baselines(self)

    def reference(self) -> HybridLayout:
        """The layout whose throughput is 1; see `hand_made.reference`. Raises SpaceError where there is none."""
        return hand_made.reference(self)

    def scaled(self, model: HybridLayout) -> HybridLayout | None:
        """The layout most like a model outside the space; None if the budgets forbid all.

        See `hand_made.nearest_layout`.
        """
        return hand_made.nearest_layout(self, model)

    def placed(self, weights: Mapping[str, float], rng: random.Random) -> HybridLayout:
        """A layout whose attention is placed by rules drawn with weights; see `hand_made.placed`."""
        return hand_made.placed(self, weights, rng)

    def check(self) -> None:
        """Refuse a space that cannot be searched or is not worth it; see `check.check_space`. Raises SpaceError."""
        check.check_space(self)
