"""The layouts of a study: stages, patterns, numbers, hand-made layouts, designs."""

from typing import TYPE_CHECKING

from mvsearch import lazily

if TYPE_CHECKING:
    from mvsearch.space.space import SearchSpace
    from mvsearch.space.stage import SpaceError

__all__ = ["SearchSpace", "SpaceError"]

__getattr__ = lazily(__name__, {"SearchSpace": "space", "SpaceError": "stage"})
