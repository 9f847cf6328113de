"""Jobs under way: what ends, what is lost and tried again, what is forgotten, and how busy the workers were."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mambavision.layout import HybridLayout, StageLayout
from mvsearch.driver.crew import Crew
from mvsearch.driver.stop import Interrupted, stop_signals
from mvsearch.driver.view import View
from mvsearch.pool.job import Done, Job, Lost, Notice, Progress, Started
from mvsearch.study.record import CALIBRATE

LAYOUT = HybridLayout(stages=(StageLayout(blocks="MA", dim=16),))


class ScriptedPool:
    """Two workers that do what a script says; the clock is set by it too."""

    workers = 2
    in_process = False
    description = "scripted"

    def __init__(self):
        self.submitted, self.cancelled, self.coming, self.time = [], [], [], 0.0

    def idle(self):
        return self.workers - len(self.submitted)

    def submit(self, job):
        self.submitted.append(job)

    def events(self, timeout):
        while self.coming:
            event = self.coming.pop(0)
            if isinstance(event, float):
                self.time = event
            else:
                if isinstance(event, Done | Lost):
                    self.submitted = [job for job in self.submitted if job.id != event.job]
                yield event

    def now(self):
        return self.time

    def cancel(self, job_id):
        self.submitted = [job for job in self.submitted if job.id != job_id]
        self.cancelled.append(job_id)

    def close(self):
        pass


class Notices(View):
    def __init__(self):
        self.notices = []

    def notice(self, text):
        self.notices.append(text)


def job(crew, trial, what="train", **fields):
    extra = {"seed": 0, "to_epoch": 4} if what == "train" else {}
    return Job(**{"id": crew.next_id(), "what": what, "layout": LAYOUT, "trial": trial} | extra | fields)


def crew_of(*trials, **more):
    """A crew with a timing for each trial still to be begun."""
    todo, pool, view = list(trials), ScriptedPool(), Notices()

    def begin():
        if todo:
            crew.hand_in(job(crew, todo.pop(0), "time"))
            return True
        return False

    progress = []
    crew = Crew(pool, view, begin=begin, on_progress=lambda: progress.append(dict(crew.doing)), **more)
    return SimpleNamespace(crew=crew, pool=pool, view=view, progress=progress)


def poll(it, *events):
    """What ends by these events."""
    it.pool.coming = list(events)
    with stop_signals(at_once=False) as stop:
        return list(it.crew.ended(stop))


def done(job, **more):
    return Done(job.id, job.evaluation(**more), weights=b"w", checkpoint=b"c")


def test_idle_workers_are_filled_after_everything_that_ends():
    it = crew_of(3, 5, 8)
    it.crew.fill()
    first, second = it.pool.submitted
    assert ([first.trial, second.trial], it.crew.at_work, it.crew.ready) == ([3, 5], True, False)
    (end,) = poll(it, Started(second.id, "b"), done(second))
    assert (end.job, end.ok, end.weights, end.checkpoint) == (second, True, b"w", b"c")
    assert [job.trial for job in it.pool.submitted] == [3, 8]
    ends = poll(it, done(first, what="fail", reason="time: it broke"), done(it.pool.submitted[1]))
    assert [(end.job.trial, end.ok) for end in ends] == [(3, False), (8, True)]
    assert not it.crew.at_work


def test_what_was_handed_in_goes_before_what_is_begun_anew():
    it = crew_of(1, 2)
    it.crew.hand_in(job(it.crew, 7))
    it.crew.fill()
    assert [job.trial for job in it.pool.submitted] == [7, 1]
    assert [it.crew.works_on(trial) for trial in (7, 1, 2)] == [True, True, False]
    it.crew.hand_in(job(it.crew, 2))
    assert it.crew.works_on(2)
    assert it.crew.ready


@pytest.mark.parametrize(("with_node", "tries"), [(False, 2), (True, 10)])
def test_a_lost_job_is_handed_in_again_until_its_last_try(with_node, tries):
    it = crew_of(4)
    it.crew.fill()
    for _ in range(tries - 1):
        (lost,) = it.pool.submitted
        assert poll(it, Lost(lost.id, "it is gone", with_node=with_node)) == []
    assert it.view.notices == ["Trial 4: it is gone; trying once more."] * (tries - 1)
    (last,) = it.pool.submitted
    assert last.id == tries - 1
    (end,) = poll(it, Lost(last.id, "it is gone", with_node=with_node))
    assert (end.ok, end.evaluation.what, end.evaluation.reason) == (False, "fail", f"time: it is gone, {tries} times")
    assert end.evaluation.ended > 0
    assert not it.crew.at_work


def test_losses_of_two_kinds_and_of_two_stretches_are_counted_apart():
    it = crew_of()
    it.crew.hand_in(job(it.crew, 4))
    it.crew.fill()
    assert poll(it, Lost(it.pool.submitted[0].id, "gone")) == []
    assert poll(it, Lost(it.pool.submitted[0].id, "gone", with_node=True)) == []
    assert [end.ok for end in poll(it, done(it.pool.submitted[0]))] == [True]
    it.crew.hand_in(job(it.crew, 4, from_epoch=4, to_epoch=8))
    it.crew.fill()
    assert poll(it, Lost(it.pool.submitted[0].id, "gone")) == []


def test_a_cancelled_trial_is_forgotten_whether_its_jobs_run_or_wait():
    it = crew_of(1)
    it.crew.fill()
    for seed in (0, 1):
        it.crew.hand_in(job(it.crew, 6, seed=seed))
    it.crew.fill()
    running = it.pool.submitted[1]
    poll(it, Started(running.id, "b"))
    assert it.crew.doing == {"b": "trial 6: training"}
    it.crew.cancel(6)
    assert it.pool.cancelled == [running.id]
    assert (it.crew.works_on(6), it.crew.ready, it.crew.doing) == (False, False, {})
    assert poll(it, Progress(running.id, 1, 4, 2.0), done(running)) == []
    assert it.progress == []
    assert it.crew.works_on(1)


def test_when_it_is_over_nothing_is_begun_not_even_what_was_lost():
    it = crew_of(1, 2, 3)
    it.crew.fill()
    it.crew.over = True
    first, second = it.pool.submitted
    assert poll(it, Lost(first.id, "gone")) == []
    assert [end.job.trial for end in poll(it, done(second))] == [2]
    assert not it.crew.at_work
    assert it.pool.submitted == []


def test_it_is_told_what_each_worker_does():
    it = crew_of(1)
    it.crew.hand_in(job(it.crew, 2))
    it.crew.fill()
    training, timing = it.pool.submitted
    poll(it, Started(timing.id, "a"), Started(training.id, "b"), Notice("a machine came"))
    assert it.crew.doing == {"a": "trial 1: timing", "b": "trial 2: training"}
    assert it.view.notices == ["a machine came"]
    poll(it, Progress(training.id, 3, 4, 1.25))
    assert it.progress == [{"a": "trial 1: timing", "b": "trial 2: epoch 3 of 4, training loss 1.250"}]
    poll(it, done(training), done(timing))
    assert it.crew.doing == {}


def test_a_training_for_another_purpose_is_told_with_its_seed_and_its_last_epoch():
    it = crew_of(last_epoch=16)
    it.crew.hand_in(job(it.crew, 2, seed=501, purpose=CALIBRATE))
    it.crew.fill()
    (training,) = it.pool.submitted
    poll(it, Started(training.id, "a"))
    assert it.crew.doing == {"a": "trial 2, seed 501: training"}
    poll(it, Progress(training.id, 3, 4, 1.25))
    assert it.crew.doing == {"a": "trial 2, seed 501: epoch 3 of 16, training loss 1.250"}


def test_the_busy_share_is_that_of_all_workers_since_the_first_job():
    it = crew_of(1, 2)
    assert (it.crew.until_now(), it.crew.in_all()) == ((0.0, 0.0), (0.0, None))
    it.crew.fill()
    first, second = it.pool.submitted
    poll(it, 10.0, Started(first.id, "a"), 12.0, Started(second.id, "b"))
    assert it.crew.first_job == 10.0
    it.pool.time = 14.0
    assert it.crew.until_now() == (4.0, (4 + 2) / (4 * 2))
    poll(it, 20.0, done(second))
    it.pool.time = 30.0
    assert it.crew.until_now() == (20.0, (20 + 8) / (20 * 2))
    assert it.crew.in_all() == (10.0, 8 / (10 * 2)), "what still runs counts when it has ended"
    poll(it, done(first))
    assert it.crew.in_all() == (20.0, (20 + 8) / (20 * 2))


def test_a_signal_is_acted_on_between_two_events():
    it = crew_of(1)
    it.crew.fill()
    (timing,) = it.pool.submitted
    it.pool.coming = [Started(timing.id, "a"), done(timing)]
    with stop_signals(at_once=False) as stop:
        stop.signum = 15
        with pytest.raises(Interrupted):
            list(it.crew.ended(stop))
    assert it.crew.at_work
