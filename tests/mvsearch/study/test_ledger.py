"""DOC MISSING"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambavision.files import write_atomic
from mvsearch.study.data import describe_study, load_study
from mvsearch.study.files import StudyBusy, StudyError, driver_lock, repair_tail
from mvsearch.study.folder import StudyFolder, list_studies
from mvsearch.study.ledger import Ledger, read_evaluations
from mvsearch.study.record import Evaluation, trial_records


def evaluation(key="a", **fields):
    values = {"nll": 1.0, "top1": 0.5, "images_seen": 10, "train_seconds": 1.0}
    stage = {"blocks": "MA", "dim": 16}
    return Evaluation(
        **{"what": "train", "key": key, "layout": {"stages": [stage]}, "trial": 0, "seed": 0, "values": values} | fields
    )


def test_what_is_appended_is_read_back(tmp_path):
    ledger = Ledger(tmp_path / "evaluations.jsonl")
    lines = [evaluation("a"), evaluation("b", seed=1, reason="née à Zürich"), evaluation("a", what="time", seed=None)]
    for line in lines:
        ledger.append(line)
    assert read_evaluations(ledger.path) == lines
    assert Ledger(ledger.path).of("a") == [lines[0], lines[2]]


def test_an_evaluation_is_in_the_ledger_once(tmp_path):
    ledger = Ledger(tmp_path / "evaluations.jsonl")
    ledger.append(evaluation(trial=3))
    ledger.append(evaluation(trial=7))
    assert [line.trial for line in read_evaluations(ledger.path)] == [3]


@given(cut=st.integers(1, 400), garbage=st.binary(max_size=30))
def test_a_torn_tail_is_moved_away_and_the_rest_kept(tmp_path_factory, cut, garbage):
    path = tmp_path_factory.mktemp("study") / "evaluations.jsonl"
    ledger = Ledger(path)
    for key in "abc":
        ledger.append(evaluation(key))
    content = path.read_bytes()
    whole = content[: len(content) - cut] + garbage
    path.write_bytes(whole)
    try:
        notice = repair_tail(path)
    except StudyError:  # garbage with a newline in it may make two bad lines; never good lines after a bad one
        pytest.fail("nothing but the tail was damaged")
    kept = path.read_bytes()
    assert kept == b"" or kept.endswith(b"\n")
    survivors = [line.key for line in read_evaluations(path)]
    assert survivors == list("abc")[: len(survivors)]
    if notice:
        broken = path.with_suffix(".broken").read_bytes()
        assert whole == kept + broken[:-1]
    assert repair_tail(path) is None
    Ledger(path).append(evaluation("d"))
    assert [line.key for line in read_evaluations(path)] == [*survivors, "d"]


def test_damage_before_good_lines_is_refused_with_its_line_number(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    good = json.dumps(evaluation().to_dict())
    path.write_text(f"{good}\n{{broken\n{good}\n")
    with pytest.raises(StudyError, match="line 2"):
        repair_tail(path)
    with pytest.raises(StudyError, match="line 2"):
        Ledger(path)


def test_a_line_that_is_no_evaluation_is_refused(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"what": "train"}\n')
    with pytest.raises(StudyError, match="line 1"):
        Ledger(path)


def test_a_second_driver_is_refused_and_the_lock_dies_with_its_process(tmp_path):
    code = (
        "import sys, pathlib; from mvsearch.study.files import driver_lock\n"
        f"with driver_lock(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StudyBusy, match=str(holder.pid)), driver_lock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with driver_lock(tmp_path):
        pass


def test_write_atomic_leaves_the_old_file_and_no_rest_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "front.csv"
    write_atomic(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "evaluations.jsonl")
    ledger.append(evaluation("a"))
    before = ledger.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ledger.append(evaluation("b"))
    assert ledger.path.read_bytes() == before
    assert ledger.of("b") == []


def test_records_gather_seeds_and_tell_complete_from_partial():
    timing = evaluation(what="time", seed=None, values={"images_per_second": 100.0, "ratio": 2.0}, trial=4)
    seeds = [
        evaluation(seed=s, to_epoch=6, values={"nll": nll, "top1": nll / 4, "images_seen": 5, "train_seconds": 2.0})
        for s, nll in ((0, 1.0), (1, 2.0))
    ]
    (record,) = trial_records([timing, *seeds], epochs=6, seeds=2)
    assert (record.state, record.nll, record.top1, record.images_seen) == ("COMPLETE", 1.5, 0.375, 10)
    assert record.nll_se == pytest.approx(0.5)
    assert record.nll_sd == pytest.approx(0.5**0.5)
    assert record.log2_ratio == 1.0
    assert record.number == 0
    for lines in ([timing, seeds[0]], seeds, [timing, *seeds[:1], evaluation(seed=1, to_epoch=3)]):
        (record,) = trial_records(lines, epochs=6, seeds=2)
        assert record.state == "PARTIAL"
    (record,) = trial_records([timing, evaluation(what="fail", reason="it broke")], epochs=6, seeds=2)
    assert (record.state, record.reason) == ("FAIL", "it broke")


def test_what_is_measured_for_another_purpose_changes_no_record(tmp_path):
    ledger = Ledger(tmp_path / "evaluations.jsonl")
    searched = [evaluation(what="time", seed=None, values={"images_per_second": 9.0, "ratio": 1.0}), evaluation()]
    others = [
        evaluation(purpose=purpose, seed=seed, values={"nll": 9.0, "top1": 0.1})
        for purpose in ("calibrate", "confirm")
        for seed in (0, 1)
    ]
    others += [evaluation(what="fail", purpose="calibrate", reason="it broke"), evaluation("b", purpose="confirm")]
    for line in [others[0], *searched, *others[1:]]:
        ledger.append(line)
    assert read_evaluations(ledger.path) == [
        others[0],
        *searched,
        *others[1:],
    ]  # seed 0 of each purpose is its own line
    assert trial_records(ledger.evaluations, epochs=0, seeds=1) == trial_records(searched, epochs=0, seeds=1)
    assert (ledger.of("a"), ledger.of("b")) == (searched, [])
    assert ledger.of("a", "confirm") == others[2:4]


def test_a_line_of_before_there_were_purposes_is_of_the_search(tmp_path):
    ledger = Ledger(tmp_path / "evaluations.jsonl")
    line = evaluation()
    old = {name: value for name, value in line.to_dict().items() if name != "purpose"}
    ledger.path.write_text(json.dumps(old) + "\n")
    assert read_evaluations(ledger.path) == [line]
    assert line.purpose == "search"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("study.yaml", b"\xff\xfe", "cannot be read"),
        ("study.yaml", b"", "holds no mapping"),
        ("study.yaml", b"[1]", "holds no mapping"),
        ("study.yaml", b"name: x\nproxy: {seeds: 1}\n", r"lacks proxy\.epochs"),
        ("study.yaml", b"name: x\nproxy: {epochs: long, seeds: 1}\n", r"proxy\.epochs is 'long'"),
        ("environment.json", b"\xff\xfe", "cannot be read"),
        ("environment.json", b"{", "cannot be read"),
        ("environment.json", b"[]", "holds no mapping"),
        ("environment.json", b'{"data": 5}', r"lacks data\.classes"),
        ("environment.json", b'{"data": {"classes": 10}, "reference": "a", "launches": []}', "lacks launches"),
    ],
)
def test_a_damaged_file_of_a_study_is_named_and_the_list_of_studies_still_printed(tmp_path, name, content, said):
    for one in ("good", "spoilt"):
        shutil.copytree(Path(__file__).parents[3] / "studies" / "reference" / "fashion_mnist", tmp_path / one)
    (tmp_path / "spoilt" / name).write_bytes(content)
    with pytest.raises(StudyError, match=rf"spoilt/{re.escape(name)}: .*{said}"):
        load_study(StudyFolder(tmp_path / "spoilt"))
    lines = [describe_study(folder) for folder in list_studies(tmp_path)]
    assert lines[0].startswith("40 of 40 layouts")
    assert f"spoilt/{name}: " in lines[1]


def test_a_study_is_named_in_commands_as_they_find_it():
    assert StudyFolder(Path("studies/mine")).argument == "mine"
    assert StudyFolder(Path("studies/mine")).launch_command == "mvsearch launch studies/mine/study.yaml"
    elsewhere = StudyFolder(Path("my studies/mine"))
    assert elsewhere.argument == "'my studies/mine'"
    assert elsewhere.launch_command == "mvsearch launch 'my studies/mine/study.yaml' --studies 'my studies'"
