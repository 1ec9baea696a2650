"""hooks.d/audit, as a process."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from tests.support.hookscripts import JOB, call, event


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


def lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_each_event_is_one_line_once(log: Path) -> None:
    for name in ("submitted", "started", "submitted", "published", "published"):
        done = call("audit", event(name, log_tail="long"), {"AUDIT_FILE": str(log)})
        assert (done.code, done.err) == (0, b"")
    assert [line["event"] for line in lines(log)] == ["submitted", "started", "published"]
    first = lines(log)[0]
    assert first == {k: v for k, v in event("submitted").items() if k != "log_tail"}
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "hostile",
    ["a\nb", "a\r\n{}", "\u2028\u202e\x1b[2J\x00\x85", "\ud800", f'","id":"{JOB}:started"'],
)
def test_no_value_breaks_a_line_or_passes_for_another_event(log: Path, hostile: str) -> None:
    env = {"AUDIT_FILE": str(log)}
    told = event("submitted", principal=hostile, why=[{"id": f"{JOB}:started", "x": hostile}])
    assert call("audit", told, env).code == 0
    assert call("audit", event("started"), env).code == 0
    assert log.read_bytes().isascii()
    assert [line["event"] for line in lines(log)] == ["submitted", "started"]
    assert lines(log)[0]["principal"] == hostile


def test_a_line_cut_short_by_a_crash_is_written_again_whole(log: Path) -> None:
    env = {"AUDIT_FILE": str(log)}
    call("audit", event("submitted"), env)
    call("audit", event("started"), env)
    log.write_bytes(log.read_bytes()[:-30])
    assert call("audit", event("started"), env).code == 0
    assert call("audit", event("started"), env).code == 0
    first, torn, again = log.read_text().splitlines()
    assert json.loads(first)["event"] == "submitted"
    assert again.startswith(torn)
    assert json.loads(again)["event"] == "started"


def test_what_is_in_the_file_is_never_changed(log: Path) -> None:
    log.write_text("# a comment of the administrator\n")
    call("audit", event("submitted"), {"AUDIT_FILE": str(log)})
    assert log.read_text().startswith("# a comment of the administrator\n{")


def test_several_at_once(log: Path) -> None:
    jobs = [f"20260102T030405.{n:06}-abcd" for n in range(8)] * 2
    threads = [
        threading.Thread(
            target=call,
            args=("audit", event(job=job, why=["x" * 100_000]), {"AUDIT_FILE": str(log)}),
        )
        for job in jobs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(line["job"]) for line in lines(log)) == sorted(set(jobs))


def test_a_directory_that_is_missing_is_tried_again_later(log: Path) -> None:
    done = call("audit", event(), {"AUDIT_FILE": str(log / "x")})
    assert done.code == 75
    assert b"No such file" in done.err


def test_a_symbolic_link_is_not_followed(log: Path) -> None:
    target = log.with_name("target")
    log.symlink_to(target)
    assert call("audit", event(), {"AUDIT_FILE": str(log)}).code == 75
    assert not target.exists()


@pytest.mark.parametrize("env", [{}, {"AUDIT_FILE": ""}, {"AUDIT_FILE": "audit.log"}])
def test_settings_that_are_missing(env: dict[str, str]) -> None:
    done = call("audit", event(), env)
    assert done.code == 78
    assert b"AUDIT_FILE" in done.err


@pytest.mark.parametrize("told", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_what_is_no_event(log: Path, told: bytes) -> None:
    assert call("audit", told, {"AUDIT_FILE": str(log)}).code == 65
    assert not log.exists()
