"""Measure: the two ways to say how good a layout is, with their signs, units and digits."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TypeVar

from mambavision.words import percent

_T = TypeVar("_T")


class Measure(StrEnum):
    """What quality is measured by. It equals its plain string, as configurations and ledgers have it.

    A *value* is what a ledger holds: NLL in nats, top-1 from 0 to 1. A *quality* is the same with the sign that makes
    larger better: minus the NLL, or top-1. What is *shown* is NLL in nats and top-1 in percent.

    Raises:
        ValueError: ``Measure(text)`` for another text, naming those there are.
    """

    NLL = "nll"
    TOP1 = "top1"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"measure: {value!r} is not allowed; one of {', '.join(cls)}")

    def __repr__(self) -> str:
        return repr(self.value)  # messages and tables quote it as what it is in a configuration

    @property
    def other(self) -> Measure:
        """The measure that this one is not."""
        return self.choose(nll=Measure.TOP1, top1=Measure.NLL)

    def choose(self, nll: _T, top1: _T) -> _T:
        """The one of two that belongs to this measure."""
        return nll if self is Measure.NLL else top1

    # -- values and qualities --------------------------------------------------------------------------------------

    @property
    def lower_is_better(self) -> bool:
        """Whether the lower of two values is the better one."""
        return self is Measure.NLL

    def quality(self, value: float) -> float:
        """The quality that a value stands for; larger is better."""
        return -value if self.lower_is_better else value

    def guess(self, classes: int) -> float:
        """Quality of a uniform guess among so many classes."""
        return self.choose(nll=-math.log(classes), top1=1 / classes)

    # -- for people ------------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """Its name, ``"NLL"`` or ``"top-1"``."""
        return self.choose(nll="NLL", top1="top-1")

    @property
    def scale(self) -> int:
        """Factor from a difference of values to the one that is shown."""
        return self.choose(nll=1, top1=100)

    @property
    def unit(self) -> str:
        """Unit of a difference as it is shown."""
        return self.choose(nll="nats", top1="points")

    @property
    def long_unit(self) -> str:
        """The unit where the measure itself is not named beside it."""
        return self.choose(nll="nats", top1="points of top-1")

    @property
    def digits(self) -> int:
        """Digits behind the point of a difference as it is shown."""
        return self.choose(nll=3, top1=1)

    @property
    def axis(self) -> str:
        """Name and unit of a value, for an axis."""
        return self.choose(nll="NLL (nats)", top1="top-1 (%)")

    @property
    def front_axis(self) -> str:
        """Title of the vertical axis of a front, on which the better lies higher."""
        return self.choose(nll="Validation NLL (nats, up is better)", top1="Validation top-1 (%)")

    @property
    def difference_axis(self) -> str:
        """Title of a horizontal axis of differences, on which the better lies to the right."""
        return self.choose(nll="NLL difference (nats; better →)", top1="Top-1 difference (points)")

    @property
    def area_unit(self) -> str:
        """Unit of a hypervolume."""
        return f"{self.choose(nll='nats', top1='top-1')} × octaves"

    def shown(self, quality: float) -> float:
        """The value of a quality as it is shown."""
        return self.scale * self.quality(quality)

    def quality_text(self, quality: float) -> str:
        """A quality in words, ``"NLL 0.681"`` or ``"81.2 %"``."""
        return self.choose(nll=f"NLL {-quality:.3f}", top1=percent(quality))

    def difference_text(self, difference: float, *, long: bool = False) -> str:
        """A difference without a sign, ``"0.034 nats"`` or ``"3.4 points"``; long: ``"3.4 points of top-1"``."""
        return f"{self.scale * difference:.{self.digits}f} {self.long_unit if long else self.unit}"
