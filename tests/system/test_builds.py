"""Builds that are stopped, and where build dependencies come from."""

from __future__ import annotations

import functools
import http.server
import io
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from invirtibuilder.run import run
from invirtibuilder.sandbox.base import Base
from tests.support import packages
from tests.support.sites import TestSite, made_site


@pytest.fixture(scope="module")
def limited(base: Base, layers: Path) -> Iterator[TestSite]:
    """A site whose dev pocket has little patience."""
    with made_site(base, layers) as site:
        site.configure(
            pockets__dev__limits={"log": "1M", "file_size": "64M"},
            pockets__dev__packages={
                "sleeper": {"limits": {"time": "8s"}},
                "talker": {"limits": {"log": "10M"}},
            },
        )
        with site.daemon():
            yield site


@pytest.mark.parametrize(
    ("name", "recipe", "code"),
    [
        ("sleeper", "\ttrap '' TERM; sleep 3600\n", "limit-time"),
        ("chatter", "\tyes this log never ends\n", "limit-log"),
        ("filler", "\tyes > big\n", "limit-file-size"),
        ("talker", "\thead -c 2M /dev/zero | tr '\\0' x; echo\n", ""),
    ],
)
def test_a_limit_ends_the_build_and_is_named(
    limited: TestSite, tmp_path: Path, name: str, recipe: str, code: str
) -> None:
    repo = packages.native(tmp_path / name, name, "1.0", build=recipe)
    limited.package(name, repo.path)
    done, job = limited.submit("dev", name, repo.commit)
    if not code:  # A package with a limit of its own.
        assert done.code == 0
        return
    assert (done.code, job["reasons"][-1]["code"], job["blame"]) == (4, code, "package")
    assert f"packages: {name}: limits: " in job["reasons"][-1]["hint"]


def test_nothing_is_left_of_an_ended_build(limited: TestSite) -> None:
    assert not list((limited.slot / "scratch").iterdir())


def test_cancel_stops_a_running_build(site: TestSite, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "long", "long", "1.0", build="\tsleep 3600\n")
    site.package("long", repo.path)
    before = site.state("dev")
    job = site.cli("submit", "dev", "long", repo.commit).text
    log = site.directory / "jobs" / job / "attempts/build-1/log"
    until = time.monotonic() + 300
    while not (log.exists() and b"sleep 3600" in log.read_bytes()):
        assert time.monotonic() < until
        time.sleep(0.05)
    site.cli("cancel", job)
    while (status := site.json("status", job))["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.05)
    assert status["state"] == "cancelled"
    assert site.state("dev") == before


def test_a_clean_target_that_changes_the_source(site: TestSite, tmp_path: Path) -> None:
    """The commit is what is published as source, whatever the build does to its copy."""
    repo = packages.native(tmp_path / "untidy", "untidy", "1.0")
    rules = repo.path / "debian/rules"
    text = rules.read_text().replace("clean:\n", "clean:\n\techo changed >>greeting\n")
    packages.write(repo.path, {"debian/rules": text})
    commit = packages.commit(repo.path, "A clean target that is none")
    site.package("untidy", repo.path)
    job = site.publish("dev", "untidy", commit)
    source = site.directory / "jobs" / job["job"] / "source"
    (tar,) = source.glob("*.tar.*")
    with tarfile.open(tar) as files:
        (member,) = [m for m in files if m.name.endswith("/greeting")]
        content = files.extractfile(member)
        assert content is not None
        assert content.read() == (repo.path / "greeting").read_bytes()
    (deb,) = (site.directory / "jobs" / job["job"] / "artifacts").glob("*.deb")
    built = run(["sh", "-ec", 'dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr', "sh", deb]).text
    assert "changed" in built


@contextmanager
def served(directory: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


def test_an_extra_source_serves_build_dependencies(
    site: TestSite, base: Base, layers: Path, tmp_path: Path
) -> None:
    library = packages.library(tmp_path / "library", "libfar-data")
    site.package("libfar-data", library.path)
    site.publish("dev", "libfar-data", library.commit)
    key = tmp_path / "key.asc"
    home = site.directory / "gnupg"
    key.write_bytes(run(["gpg", "--homedir", home, "--armor", "--export"]).out)
    consumer = packages.consumer(tmp_path / "consumer", library_name="libfar-data")
    with served(site.directory / "archive") as url, made_site(base, layers) as other:
        other.package("greeter", consumer.path)
        with other.daemon():
            _, job = other.submit("dev", "greeter", consumer.commit)
            assert job["reasons"][0]["code"] == "unresolvable"
        other.configure(
            pockets__dev__extra_sources=[
                {"uri": f"{url}/dev", "suites": "dev", "components": "main", "key": str(key)}
            ]
        )
        with other.daemon():
            other.publish("dev", "greeter", consumer.commit)


def test_the_worker_is_a_filter(site: TestSite, tmp_path: Path) -> None:
    """An order that was carried out once can be by hand, through pipes, with the same result."""
    repo = packages.native(tmp_path / "filtered", "filtered", "1.0")
    site.package("filtered", repo.path)
    job = site.publish("dev", "filtered", repo.commit)
    attempt = site.directory / "jobs" / job["job"] / "attempts/build-1"
    argv = [*site.python, "worker", "--directory", str(site.slot.parent)]
    with (attempt / "order.tar").open("rb") as order:
        done = run(["sh", "-c", 'cat | "$@" | cat', "sh", *argv], env=site.env(), stdin=order)
    with tarfile.open(fileobj=io.BytesIO(done.out)) as result:
        names = result.getnames()
    with tarfile.open(attempt / "result.tar") as result:
        assert names == result.getnames()
    assert names[-1] == "manifest.json"
    assert any(name.endswith(".deb") for name in names)
