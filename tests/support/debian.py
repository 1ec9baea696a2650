"""Our own packages, built from the repository as it is."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.run import run
from tests.support.repository import TOP, kept

BUILD = ("dpkg-buildpackage", "-us", "-uc")
PATIENCE = 300


@dataclass(frozen=True)
class Built:
    """What dpkg-buildpackage has left beside a source tree."""

    directory: Path

    @property
    def debs(self) -> list[Path]:
        """The binary packages."""
        return sorted(self.directory.glob("*.deb"))

    @property
    def changes(self) -> Path:
        """The list of all that was built."""
        (found,) = self.directory.glob("*.changes")
        return found


def source_tree(target: Path) -> Path:
    """A copy of what belongs to the repository."""
    for path in kept():
        copy = target / path.relative_to(TOP)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy, follow_symlinks=False)
    return target


def build(
    tree: Path, *options: str, before: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Built:
    """Build a source tree with dpkg-buildpackage, with words before its command."""
    done = run(
        [*before, *BUILD, *options],
        cwd=tree,
        env={"HOME": os.devnull, **(env or {})},
        timeout=PATIENCE,
        check=False,
    )
    assert done.code == 0, (done.out + done.err).decode("utf-8", "replace")
    return Built(tree.parent)


def inotify_simple(directory: Path) -> Path:
    """The source tree of python3-inotify-simple; its source package is beside it."""
    script = TOP / "conf/inotify-simple/source"
    done = run([script, directory], timeout=PATIENCE, check=False)
    assert done.code == 0, (done.out + done.err).decode("utf-8", "replace")
    (dsc,) = directory.glob("*.dsc")
    tree = directory / "tree"
    run(["dpkg-source", "--no-check", "-x", dsc, tree])
    return tree


def build_dependencies() -> list[str]:
    """What debian/control asks for."""
    found = re.search(r"^Build-Depends:\n((?: .*\n)+)", (TOP / "debian/control").read_text(), re.M)
    assert found
    words = [word.strip() for word in found[1].split(",") if word.strip()]
    return [re.sub(r"^debhelper-compat .*", "debhelper", word) for word in words]


def needed_by_test(test: str) -> list[str]:
    """What one of debian/tests asks for besides our own packages."""
    for paragraph in (TOP / "debian/tests/control").read_text().split("\n\n"):
        if re.search(rf"^Tests: {test}$", paragraph, re.M):
            found = re.search(r"^Depends:(.*(?:\n .*)*)", paragraph, re.M)
            assert found
            words = [word.strip() for word in found[1].split(",") if word.strip()]
            return [word for word in words if not word.startswith("invirtibuilder")]
    raise LookupError(test)
