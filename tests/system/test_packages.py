"""Kinds of packages that Debian's archive does not have in small, made for the purpose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder.run import run
from invirtibuilder.sandbox.base import Base
from tests.support import packages, sources
from tests.support.aptclient import AptClient, serving
from tests.support.packages import Repo, git
from tests.support.sites import TestSite, made_site

PROFILES = ["nocheck", "pkg.told.extra"]


@pytest.fixture(scope="module")
def site(base: Base, layers: Path) -> Iterator[TestSite]:
    """A site whose staging has build profiles and options, and whose prod is closed."""
    changes: dict[str, Any] = {
        "pockets__staging__build_profiles": PROFILES,
        "pockets__staging__build_options": ["nocheck", "parallel=1"],
        "pockets__prod__acl": {"submit": ["somebody@EXAMPLE.ORG"]},
    }
    with made_site(base, layers, **changes) as made, made.daemon():
        yield made


def client(site: TestSite, pocket: str, folder: Path) -> AptClient:
    """An apt-get that knows the pocket as `sources` tells people."""
    made = AptClient(folder=folder)
    said = site.json("sources", pocket)
    made.configure(said["sources"], said["preferences"])
    made.update()
    return made


def content(deb: bytes, path: str, folder: Path) -> str:
    """A file of a .deb."""
    file = folder / "content.deb"
    file.write_bytes(deb)
    run(["dpkg-deb", "-x", file, folder / "content"])
    return (folder / "content" / path).read_text()


def pushed(site: TestSite, repo: Repo) -> Repo:
    """The repository's branch and tags in the site, as its maintainer pushes them."""
    bare = site.directory / "packages" / f"{repo.name}.git"
    git(repo.path, "push", "--quiet", str(bare), "HEAD:main", "--tags")
    return repo


def refused(site: TestSite, pocket: str, repo: Repo, *codes: str) -> list[dict[str, str]]:
    """Submit what must be refused for these reasons, and change nothing."""
    before = site.state(pocket)
    done, job = site.submit(pocket, repo.name, repo.commit)
    assert done.code in (3, 4), done
    answer = site.json("status", job["job"]) if job else json.loads(done.out)
    said: list[dict[str, str]] = answer["reasons"]
    assert {reason["code"] for reason in said} == set(codes), said
    assert site.state(pocket) == before
    return said


def test_only_the_suffix_is_in_the_way(site: TestSite, tmp_path: Path) -> None:
    made = packages.library(tmp_path / "library", "libsuffix-data")
    site.package("libsuffix-data", made.path)
    library = site.publish("dev", "libsuffix-data", made.commit)
    for name, relation in (("at-least", ">="), ("exactly", "=")):
        needs = packages.native(
            tmp_path / name, name, build_depends=f"libsuffix-data ({relation} 1.0)"
        )
        site.package(name, needs.path)
        (reason,) = refused(site, "dev", needs, "unresolvable")
        assert f"Depends: libsuffix-data ({relation} 1.0) but " in reason["message"]
        assert f"`libsuffix-data (>= 1.0~)` accepts {library['version']}" in reason["hint"]


TOLD = """\
\tif test -e /usr/share/libextra/greeting; then echo with; else echo without; fi >greeting
\techo "$(DEB_BUILD_PROFILES)|$(DEB_BUILD_OPTIONS)" >>greeting
"""


def test_build_profiles_and_options(site: TestSite, tmp_path: Path) -> None:
    extra = packages.library(tmp_path / "extra", "libextra")
    site.package("libextra", extra.path)
    repo = packages.native(
        tmp_path / "told",
        "told",
        build=TOLD,
        build_depends="libextra <pkg.told.extra>, libnobody-has-this-dev <!nocheck>",
    )
    site.package("told", repo.path)
    refused(site, "staging", repo, "unresolvable")  # libextra is not there yet
    site.publish("staging", "libextra", extra.commit)
    site.publish("staging", "told", repo.commit)
    deb = client(site, "staging", tmp_path / "apt").download("told")
    said = content(deb, "usr/share/told/greeting", tmp_path).splitlines()
    assert said == ["with", "nocheck pkg.told.extra|nocheck parallel=1"]


ROOT = """\
#!/usr/bin/make -f
build:
	test "$$(id -u)" != 0
clean:
	rm -rf debian/files debian/$(NAME)
binary:
	test "$$(id -u)" {} 0
	mkdir -p debian/$(NAME)/DEBIAN debian/$(NAME)/usr/share/$(NAME)
	cp greeting debian/$(NAME)/usr/share/$(NAME)/greeting
	chmod -R u=rwX,go=rX debian/$(NAME)
	{}
	dpkg-gencontrol -p$(NAME) -Pdebian/$(NAME)
	dpkg-deb --build {} debian/$(NAME) ..
.PHONY: build clean binary
"""


