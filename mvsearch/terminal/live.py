"""What the terminal shows while something runs: one live panel, or plain lines where the output is no terminal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mambavision.layout import LETTERS
from mambavision.look import ACCENT, console
from mambavision.strip import rich_strip
from mvsearch.driver.view import LaunchState, View
from mvsearch.report.words import duration, factor, hours, percent, plural, scaled, with_error
from mvsearch.study.record import COMPLETE, FAILED, TrialRecord

LINES_OF_FRONT = 8


def complain(message: str) -> None:
    """Print one message about what is wrong to stderr."""
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), message))


def record_line(record: TrialRecord, state: LaunchState) -> Text:
    """A line about a trial that has ended."""
    head = f"{state.finished + state.failed} of {state.wanted}  "
    if record.state == FAILED:
        return Text.assemble(head, (f"Trial {record.number} failed: {record.reason}", "red"))
    if record.state != COMPLETE:
        reached = statistics.fmean(record.rungs[-1].nlls)
        after = f"  waits after {plural(record.epochs, 'epoch')}, NLL {reached:.3f}  {factor(record.ratio)}"
        return Text.assemble(head, rich_strip(record.layout), size_text(record), after)
    name = f"  ({record.baseline})" if record.baseline else ""
    numbers = f"  top-1 {percent(record.top1)}  NLL {record.nll:.3f}  {factor(record.ratio)}"
    return Text.assemble(head, rich_strip(record.layout), size_text(record), numbers, name)


def size_text(record: TrialRecord) -> str:
    """Width of the first stage, and the states where something scans: ``"  width 16  state 8/16"``."""
    states = states_text(record)
    return f"  width {record.layout['stages'][0]['dim']}" + (f"  state {states}" if states else "")


def states_text(record: TrialRecord) -> str:
    """The state size of each stage that scans, such as ``8/16``."""
    stages = record.layout["stages"]
    return "/".join(str(stage["state"]) for stage in stages if any(LETTERS[letter].scans for letter in stage["blocks"]))


def front_lines(
    records: list[TrialRecord], *, title: str = "Pareto front", errors: Mapping[str, tuple[str, float]] | None = None
) -> Table:
    """The front as a table, in the order given: slowest and most accurate first.

    Args:
        records: its members.
        title: above the table.
        errors: measure and standard error of its mean, by key, where they are known.
    """
    errors = errors or {}
    table = Table(title=title, **PLAIN)
    table.add_column("layout", no_wrap=True)
    for name in ("width", "state", "params", "top-1", "NLL", "img/s", "ratio"):
        table.add_column(name, justify="right", overflow="fold")  # a number cut short would be another number
    for record in records:
        table.add_row(
            Text.assemble(rich_strip(record.layout), (f" {record.baseline}" if record.baseline else "", "italic")),
            str(record.layout["stages"][0]["dim"]),
            states_text(record) or "–",
            scaled(record.params),
            with_error(record.top1, error_of(errors, record, "top1")),
            f"{record.nll:.3f}" + (f" ± {se:.3f}" if (se := error_of(errors, record, "nll")) is not None else ""),
            f"{record.images_per_second:,.0f}",
            factor(record.ratio),
        )
    return table


def error_of(errors: Mapping[str, tuple[str, float]], record: TrialRecord, measure: str) -> float | None:
    """The error of a record in one measure; None where `errors` has none of it, or one of the other measure."""
    known = errors.get(record.key)
    return known[1] if known and known[0] == measure else None


PLAIN: dict[str, Any] = {
    "title_justify": "left",
    "title_style": "bold",
    "box": None,
    "pad_edge": False,
    "padding": (0, 2, 0, 0),
}


class LaunchView(View):
    """One live panel while a search runs; plain lines where the output is no terminal.

    Args:
        out: where to print.
    """

    def __init__(self, out: Console) -> None:
        self.out = out
        self._live: Live | None = None
        self._last = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show the panel while the block runs."""
        if not self.out.is_terminal:
            yield
            return
        with Live(
            Text("starting workers …", style="dim"), console=self.out, refresh_per_second=4, transient=True
        ) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def notice(self, text: str) -> None:
        """A line of its own."""
        self.out.print(Text(text, style="yellow"))

    def estimated(self, seconds: float, device_hours: float) -> None:
        """A line of its own."""
        self.out.print(
            Text(
                f"Estimate by the first trainings: {duration(seconds)} and {hours(device_hours)} device-hours in all.",
                style="dim",
            )
        )

    def trial_ended(self, record: TrialRecord, state: LaunchState) -> None:
        """A plain line, or the panel anew; a failure is always worth a line."""
        if self._live is None or record.state == FAILED:
            self.out.print(record_line(record, state))
        self.update(state, force=True)

    def repeated(self, record: TrialRecord, nll: float, reason: str | None, state: LaunchState) -> None:
        """A plain line, or the panel anew; a failure is always worth a line."""
        if self._live is None or reason:
            head = f"{state.finished + state.failed} of {state.wanted}  "
            numbers = f"{size_text(record)}  NLL {record.nll:.3f} → {nll:.3f}"
            name = f"  ({record.baseline})" if record.baseline else ""
            self.out.print(
                Text.assemble(head, (f"Trial {record.number} failed: {reason}", "red"))
                if reason
                else Text.assemble(head, rich_strip(record.layout), numbers, name)
            )
        self.update(state, force=True)

    def update(self, state: LaunchState, *, force: bool = False) -> None:
        """The panel anew, at most four times a second."""
        now = time.monotonic()
        if self._live is None or (now - self._last < 0.25 and not force):
            return
        self._last = now
        self._live.update(panel(state))


