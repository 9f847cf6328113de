"""Where jobs run: in this process, on Ray, or nowhere. All pools behave alike."""

from typing import TYPE_CHECKING

from mvsearch import lazily

if TYPE_CHECKING:
    from mvsearch.pool.pool import Pool, PoolError, PoolFailed

__all__ = ["Pool", "PoolError", "PoolFailed"]

__getattr__ = lazily(__name__, {"Pool": "pool", "PoolError": "pool", "PoolFailed": "pool"})
