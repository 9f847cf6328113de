"""Synthetic studies with the shape of real ones: one conv stage, two hybrid stages, five hand-made layouts first."""

from __future__ import annotations

import dataclasses
import math
import random

import study_factory

from mambavision.layout import HybridLayout, StageLayout, last_half
from mvsearch.analysis.plans import layouts_to_calibrate, layouts_to_confirm
from mvsearch.config.seeds import seeds_for
from mvsearch.study.data import StudyData
from mvsearch.study.front import reference_point
from mvsearch.study.record import FAIL, TIME, TRAIN, Evaluation, TrialRecord, trial_records

EPOCHS = 6


HAND_MADE = {
    "all Mamba": lambda depth: "M" * depth,
    "all attention": lambda depth: "A" * depth,
    "last half": last_half,
    "first half": lambda depth: last_half(depth)[::-1],
    "alternating": lambda depth: ("MA" * depth)[:depth],
}


def layout(width: int, second: str, third: str, states: tuple[int, int] = (8, 8)) -> HybridLayout:
    """Three stages: one C, then the two patterns at twice and four times the width."""
    return HybridLayout(
        stem_stride=2,
        in_dim=16,
        stages=(
            StageLayout(blocks="C", dim=width),
            StageLayout(blocks=second, dim=2 * width, heads=2, state=states[0]),
            StageLayout(blocks=third, dim=4 * width, heads=4, state=states[1]),
        ),
    )


def draw(rng: random.Random) -> HybridLayout:
    """A random layout of the space."""
    second, third = ("".join(rng.choice("MA") for _ in range(depth)) for depth in (rng.choice((3, 4, 5)), 3))
    states = rng.choice((4, 8, 16)), rng.choice((4, 8, 16))
    return layout(rng.choice((16, 24, 32, 40)), second, third, states)


def true_values(candidate: HybridLayout) -> tuple[float, float]:
    """(NLL, ratio) without noise: wide is better and slower; attention late in stage 3 helps; attention is faster."""
    _, second, third = candidate.stages
    share2, share3 = second.blocks.count("A") / len(second.blocks), third.blocks.count("A") / len(third.blocks)
    late = sum(i for i, letter in enumerate(third.blocks) if letter == "A") / (len(third.blocks) - 1)
    nll = 0.9 - 0.35 * math.log(second.dim / 56) - 0.05 * len(second.blocks) + 0.2 * (share2 - 0.4) ** 2 - 0.08 * late
    cost = (second.dim / 56) ** 1.4 * (0.5 + 0.15 * len(second.blocks) * (1 - 0.35 * share2) + 0.2 * (1 - 0.3 * share3))
    return nll, 0.947 / cost


def evaluations(
    candidate: HybridLayout, number: int, seeds: int, rng: random.Random, **more: object
) -> list[Evaluation]:
    """What a finished trial leaves in the ledger: one timing and a training a seed."""
    nll, ratio = true_values(candidate)
    speed = 2400.0 * ratio * (1 + rng.gauss(0, 0.01))
    start = 1.76e9 + 12.0 * number
    common = {
        "key": candidate.key,
        "layout": candidate.to_dict(),
        "trial": number,
        "cost": {
            "params": 300000 + 900 * candidate.stages[1].dim ** 2 // 8,
            "macs": 9_000_000 + number,
            "memory": 4_000_000,
        },
        "device": "cpu",
        "worker": "w0",
        **more,
    }
    windows = [speed * (1 + rng.gauss(0, 0.012)) for _ in range(5)]
    timing = {
        "images_per_second": sorted(windows)[2],
        "ratio": sorted(windows)[2] / 2400.0,
        "iqr": 0.015,
        "windows": windows,
        "reference_windows": [2400.0, 2395.5],
        "scan": "loop",
    }
    lines = [Evaluation(what=TIME, values=timing, started=start, ended=start + 2, **common)]
    for seed in range(seeds):
        noisy = nll + rng.gauss(0, 0.02)
        values = {
            "nll": noisy,
            "top1": min(0.99, max(0.1, 1.02 - 0.36 * noisy + rng.gauss(0, 0.006))),
            "images_seen": 2560 * EPOCHS,
            "train_seconds": 9.5,
            "val_images": 1000,
        }
        times = {"started": start + 2 + seed, "ended": start + 11 + seed}
        lines.append(Evaluation(what=TRAIN, seed=seed, to_epoch=EPOCHS, values=values, **times, **common))
    return lines


def records(trials: int = 30, seeds: int = 1, failures: int = 3, seed: int = 0) -> list[TrialRecord]:
    """Records of a study: five hand-made layouts, random ones, and some that failed."""
    rng = random.Random(seed)
    lines: list[Evaluation] = []
    seen: set[str] = set()
    for name, rule in HAND_MADE.items():
        candidate = layout(24, rule(4), rule(3))
        seen.add(candidate.key)
        lines += evaluations(candidate, len(seen) - 1, seeds, rng, baseline=name)
    while len(seen) < trials:
        candidate = draw(rng)
        if candidate.key in seen:
            continue
        seen.add(candidate.key)
        number = len(seen) - 1
        if number > trials - 1 - failures:
            reason = "loss became NaN in epoch 2 (rate 0.002)."
            common = {
                "key": candidate.key,
                "layout": candidate.to_dict(),
                "trial": number,
                "started": 1.76e9 + 12 * number,
            }
            lines.append(Evaluation(what=FAIL, reason=reason, **common))
        else:
            lines += evaluations(candidate, number, seeds, rng)
    return trial_records(lines, epochs=EPOCHS, seeds=seeds)