class NoticesOnly(View):
    """Lines of their own and nothing else.

    Args:
        out: where to print.
    """

    def __init__(self, out: Console) -> None:
        self.out = out

    def notice(self, text: str) -> None:
        """A line of its own."""
        self.out.print(Text(text, style="yellow"))


def panel(state: LaunchState) -> Panel:
    """Where a search stands: counts, workers, the front so far."""
    ended = state.finished + state.failed
    failed = Text(f", {state.failed} failed", style="red") if state.failed else Text("")
    left = f", about {duration(state.remaining)} left" if state.remaining is not None and ended < state.wanted else ""
    waiting = f", {state.waiting:,} waiting between rungs" if state.waiting else ""
    head = Text.assemble(f"{ended} of {state.wanted} layouts", failed, f"{waiting}   {duration(state.elapsed)}{left}")
    more = f"workers busy {percent(state.utilisation, 0)}"
    if state.hypervolume is not None:
        more += f"   hypervolume {factor(state.hypervolume)} the baselines'"
    spent = f"{hours(state.device_hours)} device-hours"
    if state.estimated is not None:
        spent += (
            f"   estimate for this launch: {duration(state.estimated[0])}, {hours(state.estimated[1])} device-hours"
        )
    workers = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for worker, doing in state.running.items():
        workers.add_row(Text(worker, style="dim"), doing)
    bar = Table.grid(expand=True)  # a bar by itself does not end its line
    bar.add_row(ProgressBar(total=state.wanted, completed=ended, complete_style=ACCENT, finished_style=ACCENT))
    parts: list[Any] = [head, bar, Text(more), Text(spent), workers]
    if state.stopping:
        parts.insert(4, Text(f"nothing more is begun: {state.stopping}", style="yellow"))
    if state.front:
        shown = state.front[-LINES_OF_FRONT:]
        hidden = len(state.front) - len(shown)
        title = "Front so far" + (f" ({hidden} more)" if hidden else "")
        parts += [Text(""), front_lines(shown, title=title)]
    return Panel(Group(*parts), title="mvsearch", title_align="left", border_style=ACCENT)