@pytest.mark.parametrize(
    ("field", "sign", "chown", "option", "owner"),
    [
        ("binary-targets", "=", "chown -R root:root debian/$(NAME) && "
         "chown games:mail debian/$(NAME)/usr/share/$(NAME)/greeting", "", "games/mail"),
        ("no", "!=", "true", "--root-owner-group", "root/root"),
    ],
)  # fmt: skip
def test_rules_requires_root(
    site: TestSite, tmp_path: Path, field: str, sign: str, chown: str, option: str, owner: str
) -> None:
    name = f"owned-{field}"
    control = packages.control(name, [name]).replace("Root: no", f"Root: {field}")
    rules = ROOT.format(sign, chown, option).replace("$(NAME)", name)
    files = {"debian/rules": rules, "debian/control": control}
    repo = packages.native(tmp_path / name, name, files=files)
    site.package(name, repo.path)
    site.publish("dev", name, repo.commit)
    (tmp_path / "owned.deb").write_bytes(client(site, "dev", tmp_path / "apt").download(name))
    listing = run(["dpkg-deb", "-c", tmp_path / "owned.deb"]).text
    (line,) = [line for line in listing.splitlines() if line.endswith("/greeting")]
    assert line.split()[1] == owner


def origs(job: dict[str, Any]) -> dict[str, str]:
    """The upstream files that a job published: name to SHA-256."""
    return {f["name"]: f["sha256"] for f in job["published"]["files"] if ".orig" in f["name"]}


def test_without_pristine_tar_the_tarball_is_made_once(site: TestSite, tmp_path: Path) -> None:
    repo = sources.pristine(tmp_path / "generated", "generated", pristine_tar=False)
    assert not git(repo.path, "branch", "--list", "pristine-tar")
    site.package("generated", repo.path)
    dev = site.publish("dev", "generated", repo.commit)
    assert site.fact(dev["job"], "export")["orig_from"] == {
        "generated_1.0.orig.tar.xz": "upstream-tag"
    }
    staging = site.publish("staging", "generated", repo.commit)
    assert site.fact(staging["job"], "export")["orig_from"] == {
        "generated_1.0.orig.tar.xz": "store"
    }
    assert origs(staging) == origs(dev)
    deb = client(site, "staging", tmp_path / "apt").download("generated")
    assert content(deb, "usr/share/generated/greeting", tmp_path) == "hello from Debian\n"


def test_several_tarballs_and_their_bytes_stay(site: TestSite, tmp_path: Path) -> None:
    repo = sources.pristine(
        tmp_path / "parts", "parts", compression="bz2", components=["one", "two"], signed=True
    )
    site.package("parts", repo.path)
    staging = site.publish("staging", "parts", repo.commit)
    given = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "parts.tarballs").glob("*.orig*")
        if path.is_file()
    }
    assert len(given) == 4
    assert origs(staging) == given
    # The same version with another tarball of the same name, by another import.
    other = sources.pristine(
        tmp_path / "other",
        "parts",
        compression="bz2",
        components=["one", "two"],
        upstream={**sources.UPSTREAM, "README": "Other content.\n"},
    )
    git(repo.path, "fetch", "--quiet", str(other.path), "+refs/heads/*:refs/heads/other-*")
    bare = site.directory / "packages" / "parts.git"
    git(repo.path, "push", "--quiet", str(bare), "other-main:refs/heads/other")
    other = replace(other, path=repo.path)
    (reason,) = refused(site, "dev", other, "upstream-changes")
    assert "README" in reason["message"]
    assert "+ds" in reason["hint"]
    job = site.publish("dev", "parts", repo.commit)
    assert origs(job) == given


def lower(site: TestSite, path: Path) -> tuple[Repo, str, str]:
    repo = packages.native(path, "lower", "2.0")
    site.package(repo.name, repo.path)
    site.publish("staging", repo.name, repo.commit)
    return pushed(site, packages.upgraded(repo, "1.5")), "staging", "version-not-higher"


def sideways(site: TestSite, path: Path) -> tuple[Repo, str, str]:
    repo = packages.native(path, "sideways", "1.0")
    site.package(repo.name, repo.path)
    site.publish("staging", repo.name, repo.commit)
    git(path, "checkout", "--quiet", "--orphan", "elsewhere")
    other = packages.upgraded(repo, "2.0")
    bare = site.directory / "packages" / "sideways.git"
    git(path, "push", "--quiet", str(bare), "HEAD:elsewhere")
    return other, "staging", "not-descendant"


def unreleased(site: TestSite, path: Path) -> tuple[Repo, str, str]:
    repo = packages.native(path, "unreleased", distribution="UNRELEASED")
    site.package(repo.name, repo.path)
    return repo, "staging", "unreleased"


def bad_commit(site: TestSite, path: Path) -> tuple[Repo, str, str]:
    repo = packages.native(path, "bad-commit")
    site.package(repo.name, repo.path)
    return replace(repo, commit="0" * 39 + "1"), "staging", "commit-unknown"


def stranger(site: TestSite, path: Path) -> tuple[Repo, str, str]:
    repo = packages.native(path, "stranger")
    site.package(repo.name, repo.path)
    return repo, "prod", "not-permitted"


