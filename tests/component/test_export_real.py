"""Debian's own packages through `gbp import-dsc --pristine-tar` and the export."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from invirtibuilder.debchanges import parse_dsc
from invirtibuilder.run import run
from tests.support.archive import imported
from tests.support.exporting import export


@pytest.mark.parametrize("name", ["hello", "distro-info"])
def test_real_package(tmp_path: Path, name: str) -> None:
    repo, dsc = imported(name, tmp_path)
    made = export(tmp_path / "work", repo)
    assert made.report["ok"], made.report
    ours, theirs = parse_dsc(made.dsc.read_bytes()), parse_dsc(dsc.read_bytes())
    assert (ours.format, ours.binaries) == (theirs.format, theirs.binaries)
    assert ours.relations == theirs.relations
    origs = {file.name: file.sha256 for file in theirs.files if ".orig" in file.name}
    assert set(made.report["orig_from"]) == set(origs)
    assert {name: made.hashes[name] for name in origs} == origs
    run(["dpkg-source", "--no-copy", "-x", dsc, tmp_path / "theirs"])
    run(["dpkg-source", "--no-copy", "-x", made.dsc, tmp_path / "ours"])
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


def contents(directory: Path) -> dict[str, str]:
    """Every plain file's hash; quilt's notes of when it ran are left out."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink() and ".pc" not in path.parts
    }
