"""What the terminal shows of spaces, fronts, studies and outcomes, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mambavision.strip import rich_strip
from mvsearch.analysis.calibration import Calibration
from mvsearch.analysis.noise import quality_se
from mvsearch.analysis.rows import ConfirmedRow, PatternRow, confirmed_rows, pattern_rows, undominated_rows
from mvsearch.report.sentences import calibration_short, calibration_words, confirmation_short, confirmation_words
from mvsearch.report.words import DASH, duration, factor, fixed, hours, percent, plural, scaled, with_error
from mvsearch.study.record import CALIBRATE, CONFIRM
from mvsearch.terminal.live import LINES_OF_FRONT, PLAIN, front_lines, panel

if TYPE_CHECKING:
    from mvsearch.analysis.comparison import Comparison
    from mvsearch.analysis.confirmation import ConfirmedGain
    from mvsearch.analysis.findings import Findings
    from mvsearch.analysis.plans import Plan
    from mvsearch.driver.dry_run import DryRun
    from mvsearch.driver.repeat import RepeatOutcome
    from mvsearch.driver.search import Outcome
    from mvsearch.driver.status import RepeatStatus, Status
    from mvsearch.evaluate.bench import BenchRow
    from mvsearch.export.weights import Weights
    from mvsearch.space.describe import SpaceDescription
    from mvsearch.space.space import SearchSpace
    from mvsearch.study.data import StudyData


def print_front(out: Console, findings: Findings) -> None:
    """The front with standard errors, and what cannot be told apart from it, each cost once."""
    study = findings.study
    measure = study.measure
    errors = {r.key: (measure, se) for r in study.front if (se := quality_se(r, measure, findings.noise)) is not None}
    out.print(front_lines(study.front, errors=errors))
    if findings.noise is None:
        out.print(Text("Each layout was trained once, so nothing is known of the noise between seeds.", style="dim"))
        return
    out.print(
        Text(
            f"± is one standard error between seeds: a layout's own, or where it has one seed that of all repeated "
            f"trainings ({findings.noise.df} degrees of freedom).",
            style="dim",
        )
    )
    rows = undominated_rows(findings)
    if sum(row.layouts for row in rows) in (0, len(study.front)):
        return
    table = Table(**PLAIN)
    table.add_column("best of its cost", no_wrap=True)
    for name in ("layouts", "of the front", "params", "MACs", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        best = row.best
        table.add_row(
            Text.assemble(rich_strip(best.layout), (f" {best.baseline}" if best.baseline else "", "italic")),
            str(row.layouts),
            str(row.on_front or DASH),
            scaled(best.params),
            scaled(best.macs),
            factor(row.slowest) if row.layouts == 1 else f"{factor(row.slowest)} to {factor(row.fastest)}",
        )
    title = "The front and what cannot be told apart from it, each cost once (t tests over seeds, 5 % for all together)"
    out.print(Text(f"\n{title}", style="bold"))
    out.print(table)


def print_outcome(out: Console, study: StudyData, files: list[str], argument: str, outcome: Outcome) -> None:
    """The end of a launch: the front, why it ended, what it took, the failures, the files, and what to type next.

    Args:
        out: where to print.
        study: what was measured.
        files: that were written, the report last.
        argument: what names the study in a command.
        outcome: how the launch ended.
    """
    out.print()
    out.print(front_lines(study.front))
    if study.on_cpu:
        out.print(
            Text(
                f"Throughput was timed on a CPU with the scan path '{study.scan}', a Python loop: this favours "
                "attention for a kernel's reason. On a GPU the order may differ.",
                style="dim",
            )
        )
    if outcome.failed:
        first = study.failed[0]
        out.print(
            Text(
                f"{plural(outcome.failed, 'trial')} failed; the first: trial {first.number}, {first.reason}",
                style="red",
            )
        )
    waiting = study.waiting
    stopped = f" {plural(len(waiting), 'layout')} stopped at an earlier rung." if waiting else ""
    taken = sum(record.taken_over for record in study.complete)
    elsewhere = f", {taken} of them in the study that was the warm start" if taken else ""
    full = f"{plural(len(study.complete), 'layout')} trained in full{elsewhere}."
    out.print(f"\n{full}{stopped} Stopped because {outcome.stopped}.")
    if outcome.utilisation is not None:
        took = f"It took {duration(outcome.seconds)} and {hours(outcome.device_hours)} device-hours"
        busy = f"Workers were busy {percent(outcome.utilisation, 1)} of the time."
        out.print(f"{took}{_against(outcome)}. {busy}")
    if waiting and not outcome.exhausted:
        out.print(
            "Checkpoints of those that stopped stay for a larger search.trials; else checkpoints/ may be deleted."
        )
    out.print("Written: " + ", ".join(files))
    out.print(f"Next: open {files[-1]}, or mvsearch export {argument}")


def _against(outcome: Outcome) -> str:
    """How far off the estimate was."""
    guess = outcome.estimate
    if guess is None or not outcome.seconds or not outcome.device_hours:
        return ""
    off = f"{guess.seconds / outcome.seconds - 1:+.0%} and {guess.device_hours / outcome.device_hours - 1:+.0%}"
    return (
        f"; the estimate was {duration(guess.seconds)} and {hours(guess.device_hours)}, off by {off.replace('-', '−')}"
    )


def print_repeat_start(out: Console, plan: Plan, workers: str, done: int) -> None:
    """What `calibrate` or `confirm` is about to do."""
    again = f", {plural(done, 'layout')} of them done already" if done else ""
    what = "on the validation and the test split" if plan.purpose == CONFIRM else "against the proxy"
    out.print(
        f"{plan.purpose}: {plural(len(plan.records), 'layout')}{again}, {plural(len(plan.seeds), 'fresh seed')} and "
        f"{plural(plan.stops[-1], 'epoch')} each, {what}: {plan.epochs:,} epochs in all.  Workers: {workers}."
    )


def print_repeat(out: Console, findings: Findings, outcome: RepeatOutcome, files: list[str], argument: str) -> None:
    """The end of `calibrate` or `confirm`: what it says, the files, and what to type next; as `print_outcome`."""
    out.print()
    if outcome.purpose == CALIBRATE and findings.calibration:
        said = calibration_words(findings.calibration)
        verdict = findings.calibration.verdict
    elif findings.confirmation:
        out.print(confirmed_lines(confirmed_rows(findings)))
        said, verdict = confirmation_words(findings.confirmation), None
    else:
        said, verdict = [], None
    for sentence in said[:-1] if verdict else said:
        out.print(sentence)
    if verdict:
        out.print(Text(said[-1], style=f"bold {'yellow' if verdict == 'amber' else verdict}"))
    if outcome.left:
        out.print(Text(f"{plural(outcome.left, 'layout')} left; the same command goes on.", style="yellow"))
    busy = f"Workers were busy {percent(outcome.utilisation, 1)} of the time. " if outcome.utilisation else ""
    out.print(f"\n{busy}Written: " + ", ".join(files))
    out.print(f"Next: open {files[-1]}, or mvsearch {_after(findings, outcome.purpose)} {argument}")


def _after(findings: Findings, purpose: str) -> str:
    if purpose == CONFIRM:
        return "export" if findings.calibration else "calibrate"
    return "export" if findings.confirmation else "confirm"


def confirmed_lines(rows: Sequence[ConfirmedRow]) -> Table:
    """Confirmed layouts as a table, slowest first: as searched, and with fresh seeds (mean ± standard deviation)."""
    title = "Confirmed: top-1 of fresh trainings, mean ± standard deviation between seeds"
    table = Table(title=title, **PLAIN)
    table.add_column("layout", no_wrap=True)
    for name in ("ratio", "searched", "validation", "test", "NLL, test"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("over the hand-made", overflow="fold")
    table.add_column("against the faster", overflow="fold")
    verdicts = {"front": "better", "undecided": "not told apart", "dominated": "worse", None: DASH}
    for row in rows:
        record = row.record
        table.add_row(
            Text.assemble(rich_strip(record.layout), (f" {record.baseline}" if record.baseline else "", "italic")),
            factor(record.ratio),
            percent(record.top1),
            with_error(row.val_top1, row.val_sd),
            with_error(row.test_top1, row.test_sd),
            f"{row.test_nll:.3f}",
            DASH if row.gain is None else _gain_words(row.gain),
            "nothing is faster" if row.fastest else verdicts[row.verdict],
        )
    return table


def _gain_words(gain: ConfirmedGain) -> str:
    """Points of test top-1 over a hand-made layout at least as fast, with the standard error of the difference."""
    error = f" ± {100 * gain.top1_se:.1f}" if gain.top1_se is not None else ""
    return f"{100 * gain.top1:+.1f}{error} ({gain.baseline})".replace("-", "−")


def print_dry_run(out: Console, name: str, done: DryRun) -> None:
    """How a dry run went, and that all its values are made up."""
    full = f"{plural(done.outcome.complete, 'layout')} trained in full"
    out.print(f"\nDry run of {name}: {plural(done.layouts, 'layout')} asked for, {full}.")
    if len(done.rungs) > 1:
        each = ", ".join(f"{count:,} to epoch {epoch}" for epoch, count in done.rungs.items())
        out.print(f"Layouts trained: {each}.")
    out.print(
        f"{done.epochs:,} epochs of training, {hours(done.device_hours)} device-hours: "
        f"{duration(done.outcome.seconds)} on {plural(done.devices, 'device')}, "
        f"{percent(done.outcome.utilisation, 1)} busy."
    )
    out.print(f"Stopped because {done.outcome.stopped}.")
    out.print(
        Text(
            "All values are made up, the seconds too; nothing was trained, timed or kept. Only the counts say how a "
            "search would go.",
            style="yellow",
        )
    )


def print_status(out: Console, status: Status, study: str, launch: str) -> None:
    """Where a study stands, and what to type if nobody is at work on it."""
    out.print(panel(status.state))
    for repeat in status.repeats:
        out.print(Text(repeat_line(repeat)))
    ago = f"{duration(status.age)} ago"
    if status.running:
        out.print(f"Running on {status.host} (process {status.pid}); last sign of life {ago}.")
        return
    done = status.state.finished + status.state.failed >= status.state.wanted
    out.print(
        f"{'Ended' if done or status.state.stopping else 'Not running'}; last sign of life {ago} on {status.host}."
    )
    if done or status.state.stopping:
        out.print(f"Next: mvsearch report {study}")
    if not done:
        out.print(f"To go on: {launch}")


def repeat_line(repeat: RepeatStatus) -> str:
    """Where `calibrate` or `confirm` stands: how far and until when while it runs, afterwards what it says."""
    driver, result, name = repeat.driver, repeat.result, f"{repeat.purpose.capitalize():<11}"
    said = (
        calibration_short(result)
        if isinstance(result, Calibration)
        else confirmation_short(result)
        if result is not None
        else None
    )
    if driver is None:
        layouts = len(result.layouts) if result is not None else 0
        return f"{name}{plural(layouts, 'layout')}; {said}"
    state = driver.state
    ended = state.finished + state.failed
    parts = [f"{ended} of {plural(state.wanted, 'layout')}"] + ([f"{state.failed} failed"] if state.failed else [])
    if driver.running:
        parts.append(duration(state.elapsed + driver.age))
        if state.remaining is not None:
            parts.append(f"ends about {_clock(max(0.0, state.remaining - driver.age))}")
        return name + ", ".join(parts)
    if ended < state.wanted:
        parts.append("not running, the same command goes on")
    return name + ", ".join(parts) + (f"; {said}" if said else "")


def _clock(seconds: float) -> str:
    """The time of day so many seconds from now, with the day where that is not today's."""
    then = datetime.now() + timedelta(seconds=seconds)
    return f"{then:%H:%M}" if then.date() == datetime.now().date() else f"{then:%H:%M on %d %b}"


