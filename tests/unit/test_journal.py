"""Log lines in the journal's own protocol and as text: nothing that is told makes another line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from invirtibuilder.journal import ERROR, MAX_TEXT, MAX_VALUE, Log, logger
from tests.support.journal import Journal, journal, stream

EVIL = "x\nPRIORITY=0\nJOB=forged\n2026-01-01T00:00:00.000Z ready: \x1b[2J\x00\u202e"


@dataclass
class Both:
    """A log, the journal that it may go to, and its standard error."""

    log: Log
    journal: Journal
    file: Path

    @property
    def text(self) -> str:
        return self.file.read_text()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    with journal(tmp_path / "socket") as made, (tmp_path / "err").open("wb") as err:
        log = logger(err.fileno(), environment=stream(err.fileno()), path=made.path)
        yield Both(log, made, tmp_path / "err")


def test_fields(both: Both) -> None:
    both.log("job 1: failed", {"job": "1", "principal": "a b@R", "code": ""}, priority=ERROR)
    (line,) = both.journal.lines()
    assert line == {
        "MESSAGE": [b"job 1: failed"],
        "PRIORITY": [b"3"],
        "SYSLOG_IDENTIFIER": [b"invirtibuilder"],
        "JOB": [b"1"],
        "PRINCIPAL": [b"a b@R"],
    }
    assert both.text == ""


def test_what_is_hostile_stays_one_value(both: Both) -> None:
    both.log(EVIL, {"package": EVIL, "job": "\ud800"})
    (line,) = both.journal.lines()
    assert line["PRIORITY"] == [b"6"]
    assert line["PACKAGE"] == [EVIL.encode()]
    assert line["JOB"] == [b"\\ud800"]
    assert line["MESSAGE"][0].decode().isprintable()
    assert set(line) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "PACKAGE", "JOB"}


def test_what_is_long_is_cut(both: Both) -> None:
    both.log("m" * (1 << 20), {"package": "p" * (1 << 20)})
    (line,) = both.journal.lines()
    assert (len(line["MESSAGE"][0]), len(line["PACKAGE"][0])) == (MAX_TEXT, MAX_VALUE)


def test_no_field_has_a_name_of_somebody_else(both: Both) -> None:
    for name in ("", "JOB", "a=b", "a\nb", "_uid", "priority\n"):
        with pytest.raises(ValueError, match="no names of fields"):
            both.log("text", {name: "x"})
    assert both.journal.lines() == []


@pytest.mark.parametrize("where", ["", "0:0", "1:2:3"])
def test_elsewhere_it_is_text(both: Both, where: str) -> None:
    """JOURNAL_STREAM of somebody who has led standard error elsewhere counts for nothing."""
    with both.file.open("ab") as err:
        log = logger(err.fileno(), environment={"JOURNAL_STREAM": where}, path=both.journal.path)
        log(EVIL, {"package": EVIL})
    assert both.journal.lines() == []
    assert re.fullmatch(r"20\S+Z x\\nPRIORITY=0\\nJOB=forged\\n2026[ -~]+\n", both.text)


def test_a_journal_that_is_gone_costs_no_line(both: Both) -> None:
    both.journal.path.unlink()
    both.log("a line", {"job": "1"})
    assert re.fullmatch(r"20\S+Z a line\n", both.text)


def test_a_full_disk_stops_nobody() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        logger(full.fileno(), environment={})("a line")