def changed_upstream(site: TestSite, path: Path) -> tuple[Repo, str, str]:
    files = {"README": "Changed without a patch.\n"}
    repo = sources.pristine(path, "changed-upstream", files=files)
    site.package(repo.name, repo.path)
    return repo, "staging", "upstream-changes"


@pytest.mark.parametrize(
    "case", [lower, sideways, unreleased, bad_commit, stranger, changed_upstream]
)
def test_a_refusal_is_clear_and_changes_nothing(
    site: TestSite, tmp_path: Path, case: Callable[[TestSite, Path], tuple[Repo, str, str]]
) -> None:
    repo, pocket, code = case(site, tmp_path / "repo")
    (reason,) = refused(site, pocket, repo, code)
    assert reason["message"]
    assert reason["hint"]


def test_an_epoch(site: TestSite, tmp_path: Path) -> None:
    repo = sources.pristine(tmp_path / "epoch", "epoch", "1:1.0-1")
    site.package("epoch", repo.path)
    assert site.publish("dev", "epoch", repo.commit)["version"].startswith("1:1.0-1~dev+")
    site.publish("staging", "epoch", repo.commit)
    assert client(site, "staging", tmp_path / "apt").candidate("epoch") == "1:1.0-1"
    bare = site.directory / "packages" / "epoch.git"
    assert git(bare, "rev-parse", "debian/1%1.0-1^{commit}") == repo.commit
    # In the pool the file names of another epoch are the same.
    twin = pushed(site, packages.upgraded(repo, "2:1.0-1"))
    (reason,) = refused(site, "staging", twin, "epoch-twin")
    assert "1:1.0-1" in reason["message"]
    assert "raise the version" in reason["hint"]


def test_backwards_in_dev(site: TestSite, tmp_path: Path) -> None:
    old = packages.native(tmp_path / "backwards", "backwards", "1.0")
    new = packages.upgraded(old, "2.0")
    site.package("backwards", new.path)
    apt = None
    for repo in (new, old):
        job = site.publish("dev", "backwards", repo.commit)
        apt = apt or client(site, "dev", tmp_path / "apt")
        apt.update()
        assert apt.candidate("backwards") == job["version"]
        said = content(apt.download("backwards"), "usr/share/backwards/greeting", tmp_path)
        assert said == f"hello from backwards {repo.version}\n"


def test_a_dropped_binary_leaves(site: TestSite, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "two", "two", binaries=["two", "two-more"])
    site.package("two", repo.path)
    site.publish("staging", "two", repo.commit)
    apt = client(site, "staging", tmp_path / "apt")
    assert (apt.candidate("two"), apt.candidate("two-more")) == ("1.0", "1.0")
    only = {k: v for k, v in packages.debian("two", "2.0").items() if k != "debian/changelog"}
    site.publish("staging", "two", pushed(site, packages.upgraded(repo, "2.0", files=only)).commit)
    apt.update()
    assert (apt.candidate("two"), apt.candidate("two-more")) == ("2.0", "")


def test_apt_get_install_over_http(site: TestSite, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "served", "served")
    site.package("served", repo.path)
    job = site.publish("staging", "served", repo.commit)
    with serving(site.directory / "archive") as web:
        site.configure(site__url=web.uri)
        try:
            apt = client(site, "staging", tmp_path / "apt")
        finally:
            site.configure(site__url=f"file:{site.directory}/archive")
        root = tmp_path / "root"
        (root / "var/lib/dpkg/info").mkdir(parents=True)
        (root / "var/lib/dpkg/status").touch()
        options = {
            "Dir::State::status": root / "var/lib/dpkg/status",
            "Dpkg::Options::": f"--root={root}",
            "Dpkg::Use-Pty": "false",
        }
        words = [f"-o{key}={value}" for key, value in options.items()]
        apt.apt("apt-get", "-y", *words, "install", "served")
    assert (root / "usr/share/served/greeting").read_text() == "hello from served 1.0\n"
    (fetched,) = (tmp_path / "apt/cache/archives").glob("*.deb")
    ours = {f["name"]: f["sha256"] for f in job["published"]["files"]}
    assert ours[fetched.name] == hashlib.sha256(fetched.read_bytes()).hexdigest()
    assert any("/by-hash/" in path for path, code in web.requests if code == 200)


def test_a_package_of_the_base_is_the_pockets(site: TestSite, tmp_path: Path) -> None:
    """A build gets it even where the one of the mirror, which the base has, would do."""
    repo = packages.native(tmp_path / "logsave", "logsave", "0.1")
    consumer = packages.consumer(tmp_path / "logs", "logs", library_name="logsave", at_least="0")
    site.package("logsave", repo.path)
    site.package("logs", consumer.path)
    for version in (repo, packages.upgraded(repo, "9")):
        library = site.publish("dev", "logsave", pushed(site, version).commit)
        job = site.publish("dev", "logs", consumer.commit)
        used = site.fact(job["job"], "build")["dependencies"]
        ours = {f["name"]: f["sha256"] for f in library["published"]["files"]}
        assert used.items() <= ours.items()
        assert [name.partition("_")[0] for name in used] == ["logsave"]
