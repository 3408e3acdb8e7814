"""The study of fates: its rule on series made by hand, runs that go on where they broke off, tables of the docs."""

import json
from pathlib import Path

import pytest

from benchmarks.fate import Setting, judge, merged_at, outcome, read, reproductions, run, spike_at, study, tables, train

DOCS = Path(__file__).parents[1] / "docs" / "fate.md"


def fates(*independent):
    return [{"step": 20 * k, "independent": n} for k, n in enumerate(independent)]


def test_a_merging_takes_two_captures_in_a_row():
    assert merged_at(fates(10, 9, 10, 10), 10) is None
    assert merged_at(fates(10, 10, 9, 8, 10), 10) == 40
    assert merged_at(fates(10, 10, 10, 9), 10) is None, "the last capture has no second one"


def test_spikes_are_above_the_losses_before_them():
    assert spike_at([2.0] * 20 + [2.9] * 5) is None
    assert spike_at([2.0] * 30 + [3.1]) == 31
    assert spike_at([2.0] * 25 + [float("nan")]) == 26


def test_an_alarm_after_the_merging_is_no_hit():
    assert [judge(alarm, 40) for alarm in (39, 40, 41, None)] == ["hit", "miss", "miss", "miss"]
    assert [judge(alarm, None) for alarm in (1, None)] == ["false alarm", "quiet"]


def test_forty_runs_all_different():
    settings = [*reproductions(), *study()]
    assert len(list(study())) == 40
    assert len({setting.key for setting in settings}) == len(settings)


def test_runs_go_on_where_they_were_broken_off(tmp_path):
    settings = [Setting("study", "tiny", 0.1, seed, width=6, steps=45) for seed in range(2)]
    path, said = tmp_path / "runs.jsonl", []
    run(settings[:1], path, said.append)
    run(settings, path, said.append)
    assert [line["seed"] for line in read(path)] == [0, 1]
    assert len(said) == 2
    again = outcome(settings[0], train(settings[0]))
    assert json.loads(json.dumps(again)) == read(path)[0], "the same seed gives the same run"
    assert again["first"]["independent"] == 6
    assert again["r_at"] is None or again["peak_r"] >= 1.0


def test_tables_of_the_docs_are_those_of_the_data():
    lines = read()
    if not lines:
        pytest.skip("the study has not been run")
    text = DOCS.read_text()
    for table in tables(lines).split("\n\n"):
        assert table in text
