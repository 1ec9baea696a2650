"""Backups of a site at work, and sites made of them: whole, proven by fsck, and clients go on."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from invirtibuilder import model
from invirtibuilder.jobs import Jobs
from invirtibuilder.run import run
from invirtibuilder.stages.validity import renew
from invirtibuilder.states import State
from invirtibuilder.treecopy import Copier
from tests.support import packages
from tests.support import place as places
from tests.support.aptclient import AptClient, serving
from tests.support.packages import Repo
from tests.support.place import Place
from tests.support.running import gated, published, put

VOLATILE = {"run", "work"}


def backed_up(place: Place, target: Path) -> Path:
    done = place.cli("backup", target, check=True)
    path = Path(done.text)
    assert path.parent == target
    assert done.err == b""
    return path


@contextmanager
def restored(backup: Path) -> Iterator[Place]:
    """A site made of a backup, as an administrator would: configuration first, then all else."""
    with places.canned() as (place, _):
        for path in place.directory.iterdir():
            if path.name not in ("run", "invirtibuilder.yaml"):
                shutil.rmtree(path)
        shutil.copy(backup / "invirtibuilder.yaml", place.config)
        place.cli("restore", backup, check=True)
        yield place


def release(place: Place, pocket: str) -> tuple[int, float]:
    """The publication that clients see, and its date."""
    publications = place.context.archive(place.site.pockets[pocket]).publications
    number = publications.current()
    assert number is not None
    return number, publications.date(number).timestamp()


def git_is_whole(folder: Path) -> None:
    for repository in (folder / "superproject.git", *(folder / "packages").glob("*.git")):
        run(["git", f"--git-dir={repository}", "fsck", "--full", "--strict"])


def pushed(place: Place, repo: Repo, version: str) -> Repo:
    newer = packages.upgraded(repo, version)
    place.push(newer)
    return newer


def test_backups_while_it_is_published(tmp_path: Path) -> None:
    """Each is a site in which fsck finds nothing, and no accepted job is missing in any."""
    with places.canned() as (place, _), place.daemon():
        repos = [packages.native(tmp_path / name, name) for name in ("greet", "other")]
        for repo in repos:
            place.package(repo)
        stop = threading.Event()
        jobs: list[str] = []

        def publish() -> None:
            number = 1
            while not stop.is_set():
                number += 1
                jobs.append(put(place, "dev", pushed(place, repos[number % 2], f"1.{number}")))
                jobs.append(put(place, "staging", repos[number % 2]))
                time.sleep(0.2)

        thread = threading.Thread(target=publish)
        thread.start()
        made: list[tuple[list[str], Path]] = []
        try:
            while len(made) < 2:
                known = list(jobs)
                made.append((known, backed_up(place, tmp_path / "backups")))
        finally:
            stop.set()
            thread.join()
        for job in jobs:
            place.ended(job)
    for known, backup in made:
        git_is_whole(backup / "site")
        with restored(backup) as other:
            there = set(Jobs(other.site.jobs).names())
            waiting = {path.stem for path in (other.site.queue / "new").iterdir()}
            assert set(known) <= there | waiting
            assert other.cli("fsck").code == 0, other.cli("fsck").text
            # What was on its way goes on, to one end.
            other.cli("daemon", "--drain", check=True)
            states = {str(job.status.state) for job in Jobs(other.site.jobs).all()}
            assert states <= {"published", "failed", "refused"}
            assert set(known) <= set(Jobs(other.site.jobs).names())
            assert other.cli("fsck").code == 0, other.cli("fsck").text


def test_clients_go_on(tmp_path: Path) -> None:
    """Also those that have seen what came after the backup."""
    served = tmp_path / "served"
    client = AptClient(folder=tmp_path / "client")
    greet = packages.native(tmp_path / "greet", "greet")
    with places.canned() as (place, _), serving(served) as server:
        place.edit("site:\n", f"site:\n  url: {server.uri.rstrip('/')}\n")
        served.symlink_to(place.site.archive)
        place.package(greet)
        assert place.submitted("staging", greet).status.state == State.PUBLISHED
        client.configure(place.cli("sources", "staging", check=True).text)
        backup = backed_up(place, tmp_path / "backups")
        newer = pushed(place, greet, "1.1")
        assert place.submitted("staging", newer).status.state == State.PUBLISHED
        # As far ahead of the clock as a Date comes.
        staging = place.site.pockets["staging"]
        publications = place.context.archive(staging).publications
        while not publications.pause(model.utcnow()):
            assert renew(place.context, staging)
        client.update()
        assert client.candidate("greet") == "1.1"
        before = release(place, "staging")
        with restored(backup) as other:
            assert release(other, "staging")[1] > before[1]
            served.unlink()
            served.symlink_to(other.site.archive)
            client.update()
            assert client.candidate("greet") == "1.0"
            assert b"1.0" in client.download("greet")
            # The very site: its keys, its history, its jobs.
            assert other.cli("sources", "staging", check=True).text == client_sources(client)
            place.cli("package", "list", check=True)
            newest = pushed(other, greet, "1.2")
            assert other.submitted("staging", newest).status.state == State.PUBLISHED
            client.update()
            assert client.candidate("greet") == "1.2"


def client_sources(client: AptClient) -> str:
    return (client.folder / "etc/sources.list.d/pocket.sources").read_text().strip()


def test_what_runs_is_built_again(tmp_path: Path) -> None:
    greet = packages.native(tmp_path / "greet", "greet")
    with places.canned() as (place, worker):
        place.package(greet)
        with gated(worker) as gate, place.daemon():
            job = put(place, "staging", greet)
            gate.wait("greet")
            backup = backed_up(place, tmp_path / "backups")
            gate.open()
            published(place, job)
    with restored(backup) as other:
        assert Jobs(other.site.jobs).get(job).status.state == State.RUNNING
        other.cli("daemon", "--drain", check=True)
        published(other, job)


def test_a_second_backup_links_what_is_the_same(tmp_path: Path) -> None:
    greet = packages.native(tmp_path / "greet", "greet")
    with places.canned() as (place, _):
        place.package(greet)
        job = place.submitted("staging", greet)
        time.sleep(2.1)  # what has changed just now is copied, to be sure
        first = backed_up(place, tmp_path / "backups")
        again = json.loads(place.cli("backup", tmp_path / "backups", "--json", check=True).out)
        assert again["linked"] > 50
        assert again["copied"] == 0
        second = Path(again["backup"])
        assert sorted(os.listdir(tmp_path / "backups")) == [".lock", first.name, second.name]
        assert not VOLATILE & {*os.listdir(second / "site")} - {"run"}
        assert os.listdir(second / "site/run") == []
        same = f"site/jobs/{job.id}/request.json"
        assert (first / same).samefile(second / same)
        assert not (place.directory / same.removeprefix("site/")).samefile(second / same)
        # A backup that was cut off is none, and in nobody's way.
        (second / "backup.json").unlink()
        (tmp_path / "backups/.new/site").mkdir(parents=True)
        third = backed_up(place, tmp_path / "backups")
        assert (third / same).samefile(first / same)


def test_pauses_are_kept(tmp_path: Path) -> None:
    with places.canned() as (place, _):
        with place.daemon():
            place.cli("pause", "dev", check=True)
        with restored(backed_up(place, tmp_path / "backups")) as other:
            assert other.json("queue")["paused"][0]["scope"] == "dev"


def test_mistakes(tmp_path: Path) -> None:
    with places.canned() as (place, _):
        place.cli("acl", "compile")
        with place.daemon():
            refused = place.cli("restore", tmp_path)
            assert (refused.code, b"[daemon-runs]" in refused.err) == (71, True)
        backup = backed_up(place, tmp_path / "backups")
        inside = place.cli("backup", place.directory / "backups")
        assert (inside.code, b"[backup-inside]" in inside.err) == (65, True)
        for what, code in ((tmp_path, b"no-backup"), (backup, b"not-empty")):
            refused = place.cli("restore", what)
            assert b"[%s]" % code in refused.err, refused
        place.edit("site:\n", "site:\n  signer: run/sign.sock\n")
        said = place.cli("backup", tmp_path / "others").err.decode()
        assert re.search("not in it: the signing keys in .*gnupg", said)


def test_a_restore_that_was_cut_off_goes_on_and_no_daemon_starts_before(tmp_path: Path) -> None:
    greet = packages.native(tmp_path / "greet", "greet")
    with places.canned() as (place, _):
        place.package(greet)
        place.submitted("staging", greet)
        backup = backed_up(place, tmp_path / "backups")
    with restored(backup) as other:
        other.site.restoring.touch()
        shutil.rmtree(other.site.packages)
        refused = other.cli("daemon", "--drain")
        assert (refused.code, b"not restored whole" in refused.err) == (71, True)
        other.cli("restore", backup, check=True)
        assert other.cli("fsck").code == 0
        other.cli("daemon", "--drain", check=True)


def _again(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda file: file.write_text("other content"),
    "as much": lambda file: file.write_text("CONTENT"),
    "mode": lambda file: file.chmod(0o600),
    "another file": lambda file: _again(file, lambda it: it.write_text("CONTENT")),
    "a directory": lambda file: _again(file, Path.mkdir),
    "a link": lambda file: _again(file, lambda it: it.symlink_to("nowhere")),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_copy_follows_changes(tmp_path: Path, what: str) -> None:
    """Again into the same target, and into a new one that may link to the old."""
    source = tmp_path / "source"
    file = source / "folder" / "file"
    file.parent.mkdir(parents=True)
    file.write_text("content")
    (source / ".x.1234.tmp").write_text("half")
    first, second = tmp_path / "first", tmp_path / "second"
    copier = Copier()
    copier.copy(source, first)
    CHANGES[what](file)
    copier.copy(source, first)
    Copier(before=tmp_path / "first", since=time.time()).copy(source, second)
    for copy in (first, second):
        assert seen(copy) == {n: s for n, s in seen(source).items() if not n.endswith(".tmp")}


def seen(folder: Path) -> dict[str, object]:
    def one(path: Path) -> object:
        if path.is_symlink():
            return path.readlink()
        return path.stat().st_mode, path.read_text() if path.is_file() else ""

    return {str(path.relative_to(folder)): one(path) for path in folder.rglob("*")}
