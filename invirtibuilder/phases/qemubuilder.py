"""A site's own qemubuilder instead of our sandboxes: the real program, on the order's source.

It needs root and a network, and so promises less than our machines; WEAKER says what.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Any

from invirtibuilder import files, model, tarsafe
from invirtibuilder.errors import MachineFault, PackageFault
from invirtibuilder.order import ResultWriter
from invirtibuilder.phases.collect import collect
from invirtibuilder.phases.verdicts import judge
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.run import CLEAN, quoted, started_group
from invirtibuilder.sandbox.contract import Outcome

WEAKER = """\
qemubuilder: weaker isolation than ours, as the configuration accepts:
- its machine has a network card, and reaches what this machine reaches, its loopback included;
- this machine's kernel mounts, as root, the file system that the machine has written;
- build dependencies are what its own configuration says, not this pocket's, and are not recorded;
- of the pocket's limits only time, idle, log and result hold."""

TICK = 0.2
NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""So that nothing of it is left when it is killed: no process, no mount, no loop device."""

HIDDEN = """[ "$1" != emulated ] || [ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm
shift
exec "$@"
"""
"""A constant program: qemubuilder takes KVM wherever there is a /dev/kvm, works it or not."""

WRAPPERS = {
    # Since qemu 6.1 a backing file's format must be named, and qemubuilder does not.
    "qemu-img": """#!/bin/sh
case " $* " in
  *" -F "*) ;;
  " create "*"-b "*) shift; exec /usr/bin/qemu-img create -F raw "$@" ;;
esac
exec /usr/bin/qemu-img "$@"
""",
    # It copies results with these, which would follow links that the machine has left to our files.
    **{
        name: f'#!/bin/sh\nexec /usr/bin/{name} --no-dereference "$@"\n'
        for name in ("cp", "chown", "chgrp")
    },
}


def build(workshop: Workshop, writer: ResultWriter, wanted: Any) -> dict[str, Any]:
    """Build the order's source package with qemubuilder; the report is that of any build.

    `wanted` is what results may be called. Raises MachineFault where it cannot run.
    """
    workshop.stage(WEAKER)
    config = Path(workshop.order.room.qemubuilder)
    _check(config)
    place = made(workshop.scratch / "qemubuilder")
    dsc = _unpacked(workshop, place / "in")
    workshop.environment["qemubuilder"] = hashlib.sha256(config.read_bytes()).hexdigest()
    workshop.stage("build: qemubuilder")
    emulated = "emulated" if workshop.order.room.emulation else "any"
    argv = [
        *(*NAMESPACES, "/bin/sh", "-ec", HIDDEN, "hidden", emulated),
        *("qemubuilder", "build", "--configfile", str(config), "--debbuildopts", "-b"),
        *("--buildplace", str(place / "place"), "--buildresult", str(place / "result")),
        str(dsc),
    ]
    # Without a TERM it gives its kernel a nonsense word.
    env = {"PATH": f"{place / 'bin'}:{CLEAN['PATH']}", "TERM": "linux"}
    with workshop.watched() as (log, tail):
        outcome = _limited(workshop, argv, env, log)
        output = tail()
    judge(
        outcome,
        what="qemubuilder",
        fault=Failed,
        limits=workshop.limits,
        package=str(workshop.order.content.get("package")),
        output=output,
        result=False,
    )
    workshop.stage("build: collect")
    readable(place / "result")
    base = workshop.base()
    tools = (base.tools, base.root)
    programs = workshop.programs()
    report = collect(workshop, tools, programs, place / "result", "binary", wanted, writer)
    return {**report, "dependencies": {}}


class Failed(PackageFault):
    """qemubuilder failed, for a reason that it does not tell: the package's, as a rule."""

    code = "build-failed"


def made(place: Path) -> Path:
    """Directories for one build, and the programs that qemubuilder finds before the usual ones."""
    for name in ("in", "place", "result", "bin"):
        (place / name).mkdir(parents=True)
    for name, text in WRAPPERS.items():
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    return place


def _check(config: Path) -> None:
    if os.geteuid() != 0:
        raise MachineFault("qemubuilder needs root: it mounts", code="qemubuilder")
    if shutil.which("qemubuilder", path=CLEAN["PATH"]) is None:
        raise MachineFault(
            "qemubuilder is missing", hint="apt-get install qemubuilder", code="qemubuilder"
        )
    if not config.is_file():
        raise MachineFault(f"qemubuilder: there is no {config}", code="qemubuilder")


def _unpacked(workshop: Workshop, into: Path) -> Path:
    """The order's files; the path of its .dsc."""
    wanted = model.matching(model.FILE_NAME, workshop.order.content.get("dsc"), "file-name")
    workshop.content.seek(0)
    for member, _, content in tarsafe.members(workshop.content, tarsafe.Limits()):
        folder, _, name = member.partition("/")
        if folder == "in":
            path = files.contained(into, model.matching(model.FILE_NAME, name, "file-name"))
            with path.open("xb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
    return into / wanted


def _limited(workshop: Workshop, argv: list[str], env: dict[str, str], log: int) -> Outcome:
    """Run it with the log as its output, within the limits on time, idle time and log."""
    limits = workshop.limits
    os.write(log, f"+ {quoted(argv)}\n".encode())
    began = last = time.monotonic()
    first = size = os.fstat(log).st_size
    limit = ""
    with started_group(argv, env=env, stdout=log, stderr=log) as process:
        while process.poll() is None and not limit:
            time.sleep(TICK)
            now = time.monotonic()
            if size != (size := os.fstat(log).st_size):
                last = now
            if workshop.cancelled():
                limit = "cancelled"
            elif now > began + limits.seconds:
                limit = "time"
            elif limits.idle_seconds is not None and now > last + limits.idle_seconds:
                limit = "idle"
            elif limits.log_size is not None and size > first + limits.log_size:
                limit = "output"
    return Outcome(code=process.returncode, limit=limit, seconds=time.monotonic() - began)


def readable(directory: Path) -> None:
    """Let the sandbox that reads the results read them; links and the like stay what they are."""
    directory.chmod(0o755)
    for path in directory.iterdir():
        if stat.S_ISREG(path.lstat().st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            os.fchmod(fd, 0o644)
            os.close(fd)
