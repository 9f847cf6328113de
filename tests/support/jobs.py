"""Jobs for pools."""

from __future__ import annotations

import time

from mambavision.layout import HybridLayout, StageLayout
from mvsearch.pool.job import Done, Job, Lost


def layout(width=16, blocks="MA"):
    return HybridLayout(stages=(StageLayout(blocks=blocks, dim=width),))


def job(number, what="train", **fields):
    extra = {"seed": 0, "to_epoch": 3} if what == "train" else {}
    return Job(**{"id": number, "what": what, "layout": layout(), "trial": number} | extra | fields)


def drain(pool, wanted, seconds=60.0):
    """Events until so many jobs have ended."""
    events = []
    until = time.monotonic() + seconds
    while sum(isinstance(event, Done | Lost) for event in events) < wanted:
        assert time.monotonic() < until, f"only {events}"
        events += pool.events(0.2)
    return events
