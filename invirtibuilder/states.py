"""The states of a job and the moves between them: one table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from invirtibuilder.errors import Exit


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"  # accepted into the queue, not looked at yet
    RUNNING = "running"  # a stage is at work
    WAITING = "waiting"  # for something outside: a required hook, a free builder, disk space
    PUBLISHED = "published"
    DONE = "done"  # a job that publishes nothing, such as a new base
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: frozenset(
        {
            State.WAITING,
            State.PUBLISHED,
            State.DONE,
            State.REFUSED,
            State.FAILED,
            State.CANCELLED,
        }
    ),
    State.WAITING: frozenset({State.RUNNING, State.CANCELLED}),
    State.PUBLISHED: frozenset(),
    State.DONE: frozenset(),
    State.REFUSED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

EXITS = {
    State.PUBLISHED: Exit.OK,
    State.DONE: Exit.OK,
    State.REFUSED: Exit.REFUSED,
    State.FAILED: Exit.FAILED,
    State.CANCELLED: Exit.CANCELLED,
}
"""What a command that has followed a job ends with."""
DRIFT = "drift"
"""The code of the reason that an fsck gives which has found some."""


def verdict(state: State, codes: Iterable[str]) -> Exit:
    """The exit code of a job that is over, by its state and its reasons' codes."""
    return Exit.DRIFT if state == State.FAILED and DRIFT in codes else EXITS[state]


FINAL = frozenset(state for state, moves in MOVES.items() if not moves)


class IllegalMove(Exception):
    """A defect of ours: a job was to be moved where the table does not allow."""


def check_move(old: State, new: State) -> None:
    """Raise IllegalMove unless the table has this move."""
    if new not in MOVES[old]:
        raise IllegalMove(f"a job cannot go from {old} to {new}")


def diagram() -> str:
    """The table as lines of text, as README.rst shows it."""
    return "\n".join(
        f"{state:<9} -> {', '.join(sorted(moves)) or '(final)'}" for state, moves in MOVES.items()
    )
