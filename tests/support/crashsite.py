"""A site whose daemon, workers and tools are killed at random, and clients that look on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from invirtibuilder import hosting
from invirtibuilder.entries import OF_THE_SITE
from invirtibuilder.errors import Exit, Fault
from invirtibuilder.fsck import check as fsck
from invirtibuilder.jobs import Job, Jobs
from invirtibuilder.run import CLEAN, run
from invirtibuilder.spool import Request, Spool
from invirtibuilder.states import State
from tests.support import lives, packages
from tests.support.aptclient import AptClient, file_uri, serving
from tests.support.packages import Repo
from tests.support.place import ME, ROOT, Place, place, until

KILLS = int(os.environ.get("INVIRTIBUILDER_TEST_KILLS", "200"))
SEED = os.environ.get("INVIRTIBUILDER_TEST_SEED") or secrets.token_hex(4)
"""What somebody who looks for more, or for the same again, sets."""

SHORT = {
    "pipeline.RETRY": 0.1,
    "pipeline.LATER": 0.1,
    "stages.finish.AGAIN": 0.1,
    "stages.transaction.AGAIN": 0.1,
    "stages.orders.WORKER_WAIT": 0.1,
    "stages.orders.POLL": 0.01,
    "stages.orders.ROOM_WAIT": 0.1,
    "gitcmd.STALE": 3,
    "daemon.ILL": 0.1,
    "runner.ILL": 0.1,
    "sockets.LOOK": 0.02,
}
"""Waits of the program that are made shorter; none of them is what these tests are about."""


LOST = {"worker-lost", "part-failed"}
MOVED = {"overtaken", "not-newer"}
"""Why a submission may be refused: a rollback was quicker."""
LONGEST = 120.0
"""Seconds that a life may last."""


@dataclass(kw_only=True)
class CrashSite:
    """The site, and how its daemons have lived and ended."""

    place: Place
    chance: random.Random
    zygote: subprocess.Popen[bytes]
    wrappers: Path
    packages: dict[str, list[Repo]]
    kills: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)

    def submit(self, pocket: str, package: str, version: int) -> Request:
        """Queue the package's version (from 0) for the pocket."""
        repo = self.packages[package][version]
        request = self.place.request(pocket, repo)
        Spool(self.place.site.queue).put(request)
        self.asked.append(request)
        return request

    def promote(self, package: str) -> Request:
        """Queue the move of what staging has of a package to prod."""
        args = ["staging", "prod", package]
        request = Request.new("promote", args, principal=ME, via="test")
        Spool(self.place.site.queue).put(request)
        self.asked.append(request)
        return request

    def act(self, action: str, *args: str) -> Request:
        """Queue an administrator's act, or a rollback."""
        request = Request.new(action, args, principal=ME, via="test")
        Spool(self.place.site.queue).put(request)
        self.asked.append(request)
        return request

    def roll_back(self, pocket: str) -> Request | None:
        """Queue the way back to one of the pocket's last states, if it has had several."""
        states = self.place.context.superproject.history(pocket)[1:4]
        return self.act("rollback", pocket, self.chance.choice(states).id) if states else None

    def live(self, *, after: float | None = None, **life: Any) -> int:
        """One life of the daemon; `after` seconds it is killed. Its exit code."""
        settings = {**SHORT, **life.pop("settings", {})}
        line = json.dumps({**life, "settings": settings}) + "\n"
        assert self.zygote.stdin
        self.zygote.stdin.write(line.encode())
        self.zygote.stdin.flush()
        pid = self._answer()["pid"]
        # It may be over before it is looked at.
        with contextlib.suppress(ProcessLookupError):
            if after is not None:
                fd = os.pidfd_open(pid)
                time.sleep(after)
                try:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                finally:
                    os.close(fd)
        end = self._answer()
        self.story.append(f"{life} after={after}: {end}")
        return int(end["code"])

    def start(self, **life: Any) -> int:
        """Begin a life that goes on; its process id. `wait` for its end."""
        line = json.dumps({**life, "settings": {**SHORT, **life.pop("settings", {})}}) + "\n"
        assert self.zygote.stdin
        self.zygote.stdin.write(line.encode())
        self.zygote.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> int:
        """The exit code of the life that was begun."""
        return int(self._answer()["code"])

    def _answer(self) -> dict[str, Any]:
        assert self.zygote.stdout
        ready, _, _ = select.select([self.zygote.stdout], [], [], LONGEST)
        line = self.zygote.stdout.readline() if ready else b""
        assert line, f"no word of it after {LONGEST} s: {self.told()}"
        return dict(json.loads(line))

    def told(self) -> str:
        """What one needs to know after a failure."""
        log = self.place.log.read_text()[-6000:] if self.place.log.exists() else ""
        return "\n".join([*self.story[-12:], log])

    def die_somehow(self) -> None:
        """A life that ends by one kill, chosen at random: of the daemon, of a tool, or of both."""
        kind = self.chance.choice(("step", "step", "instant", "tool", "tool", "agent"))
        if kind == "step":
            code = self.live(die=self.chance.randint(1, self.chance.choice((120, 500))))
        elif kind == "agent":
            self.start()
            time.sleep(self.chance.uniform(0.02, 0.9))
            self.kills[kind] += self.kill_agent()
            assert self.wait() in (0, int(Exit.MACHINE)), self.told()
            return
        elif kind == "instant":
            code = self.live(after=self.chance.uniform(0.02, 0.9))
        else:
            name, most = self.chance.choice((("reprepro", 6), ("git", 25), ("gpg", 6)))
            how = self.chance.choice(lives.WAYS)
            seconds = round(self.chance.uniform(0.001, 0.02), 4)
            tool = [name, self.chance.randint(1, most), f"{how} {seconds}"]
            kind = f"{name} {how}"
            # The daemon outlives its tool, for a while.
            code = self.live(tool=tool, die=self.chance.randint(100, 500))
        # Its start does not go on without an answer of git or gpg.
        fine = (0, -signal.SIGKILL, *((int(Exit.MACHINE),) if kind.startswith(lives.TOOLS) else ()))
        assert code in fine, self.told()
        self.kills[kind] += code != 0 or kind.startswith(lives.TOOLS)

    def kill_agent(self) -> int:
        """Kill the agents that have the site's keys, which gpg starts when it needs one."""
        home = str(self.place.directory / "gnupg").encode()
        killed = 0
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"gpg-agent") and home in words:
                    os.kill(int(entry.name), signal.SIGKILL)
                    killed += 1
        return killed

    def finish(self) -> None:
        """A life in which nothing is killed any more: it ends when all is done."""
        code = self.live()
        assert code == 0, self.told()

    def jobs(self) -> dict[str, Job]:
        """All jobs by id."""
        return {job.id: job for job in Jobs(self.place.site.jobs).all()}

    def unfinished(self) -> int:
        """Submissions without a final state."""
        jobs = self.jobs()
        return sum(r.id not in jobs or not jobs[r.id].status.final for r in self.asked)

    def check(self) -> Counter[str]:
        """Each submission has one final state and, if published, one effect; the states."""
        site = self.place.site
        assert not list((site.queue / "new").iterdir()), self.told()
        assert not list((site.queue / "bad").iterdir()), self.told()
        jobs = self.jobs()
        assert set(jobs) == {request.id for request in self.asked}
        form = "--format=%(trailers:key=Job,valueonly)"
        for pocket in site.pockets.values():
            ours = [job for job in jobs.values() if _target(job) == pocket.name]
            git = ["git", f"--git-dir={site.superproject}"]
            branch = f"refs/heads/{pocket.branch}"
            there = run([*git, "for-each-ref", branch]).text
            log = run([*git, "log", "--reverse", form, branch, "--"]).text.split() if there else []
            published = [job.id for job in ours if job.status.state == State.PUBLISHED]
            # A rollback has a commit for each package.
            back = {job.id for job in ours if job.request.action == "rollback"}
            log = [job for job in log if job not in back] + sorted(back & set(log))
            assert sorted(log) == sorted(published), (pocket.name, self.told())
        for job in jobs.values():
            status = job.status
            why = (status, (job.directory / "journal").read_text(), self.told())
            if job.request.action in OF_THE_SITE:
                assert status.state == State.DONE, why
                continue
            if status.state == State.REFUSED:
                # Another has moved the pocket meanwhile.
                codes = {reason["code"] for reason in status.reasons}
                assert job.request.action != "submit" or codes <= MOVED, why
                continue
            assert status.state in (State.PUBLISHED, State.FAILED), why
            # A worker was lost too often; no death of a tool ends a job.
            codes = {reason["code"] for reason in status.reasons}
            assert status.state == State.PUBLISHED or codes & LOST, why
        report = fsck.check(
            self.place.context, list(site.pockets.values()), level="b", full=False, mend=False
        )
        assert not report.drift, (report.findings, self.told())
        return Counter(str(job.status.state) for job in jobs.values())


