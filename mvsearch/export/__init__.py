"""From the front of a study to entries of the model library."""

from typing import TYPE_CHECKING

from mvsearch import lazily

if TYPE_CHECKING:
    from mvsearch.export.entry import export

__all__ = ["export"]

__getattr__ = lazily(__name__, {"export": "entry"})
