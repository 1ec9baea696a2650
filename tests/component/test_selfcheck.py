"""self-check: each trial can find something missing."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder.cli import selfcheck
from invirtibuilder.cli.main import main
from invirtibuilder.run import run
from invirtibuilder.sandbox import check, kvm
from invirtibuilder.sandbox.check import room
from invirtibuilder.sandbox.limits import Groups
from tests.support.place import Place, place
from tests.support.repository import TOP


@pytest.fixture
def own() -> Iterator[Place]:
    """A site whose workers are the daemon's children and whose mirror is at hand."""
    with place() as made, listener(made.directory / "run" / "mirror", family=None) as port:
        made.edit("trusted: {socket: run/worker.sock}", "trusted: {}")
        text = made.config.read_text()
        text = text.replace("http://mirror.invalid/debian", f"http://127.0.0.1:{port}/debian")
        made.config.write_text(text)
        yield made


@contextmanager
def listener(path: Path, *, family: int | None = socket.AF_UNIX) -> Iterator[int]:
    """Somebody who accepts connections; the port, if it is not a unix socket."""
    with socket.socket(family or socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(str(path) if family else ("127.0.0.1", 0))
        server.listen(16)
        yield 0 if family else int(server.getsockname()[1])


def checked(own: Place, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """The exit code, and each finding by what it is about."""
    code = main(["--config", str(own.config), "--json", "self-check"])
    value = json.loads(capsys.readouterr().out)
    found = {finding["what"]: finding for finding in value["findings"]}
    assert len(found) == len(value["findings"])
    states = {finding["state"] for finding in found.values()}
    assert states <= {"ok", "weaker", "missing"}
    assert value["ok"] is ("missing" not in states) is (code == 0)
    assert all(f["advice"] for f in found.values() if f["state"] != "ok" and f["detail"])
    return code, found


def test_the_package_brings_the_programs() -> None:
    control = (TOP / "debian/control").read_text().split("\nPackage: ")[1]
    brought = re.findall(r"^ ([a-z-]+)", control.split("\nSuggests:")[0], re.MULTILINE)
    assert set(selfcheck.PROGRAMS.values()) <= set(brought)


def test_this_machine(own: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(own, capsys)
    assert code == 0, found
    groups = Groups.find()
    for domain in ("trusted", "untrusted"):
        for resource in ("memory", "processes", "cpu_time"):
            state = "ok" if resource in groups.places else "weaker"
            assert found[f"limit on {resource} ({domain})"]["state"] == state
    for what in ("programs", "signing key", "daemon", "subordinate ids (trusted)"):
        assert found[what]["state"] == "ok"
    assert main(["--config", str(own.config), "self-check"]) == 0
    text = capsys.readouterr().out
    assert "ok      overlay file system (trusted)\n" in text


def test_what_is_missing(own: Place, capsys: pytest.CaptureFixture[str]) -> None:
    site = own.site
    shutil.rmtree(site.signing.home / "private-keys-v1.d")
    for domain in site.domains.values():
        shutil.rmtree(domain.directory, ignore_errors=True)
    (own.directory / "work").mkdir(exist_ok=True)
    (own.directory / "work" / "trusted").write_text("no directory")
    text = own.config.read_text()
    port = text.partition("http://127.0.0.1:")[2].partition("/")[0]
    own.config.write_text(text.replace(f"127.0.0.1:{port}", "127.0.0.1:1", 1))
    own.edit("untrusted: {}", "untrusted: {socket: run/worker.sock}")
    site.socket.parent.mkdir(exist_ok=True)
    own.edit("site:\n", "site:\n  notifier: run/notify.sock\n")
    # Left by a daemon that was killed.
    with listener(site.socket):
        pass
    code, found = checked(own, capsys)
    missing = {what for what, finding in found.items() if finding["state"] == "missing"}
    assert code == 71
    assert missing == {
        *("signing key", "mirror 127.0.0.1:1", "worker (untrusted)", "notifier"),
        "directory (trusted)",
    }
    assert found["daemon"]["state"] == "weaker"
    run = own.directory / "run"
    with listener(run / "worker.sock"), listener(run / "notify.sock"):
        found = checked(own, capsys)[1]
    assert [found[what]["state"] for what in ("worker (untrusted)", "notifier")] == ["ok", "ok"]


def test_isolations_of_pockets(
    own: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = tmp_path / "kvm"
    monkeypatch.setattr(kvm, "DEVICE", device)

    def state(more: str) -> str:
        own.config.write_text(text + f"  boxed: {{suite: bookworm, {more}}}\n")
        found = checked(own, capsys)[1]
        return str(found.get("isolation of boxed", {"state": "none"})["state"])

    text = own.config.read_text()
    assert state("isolation: chroot") == "none"
    assert state("isolation: vm") == "missing"
    assert state("isolation: vm, vm: {emulation: true}") == "weaker"
    device.touch()
    device.chmod(0o660)
    assert state("isolation: vm") == "missing"
    device.chmod(0o666)
    assert state("isolation: vm") == "ok"
    theirs = f"qemubuilder: {{config: {device}, accept_weaker_isolation: true}}"
    assert state(f"isolation: qemubuilder, {theirs}") in ("weaker", "missing")


def test_little_room(tmp_path: Path) -> None:
    assert room(tmp_path, reserve=0, disk=0).state == "ok"
    weaker = room(tmp_path, reserve=0, disk=1 << 60)
    assert (weaker.state, weaker.advice != "") == ("weaker", True)
    assert room(tmp_path, reserve=1 << 60, disk=0).state == "missing"


def test_a_program_that_is_not_there(
    own: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(check.PROGRAMS, "no-such-program", "no-such-package")
    monkeypatch.setitem(selfcheck.PROGRAMS, "no-such-daemons-program", "some-package")
    code, found = checked(own, capsys)
    assert code == 71
    assert found["no-such-program (trusted)"]["advice"] == "apt-get install no-such-package"
    assert found["programs"]["advice"] == "apt-get install some-package"


def test_without_a_configuration_the_workers_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INVIRTIBUILDER_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("invirtibuilder.cli.command.DEFAULT_CONFIG", tmp_path / "none.yaml")
    assert main(["self-check"]) == 0
    text = capsys.readouterr().out
    assert "ok      user namespace\n" in text
    assert "signing key" not in text


CLOCK = """\
#include <stdio.h>
#include <sys/timex.h>
int main(void) {
  struct timex clock = {.modes = 0};
  return printf("%d\\n", adjtimex(&clock) == TIME_ERROR) < 0;
}
"""
"""By the C library's own headers: whether nobody keeps the clock."""


def test_the_clock_is_kept_when_the_kernel_says_so(
    own: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    run(["gcc", "-Wall", "-Werror", "-o", tmp_path / "clock", tmp_path / "clock.c"])
    astray = {"0": "ok", "1": "weaker"}
    assert checked(own, capsys)[1]["clock"]["state"] == astray[run([tmp_path / "clock"]).text]
