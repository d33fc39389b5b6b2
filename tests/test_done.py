"""`group(...).on_done(sig)`: once, when all members have ended, well or badly."""

from __future__ import annotations

import json

import pytest
from waiting import wait_until

from localq import chain, chord, group, signature


@pytest.fixture
def tasks(app, tmp_path):
    file = tmp_path / "done"

    @app.task(name="proj.value")
    def value(x):
        if x < 0:
            raise ValueError(x)
        return x

    @app.task(name="proj.done")
    def done(ends, note=""):
        with file.open("a") as out:
            shown = [[state, repr(result) if state == "FAILURE" else result] for state, result in ends]
            out.write(json.dumps([note, *shown]) + "\n")
        return len(ends)

    def lines():
        return sorted(map(json.loads, file.read_text().splitlines())) if file.exists() else []

    return value, done, lines


def test_it_is_fed_the_states_and_results_of_all_in_their_order(running, tasks):
    value, done, lines = tasks
    with running():
        group(value.s(1), value.s(-2), chain(value.s(-3), value.s())).on_done(done.s()).delay()
        wait_until(lines)
    # The last member's second step never ran, and failed with the first.
    assert lines() == [["", ["SUCCESS", 1], ["FAILURE", "ValueError(-2)"], ["FAILURE", "ValueError(-3)"]]]


def test_it_is_called_also_if_all_went_well_and_if_a_body_follows(running, tasks):
    value, done, lines = tasks
    with running():
        flow = chord(group(value.s(1), value.s(2)).on_done(done.s(note="header")), done.s.__self__.si([], note="body"))
        flow.delay()
        group([value.s(3)]).on_done(done.s(note="one")).delay()
        wait_until(lambda: len(lines()) == 3)
    assert lines() == [["body"], ["header", ["SUCCESS", 1], ["SUCCESS", 2]], ["one", ["SUCCESS", 3]]]


def test_each_of_several_is_called_and_what_follows_it_goes_on(running, tasks):
    value, done, lines = tasks
    with running():
        flow = group(value.s(-1), value.s(2)).on_done(done.s(note="a")).on_done(chain(done.s(note="b"), value.s()))
        signature(json.loads(json.dumps(flow))).delay()
        wait_until(lambda: len(lines()) == 2)
    assert [line[0] for line in lines()] == ["a", "b"]


def test_behind_a_group_without_members_it_is_called_with_nothing(running, tasks):
    _, done, lines = tasks
    with running():
        group([]).on_done(done.s(note="none")).delay()
        wait_until(lines)
    assert lines() == [["none"]]


def test_members_that_never_run_have_ended_too(app, running, tasks):
    value, done, lines = tasks
    with running():
        chain(value.s(-1), group(value.s(), value.s()).on_done(done.s())).delay()
        wait_until(lines)
    assert lines() == [["", ["FAILURE", "ValueError(-1)"], ["FAILURE", "ValueError(-1)"]]]
