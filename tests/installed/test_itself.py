"""Invirtibuilder builds itself, with the library that Debian lacks, and is installed from its own
pocket."""

from __future__ import annotations

from pathlib import Path

from invirtibuilder import __version__
from tests.support.archive import import_dsc
from tests.support.debian import inotify_simple, source_tree
from tests.support.packages import git
from tests.support.sites import TestSite


def test_it_builds_itself(site: TestSite, tmp_path: Path) -> None:
    inotify_simple(tmp_path / "source")
    (dsc,) = (tmp_path / "source").glob("*.dsc")
    library = import_dsc("inotify-simple", dsc, tmp_path)
    site.package("inotify-simple", library.path)
    site.publish("staging", "inotify-simple", library.commit)

    tree = source_tree(tmp_path / "invirtibuilder")
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", "--all", "--force")
    git(tree, "commit", "--quiet", "--message=This repository")
    commit = git(tree, "rev-parse", "HEAD")
    site.package("invirtibuilder", tree)
    job = site.publish("staging", "invirtibuilder", commit)
    assert job["version"] == __version__
    names = {Path(f["name"]).name for f in job["published"]["files"]}
    assert f"invirtibuilder-client_{__version__}_all.deb" in names

    program = ("invirtibuilder", "--version")
    said = site.installs("staging", "invirtibuilder", "--", *program)
    assert said.splitlines()[-1] == f"invirtibuilder {__version__}"
    assert f"invirtibuilder-client_{__version__}_all.deb" in said
    assert "python3-inotify-simple_2" in said
