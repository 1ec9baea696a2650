"""Debian packages in git repositories, made on demand, always with the same commit ids.

Every maker takes an empty (or missing) directory, makes a git repository with a working tree in
it, and returns a `Repo`. The simple ones (`native`, `failing`, `unresolvable`, `library`) build in
a second with a plain debian/rules: no debhelper. Those for the export are in `sources`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path

from invirtibuilder.run import run

DATE = 1_750_000_000
"""Seconds since the epoch of the first commit and changelog entry."""

PERSON = "Ada Test <ada@example.org>"

RULES = """\
#!/usr/bin/make -f
# No debhelper: one directory and one dpkg-deb for each binary package.
PACKAGES = {binaries}

build build-arch build-indep:
{build}
clean:
	rm -rf debian/files $(addprefix debian/,$(PACKAGES))

binary-indep: build
	for p in $(PACKAGES); do \\
		mkdir -p debian/$$p/DEBIAN debian/$$p/usr/share/$$p && \\
		cp greeting debian/$$p/usr/share/$$p/greeting && \\
		chmod -R u=rwX,go=rX debian/$$p && \\
		dpkg-gencontrol -p$$p -Pdebian/$$p && \\
		dpkg-deb --root-owner-group --build debian/$$p .. || exit 1; \\
	done

binary-arch:
binary: binary-indep
.PHONY: build build-arch build-indep clean binary binary-indep binary-arch
"""


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A package's repository: its working tree, and the commit that its maker ended with."""

    path: Path
    commit: str
    name: str
    version: str


def git(
    path: Path, *args: str, date: int = DATE, stdin: bytes | None = None, check: bool = True
) -> str:
    """Run git in `path` with a fixed author, date and no configuration; its output."""
    return run(["git", *args], cwd=path, env=identity(date), stdin=stdin, check=check).text


def identity(date: int = DATE) -> dict[str, str]:
    """The environment that git and gbp get: fixed author and date, nobody's configuration."""
    who = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", "Ada Test"), ("EMAIL", "ada@example.org"))
    }
    return who | {
        "GIT_AUTHOR_DATE": f"{date} +0000",
        "GIT_COMMITTER_DATE": f"{date} +0000",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "init.defaultBranch",
        "GIT_CONFIG_VALUE_0": "main",
        "DEBFULLNAME": "Ada Test",
        "DEBEMAIL": "ada@example.org",
    }


