"""A whole site in a short path, with its commands and its daemon as real processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invirtibuilder import config, hosting
from invirtibuilder.cli.main import main
from invirtibuilder.daemon import make_context
from invirtibuilder.jobs import Job, Jobs
from invirtibuilder.pipeline import advance
from invirtibuilder.run import Done, run, started_group
from invirtibuilder.settings import Site
from invirtibuilder.spool import Request, local_principal
from invirtibuilder.stages.context import Context
from tests.support.cannedworker import PATIENCE, CannedWorker
from tests.support.listening import listens
from tests.support.packages import Repo

ROOT = Path(__file__).resolve().parents[2]
ME = local_principal(os.getuid())


def until(what: Callable[[], Any], message: str = "") -> Any:
    """Wait for something to be true, and return it."""
    end = time.monotonic() + PATIENCE
    while not (value := what()):
        assert time.monotonic() < end, message or "it never came"
        time.sleep(0.01)
    return value


def waiting(lock: Path) -> int:
    """How many wait for a lock, by proc(5)."""
    lines = Path("/proc/locks").read_text().splitlines()
    return sum("->" in line and f":{lock.stat().st_ino} " in line for line in lines)


@functools.cache
def template() -> Path:
    """A site as `init` makes it, made once a run; nothing in it has its path."""
    folder = Path(tempfile.mkdtemp(prefix="ib-site-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with contextlib.redirect_stdout(sys.stderr):
        assert main(["init", str(folder / "site"), "--name", "test"]) == 0
    run(["gpgconf", "--homedir", folder / "site/gnupg", "--kill", "all"])
    return folder / "site"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A site of a test: `directory` has a short path (a socket's name has 108 bytes at most)."""

    directory: Path
    log: Path

    @property
    def config(self) -> Path:
        return self.directory / "invirtibuilder.yaml"

    @property
    def site(self) -> Site:
        return config.load(self.config)

    @property
    def context(self) -> Context:
        return make_context(self.site)

    def edit(self, old: str, new: str) -> None:
        """Change the configuration."""
        text = self.config.read_text()
        assert old in text
        self._configure(text.replace(old, new))

    def _configure(self, text: str) -> None:
        # A daemon that reads it meanwhile sees the old one or the new one, whole.
        beside = self.config.with_suffix(".new")
        beside.write_text(text)
        before = self.config.stat()
        os.chown(beside, before.st_uid, before.st_gid)
        beside.chmod(before.st_mode)
        beside.replace(self.config)

    def hook(
        self, script: str, *, name: str = "hook", events: str = "", required: bool = False
    ) -> Path:
        """Add a hook that is this shell script."""
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        keys = f"name: {name}, program: {path}, required: {str(required).lower()}"
        keys += f", events: [{events}]" if events else ""
        text = self.config.read_text()
        if "hooks: []" in text:
            text = text.replace("hooks: []", "hooks:")
        self._configure(text.replace("hooks:\n", f"hooks:\n  - {{{keys}}}\n"))
        return path

    def package(self, repo: Repo) -> None:
        """Make the package's repository, or bring it up to date."""
        hosting.create_package(self.site, repo.name, repo.path)

    def push(self, repo: Repo) -> None:
        """Push main, as its maintainer does."""
        bare = self.site.package_repository(repo.name)
        run(["git", "-C", repo.path, "push", "--quiet", bare, "HEAD:refs/heads/main"])

    def cli(self, *args: str | Path, check: bool = False) -> Done:
        """Run a command in a process of its own."""
        argv = [sys.executable, "-m", "invirtibuilder", "--config", self.config, *args]
        return run(argv, cwd=ROOT, check=check, timeout=300)

    def json(self, *args: str) -> Any:
        """What a command that must succeed prints as JSON."""
        return json.loads(self.cli(*args, "--json", check=True).out)

    def request(self, pocket: str, repo: Repo, commit: str = "", who: str = ME) -> Request:
        """A submission, not queued yet."""
        args = [pocket, repo.name, commit or repo.commit]
        return Request.new("submit", args, principal=who, via="test")

    def job(self, pocket: str, repo: Repo, commit: str = "", who: str = ME) -> Job:
        """A job, taken up but not looked at yet."""
        return Jobs(self.site.jobs).create(self.request(pocket, repo, commit, who))

    def submitted(self, pocket: str, repo: Repo, commit: str = "", who: str = ME) -> Job:
        """A job, taken through the line as far as it goes now, in this process."""
        job = self.job(pocket, repo, commit, who)
        context = self.context
        advance(context, job)
        return job

    @contextlib.contextmanager
    def daemon(
        self, *options: str, ready: bool = True, env: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The real daemon; ended with SIGTERM unless it was killed before."""
        argv = [sys.executable, "-m", "invirtibuilder", "--config", str(self.config), "daemon"]
        before = self.log.read_text().count(" ready: ") if self.log.exists() else 0
        with (
            self.log.open("ab") as log,
            started_group([*argv, *options], cwd=ROOT, stderr=log, env=env) as it,
        ):
            if ready:

                def up() -> bool:
                    said = self.log.read_text().count(" ready: ") > before
                    return said and listens(self.directory / "run/daemon.sock")

                until(lambda: up() or it.poll() is not None)
                # One that has nothing left to do may be over already.
                assert it.poll() in ((None, 0) if "--drain" in options else (None,)), (
                    self.log.read_text()
                )
            yield it
            if it.poll() is None:
                os.kill(it.pid, signal.SIGTERM)
                it.wait(PATIENCE)

    def ended(self, job_id: str) -> Job:
        """The job when it has a final state."""

        def final() -> Job | None:
            with contextlib.suppress(Exception):
                job = Jobs(self.site.jobs).get(job_id)
                return job if job.status.final else None
            return None

        return until(final, f"job {job_id} does not end")  # type: ignore[no-any-return]


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A new site; all pockets' workers are one socket, `run/worker.sock`, of nobody yet."""
    folder = Path(tempfile.mkdtemp(prefix="ib-"))
    directory = folder / "site"
    run(["cp", "-a", template(), directory])
    made = Place(directory=directory, log=folder / "log")
    # Both domains, "untrusted" too.
    made.edit("trusted: {}", "trusted: {socket: run/worker.sock}")
    # Nobody asks it; to find the machine's own takes half a second an order.
    made.edit("    trust_domain:", "    mirror: http://mirror.invalid/debian\n    trust_domain:")
    try:
        yield made
    finally:
        run(["gpgconf", "--homedir", directory / "gnupg", "--kill", "all"], check=False)
        remove(folder)


def remove(folder: Path) -> None:
    """Remove what was a site's; what vanishes by itself meanwhile is no mistake."""

    def unless_gone(_call: object, _path: object, found: tuple[Any, BaseException, Any]) -> None:
        # gpg-agent takes its sockets away when it ends, which nobody waits for.
        if not isinstance(found[1], FileNotFoundError):
            raise found[1]

    shutil.rmtree(folder, onerror=unless_gone)


@contextlib.contextmanager
def canned() -> Iterator[tuple[Place, CannedWorker]]:
    """A new site and a worker with canned results."""
    with place() as made, CannedWorker(made.directory / "run/worker.sock").serving() as worker:
        yield made, worker
