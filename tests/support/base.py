"""One Debian base a test run, shared by all tests and processes, and rooms to try things in.

INVIRTIBUILDER_TEST_BASE_DIR names a directory in which it is kept for the next run.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from invirtibuilder.apt.mirror import machine_sources
from invirtibuilder.files import remove_tree as remove_own
from invirtibuilder.run import run
from invirtibuilder.sandbox.base import Base, BaseSpec, make_base
from invirtibuilder.sandbox.contract import (
    Bind,
    Command,
    Limits,
    Outcome,
    Proxy,
    Sandbox,
    never,
)
from invirtibuilder.sandbox.ids import Ids, make_tree, remove_tree
from invirtibuilder.sandbox.layers import discard
from invirtibuilder.sandbox.limits import Groups
from invirtibuilder.sandbox.userns import UserNamespace

KEPT = "INVIRTIBUILDER_TEST_BASE_DIR"
OWN = pytest.StashKey[Path]()


@pytest.fixture(scope="session")
def ids() -> Ids:
    """The subordinate ids of whoever runs the tests."""
    return Ids.of_user()


@pytest.fixture(scope="session")
def base_spec() -> BaseSpec:
    """This machine's own suite, from its own mirror."""
    return machine_spec()


def machine_spec() -> BaseSpec:
    """This machine's own suite, from its own mirror."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    suite = release["VERSION_CODENAME"].strip('"')
    architecture = run(["dpkg", "--print-architecture"]).text
    sources = machine_sources(suite, ("main",))
    return BaseSpec(suite=suite, architecture=architecture, sources=sources)


def pytest_configure(config: pytest.Config) -> None:
    """The run's first process makes the directory that the others (pytest-xdist) share."""
    if KEPT not in os.environ:
        directory = tempfile.mkdtemp(prefix="invirtibuilder-test-", dir="/var/tmp")
        os.environ[KEPT] = directory
        config.stash[OWN] = Path(directory)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whoever made the directory removes it."""
    if directory := config.stash.get(OWN, None):
        del os.environ[KEPT]
        remove_shared(directory)


def remove_shared(directory: Path) -> None:
    """Remove what the tests of a run have shared."""
    if any(directory.iterdir()):
        ids = Ids.of_user()
        for made in (*directory.glob("layers/*"), *directory.glob("lists/*")):
            discard(made, ids)
        remove_bases(ids, directory)
    else:
        directory.rmdir()


@pytest.fixture(scope="session")
def base_directory() -> Path:
    """Where bases are: what a site of the tests may have as its own, by a symbolic link."""
    directory = Path(os.environ[KEPT])
    directory.mkdir(parents=True, exist_ok=True)
    # The account of a worker in tests/system/test_accounts.py reads it, too.
    directory.chmod(0o755)
    return directory


def remove_bases(ids: Ids, directory: Path) -> None:
    """Remove a directory of bases whole, and what is half-made."""
    for made in directory.glob("*/*"):
        if made.is_dir() and not made.is_symlink():
            for name in ("root", "tools"):
                remove_tree(ids, made / name)
    remove_own(directory)


@pytest.fixture(scope="session")
def base(ids: Ids, base_spec: BaseSpec, base_directory: Path) -> Base:
    """The shared base; tests only read it."""
    with (base_directory / "base.log").open("ab") as log:
        return make_base(base_spec, base_directory, ids, log=log.fileno())


def proxied(*allowed: tuple[str, int, str]) -> Proxy:
    """What lets a command reach these."""
    return Proxy(allowed=frozenset(allowed))


@dataclass(kw_only=True)
class Tried(ABC):
    """A sandbox of either isolation, new for each command, and what to run in it."""

    ids: Ids
    scratch: Path | None = None
    binds: Sequence[Bind] = ()
    limits: Limits = field(default_factory=lambda: Limits(seconds=60))
    output: bytes = b""

    @property
    @abstractmethod
    def place(self) -> Path:
        """Where directories for it may be made."""

    @abstractmethod
    def sandbox(self) -> Sandbox:
        """What the next command runs in."""

    def tree(self, name: str) -> Path:
        """A directory of the sandbox's root, removed after the test."""
        path = self.place / name
        make_tree(self.ids, path)
        return path

    def run(
        self,
        *argv: str,
        user: Literal["root", "build"] = "build",
        cancelled: Callable[[], bool] = never,
        **options: Any,
    ) -> Outcome:
        """Run a command; what it writes is in `output` afterwards."""
        with tempfile.TemporaryFile() as log:
            options = {"stdout": log.fileno(), "stderr": log.fileno(), **options}
            command = Command(argv=argv, user=user, **options)
            try:
                return self.sandbox().run(command, cancelled=cancelled)
            finally:
                log.seek(0)
                self.output = log.read()

    def text(self, *argv: str, **options: Any) -> str:
        """What a command that must succeed writes."""
        outcome = self.run(*argv, **options)
        text = self.output.decode("utf-8", "replace")
        assert outcome.code == 0, f"{outcome}\n{text}"
        return text

    def python(self, program: str, *args: str, **options: Any) -> str:
        """What a Python program that must succeed writes, run inside."""
        return self.text("python3", "-c", textwrap.dedent(program), *args, **options)


@dataclass(kw_only=True)
class Room(Tried):
    """A sandbox of user namespaces over the base with the tools."""

    base: Base
    directory: Path
    groups: Groups = field(default_factory=Groups)

    @property
    def place(self) -> Path:
        return self.directory

    def with_scratch(self, name: str = "scratch") -> Room:
        """The same with a scratch directory that is removed after the test."""
        self.scratch = self.tree(name)
        return self

    def sandbox(self) -> UserNamespace:
        return UserNamespace(
            ids=self.ids,
            lowers=(self.base.tools, self.base.root),
            scratch=self.scratch,
            binds=self.binds,
            limits=self.limits,
            groups=self.groups,
        )


@pytest.fixture
def room(ids: Ids, base: Base, tmp_path: Path) -> Iterator[Room]:
    """A room with a read-only root."""
    made = Room(ids=ids, base=base, directory=tmp_path)
    yield made
    for path in tmp_path.iterdir():
        if path.is_dir() and path.stat().st_uid == ids.first_uid:
            remove_tree(ids, path)