def print_space(out: Console, description: SpaceDescription, *, notice: str | None = None) -> None:
    """What a space holds: its size, budgets, tokens, costs, baselines and a few layouts."""
    d = description
    out.print(
        Text.assemble(
            (d.name, "bold"), f": {d.count:,} distinct layouts, {percent(d.share_within_budget)} within budget"
        )
    )
    if notice:
        out.print(Text(notice, style="yellow"))
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for key, values in d.searched.items():
        facts.add_row(
            Text(key, style="dim"), ", ".join("whole map" if value is None else str(value) for value in values)
        )
    out.print(facts)
    sizes = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    sizes.add_column("tokens a window")
    for number in range(1, len(d.proxy_tokens) + 1):
        sizes.add_column(f"stage {number}", justify="right")
    sizes.add_row(f"proxy, {d.proxy_image_size} px", *(_span(low, high) for low, high in d.proxy_tokens))
    sizes.add_row(f"deployed, {d.deployed_image_size} px", *(_span(low, high) for low, high in d.deployed_tokens))
    out.print(sizes)
    units = {"params": "", "macs": "", "memory": "B"}
    ranges = (
        f"{name} {scaled(low, units[name])} to {scaled(high, units[name])}"
        for name, (low, high) in d.cost_range.items()
    )
    out.print("Costs: " + ", ".join(ranges))
    strips = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, layout in d.baselines.items():
        strips.add_row(Text(name, style="italic"), rich_strip(layout, numbers=True))
    for number, layout in enumerate(d.samples, start=1):
        strips.add_row(Text(f"sample {number}", style="dim"), rich_strip(layout, numbers=True))
    out.print(strips)


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def print_start(out: Console, space: SearchSpace, workers: str, *, new: bool, done: int) -> None:
    """What a launch is about to do: the space, the trainings, tokens, workers, baselines."""
    from mvsearch.space.describe import describe

    description = describe(space, samples=0)
    config = space.config
    out.print(
        Text.assemble(
            ("Study ", ""),
            (config.name, "bold"),
            "" if new else f", going on after {plural(done, 'layout')}",
            f": {description.count:,} distinct layouts, {percent(description.share_within_budget)} within budget; "
            f"{config.search.trials} to train{'' if config.fidelity is None else ' in full'}, "
            f"{plural(config.proxy.epochs, 'epoch')} of {config.proxy.data} "
            f"and {plural(config.proxy.seeds, 'seed')} each",
        )
    )
    if config.fidelity is not None:
        rungs = " / ".join(str(epoch) for epoch in config.rung_epochs)
        out.print(f"Rungs of {rungs} epochs: about one layout in {config.fidelity.eta} goes on from each to the next.")
    tokens = ", ".join(
        f"stage {number}: {_span(low, high)}"
        for number, (low, high) in enumerate(description.proxy_tokens, start=1)
        if config.layout.stages[number - 1].hybrid
    )
    out.print(f"Tokens a window: {tokens}.  Workers: {workers}.  Sampler: {config.search.sampler}.")
    baselines = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, layout in description.baselines.items():
        baselines.add_row(Text(name, style="italic"), rich_strip(layout))
    out.print(baselines)


