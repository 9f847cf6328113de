"""What a running search knows of its layouts: the records, and what samplers and rungs read of them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import cached_property

from mambavision.layout import HybridLayout
from mvsearch.config.sections import StudyConfig
from mvsearch.driver.running_front import RunningFront
from mvsearch.samplers.halving import Halving, Ladder, Run
from mvsearch.samplers.observation import Observation
from mvsearch.space.space import SearchSpace
from mvsearch.study.record import COMPLETE, FAILED, WAITING, Evaluation, TrialRecord, trial_records
from mvsearch.study.timings import RecordedTiming


class ObservedLayouts:
    """The layouts of a study, kept up to date with every line of the ledger and every trial that begins or ends.

    Args:
        config: of the study.
        space: of the study.
        timings: the table of throughputs by layout key; empty without one.
        baselines: how many hand-made layouts the study trains.

    Attributes:
        standing: records, counts, front and hypervolume.
        ladder: the places on the rungs.
    """

    def __init__(
        self, config: StudyConfig, space: SearchSpace, timings: Mapping[str, RecordedTiming], baselines: int
    ) -> None:
        self._config = config
        self._space = space
        self._timings = timings
        self._measure = config.objectives.quality
        self._observed: dict[str, Observation] = {}
        self._under_way: set[str] = set()
        self.standing = RunningFront(self._measure, space.num_classes, baselines)
        self.ladder = Ladder(Halving(len(config.rung_epochs), config.fidelity.eta if config.fidelity else 2))

    @property
    def records(self) -> dict[str, TrialRecord]:
        """By layout key, in the order in which the layouts were first measured."""
        return self.standing.records

    def counts(self) -> tuple[int, int, int]:
        """Layouts complete, failed and waiting between rungs (not those being trained on the next)."""
        counts = self.standing.counts
        going_on = sum(key in self.records and self.records[key].state == WAITING for key in self._under_way)
        return counts[COMPLETE], counts[FAILED], counts[WAITING] - going_on

    def begin(self, layout: HybridLayout) -> None:
        """A trial of a layout has begun."""
        self._under_way.add(layout.key)
        self._observe(layout.key, layout)

    def end(self, key: str) -> None:
        """The trial of a layout has ended."""
        self._under_way.discard(key)
        self._observe(key)

    def refresh(self, lines: Sequence[Evaluation]) -> None:
        """Take all that the ledger holds of a layout, which is new or more than before."""
        config = self._config
        (record,) = trial_records(lines, epochs=config.proxy.epochs, seeds=config.proxy.seeds)
        self.standing.update(record)
        self._observe(record.key)

    def promotion(self, *, relaxed: bool) -> Run | None:
        """The layout that waits and may go on to its next rung; None if none may.

        Args:
            relaxed: whether the quota is lifted, because no new layout can be asked for.
        """
        return self.ladder.choose(self.standing.reference(), relaxed=relaxed)

    def observations(self) -> list[Observation]:
        """What samplers are told: the table of throughputs, as far as it was not asked for yet, and this study."""
        return [one for one in self._recorded if one.key not in self._observed] + list(self._observed.values())

    @cached_property
    def _recorded(self) -> list[Observation]:
        """The layouts of the space in the table of throughputs, in an order of no meaning.

        A sampler that fits a model to so many of the last of them then has a fair sample of the table.
        """
        by_key: dict[str, Observation] = {}
        for timing in self._timings.values():
            if timing.layout is None:
                continue
            layout = HybridLayout.from_dict(timing.layout)
            if layout in self._space:
                own = self._space.decode(self._space.encode(layout))  # equal where the key is
                by_key[own.key] = Observation(own, math.log2(timing.values["ratio"]), source="throughput.file")
        return random.Random(self._config.search.seed).sample(list(by_key.values()), len(by_key))

    def _observe(self, key: str, layout: HybridLayout | None = None) -> None:
        """Bring what samplers and rungs read of a layout up to date."""
        before, record = self._observed.get(key), self.records.get(key)
        if layout is None:
            layout = before.layout if before else HybridLayout.from_dict(self.records[key].layout)
        now = self._observed[key] = Observation(
            layout=layout,
            throughput=record.log2_ratio if record else None,
            qualities=tuple(rung.qualities(self._measure) for rung in record.rungs) if record else (),
            under_way=key in self._under_way,
            failed=record is not None and record.state == FAILED,
        )
        if record is not None and now.throughput is not None and now.qualities:
            self.ladder.update(
                Run(
                    key=key,
                    throughput=now.throughput,
                    qualities=now.qualities,
                    baseline=record.baseline is not None,
                    under_way=now.under_way,
                    failed=now.failed,
                )
            )
