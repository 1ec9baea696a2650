"""The one door to processes, with real ones."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from invirtibuilder import run as door
from invirtibuilder.errors import Blame, Exit
from invirtibuilder.run import CLEAN, ProcessFault, detach, run


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    """Whether it is dead, or is in a moment."""
    for _ in range(3000):
        if not alive(pid):
            return True
        time.sleep(0.01)
    return False


def test_what_a_process_leaves_behind(tmp_path: Path) -> None:
    done = run(
        ["sh", "-c", "cat; pwd; echo err >&2; exit 3"], stdin=b"in\n", check=False, cwd="/usr"
    )
    assert (done.code, done.out, done.err, done.text) == (3, b"in\n/usr\n", b"err\n", "in\n/usr")
    assert run(["cat"]).out == b""
    assert run(["cat"], stdin=b"").out == b""
    with (tmp_path / "file").open("wb") as file:
        assert run(["echo", "x"], stdout=file).out == b""
    assert (tmp_path / "file").read_text() == "x\n"


def test_the_environment_is_built_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    text = run(["env"], env={"MORE": "a b"}).text
    assert dict(line.split("=", 1) for line in text.splitlines()) == {**CLEAN, "MORE": "a b"}


def test_a_failure_says_the_line_to_repeat_it() -> None:
    with pytest.raises(ProcessFault) as caught:
        run(["sh", "-c", "echo why >&2; exit 4", "a b"])
    assert str(caught.value) == "exit code 4: sh -c 'echo why >&2; exit 4' 'a b'\nwhy"
    assert (caught.value.exit, caught.value.blame) == (Exit.MACHINE, Blame.MACHINE)
    assert caught.value.done.code == 4


@pytest.mark.parametrize("argv", [["/nonexistent"], [""], ["/etc/passwd"], ["/etc"]])
def test_what_cannot_be_started(argv: list[str]) -> None:
    with pytest.raises(ProcessFault, match="cannot be started"):
        run(argv, check=False)
    null = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(ProcessFault, match="cannot be started"):
        detach(argv, stdin=null, stdout=null, stderr=null)
    os.close(null)


def test_a_directory_that_is_not_there() -> None:
    with pytest.raises(ProcessFault, match="cannot be started"):
        run(["true"], cwd="/nonexistent")


STUBBORN = "trap '' TERM; echo $$; while :; do sleep 0.1; done"


def test_a_time_out_kills_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "GRACE", 0.3)
    # The first ends by TERM; its child ignores TERM, and holds standard output. Both have said who
    # they are by then.
    started = time.monotonic()
    with pytest.raises(ProcessFault, match="no end after 3 s") as caught:
        run(
            ["sh", "-c", f'({STUBBORN}) & sh -c "{STUBBORN.replace("$", chr(92) + "$")}" & wait'],
            timeout=3,
        )
    assert time.monotonic() - started < 30
    pids = [int(line) for line in caught.value.done.out.split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_a_time_out_does_not_wait_for_who_has_left_the_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "GRACE", 0.3)
    started = time.monotonic()
    with pytest.raises(ProcessFault, match="no end after"):
        run(["sh", "-c", "setsid sleep 60 & wait"], timeout=0.3)
    assert time.monotonic() - started < 30


def test_what_a_process_leaves_running_is_swept() -> None:
    done = run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"])
    assert gone(int(done.text))


def test_a_file_limit(tmp_path: Path) -> None:
    argv = ["sh", "-c", f"head -c 5000 /dev/zero > {tmp_path}/f"]
    run(argv, file_limit=5000)
    with pytest.raises(ProcessFault):
        run(argv, file_limit=4999)
    assert (tmp_path / "f").stat().st_size == 4999


def test_an_output_limit() -> None:
    argv = ["head", "-c", "1000", "/dev/zero"]
    assert len(run(argv, output_limit=1000).out) == 1000
    with pytest.raises(ProcessFault, match="more than 999 bytes of output"):
        run(argv, output_limit=999, check=False)


def test_output_without_end_is_not_read_to_the_end() -> None:
    with pytest.raises(ProcessFault, match="more than 1000000 bytes of output") as caught:
        run(["yes"], output_limit=1_000_000)
    assert len(caught.value.done.out) < 2_000_000
    with pytest.raises(ProcessFault, match="more than 9 bytes of output"):
        run(["sh", "-c", "yes >&2"], output_limit=9)


def test_the_mask_and_signals_are_plain() -> None:
    old = os.umask(0o077)
    try:
        assert run(["sh", "-c", "umask"]).text == "0022"
    finally:
        os.umask(old)
    # Python ignores SIGPIPE; a child that inherits that never ends.
    ignored = run(["grep", "SigIgn", "/proc/self/status"]).text.split()[1]
    assert int(ignored, 16) & (1 << 12) == 0


def test_only_named_descriptors_are_passed(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as passed, (tmp_path / "b").open("wb") as kept:
        os.set_inheritable(kept.fileno(), True)
        write = "import os, sys; os.write(int(sys.argv[1]), b'x')"
        for file in (passed, kept):
            argv = [sys.executable, "-c", write, str(file.fileno())]
            done = run(argv, pass_fds=[passed.fileno()], check=False)
            assert (done.code == 0) == (file is passed)
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("x", "")


def test_the_log_has_the_line() -> None:
    lines: list[str] = []
    run(["echo", "a b"], log=lines.append)
    assert lines == ["+ echo 'a b'"]
