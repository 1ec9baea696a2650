"""The table of moves."""

from __future__ import annotations

import itertools

import pytest

from invirtibuilder.states import FINAL, MOVES, IllegalMove, State, check_move, diagram


def test_every_move_is_the_tables_or_raises() -> None:
    for old, new in itertools.product(State, State):
        if new in MOVES[old]:
            check_move(old, new)
        else:
            with pytest.raises(IllegalMove):
                check_move(old, new)


def test_the_final_states_are_final_and_can_be_reached() -> None:
    assert set(MOVES) == set(State)
    assert {s.value for s in FINAL} == {"published", "done", "refused", "failed", "cancelled"}
    reached, todo = {State.QUEUED}, [State.QUEUED]
    while todo:
        new = MOVES[todo.pop()] - reached
        reached |= new
        todo += new
    assert reached == set(State)


def test_nothing_is_final_that_only_waits() -> None:
    for state in (State.QUEUED, State.RUNNING, State.WAITING):
        assert State.CANCELLED in MOVES[state]


def test_the_diagram_has_a_line_a_state() -> None:
    lines = diagram().splitlines()
    assert len(lines) == len(State)
    assert "queued    -> cancelled, running" in lines
    assert "published -> (final)" in lines
