"""Values of the hooks' contract."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import hookcall, hooks, run
from invirtibuilder.errors import Malformed
from invirtibuilder.hookcall import Hook


def a_hook(**fields: Any) -> Hook:
    values: dict[str, Any] = {
        "name": "mail",
        "program": Path("/usr/bin/true"),
        "events": frozenset({"submitted"}),
    }
    return Hook(**{**values, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../x"},
        {"name": "a.b"},  # a dot would make the file of its state ambiguous
        {"name": ""},
        {"program": Path("hooks.d/mail")},
        {"program": Path("/x\0y")},
        {"events": frozenset({"submitted", "finished"})},
        {"environment": {"A=B": "c"}},
        {"environment": {"A": "b\0c"}},
    ],
)
def test_a_wrong_hook_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        a_hook(**fields)


def test_two_hooks_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="same name"):
        hooks.Events(tmp_path, [a_hook(), a_hook()])


def test_back_off_rises_and_stays_at_an_hour() -> None:
    waits = [hooks.back_off(attempts) for attempts in range(1, 8)]
    assert waits == sorted(waits)
    assert waits[0] == timedelta(seconds=5)
    assert waits[4:] == [timedelta(hours=1)] * 3


def test_every_variable_is_set_even_when_not_known() -> None:
    told = hookcall.variables(a_hook(), {"id": "J:submitted"})
    names = ("EVENT", "EVENT_ID", "JOB", "POCKET", "PACKAGE", "VERSION", "COMMIT", "PRINCIPAL")
    assert set(told) == {f"INVIRTIBUILDER_{name}" for name in (*names, "STATE")}
    assert told["INVIRTIBUILDER_EVENT_ID"] == "J:submitted"
    assert told["INVIRTIBUILDER_COMMIT"] == ""


@pytest.mark.parametrize(
    "value", ["a\nb", "a\0b", "a\x1b[31mb", "a\u202eb", "a\udcffb", "x" * 9999]
)
def test_a_hostile_value_becomes_one_line_that_a_process_can_be_given(value: str) -> None:
    told = hookcall.variables(a_hook(), {"principal": value})["INVIRTIBUILDER_PRINCIPAL"]
    assert told.isprintable()
    assert len(told) <= 1000
    seen = run.run(["/usr/bin/printenv", "P"], env={"P": told}).text
    assert seen == told


def test_the_configuration_cannot_forge_what_a_hook_is_told() -> None:
    hook = a_hook(environment={"INVIRTIBUILDER_PRINCIPAL": "eve", "MAIL_TO": "root"})
    told = hookcall.variables(hook, {"principal": "alice"})
    assert told["INVIRTIBUILDER_PRINCIPAL"] == "alice"
    assert told["MAIL_TO"] == "root"


def test_a_delivery_survives_its_json() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    new = hooks.Delivery(job="J", event="failed", hook="mail", required=False)
    old = replace(new, attempts=2, first=now, last=now, next=now, why="no\nroute")
    for delivery in (new, old, replace(old, accepted=now), replace(old, gave_up=True)):
        assert hooks._delivery(new, json.loads(json.dumps(delivery.as_json()))) == delivery
