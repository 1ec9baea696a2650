"""Our packages: lintian has nothing to say, and two builds make the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from invirtibuilder.run import run
from tests.support.debian import (
    Built,
    build,
    build_dependencies,
    inotify_simple,
    source_tree,
)
from tests.support.roots import machine, new_root

OTHERS = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "", "DEB_BUILD_OPTIONS": "parallel=1"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Our packages, as they are built here."""
    return build(source_tree(tmp_path_factory.mktemp("here") / "source"))


@pytest.fixture(scope="module")
def inotify(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """python3-inotify-simple with its source."""
    return build(inotify_simple(tmp_path_factory.mktemp("inotify")))


def lintian(changes: Path, *options: str) -> list[str]:
    """All that lintian sees, of every importance; what is overridden has its reason beside it."""
    argv = ["lintian", "--allow-root", "--no-cfg", "-EvIL", "+pedantic", "--fail-on", "none"]
    done = run([*argv, *options, changes], timeout=120)
    return [line for line in done.text.splitlines() if not line.startswith("N:")]


def digests(built: Built) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in built.debs}


def test_there_are_two_packages(built: Built) -> None:
    names = {path.name.split("_")[0] for path in built.debs}
    assert names == {"invirtibuilder", "invirtibuilder-client"}


@pytest.mark.parametrize("which", ["built", "inotify"])
def test_lintian_has_nothing_to_say(which: str, request: pytest.FixtureRequest) -> None:
    assert lintian(request.getfixturevalue(which).changes) == []


def test_lintian_would_say_something(built: Built) -> None:
    assert any("spare-manual-page" in line for line in lintian(built.changes, "--no-override"))


def test_no_file_is_in_both(built: Built) -> None:
    first, second = (files(deb) for deb in built.debs)
    assert "./usr/bin/invirtibuilder" in first | second
    assert not first & second


def files(deb: Path) -> set[str]:
    lines = run(["dpkg-deb", "-c", deb]).text.splitlines()
    return {line.split()[-1] for line in lines if not line.startswith("d")}


@pytest.mark.parametrize("which", ["built", "inotify"])
def test_two_builds_make_the_same_bytes(which: str, request: pytest.FixtureRequest) -> None:
    """In another directory, umask, time zone, language and year, by another user."""
    first: Built = request.getfixturevalue(which)
    with tempfile.TemporaryDirectory(prefix="quite-another-", dir="/var/tmp") as folder:
        tree = Path(folder, "name")
        if which == "built":
            source_tree(tree)
        else:
            (dsc,) = first.directory.glob("*.dsc")
            run(["dpkg-source", "--no-check", "-x", dsc, tree])
        for path in (tree.parent, tree, *tree.rglob("*")):
            os.utime(path, (981173106, 981173106), follow_symlinks=False)
            if os.geteuid() == 0:
                shutil.chown(path, "nobody", "nogroup")
        before = ["faketime", "-f", "+500d", "sh", "-c", 'umask 027; exec "$@"', "sh"]
        if os.geteuid() == 0:
            account = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
            before = [*account, *before]
        assert digests(build(tree, "-b", before=before, env=OTHERS)) == digests(first)


ON_13 = """
sums() { (cd "$1" && sha256sum -- *.deb); }
cd /build/one/source
dpkg-buildpackage -us -uc -b
cd /build/quite-another/name
(umask 027; TZ=Pacific/Kiritimati LC_ALL=C faketime -f +500d dpkg-buildpackage -us -uc -b)
sums /build/one >/build/first
sums /build/quite-another | diff - /build/first
cd /build/inotify/tree
apt-get -q -y --no-install-recommends build-dep .
dpkg-buildpackage -us -uc -b
apt-get -q -y --no-install-recommends install /build/one/*.deb /build/inotify/*.deb
invirtibuilder init
/usr/share/invirtibuilder/without-systemd start
invirtibuilder fsck
"""
"""What is done on Debian 13: two builds, and a site."""


@pytest.mark.root
def test_they_are_built_and_work_on_debian_13() -> None:
    packages = ("build-essential", "faketime", *build_dependencies())
    with new_root("trixie", packages) as root:
        source_tree(root / "build/one/source")
        source_tree(root / "build/quite-another/name")
        (root / "build/inotify").mkdir()
        inotify_simple(root / "build/inotify")
        with machine(root) as inside:
            inside.run("apt-get", "-q", "update")
            done = inside.run("sh", "-euxc", f"({ON_13}) 2>&1", check=False)
            assert done.code == 0, done.out.decode("utf-8", "replace")
            said = inside.run("sh", "-c", "dpkg-deb -c /build/one/invirtibuilder-client_*.deb").text
        assert "./usr/lib/python3/dist-packages/invirtibuilder/cli/remote.py" in said
