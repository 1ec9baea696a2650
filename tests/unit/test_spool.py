"""The queue directory: each request whole, once, in order, and only in one's own name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder.entries import new_id
from invirtibuilder.errors import Malformed, Unavailable
from invirtibuilder.spool import MAX_BYTES, Request, Spool, local_principal, parse

ME = local_principal(os.geteuid())
NONE: frozenset[int] = frozenset()
OWN = frozenset({os.geteuid()})
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "queue")
    made.create()
    return made


def request(principal: str = ME, now: datetime | None = None) -> Request:
    args = ["staging", "greet", "main"]
    return Request.new("submit", args, principal=principal, via="test", now=now)


def place(spool: Spool, data: bytes | Request, name: str = "") -> Path:
    """Put a file there past `put`."""
    content = json.dumps(data.as_json()).encode() if isinstance(data, Request) else data
    own = f"{data.id}.json" if isinstance(data, Request) else "x.json"
    path = spool.new / (name or own)
    path.write_bytes(content)
    return path


def test_a_request_is_read_as_it_was_put(spool: Spool) -> None:
    spool.create()
    wanted = request()
    spool.put(wanted)
    (entry,) = spool.entries(NONE)
    assert entry.request == wanted
    assert entry.path == spool.new / f"{wanted.id}.json"
    assert not any((spool.directory / "tmp").iterdir())


def test_entries_come_in_order_of_arrival(spool: Spool) -> None:
    start = datetime(2026, 12, 31, 23, 59, 59, 999_990, tzinfo=UTC)
    wanted = [request(now=start + timedelta(microseconds=i * 7)) for i in range(20)]
    for each in reversed(wanted):
        spool.put(each)
    assert [e.request for e in spool.entries(NONE)] == wanted


def test_an_existing_entry_is_never_replaced(spool: Spool) -> None:
    first = request()
    spool.put(first)
    other = parse({**first.as_json(), "args": ["prod", "greet", "main"]})
    with pytest.raises(Unavailable):
        spool.put(other)
    assert not any((spool.directory / "tmp").iterdir())
    (entry,) = spool.entries(NONE)
    assert entry.request == first


def test_a_queue_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        Spool(tmp_path / "none").put(request())


def test_who_may_speak_for_whom(spool: Spool) -> None:
    spool.put(request("alice@EXAMPLE.ORG"))
    (entry,) = spool.entries(NONE)
    assert entry.request is None
    assert "may not speak for alice@EXAMPLE.ORG" in entry.problem
    (entry,) = spool.entries(OWN)
    assert entry.request
    if os.geteuid() == 0:
        os.chown(entry.path, 65534, 65534)
        (entry,) = spool.entries(OWN)
        assert entry.request is None


GOOD = request().as_json()


@pytest.mark.parametrize(
    "value",
    [
        *(None, 5, [], "text", {}),
        {**GOOD, "v": 2},
        {**GOOD, "more": 1},
        {k: v for k, v in GOOD.items() if k != "via"},
        {**GOOD, "id": "../../x"},
        {**GOOD, "id": 5},
        {**GOOD, "action": "destroy"},
        {**GOOD, "action": ["submit"]},
        {**GOOD, "args": "abc"},
        {**GOOD, "args": ["staging", "greet"]},
        {**GOOD, "args": ["staging", "greet", "main", "x"]},
        {**GOOD, "args": ["staging", "greet", ["main"]]},
        {**GOOD, "args": ["staging", "../x", "main"]},
        {**GOOD, "args": ["staging", "greet", "--upload-pack=x"]},
        {**GOOD, "principal": "a\nb"},
        {**GOOD, "principal": ""},
        {**GOOD, "principal": "\ud800"},
        {**GOOD, "via": "a\nb"},
        {**GOOD, "via": "x" * 257},
        {**GOOD, "addr": None},
        {**GOOD, "time": 5},
    ],
)
def test_the_schema(spool: Spool, value: Any) -> None:
    with pytest.raises(Malformed):
        parse(value)
    path = place(spool, json.dumps(value).encode(), f"{GOOD['id']}.json")
    (entry,) = spool.entries(OWN)
    assert (entry.path, entry.request) == (path, None)
    assert entry.problem


def test_hostile_files_are_set_aside_with_the_reason(spool: Spool, tmp_path: Path) -> None:
    good = request()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(json.dumps(request().as_json()).encode())
    place(spool, b"", "empty.json")
    place(spool, b'{"v": 1, "id": ', "torn.json")
    place(spool, b"\xff", "binary.json")
    place(spool, b"[" * 60_000, "deep.json")
    place(spool, b" " * (MAX_BYTES + 1), "large.json")
    place(spool, request(), "named-otherwise.json")
    place(spool, b"", "n" * 250)
    place(spool, b"", "line\nbreak")
    (spool.new / os.fsdecode(b"\xff\xfe")).touch()
    (spool.new / "link.json").symlink_to(elsewhere)
    (spool.new / "folder.json").mkdir()
    (spool.new / "folder.json/file").touch()
    os.mkfifo(spool.new / "fifo.json")
    for name in ("a.json", "b.json"):
        os.link(place(spool, b"x", "many.json"), spool.new / name)
    spool.put(good)
    for _ in range(2):  # what is set aside twice under one name is there twice
        entries = list(spool.entries(OWN))
        assert [e.request for e in entries if e.request] == [good]
        bad = [e for e in entries if not e.request]
        for entry in bad:
            spool.set_aside(entry)
        place(spool, b"again", "empty.json")
        (spool.new / "folder.json").mkdir()
    aside = [p.name for p in (spool.directory / "bad").iterdir()]
    reasons = [name for name in aside if name.endswith(".reason")]
    assert len(aside) == 2 * len(reasons) == 2 * (15 + 2)
    assert elsewhere.exists()
    names = {path.name for path in spool.new.iterdir()}
    assert names == {"empty.json", "folder.json", f"{good.id}.json"}


def test_why_a_request_was_set_aside(spool: Spool) -> None:
    asked = request("alice@EXAMPLE.ORG")
    spool.put(asked)
    assert spool.why_set_aside(asked.id) == ""
    (entry,) = spool.entries(NONE)
    spool.set_aside(entry)
    assert "may not speak for" in spool.why_set_aside(asked.id)


WRITER = """
import sys
from pathlib import Path
from invirtibuilder.spool import Request, Spool
spool = Spool(Path(sys.argv[1]))
for _ in range(50):
    request = Request.new("submit", ["staging", "greet", "main"], principal=sys.argv[2], via="test")
    spool.put(request)
    print(request.id)
