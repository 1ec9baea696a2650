"""Real source packages from the mirror that this machine's APT uses."""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tempfile
from pathlib import Path

from invirtibuilder.debchanges import parse_dsc
from invirtibuilder.run import run
from tests.support.packages import Repo, git, identity

# Fields of apt-get(8)'s index targets; whether the machine has deb822 or one-line sources.
TARGETS = "$(RELEASE)|$(REPO_URI)|$(COMPONENT)|$(SOURCESENTRY)"


def fetch_dsc(name: str, directory: Path, suite: str = "bookworm") -> Path:
    """Download the newest source package `name` of the suite into `directory`; its .dsc.

    APT checks signatures and hashes as ever. Its lists, and what was downloaded, are kept until
    the end of the process.
    """
    folder = _downloaded(name, suite)
    directory.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        shutil.copyfile(path, directory / path.name)
    (dsc,) = folder.glob("*.dsc")
    return directory / dsc.name


def imported(name: str, directory: Path) -> tuple[Repo, Path]:
    """The newest version in the archive as `gbp import-dsc --pristine-tar` makes a repository of
    it below `directory`, and the .dsc it was made from."""
    dsc = fetch_dsc(name, directory / "archive")
    return import_dsc(name, dsc, directory), dsc


def import_dsc(name: str, dsc: Path, directory: Path) -> Repo:
    """The repository that `gbp import-dsc --pristine-tar` makes of a source package."""
    repo = directory / "repo"
    argv = ["gbp", "import-dsc", "--pristine-tar", "--debian-branch=main", str(dsc), str(repo)]
    run(argv, cwd=directory, env=identity(), timeout=300)
    version = parse_dsc(dsc.read_bytes()).version
    return Repo(path=repo, commit=git(repo, "rev-parse", "HEAD"), name=name, version=version)


@functools.cache
def _downloaded(name: str, suite: str) -> Path:
    apt = _apt(suite)
    folder = apt / "source" / name
    folder.mkdir(parents=True, exist_ok=True)
    argv = ["apt-get", *_options(apt), "source", "--download-only", "--only-source", name]
    run(argv, cwd=folder, timeout=300)
    return folder


@functools.cache
def _apt(suite: str) -> Path:
    """A private APT directory with the deb-src twin of each of the machine's `deb` lines."""
    listing = run(["apt-get", "indextargets", "--format", TARGETS, "Created-By: Packages"]).text
    found: dict[tuple[str, str], set[str]] = {}
    for line in listing.splitlines():
        release, uri, component, entry = line.split("|")
        if release == suite:
            file = Path(entry.rpartition(":")[0])
            found.setdefault((uri, _signed_by(file)), set()).add(component)
    assert found, f"this machine's APT has no source for {suite}"
    apt = Path(tempfile.mkdtemp(prefix="apt-source-"))
    atexit.register(shutil.rmtree, apt, ignore_errors=True)
    for part in ("lists/partial", "cache/archives/partial", "parts"):
        (apt / part).mkdir(parents=True)
    stanzas = []
    for (uri, signed_by), components in sorted(found.items()):
        lines = ["Types: deb-src", f"URIs: {uri}", f"Suites: {suite}"]
        lines += [f"Components: {' '.join(sorted(components))}"]
        lines += [f"Signed-By: {signed_by}"] if signed_by else []
        stanzas.append("\n".join(lines) + "\n")
    (apt / "parts/source.sources").write_text("\n".join(stanzas))
    run(["apt-get", *_options(apt), "update"], timeout=300)
    return apt


def _signed_by(file: Path) -> str:
    """The key file that a file of APT sources names, "" for APT's trusted keys."""
    match = re.search(r"^Signed-By:\s*(/\S+)|signed-by=(/[^] ]+)", file.read_text(), re.M | re.I)
    return (match[1] or match[2]) if match else ""


def _options(apt: Path) -> list[str]:
    said = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": f"{apt}/parts",
        "Dir::State::lists": f"{apt}/lists",
        "Dir::Cache": f"{apt}/cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "APT::Update::Error-Mode": "any",
    }
    return [f"-o{key}={value}" for key, value in said.items()]