def print_insight(out: Console, findings: Findings, following: str) -> None:
    """What a study says about ratio, placement, state and width, and what it does not."""
    study = findings.study
    from mvsearch.analysis.insight import CALIPER, by_factor
    from mvsearch.report.insight_words import OUTCOME_NAMES, effect_short, factor_words, headlines, unsupported

    insight = findings.insight
    out.print(
        f"{study.name}: {plural(len(insight.layouts), 'layout')} compared. Differences to a reference kind (NLL in "
        f"nats, top-1 in points, speed as a factor), ± half of a 95 % interval. p: from so many pairs of layouts that "
        f"are equal in everything else and whose costs differ by at most {percent(CALIPER, 0)}; m: from a model, where "
        "there are too few pairs; –: not enough trials to say; bold: the interval leaves out nought."
    )
    heads = {
        ("nll", "params"): "NLL, equal params",
        ("top1", "params"): "top-1, equal params",
        ("nll", "throughput"): "NLL, equal speed",
        ("top1", "throughput"): "top-1, equal speed",
        ("throughput", "params"): "speed, equal params",
        ("nll", "rest"): "NLL, all else equal",
        ("top1", "rest"): "top-1, all else equal",
        ("throughput", "rest"): "speed, all else equal",
    }
    for (stage, by), own in by_factor(insight.comparisons).items():
        name = factor_words(by, own[0].placed)
        title = f"Stage {stage}: {name}" if stage else name.capitalize()
        table = Table(
            title=f"\n{title}, against {own[0].reference}",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        table.add_column("kind", no_wrap=True)
        table.add_column("n", justify="right")
        for one in own:
            table.add_column(heads[one.outcome, one.matched], justify="right")
        for row, effect in enumerate(own[0].effects):
            cells = []
            for one in own:
                same = one.effects[row]
                style = "bold" if same.clear else "" if same.low is not None else "dim"
                cells.append(Text(effect_short(same, one.outcome), style=style))
            table.add_row(effect.label, str(effect.trials), *cells)
        out.print(table)
    out.print(Text(f"\nIn short, {OUTCOME_NAMES[study.measure]} at equal parameters", style="bold"))
    for sentence in headlines(insight):
        out.print(f"- {sentence}")
    _print_published(out, pattern_rows(findings))
    if findings.importance:
        out.print(Text("\nImportance (PED-ANOVA): share of what decides the best tenth", style="bold"))
        for name, shares in findings.importance.items():
            some = sorted(shares.items(), key=lambda item: -item[1])[:5]
            out.print(f"{name}: " + ", ".join(f"{by} {percent(share, 0)}" for by, share in some))
    out.print(Text("\nWhat this study does not support", style="bold"))
    for sentence in unsupported(insight):
        out.print(f"- {sentence}")
    if insight.intervals:
        chance = -(-insight.intervals // 20)
        text = f"{insight.intervals} intervals at 95 %: about {chance} would leave out the reference by chance alone."
        out.print(Text(text, style="dim"))
    out.print(f"Next: {following}, and its section Insight")


def print_comparison(out: Console, comparison: Comparison, path: str) -> None:
    """Studies side by side, and where the page is."""
    from mvsearch.analysis.comparison import study_rows
    from mvsearch.report.page_compare import compare_words

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("study", overflow="fold")
    table.add_column("sampler")
    for name in ("seed", "layouts", "device time", "front", "joint front", "hypervolume", "× hand-made"):
        table.add_column(name, justify="right")
    for row in study_rows(comparison):
        table.add_row(
            Text(row.name),
            Text(row.sampler),
            str(row.seed),
            str(row.layouts),
            duration(3600 * row.hours),
            str(row.front),
            str(row.joint),
            fixed(row.hypervolume),
            factor(row.multiple),
        )
    out.print(table)
    for sentence in compare_words(comparison):
        out.print(f"- {sentence}")
    if comparison.common:
        out.print(Text(f"\nThe best of {plural(len(comparison.common), 'layout')} in common", style="bold"))
        shared = Table(box=None, show_header=True, pad_edge=False, padding=(0, 2, 0, 0))
        shared.add_column("layout", no_wrap=True)
        for name in comparison.names:
            shared.add_column(Text(f"NLL, {name}"), justify="right", overflow="fold")
        for one in comparison.common[:LINES_OF_FRONT]:
            values = [one.records.get(at) for at in range(len(comparison.names))]
            shared.add_row(
                rich_strip(next(iter(one.records.values())).layout),
                *(fixed(record.nll) if record else "" for record in values),
            )
        out.print(shared)
    out.print(f"\nWritten: {path}")


def _print_published(out: Console, rows: Sequence[PatternRow]) -> None:
    if not rows:
        return
    table = Table(
        title="\nThe published patterns (table 5 of the paper), best first",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("pattern", no_wrap=True)
    table.add_column("layout", no_wrap=True)
    for name in ("top-1", "NLL", "ratio", "params", "paper's top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        record = row.record
        nll = fixed(record.nll) + (f" ± {fixed(record.nll_se)}" if record.nll_se is not None else "")
        top1 = with_error(record.top1, record.top1_se)
        numbers = (top1, nll, factor(record.ratio), scaled(record.params), percent(row.published_top1))
        table.add_row(row.name, rich_strip(record.layout), *numbers)
    out.print(table)


def print_studies(out: Console, rows: list[tuple[str, str]]) -> None:
    """A line for each study: its name and a sentence about it."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, text in rows:
        table.add_row(Text(name, style="bold"), text)
    out.print(table)


def print_bench(out: Console, rows: list[BenchRow], conditions: Mapping[str, Any]) -> None:
    """Models timed side by side, and what the numbers hold for."""
    latency = any(row.latency_ms is not None for row in rows)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model")
    for name in ("params", "MACs", "img/s", "ratio", "± IQR", *(["ms, 1 image"] if latency else [])):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [scaled(row.params), scaled(row.macs), f"{row.images_per_second:,.1f}", f"{row.ratio:.3f}×"]
        cells += [percent(row.iqr)] + ([f"{row.latency_ms:,.1f}"] if row.latency_ms is not None else [])
        table.add_row(Text(row.name), *cells)
    out.print(table)
    threads = f", {plural(conditions['threads'], 'thread')}" if conditions["threads"] else ""
    graph = conditions.get("cuda_graph")  # on CUDA alone; a reason where a graph could not be made
    how = "" if graph is None else ", CUDA graphs" if graph is True else f", eager{f' ({graph})' if graph else ''}"
    out.print(
        Text(
            f"{conditions['device']}{threads}, {conditions['image_size']} px, batch {conditions['batch_size']}, "
            f"{conditions['dtype']}{how}, {plural(conditions['windows'], 'window')} of {conditions['window_s']:g} s, "
            f"scan path {conditions['scan']}, torch {conditions['torch']}, timm {conditions['timm']}. Each ratio is to "
            f"windows of {rows[0].name} beside it; its own shows the noise. MACs are without the scan.",
            style="dim",
        )
    )


def weights_words(weights: Weights) -> str:
    """What exported weights are and what they reach, in a line."""
    which = {
        "searched": f"the search's weights after {plural(weights.epochs, 'epoch')}",
        "confirmed": f"weights of a fresh seed after {plural(weights.epochs, 'epoch')}",
        "retrained": f"trained anew for {plural(weights.epochs, 'epoch')}",
    }[weights.kind]
    tested = (
        f", test {percent(weights.test_top1, 2)} of {weights.test_images:,}" if weights.test_top1 is not None else ""
    )
    images = f" of {weights.val_images:,}" if weights.val_images else ""
    return f"{which}: top-1 {percent(weights.val_top1, 2)}{images} validation images{tested}"