"""


def test_many_writers_and_a_reader_at_once(spool: Spool) -> None:
    argv = [sys.executable, "-c", WRITER, str(spool.directory), ME]
    writers = [subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(4)]
    stop = threading.Event()
    problems: list[str] = []

    def read() -> None:
        while not stop.is_set():
            problems.extend(e.problem for e in spool.entries(NONE) if not e.request)

    reader = threading.Thread(target=read)
    reader.start()
    outputs = [writer.communicate()[0].decode().split() for writer in writers]
    stop.set()
    reader.join()
    assert [w.returncode for w in writers] == [0] * 4
    assert problems == []
    ids = sorted(name for output in outputs for name in output)
    assert len(set(ids)) == 200
    assert [e.request.id for e in spool.entries(NONE) if e.request] == ids
    assert not any((spool.directory / "tmp").iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from invirtibuilder.spool import Request, Spool
call = getattr(os, sys.argv[3])
def killed(*args, **options):
    if sys.argv[4] == "after":
        call(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[3], killed)
request = Request.new("submit", ["staging", "greet", "main"], principal=sys.argv[2], via="test")
Spool(Path(sys.argv[1])).put(request)
"""


@pytest.mark.parametrize(
    ("call", "when", "there"),
    [("fsync", "before", 0), ("link", "before", 0), ("link", "after", 1)],
)
def test_a_writer_that_is_killed(spool: Spool, call: str, when: str, there: int) -> None:
    argv = [sys.executable, "-c", KILLED, str(spool.directory), ME, call, when]
    assert subprocess.run(argv, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    entries = list(spool.entries(NONE))
    assert len(entries) == there
    assert all(e.request and not e.problem for e in entries)
    if there:
        # Its second name is gone, and it still is one request.
        assert not any((spool.directory / "tmp").iterdir())
        assert len(list(spool.entries(NONE))) == 1


def test_ids_sort_by_time() -> None:
    start = datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC)
    moments = [start + timedelta(milliseconds=700 * i) for i in range(10)]
    ids = [new_id(moment) for moment in moments]
    assert ids == sorted(ids)
    assert len({new_id(start) for _ in range(20)}) > 15