def write(path: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files below `path`; those starting with `#!` become executable."""
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        target.write_bytes(data)
        target.chmod(0o755 if data.startswith(b"#!") else 0o644)


def commit(path: Path, message: str = "A change", *, date: int = DATE) -> str:
    """Commit everything in the working tree, ignored files too; the commit's id."""
    git(path, "add", "--all", "--force", date=date)
    git(path, "commit", "--quiet", "--allow-empty", "-m", message, date=date)
    return git(path, "rev-parse", "HEAD")


def entry(
    name: str,
    version: str,
    *,
    distribution: str = "unstable",
    text: str = "A change.",
    date: int = DATE,
) -> str:
    """One changelog entry."""
    when = formatdate(date, localtime=False).replace("-0000", "+0000")
    return (
        f"{name} ({version}) {distribution}; urgency=medium\n\n  * {text}\n\n -- {PERSON}  {when}\n"
    )


def control(
    name: str,
    binaries: Iterable[str],
    *,
    build_depends: str = "",
    depends: str = "",
    architecture: str = "all",
    more: str = "",
) -> str:
    """debian/control with these binary packages; `more` is put into the source paragraph."""
    lines = [f"Source: {name}", "Section: misc", "Priority: optional", f"Maintainer: {PERSON}"]
    lines += ["Standards-Version: 4.6.2", "Rules-Requires-Root: no"]
    lines += [f"Build-Depends: {build_depends}"] if build_depends else []
    text = "\n".join(lines) + "\n" + more
    for binary in binaries:
        text += f"\nPackage: {binary}\nArchitecture: {architecture}\n"
        text += f"Depends: {depends}\n" if depends else ""
        text += f"Description: package {binary} made for a test\n Nothing else.\n"
    return text


def debian(
    name: str,
    version: str,
    *,
    source_format: str = "3.0 (native)",
    binaries: Iterable[str] = (),
    distribution: str = "unstable",
    build: str = "\ttrue\n",
    build_depends: str = "",
    depends: str = "",
    date: int = DATE,
) -> dict[str, str]:
    """The files of a debian/ directory that builds without debhelper. `build` is make recipe."""
    names = tuple(binaries) or (name,)
    return {
        "debian/changelog": entry(name, version, distribution=distribution, date=date),
        "debian/control": control(name, names, build_depends=build_depends, depends=depends),
        "debian/copyright": "Public domain.\n",
        "debian/rules": RULES.format(binaries=" ".join(names), build=build),
        "debian/source/format": source_format + "\n",
    }


def native(
    directory: Path,
    name: str = "greet",
    version: str = "1.0",
    *,
    binaries: Iterable[str] = (),
    distribution: str = "unstable",
    build: str = "\ttrue\n",
    build_depends: str = "",
    depends: str = "",
    files: Mapping[str, str | bytes] | None = None,
    date: int = DATE,
) -> Repo:
    """A `3.0 (native)` package on branch main with one commit.

    It has one binary package, arch:all, of the source's name (or those in `binaries`), with the
    one file /usr/share/NAME/greeting, which says `hello from NAME VERSION`. It builds without
    debhelper in a second. `build` is the make recipe of the build targets (lines with a tab);
    `files` are added to the tree or replace files in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    git(directory, "init", "--quiet", date=date)
    parts = debian(
        name,
        version,
        binaries=binaries,
        distribution=distribution,
        build=build,
        build_depends=build_depends,
        depends=depends,
        date=date,
    )
    write(directory, {"greeting": f"hello from {name} {version}\n", **parts, **(files or {})})
    made = commit(directory, f"{name} {version}", date=date)
    return Repo(path=directory, commit=made, name=name, version=version)


def upgraded(
    repo: Repo,
    version: str,
    *,
    distribution: str = "unstable",
    files: Mapping[str, str | bytes] | None = None,
    date: int = DATE + 60,
) -> Repo:
    """The same repository with one more commit, whose changelog's top entry is `version`."""
    changelog = repo.path / "debian/changelog"
    top = entry(repo.name, version, distribution=distribution, date=date)
    changelog.write_text(top + "\n" + changelog.read_text())
    if (repo.path / "greeting").exists() and not (repo.path / "debian/patches").exists():
        write(repo.path, {"greeting": f"hello from {repo.name} {version}\n"})
    write(repo.path, files or {})
    made = commit(repo.path, f"{repo.name} {version}", date=date)
    return replace(repo, commit=made, version=version)


def failing(directory: Path, name: str = "broken", version: str = "1.0") -> Repo:
    """A native package whose build ends with exit code 7, after saying why."""
    return native(directory, name, version, build="\techo 'this build fails on purpose'; exit 7\n")


def unresolvable(directory: Path, name: str = "lonely", version: str = "1.0") -> Repo:
    """A native package with a Build-Depends that nothing provides."""
    return native(directory, name, version, build_depends="libnobody-has-this-dev (>= 3)")


def library(directory: Path, name: str = "libgreet-data", version: str = "1.0") -> Repo:
    """A native package for another to build-depend on: /usr/share/NAME/greeting."""
    return native(directory, name, version)


def consumer(
    directory: Path,
    name: str = "greeter",
    version: str = "1.0",
    *,
    library_name: str = "libgreet-data",
    at_least: str = "1.0~",
) -> Repo:
    """A native package that build-depends on `library` and ships its greeting as its own."""
    return native(
        directory,
        name,
        version,
        build=f"\tcp /usr/share/{library_name}/greeting greeting\n",
        build_depends=f"{library_name} (>= {at_least})",
    )
