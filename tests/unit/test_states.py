"""The words for how a task stands, and which of them are final."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localq import states
from localq.states import precedence, state

WORDS = ["SUCCESS", "FAILURE", "REVOKED", "STARTED", "RECEIVED", "REJECTED", "RETRY", "PENDING"]
some_state = st.sampled_from(WORDS) | st.text(min_size=1, max_size=8)


def test_success_is_more_final_than_anything_else():
    assert all(state("SUCCESS") > word for word in WORDS if word != "SUCCESS")


def test_pending_is_less_final_than_anything_else():
    assert all(state("PENDING") < word for word in WORDS if word != "PENDING")


@pytest.mark.row("F161")
def test_a_custom_state_stands_between_failure_and_revoked():
    assert state("FAILURE") > "PROGRESS" > state("REVOKED")
    assert precedence("PROGRESS") == precedence("UPLOADING")


@given(some_state, some_state)
def test_two_states_compare_one_way_only(one, other):
    left, right = state(one), state(other)
    assert (left > right) == (right < left)
    assert (left >= right) == (not left < right)
    assert (left <= right) == (not left > right)
    assert (left >= right) and (left <= right) if precedence(one) == precedence(other) else left != right


@given(st.lists(some_state, min_size=2, max_size=6))
def test_states_sort_from_the_least_to_the_most_final(words):
    ranks = [precedence(word) for word in sorted(map(state, words))]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.row("F161")
def test_a_state_is_ready_or_unready_never_both():
    assert not states.READY_STATES & states.UNREADY_STATES
    assert states.READY_STATES | states.UNREADY_STATES >= states.ALL_STATES


def test_an_exception_is_raised_only_from_states_that_are_final():
    assert states.PROPAGATE_STATES <= states.READY_STATES
    assert states.PROPAGATE_STATES <= states.EXCEPTION_STATES


def test_a_state_is_its_word():
    assert state("SUCCESS") == "SUCCESS"
    assert {state("SUCCESS"): 1}["SUCCESS"] == 1
