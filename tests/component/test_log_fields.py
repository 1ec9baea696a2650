"""What the daemon and a worker tell the journal, with a socket in its place."""

from __future__ import annotations

import io
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from invirtibuilder import sockets, worker
from invirtibuilder.apt.signerclient import SocketSigner
from invirtibuilder.daemon import Daemon
from invirtibuilder.errors import MachineFault
from invirtibuilder.journal import INFO, NOTHING, WARNING, About, logger
from invirtibuilder.notifier import Notifier
from invirtibuilder.order import Limits, Order, Room, write_order
from invirtibuilder.signerservice import SignerService
from tests.support import place as places
from tests.support.journal import journal, stream
from tests.support.line import ME, Line
from tests.support.listening import listens
from tests.support.place import until


def said(lines: list[dict[str, list[bytes]]], name: str) -> set[str]:
    return {value.decode() for line in lines for value in line.get(name, ())}


def test_the_daemons_lines_say_what_they_are_about(
    line: Line, daemon: Daemon, tmp_path: Path
) -> None:
    line.package("greet")
    good, bad = line.job("dev", "greet"), line.job("dev", "greet", "nowhere")
    with journal(tmp_path / "socket") as made, (tmp_path / "err").open("wb") as err:
        daemon.log = logger(err.fileno(), environment=stream(err.fileno()), path=made.path)
        daemon.run()
        lines = made.lines()
    assert (tmp_path / "err").read_bytes() == b""
    of = {
        job.id: [each for each in lines if each.get("JOB") == [job.id.encode()]]
        for job in (good, bad)
    }
    for found in of.values():
        assert found
        assert said(found, "POCKET") == {"dev"}
        assert said(found, "PACKAGE") == {"greet"}
        assert said(found, "PRINCIPAL") == {ME}
    assert said(of[good.id], "CODE") == set()
    assert said(of[bad.id], "CODE") == {"commit-unknown"}
    # What failed is found by its priority, and nothing else is.
    assert said(of[good.id], "PRIORITY") == {"6"}
    assert [(each["PRIORITY"], each["CODE"]) for each in of[bad.id] if "CODE" in each] == [
        ([b"4"], [b"commit-unknown"])
    ]
    (ready,) = [each for each in lines if each["MESSAGE"][0].startswith(b"ready: ")]
    assert ready["PRIORITY"] == [b"6"]
    assert said(lines, "PRIORITY") == {"4", "6"}


@contextmanager
def served(
    service: SignerService | Notifier, path: Path, ask: Callable[[], None]
) -> Iterator[None]:
    """Run a service here, as its command does, while another thread asks it."""

    def client() -> None:
        until(lambda: listens(path))
        try:
            ask()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    thread = threading.Thread(target=client)
    thread.start()
    try:
        service.run(path)
        yield
    finally:
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_signer_and_notifier_refuse(tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, str], int]] = []

    def log(text: str, about: About = NOTHING, *, priority: int = INFO) -> None:
        said.append((text, {name: value for name, value in about.items() if value}, priority))

    with places.place() as place:
        path = place.directory / "run/x.sock"
        signer = SocketSigner(path=path, pocket="dev", keys=())

        def sign() -> None:
            signer.check()
            with pytest.raises(MachineFault):
                signer.sign(b"no Release\n")

        with served(SignerService(place.config, log), path, sign):
            path.unlink()
        about = {"pocket": "dev", "code": "signer-refused"}
        assert [(a, p) for text, a, p in said if "nothing is signed" in text] == [(about, WARNING)]
        said.clear()

        def tell() -> None:
            sockets.ask(path, {"hook": "nowhere"}, b"{}", limit=1 << 20, seconds=60)

        with served(Notifier(place.config, log), path, tell):
            pass
        assert [(a, p) for text, a, p in said if "no hook" in text] == [
            ({"code": "not-found"}, WARNING)
        ]


def test_a_workers_line_of_an_order(tmp_path: Path) -> None:
    """It ends at once, as its file system never has as much room as is asked for."""
    room = Room(suite="bookworm", architecture="amd64", sources="", limits=Limits(reserve=1 << 60))
    job = "20260102T030405.678901-abcd"
    content = {"package": "gr\neet"}
    order = Order(kind="build", job=job, attempt=f"{job}.build-1", room=room, content=content)
    write_order(tmp_path / "order", order, {})
    # A place that the account of the ids may pass to, unlike the test's own.
    directory = Path(tempfile.mkdtemp(dir="/var/tmp"))
    directory.chmod(0o711)
    try:
        with (
            journal(tmp_path / "socket") as made,
            (tmp_path / "err").open("wb") as err,
            (tmp_path / "order").open("rb") as stream_,
        ):
            log = logger(err.fileno(), environment=stream(err.fileno()), path=made.path)
            done = worker.work(directory, stream_, io.BytesIO(), log_fd=err.fileno(), log=log)
            (told,) = made.lines()
    finally:
        shutil.rmtree(directory)
    assert not done
    assert told["JOB"] == [job.encode()]
    assert told["PACKAGE"] == [b"gr\neet"]
    assert told["CODE"] == [b"disk-full"]
    assert told["PRIORITY"] == [b"4"]
    assert told["MESSAGE"][0].startswith(f"order build {job}.build-1: failed after ".encode())