def _target(job: Job) -> str:
    """The pocket that a job publishes in; none for an administrator's act."""
    place = {"promote": 1, "submit": 0, "rollback": 0}.get(job.request.action)
    return "" if place is None else job.request.args[place]


def _versions(folder: Path, name: str, count: int) -> list[Repo]:
    made = [packages.native(folder / name, name, "1.0")]
    for number in range(1, count):
        made.append(packages.upgraded(made[-1], f"1.{number}", date=packages.DATE + 60 * number))
    return made


@contextlib.contextmanager
def worker_process(
    socket: Path, folder: Path, share: float, seed: str, freeze: int
) -> Iterator[int]:
    """The canned worker as a process of its own; its id."""
    argv = [sys.executable, "-m", "tests.support.cannedprocess"]
    with subprocess.Popen(
        [*argv, str(socket), str(folder), str(share), seed, str(freeze)],
        cwd=ROOT,
        env=CLEAN,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def crash_site(
    seed: str,
    *,
    names: tuple[str, ...] = ("alpha", "beta"),
    versions: int = 2,
    share: float = 0.0,
    freeze: int = 0,
) -> Iterator[CrashSite]:
    """A site with these packages, a worker of which a share of orders dies, and no daemon yet."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(place())
        folder = made.log.parent
        may = f"      promote: [{ME}]\n      rollback: [{ME}]\n      cancel:"
        made.edit("      cancel:", may)
        wrappers = folder / "bin"
        lives.wrap(wrappers)
        repos = {name: _versions(folder / "git", name, versions) for name in names}
        for name in names:
            hosting.create_package(made.site, name, folder / "git" / name)
        room, temporary = folder / "canned", folder / "tmp"
        for each in (room, temporary):
            each.mkdir()
        socket = made.directory / "run/worker.sock"
        stack.enter_context(worker_process(socket, room, share, seed, freeze))
        log: IO[bytes] = stack.enter_context(made.log.open("ab"))
        zygote = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.lives", str(made.config), str(wrappers)],
                cwd=ROOT,
                # Whoever is killed removes nothing.
                env={**CLEAN, "TMPDIR": str(temporary)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # Each line is read by itself.
                bufsize=0,
            )
        )
        site = CrashSite(
            place=made,
            chance=random.Random(seed),
            zygote=zygote,
            wrappers=wrappers,
            packages=repos,
        )
        try:
            yield site
        finally:
            with contextlib.suppress(OSError):
                zygote.stdin.close()  # type: ignore[union-attr]
            if zygote.poll() is None:
                zygote.terminate()
            for path in room.glob("frozen-*"):
                # What nobody woke.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.read_text()), signal.SIGKILL)


@dataclass(kw_only=True)
class Watchers:
    """apt-get, updating and downloading all the time; what ever went wrong."""

    failures: list[str] = field(default_factory=list)
    updates: int = 0
    downloads: int = 0


@contextlib.contextmanager
def watching(made: Place) -> Iterator[Watchers]:
    """Clients of all pockets over HTTP and file:, half of the time with no lists of before."""
    site, told, stop = made.site, Watchers(), threading.Event()
    folder = Path(tempfile.mkdtemp(prefix="ib-apt-"))
    chance = random.Random(0)

    def look(apt: AptClient) -> None:
        if chance.random() < 0.5:
            shutil.rmtree(apt.folder / "state/lists")
            (apt.folder / "state/lists/partial").mkdir(parents=True)
        done = apt.update(check=False)
        told.updates += 1
        if done.code:
            told.failures.append(done.err.decode())
        names = apt.apt("apt-cache", "pkgnames").text.split()
        if names and not done.code:
            try:
                apt.download(chance.choice(names))
                told.downloads += 1
            except Fault as fault:
                told.failures.append(str(fault))

    with serving(site.archive) as server:
        apts = []
        for name, uri in (("http", server.uri.rstrip("/")), ("file", file_uri(site.archive))):
            text = "\n".join(
                hosting.client(site, pocket).sources for pocket in site.pockets.values()
            )
            apt = AptClient(folder=folder / name)
            apt.configure(text.replace(site.url.rstrip("/"), uri))
            apts.append(apt)

        def loop() -> None:
            # What they leave of the machine is for those that are looked at.
            while not stop.wait(0.1):
                for apt in apts:
                    look(apt)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield told
        finally:
            stop.set()
            thread.join()
            shutil.rmtree(folder)


__all__ = ["ME", "CrashSite", "crash_site", "until", "watching"]
