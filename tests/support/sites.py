"""Sites of the tests: made by `init`, driven by the real command line and a real daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from invirtibuilder.run import CLEAN, Done, run
from invirtibuilder.sandbox.base import Base
from tests.support.listening import listens
from tests.support.place import remove

TOP = Path(__file__).parents[2]
PATIENCE = 600
DOMAIN = "builders"
POCKETS = ("dev", "staging", "prod")


@dataclass
class TestSite:
    """A site in a directory, and what a user would do with it."""

    __test__ = False
    directory: Path
    python: Sequence[str] = (sys.executable, "-m", "invirtibuilder")
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.directory / "invirtibuilder.yaml"

    @property
    def slot(self) -> Path:
        """The worker's one slot."""
        return self.directory / "work" / DOMAIN / "slot-1"

    def env(self) -> dict[str, str]:
        return {
            "INVIRTIBUILDER_CONFIG": str(self.file),
            "PYTHONPATH": str(TOP),
            **self.environment,
        }

    def cli(self, *words: str, check: bool = True) -> Done:
        """Run `invirtibuilder WORDS`."""
        return run([*self.python, *words], env=self.env(), check=check, timeout=PATIENCE)

    def json(self, *words: str) -> Any:
        return json.loads(self.cli(*words, "--json").out)

    def configure(self, **changes: Any) -> None:
        """Change the configuration: `pockets__dev__suite="sid"`."""
        value = yaml.safe_load(self.file.read_text())
        for path, new in changes.items():
            where = value
            *folders, last = path.split("__")
            for folder in folders:
                where = where[folder]
            where[last] = new
        self.file.write_text(yaml.safe_dump(value, sort_keys=False))

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """A daemon while the block runs."""
        with (self.directory / "daemon.log").open("ab") as log:
            process = subprocess.Popen(
                [*self.python, "daemon"],
                env={**CLEAN, **self.env()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._until_ready(process)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def _until_ready(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 60
        while not listens(self.directory / "run" / "daemon.sock", process.pid):
            assert process.poll() is None, (self.directory / "daemon.log").read_text()
            assert time.monotonic() < until, "the daemon did not start"
            time.sleep(0.05)

    def package(self, name: str, repository: Path) -> None:
        """Take a repository over as a package."""
        self.cli("package", "create", name, "--from", str(repository))

    def submit(self, pocket: str, package: str, commit: str) -> tuple[Done, dict[str, Any]]:
        """Submit, wait for the end, and describe the job (empty when it was refused)."""
        done = self.cli("submit", pocket, package, commit, "--wait", "--json", check=False)
        job = json.loads(done.out).get("job")
        return done, (self.json("status", job) if job else {})

    def publish(self, pocket: str, package: str, commit: str) -> dict[str, Any]:
        """Submit what must succeed; the job's description."""
        done, job = self.submit(pocket, package, commit)
        log = self.cli("log", job["job"]).text if job and done.code else ""
        assert done.code == 0, f"{done.err.decode()}\n{log[-6000:]}"
        return job

    def fact(self, job: str, stage: str) -> dict[str, Any]:
        """What a stage wrote down."""
        return dict(json.loads((self.directory / "jobs" / job / f"{stage}.json").read_text()))

    def installs(self, pocket: str, *words: str) -> str:
        """Install packages of a pocket into a throw-away root with the real apt-get."""
        script = str(TOP / "conf" / "try-install")
        done = run([sys.executable, script, pocket, *words], env=self.env(), timeout=PATIENCE)
        return done.text

    def state(self, pocket: str) -> tuple[str, ...]:
        """What must not change when a job fails: pins, tags, pool, what clients see."""
        archive = self.directory / "archive" / pocket
        pool = sorted(str(p.relative_to(archive)) for p in (archive / "pool").rglob("*.*"))
        listed = [
            run(["git", f"--git-dir={repository}", "for-each-ref"]).text
            for repository in (
                self.directory / "superproject.git",
                *sorted((self.directory / "packages").glob("*.git")),
            )
        ]
        return (str((archive / "dists").readlink()), *listed, *pool)


@contextmanager
def made_site(base: Base, layers: Path, **changes: Any) -> Iterator[TestSite]:
    """A new site whose workers share the run's one base and its layers."""
    directory = Path(tempfile.mkdtemp(prefix="invirtibuilder-site-", dir="/var/tmp"))
    directory.chmod(0o755)
    site = TestSite(directory)
    try:
        site.cli("init", str(directory))
        # One domain: the shared base belongs to the account's first block of ids.
        site.configure(domains={DOMAIN: {}})
        site.configure(**{f"pockets__{p}__trust_domain": DOMAIN for p in POCKETS})
        site.slot.mkdir(parents=True)
        (site.slot / "bases").symlink_to(base.directory.parents[1])
        (site.slot / "layers").symlink_to(layers)
        (site.slot / "lists").symlink_to(layers.parent / "lists")
        (site.slot.parent / "downloads").symlink_to(layers.parent / "downloads")
        if changes:
            site.configure(**changes)
        yield site
    finally:
        run(["gpgconf", "--homedir", str(directory / "gnupg"), "--kill", "gpg-agent"], check=False)
        if os.environ.get("INVIRTIBUILDER_TEST_KEEP"):
            print(f"kept: {directory}")
        else:
            remove(directory)


@pytest.fixture(scope="session")
def layers(base: Base) -> Path:
    """Layers, and what they are made from, that are shared by all sites of the run."""
    return shared_layers(base)


def shared_layers(base: Base) -> Path:
    """The layers that are beside the bases."""
    parent = base.directory.parents[1]
    for name in ("layers", "lists", "downloads"):
        (parent / name).mkdir(exist_ok=True)
        (parent / name).chmod(0o711)
    return parent / "layers"


@pytest.fixture(scope="module")
def site(base: Base, layers: Path) -> Iterator[TestSite]:
    """A site with a daemon, for all tests of a module."""
    with made_site(base, layers) as made, made.daemon():
        yield made