def study(
    trials: int = 30, seeds: int = 1, failures: int = 3, seed: int = 0, quality: str = "nll", name: str = "synthetic"
) -> StudyData:
    """A whole synthetic study of 10 classes on a CPU."""
    made = records(trials, seeds, failures, seed)
    baselines = [record for record in made if record.baseline]
    return StudyData(
        name=name,
        records=made,
        config={
            "name": name,
            "layout": {"width": [16, 24, 32, 40], "stages": [{"blocks": "C"}, {"blocks": "MA"}, {"blocks": "MA"}]},
            "budgets": {"params": {"max": 1.5e6}, "macs": {"max": 100e6}},
            "proxy": {
                "data": "digit_scenes",
                "image_size": 32,
                "epochs": EPOCHS,
                "batch_size": 64,
                "seeds": seeds,
                "train_images": 2560,
                "val_images": 1000,
            },
            "objectives": {"quality": quality},
            "search": {"sampler": "tpe", "trials": trials, "seed": 0},
            "timing": {"image_size": 32, "batch_size": 64, "window_s": 0.5, "windows": 5},
        },
        environment={
            "device": "cpu (8 threads of an AMD EPYC)",
            "scan": "loop",
            "git_commit": "0123abc",
            "versions": {"torch": "2.11", "optuna": "5.0"},
            "data": {"fingerprint": "f00dfeed"},
        },
        reference_point=reference_point(baselines, 10, quality),
        reference_key=baselines[2].key if len(baselines) > 2 else "",
        classes=10,
        started=min((record.started for record in made if record.started), default=0.0),
        ended=max((record.ended for record in made if record.ended), default=0.0),
        workers=2,
    )


def trusted(made: StudyData, *, layouts: int = 16, seed: int = 0) -> StudyData:
    """The study calibrated (short and four times as long, two seeds) and its front confirmed (three seeds)."""
    rng = random.Random(seed)
    lines = [line for record in made.records for line in record.evaluations]

    def train(record: TrialRecord, purpose: str, at: int, epochs: int, **more: float) -> Evaluation:
        nll = true_values(HybridLayout.from_dict(record.layout))[0] / (1 if epochs == EPOCHS else 2)
        nll += rng.gauss(0, 0.02)
        values = {"nll": nll, "top1": 1.02 - 0.36 * nll, "images_seen": 9, "train_seconds": 1.0, "val_images": 1000}
        if more:
            values |= {"test_nll": nll + 0.03, "test_top1": 1.0 - 0.36 * nll, "test_images": 2000}
        common = {"key": record.key, "layout": record.layout, "trial": record.number, "purpose": purpose}
        return Evaluation(what=TRAIN, seed=at, to_epoch=epochs, values=values, **common)

    for record in layouts_to_calibrate(made.records, made.measure, layouts):
        for at in seeds_for("calibrate", 0, 2):
            lines += [train(record, "calibrate", at, epochs) for epochs in (EPOCHS, 4 * EPOCHS)]
    for record in layouts_to_confirm(made):
        lines += [train(record, "confirm", at, EPOCHS, test=1) for at in seeds_for("confirm", 0, 3)]
    return dataclasses.replace(made, evaluations=tuple(lines))


def trained(record, purpose, seed, epochs, nll, **more):
    measured = {"nll": nll, "top1": 1 - nll / 2, "images_seen": 9, "train_seconds": 1.0, "val_images": 1000}
    return Evaluation(
        what=TRAIN,
        key=record.key,
        layout=record.layout,
        trial=record.number,
        seed=seed,
        to_epoch=epochs,
        purpose=purpose,
        values=measured | more,
    )


def with_lines(study, lines):
    searched = tuple(line for record in study.records for line in record.evaluations)
    return dataclasses.replace(study, evaluations=(*searched, *lines))


def calibrated(count, long, *, again=lambda record: record.nll, seeds=2, factor=4):
    """A study of which so many layouts were trained long, to the NLL that `long` says."""
    study = study_factory.study(trials=30)
    lines = []
    for record in layouts_to_calibrate(study.records, "nll", count):
        for number, seed in enumerate(seeds_for("calibrate", 0, seeds)):
            lines.append(trained(record, "calibrate", seed, EPOCHS, again(record)))
            lines.append(trained(record, "calibrate", seed, factor * EPOCHS, long(record) + 0.01 * number))
    return with_lines(study, lines)


def confirmed(shift=0.0, sd=0.01, seeds=3, drop=0):
    """The front of a study once more: its own values, shifted, with noise; worse on the test split."""
    study = study_factory.study(trials=30)
    rng = random.Random(1)
    lines = []
    for record in layouts_to_confirm(study)[drop:]:
        for seed in seeds_for("confirm", 0, seeds):
            nll = record.nll + shift + rng.gauss(0, sd)
            test = {"test_nll": nll + 0.1, "test_top1": 1 - (nll + 0.1) / 2, "test_images": 2000}
            lines.append(trained(record, "confirm", seed, EPOCHS, nll, **test))
    return with_lines(study, lines)
