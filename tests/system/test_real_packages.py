"""Debian's own packages, from `gbp import-dsc --pristine-tar` to apt-get install.

In staging they have the very versions that the mirror has, in dev lower ones.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from invirtibuilder.debchanges import parse_dsc
from invirtibuilder.sandbox.base import Base
from tests.support import packages
from tests.support.archive import imported
from tests.support.packages import Repo
from tests.support.sites import TestSite, made_site

POCKETS = ("staging", "dev")

MD = """\
#include <sys/types.h>
#include <md5.h>
#include <stdio.h>
int main(void) { char out[MD5_DIGEST_STRING_LENGTH]; puts(MD5Data((void *)"", 0, out)); return 0; }
"""
COMPILE = "\tgcc -o md md.c -lmd\n\t./md >greeting\n"


@pytest.fixture(scope="module")
def site(base: Base, layers: Path) -> Iterator[TestSite]:
    """A site that runs the packages' tests in one pocket only, which is another dev."""
    changes: dict[str, Any] = {}
    for pocket in POCKETS:
        changes[f"pockets__{pocket}__build_profiles"] = ["nocheck"]
        changes[f"pockets__{pocket}__build_options"] = ["nocheck"]
    with made_site(base, layers) as made:
        dev = yaml.safe_load(made.file.read_text())["pockets"]["dev"]
        made.configure(pockets__tested=dev, **changes)
        with made.daemon():
            yield made


Given = Callable[[str], tuple[Repo, dict[str, str]]]


@pytest.fixture(scope="module")
def given(site: TestSite, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Makes Debian's package one of the site's; its upstream files: name to SHA-256."""

    @functools.cache
    def give(name: str) -> tuple[Repo, dict[str, str]]:
        repo, dsc = imported(name, tmp_path_factory.mktemp(name))
        site.package(name, repo.path)
        files = parse_dsc(dsc.read_bytes()).files
        return repo, {file.name: file.sha256 for file in files if ".orig" in file.name}

    return give


def published(job: dict[str, Any], ending: str = "") -> dict[str, str]:
    """What a job published: name to SHA-256."""
    found = {file["name"]: file["sha256"] for file in job["published"]["files"]}
    return {name: sha256 for name, sha256 in found.items() if name.endswith(ending)}


def in_pool(site: TestSite, pocket: str) -> dict[str, str]:
    """What is in a pocket's pool: name to SHA-256."""
    pool = site.directory / "archive" / pocket / "pool"
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pool.rglob("*")
        if path.is_file()
    }


def installed(said: str) -> dict[str, str]:
    """What apt-get handed to dpkg: name to SHA-256."""
    lines = (line.split("  ") for line in said.splitlines() if line.endswith(".deb"))
    return {Path(words[1]).name: words[0] for words in lines if len(words) == 2}


def installs(site: TestSite, pocket: str, job: dict[str, Any], name: str, *command: str) -> str:
    """Install a package that the job published, as APT does it: from the pocket, nowhere else."""
    said = site.installs(pocket, name, "--", *command)
    ours = {deb: sha for deb, sha in published(job, ".deb").items() if deb.startswith(f"{name}_")}
    assert len(ours) == 1
    assert ours.items() <= installed(said).items()
    assert ours.items() <= in_pool(site, pocket).items()
    return said


def test_patches_and_a_signed_tarball(site: TestSite, given: Given) -> None:
    """It has packages for the installer, too."""
    repo, origs = given("pciutils")
    assert any(name.endswith(".asc") for name in origs)
    assert (repo.path / "debian/patches/series").read_text().strip()
    for pocket in POCKETS:
        job = site.publish(pocket, "pciutils", repo.commit)
        assert origs.items() <= published(job).items()
        assert len(published(job, ".udeb")) == 2
        assert published(job, "deb").items() <= in_pool(site, pocket).items()
        said = installs(site, pocket, job, "pciutils", "lspci", "--version")
        assert said.endswith("lspci version 3.9.0")


def test_python_with_binaries_of_all_kinds(site: TestSite, given: Given) -> None:
    repo, _ = given("distro-info")
    for pocket in POCKETS:
        job = site.publish(pocket, "distro-info", repo.commit)
        names = {name.partition("_")[0]: name for name in published(job, "deb")}
        assert not names["distro-info"].endswith("_all.deb")
        assert names["python3-distro-info"].endswith("_all.deb")
        ask = "import distro_info; print(distro_info.DebianDistroInfo().version('bookworm'))"
        said = installs(site, pocket, job, "python3-distro-info", "python3", "-c", ask)
        assert said.endswith("\n12")
    installs(site, pocket, job, "distro-info-dbgsym")


def dependencies(site: TestSite, job: dict[str, Any], prefix: str) -> dict[str, str]:
    """What was installed for the build, of the packages whose names start so."""
    used: dict[str, str] = site.fact(job["job"], "build")["dependencies"]
    return {name: sha256 for name, sha256 in used.items() if name.startswith(prefix)}


@pytest.mark.parametrize("pocket", POCKETS)
def test_a_library_and_a_program_that_needs_it(site: TestSite, given: Given, pocket: str) -> None:
    """In staging the mirror's library has the same version, in dev a higher one."""
    repo, _ = given("lzo2")
    library = site.publish(pocket, "lzo2", repo.commit)
    repo, _ = given("lzop")
    program = site.publish(pocket, "lzop", repo.commit)
    used = dependencies(site, program, "liblzo2")
    assert {name.partition("_")[0] for name in used} == {"liblzo2-2", "liblzo2-dev"}
    assert used.items() <= published(library, ".deb").items()
    assert used.items() <= in_pool(site, pocket).items()
    said = installs(site, pocket, program, "lzop", "lzop", "--version")
    (shared,) = (name for name in used if name.startswith("liblzo2-2_"))
    assert installed(said)[shared] == used[shared]


def test_a_library_that_the_base_has_in_a_higher_version(
    site: TestSite, given: Given, tmp_path: Path
) -> None:
    """Autotools, with its tests."""
    repo, origs = given("libmd")
    library = site.publish("tested", "libmd", repo.commit)
    assert origs.items() <= published(library).items()
    assert "# PASS: " in site.cli("log", library["job"]).text
    program = packages.native(
        tmp_path / "needs-md",
        "needs-md",
        build=COMPILE,
        build_depends="libmd-dev (>= 1.0.3-2)",
        files={"md.c": MD},
    )
    site.package("needs-md", program.path)
    job = site.publish("tested", "needs-md", program.commit)
    used = dependencies(site, job, "libmd")
    assert {name.partition("_")[0] for name in used} == {"libmd0", "libmd-dev"}
    assert used.items() <= published(library, ".deb").items()
    assert used.items() <= in_pool(site, "tested").items()
