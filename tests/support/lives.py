"""Lives of a daemon, each of which may end by SIGKILL at a step that is named beforehand.

A program: it imports the daemon once and forks it for each line of JSON on standard input, so that
a life costs no start of Python. `die` is the step at which the daemon kills itself: each step is a
change of a file or the start of a process, just before it happens. `tool` is [NAME, CALL, HOW]: the
CALL-th start of reprepro, git or gpg goes wrong in one of the ways of `wrapper`. `clock` is in
seconds besides the machine's. `settings` are constants of modules: waits that are too long for a
test. On standard output it says `{"pid": ...}`, and when that life has ended, how.
"""

from __future__ import annotations

import functools
import importlib
import json
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import config, daemon, errors, model, run
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.cli import daemon as cli_daemon

STEPS = frozenset(
    ("os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
    + ("os.utime", "os.truncate", "subprocess.Popen", "socket.sendmsg", "fcntl.flock")
)
TOOLS = ("reprepro", "git", "gpg")
ROOM = 300
"""Bytes in which a life tells its number of steps, and the last of them."""

WRAPPER = """#!/bin/sh
if [ -e {plan} ]; then
  read -r how seconds <{plan}
  rm -f {plan}
  case $how in
    tool-before) kill -9 $$ ;;
    tool-during) exec timeout -s KILL "$seconds" {real} "$@" ;;
    tool-after) {real} "$@"; kill -9 $$ ;;
    daemon-before) kill -9 $PPID ;;
    daemon-after) {real} "$@"; kill -9 $PPID; exit 0 ;;
    both-before) kill -9 $PPID $$ ;;
    both-during) timeout -s KILL "$seconds" {real} "$@"; kill -9 $PPID $$ ;;
    both-after) {real} "$@"; kill -9 $PPID $$ ;;
  esac
fi
exec {real} "$@"
"""
WAYS = (
    *("tool-before", "tool-during", "tool-after", "daemon-before", "daemon-after"),
    *("both-before", "both-during", "both-after"),
)


def wrap(folder: Path) -> None:
    """Programs that go wrong when they are told to, each in a folder of its own."""
    for name in TOOLS:
        (folder / name).mkdir(parents=True)
        text = WRAPPER.format(plan=folder / f"plan.{name}", real=f"/usr/bin/{name}")
        (folder / name / name).write_text(text)
        (folder / name / name).chmod(0o755)


class Free:
    """No confinement."""

    def enter(self) -> None:
        pass


class Steps:
    """Counts the steps of this process, and ends it at one."""

    def __init__(self, told: mmap.mmap, wrappers: Path, life: dict[str, Any]) -> None:
        self._told = told
        self._wrappers = wrappers
        self._die = life.get("die")
        tool: tuple[str, int, str] = life.get("tool") or ("", 0, "")
        self._tool, self._call, self._how = tool
        self._count = self._calls = 0
        self._busy = False
        self._over = threading.Event()
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        """By a thread that is not confined, as those are that start reprepro."""
        self._over.wait()
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook (sys.addaudithook)."""
        if event == "open":
            if not isinstance(args[2], int) or not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in STEPS:
            return
        if self._busy:
            return
        self._count += 1
        text = json.dumps([self._count, event, repr(args[:2])[:200]]).encode()[: ROOM - 1]
        self._told[:] = text.ljust(ROOM, b"\0")
        if self._count == self._die:
            self._over.set()
            time.sleep(60)
        # reprepro is started by prlimit.
        if event == "subprocess.Popen" and self._tool in args[1][:4]:
            self._calls += 1
            if self._calls == self._call:
                self._busy = True
                (self._wrappers / f"plan.{self._tool}").write_text(f"{self._how}\n")
                self._busy = False


def live(file: Path, wrappers: Path, life: dict[str, Any], told: mmap.mmap) -> None:
    """One life, in the child."""
    for name in TOOLS:
        (wrappers / f"plan.{name}").unlink(missing_ok=True)
    if tool := life.get("tool"):
        run.CLEAN["PATH"] = f"{wrappers / tool[0]}:{run.CLEAN['PATH']}"
        if tool[0] == "reprepro":
            # What comes in its place could neither kill anybody nor start it.
            Reprepro._confinement = lambda *_: Free()  # type: ignore[assignment,method-assign]
    for name, value in life.get("settings", {}).items():
        module, _, constant = name.rpartition(".")
        owner = importlib.import_module(f"invirtibuilder.{module}")
        is_delta = isinstance(getattr(owner, constant), timedelta)
        setattr(owner, constant, timedelta(seconds=value) if is_delta else value)
    shift = timedelta(seconds=life.get("clock", 0))
    made = functools.partial(daemon.make_context, clock=lambda: model.utcnow() + shift)
    daemon.make_context = made

    site = config.load(file)
    sys.addaudithook(Steps(told, wrappers, life))
    daemon.Daemon(site, cli_daemon.log, drain=life.get("drain", True)).run()


def main() -> None:
    file, wrappers = Path(sys.argv[1]), Path(sys.argv[2])
    told = mmap.mmap(-1, ROOM)
    for line in sys.stdin:
        told[:] = bytes(ROOM)
        life = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                live(file, wrappers, life, told)
                code = 0
            except errors.Fault as fault:
                # As the command line shows it; whoever supervises the daemon starts it again.
                cli_daemon.log(f"error: {fault}")
                code = int(fault.exit)
            except OSError as error:
                cli_daemon.log(f"error: {error}")
                code = int(errors.Exit.MACHINE)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        last = told[:].rstrip(b"\0").decode("utf-8", "replace")
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "last": last}), flush=True)


if __name__ == "__main__":
    main()
