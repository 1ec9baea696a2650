"""fsck names each kind of damage, finds nothing on a clean site, and repairs what is safe."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import debchanges, gitcmd
from invirtibuilder.errors import Blame, Exit
from invirtibuilder.fsck.findings import KINDS, NO_DRIFT
from invirtibuilder.run import run
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.cannedworker import Answer, Answerer, Work, export, failing
from tests.support.place import until
from tests.support.published import POCKET, Published, published, put_back


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Published, Path]]:
    with published(tmp_path_factory.mktemp("fsck")) as made:
        yield made


@pytest.fixture
def site(made: tuple[Published, Path]) -> Iterator[Published]:
    yield made[0]
    put_back(*made)


def _drop(path: Path) -> None:
    path.unlink()


def _spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _pin(site: Published) -> None:
    other = packages.commit(site.repo.path, "another", date=packages.DATE + 5)
    site.git("fetch", "--quiet", str(site.repo.path), other)
    site.rewrite(lambda record: None, commit=other)


def _without(site: Published, name: str) -> None:
    """One more superproject commit, in which this path is not."""
    tree = site.place.site.superproject
    git = ["git", f"--git-dir={tree}", f"--work-tree={tree}"]
    env = {**packages.identity(), "GIT_INDEX_FILE": str(tree / "damage")}
    run([*git, "read-tree", POCKET], env=env)
    run([*git, "update-index", "--force-remove", name], env=env, cwd=tree)
    made = run([*git, "write-tree"], env=env).text
    commit = run([*git, "commit-tree", "-p", POCKET, "-m", "damage", made], env=env).text
    run([*git, "update-ref", f"refs/heads/{POCKET}", commit])


def _commit_missing(site: Published) -> None:
    for ref in gitcmd.read_refs(site.bare, "refs/"):
        site.git("update-ref", "-d", ref)
    (site.bare / "objects" / site.repo.commit[:2] / site.repo.commit[2:]).unlink(missing_ok=True)
    shutil.rmtree(site.bare / "objects/pack")


def _elsewhere(site: Published, ref: str) -> None:
    site.git("update-ref", ref, site.git("rev-parse", f"{site.repo.commit}^{{tree}}"))


def _tag_of_nothing(site: Published) -> None:
    other = "Version\n\nJob: 20200101T000000.000000-abcd\n"
    site.git("tag", "-a", "-m", other, "debian/9.9", site.repo.commit)


def _buildinfo(site: Published) -> None:
    (path,) = site.place.site.jobs.glob("*/artifacts/*.buildinfo")
    _spoil(path)


def _buildinfo_without_binary(site: Published) -> None:
    """The recorded one, but it names another file."""
    (path,) = site.place.site.jobs.glob("*/artifacts/*.buildinfo")
    path.write_text(path.read_text().replace("greet-doc_1.0", "greet-dox_1.0"))
    sha256 = run(["sha256sum", path]).text.split()[0]

    def change(record: dict[str, Any]) -> None:
        for file in record["files"]:
            if file["name"].endswith(".buildinfo"):
                file["sha256"] = sha256

    site.rewrite(change)


def _dsc(site: Published) -> None:
    """The recorded .dsc by its hash, but it names another tarball."""
    path = site.pool("*.dsc")
    path.write_text(path.read_text().replace("greet_1.0.tar.xz", "greet_1.1.tar.xz"))
    sha256 = run(["sha256sum", path]).text.split()[0]

    def change(record: dict[str, Any]) -> None:
        for file in record["files"]:
            if file["name"] == path.name:
                file["sha256"] = sha256

    site.rewrite(change)


def _orig(site: Published, content: bytes | None) -> None:
    data = b"an upstream tarball"
    (site.publications.root / "pool/main/g/greet/greet_1.0.orig.tar.xz").write_bytes(data)
    sha256 = "4d3eac2d" + "0" * 56

    def change(record: dict[str, Any]) -> None:
        record["files"].append({"name": "greet_1.0.orig.tar.xz", "size": 19, "sha256": sha256})

    site.rewrite(change)
    if content is not None:
        (site.place.site.origs / "greet_1.0.orig.tar.xz").write_bytes(content)


def _resigned(site: Published, change: Callable[[str], str]) -> None:
    dist = site.dist()
    text = change((dist / "Release").read_text()).encode()
    inrelease, detached = site.signer.sign(text)
    (dist / "Release").write_bytes(text)
    (dist / "InRelease").write_bytes(inrelease)
    (dist / "Release.gpg").write_bytes(detached)


def _by_other_key(site: Published) -> None:
    path = site.dist() / "Release.gpg"
    path.write_bytes((site.publications.path(1) / "dists" / POCKET / "Release.gpg").read_bytes())


def _extra_publication(site: Published) -> None:
    run(["cp", "-a", site.publications.path(2), site.publications.path(7)])
    dist = site.publications.path(7) / "dists" / POCKET
    text = "\n".join(
        line
        for line in (dist / "Release").read_text().splitlines()
        if not line.startswith("Superproject-Commit")
    )
    release = (text + "\n").encode()
    inrelease, detached = site.signer.sign(release)
    for name, data in (
        ("Release", release),
        ("InRelease", inrelease),
        ("Release.gpg", detached),
    ):
        (dist / name).write_bytes(data)


def _publication_less(site: Published) -> None:
    """A newer one, and none before it."""
    site.rewrite(lambda record: None)
    site.publications.path(2).rename(site.publications.path(3))
    site.publications.keep_from(1)


def _stored(site: Published) -> Path:
    """What the current Packages is by its hash."""
    fields = debchanges.paragraph((site.dist() / "Release").read_bytes())
    line = next(x for x in fields["sha256"].split("\n") if x.endswith("main/binary-amd64/Packages"))
    return site.publications.root / "by-hash/SHA256" / line.split()[0]


def _unlisted(site: Published) -> None:
    def change(record: dict[str, Any]) -> None:
        record["files"].append({"name": "more_1.0_all.deb", "size": 1, "sha256": "0" * 64})

    site.rewrite(change)


def _unrecorded(site: Published) -> None:
    def change(record: dict[str, Any]) -> None:
        record["files"] = [f for f in record["files"] if "greet-doc" not in f["name"]]

    site.rewrite(change)


def _database(site: Published) -> None:
    private = site.archive.reprepro.private
    argv: list[str | Path] = ["reprepro", "-b", private]
    argv += ["--outdir", site.archive.reprepro.root]
    argv += ["--keepunreferencedfiles", "--export=silent-never", "removesrc", POCKET, "greet"]
    run(argv)


def _job_ref(site: Published) -> None:
    job = site.record["job"]
    site.git("update-ref", f"refs/invirtibuilder/jobs/{job}/commit", site.repo.commit)


def _old_temporary(site: Published) -> None:
    path = site.place.site.origs / ".some.orig.tar.xz.tmp"
    path.touch()
    old = time.time() - 2 * 86400
    os.utime(path, (old, old))


def _other_source(site: Published) -> None:
    def differing(work: Work) -> Answer:
        made = export(work)
        for path in made.files:
            if path.suffix == ".dsc":
                path.write_text(path.read_text() + "X-Other: yes\n")
        return made

    site.worker.answers["export"] = differing


DAMAGE: dict[str, tuple[Callable[[Published], object], set[str]]] = {
    "another pin": (_pin, {"pin-differs"}),
    "a pin alone": (lambda s: _without(s, "records/greet.json"), {"pin-without-record"}),
    "a record alone": (lambda s: _without(s, "packages/greet"), {"record-without-pin"}),
    "another version": (lambda s: s.rewrite(lambda r: r.update(version="1.1")), {"record-differs"}),
    "no repository": (lambda s: shutil.rmtree(s.bare), {"repository-missing"}),
    "no commit": (_commit_missing, {"commit-missing"}),
    "another tree": (lambda s: s.rewrite(lambda r: r.update(tree="0" * 40)), {"tree-differs"}),
    "no kept ref": (
        lambda s: s.git("update-ref", "-d", "refs/invirtibuilder/staging/1.0") and None,
        {"kept-ref-missing"},
    ),
    "kept ref": (
        lambda s: _elsewhere(s, "refs/invirtibuilder/staging/1.0"),
        {"kept-ref-differs"},
    ),
    "no tag": (lambda s: s.git("tag", "-d", "debian/1.0") and None, {"tag-missing"}),
    "tag": (lambda s: _elsewhere(s, "refs/tags/debian/1.0"), {"tag-differs"}),
    "a tag of nothing": (_tag_of_nothing, {"tag-without-publication"}),
    "a ref of nothing": (
        lambda s: _elsewhere(s, "refs/invirtibuilder/staging/9.9"),
        {"ref-without-publication"},
    ),
    "no deb": (lambda s: _drop(s.pool("greet_*.deb")), {"file-missing"}),
    "another deb": (lambda s: _spoil(s.pool("greet_*.deb")), {"file-differs"}),
    "no tarball": (lambda s: _drop(s.pool("*.tar.xz")), {"file-missing"}),
    "another dsc": (_dsc, {"source-differs"}),
    "another buildinfo": (_buildinfo, {"buildinfo-differs"}),
    "a buildinfo of less": (_buildinfo_without_binary, {"buildinfo-differs"}),
    "no orig": (lambda s: _orig(s, None), {"orig-missing"}),
    "another orig": (lambda s: _orig(s, b"other"), {"orig-differs"}),
    "another source": (_other_source, {"dsc-differs"}),
    "no dists": (lambda s: _drop(s.publications.root / "dists"), {"current-missing"}),
    "old dists": (lambda s: s.publications.switch(1), {"current-differs"}),
    "a publication less": (_publication_less, {"publication-missing"}),
    "an extra publication": (_extra_publication, {"publication-without-commit"}),
    "another signature": (_by_other_key, {"signature-bad"}),
    "a spoilt signature": (lambda s: _spoil(s.dist() / "Release.gpg"), {"signature-bad"}),
    "another key": (
        lambda s: _spoil(s.publications.root / "key.asc"),
        {"signature-bad"},
    ),
    "another Release": (
        lambda s: (s.dist() / "Release").write_text("Codename: staging\n") and None,
        {"release-differs"},
    ),
    "a hash that is none": (
        lambda s: (
            (s.dist() / "Release").write_text(
                re.sub("^ [0-9a-f]", " `", (s.dist() / "Release").read_text(), count=1, flags=re.M)
            )
            and None
        ),
        {"release-differs"},
    ),
    "no index": (
        lambda s: _drop(s.dist() / "main/binary-amd64/Packages.gz"),
        {"index-missing"},
    ),
    "another index": (
        lambda s: _spoil_alone(s.dist() / "main/binary-amd64/Packages"),
        {"index-differs"},
    ),
    "not by hash": (lambda s: _drop(_stored(s)), {"by-hash-missing"}),
    "other by hash": (lambda s: _spoil_alone(_stored(s)), {"by-hash-differs"}),
    "not in the index": (_unlisted, {"not-listed"}),
    "not in a record": (_unrecorded, {"listed-without-record"}),
    "the database": (_database, {"database-differs"}),
    "an intent": (
        lambda s: (s.archive.reprepro.private / "intent.json").write_text("{}") and None,
        {"unfinished"},
    ),
    "no artifacts": (
        lambda s: shutil.rmtree(next(s.place.site.jobs.glob("*/artifacts"))),
        {"not-comparable"},
    ),
    "a stray file": (
        lambda s: (s.publications.root / "pool/main/g/greet/old_1_all.deb").touch(),
        {"pool-unreferenced"},
    ),
    "a job's ref": (_job_ref, {"leftover"}),
    "a temporary file": (_old_temporary, {"leftover"}),
}


def _spoil_alone(path: Path) -> None:
    """A copy, so that its other names keep their content."""
    beside = path.with_name("damage")
    shutil.copy(path, beside)
    beside.replace(path)
    _spoil(path)


def test_every_kind_is_tried() -> None:
    assert {kind for _, kinds in DAMAGE.values() for kind in kinds} == set(KINDS)


def test_a_clean_site_has_nothing(site: Published) -> None:
    done = site.place.cli("fsck")
    assert (done.code, done.text.split(":")[0]) == (0, "clean")
    value = site.place.json("fsck", POCKET, "--level", "c", "--full")
    assert (value["drift"], value["findings"], value["packages"]) == (False, [], 1)
    assert value["files_read"] > 10


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(site: Published, what: str) -> None:
    damage, kinds = DAMAGE[what]
    answers = dict(site.worker.answers)
    damage(site)
    try:
        found = site.kinds(level="c" if kinds == {"dsc-differs"} else "b")
    finally:
        site.worker.answers = answers
    assert kinds <= found, found


def test_exit_codes_and_data(site: Published) -> None:
    _job_ref(site)
    assert site.place.cli("fsck").code == Exit.OK
    site.git("tag", "-d", "debian/1.0")
    done = site.place.cli("fsck", "--json")
    assert done.code == Exit.DRIFT
    value = json.loads(done.out)
    assert value["drift"]
    drift = [f for f in value["findings"] if f["drift"]]
    assert [(f["kind"], f["pocket"], f["package"], f["what"]) for f in drift] == [
        ("tag-missing", POCKET, "greet", "refs/tags/debian/1.0")
    ]
    assert "drift: staging: greet: refs/tags/debian/1.0 is missing" in site.place.cli("fsck").text
    # Another pocket has none of it.
    assert site.place.cli("fsck", "prod").code == Exit.OK
    assert site.place.cli("fsck", "none").code == Exit.NO_INPUT


def test_what_is_known_is_not_read_again(site: Published) -> None:
    first = site.place.json("fsck", "--full")["files_read"]
    assert first > 10
    assert site.place.json("fsck")["files_read"] == 0
    path = site.pool("greet_*.deb")
    status = path.stat()
    _spoil(path)
    assert site.place.json("fsck", "prod")["files_read"] == 0
    assert site.kinds() == {"file-differs"}
    # What a disk does by itself has no new time: only --full sees it.
    path.write_bytes(path.read_bytes())
    assert site.kinds() == {"file-differs"}
    _spoil(path)
    assert site.kinds() == set()
    _spoil(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    site.kinds()
    _spoil(path)
    assert site.kinds() == set()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    site.kinds()
    _spoil(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert site.kinds() == set()
    assert site.kinds(full=True) == {"file-differs"}


def test_another_environment_is_no_drift(site: Published) -> None:
    answers = dict(site.worker.answers)
    _other_source(site)
    try:
        site.rewrite(lambda r: r["environment"]["export"].update(base="1" * 64))
        assert "not-comparable" in site.kinds(level="c")
        assert "dsc-differs" not in site.kinds(level="c")
    finally:
        site.worker.answers = answers
    # The same bytes are the same bytes.
    assert "not-comparable" not in site.kinds(level="c")
    assert not list(site.place.site.jobs.glob(".fsck*"))


def _of_another_tree(work: Work) -> Answer:
    made = export(work)
    return replace(made, report={**made.report, "tree": "0" * 40})


@pytest.mark.parametrize("answer", [_of_another_tree, failing("source-differs", "not this source")])
def test_a_source_that_is_refused_now_is_drift(site: Published, answer: Answerer) -> None:
    answers = dict(site.worker.answers)
    site.worker.answers["export"] = answer
    try:
        assert site.kinds(level="c") == {"dsc-differs"}
        site.rewrite(lambda r: r["environment"]["export"].update(base="1" * 64))
        assert "not-comparable" in (kinds := site.kinds(level="c"))
        assert "dsc-differs" not in kinds
        site.worker.answers["export"] = failing("broken", "no room", Blame.ROOM)
        assert "dsc-differs" not in site.kinds(level="c")
    finally:
        site.worker.answers = answers


REPAIRED = {
    *("no kept ref", "no tag", "no deb", "another deb", "no tarball", "not by hash"),
    *("other by hash", "no index", "another index", "no dists", "old dists"),
    *("a job's ref", "a temporary file", "the database"),
}


@pytest.mark.parametrize("what", sorted(REPAIRED))
def test_repair_puts_back_what_was(site: Published, what: str) -> None:
    before = site.git("for-each-ref")
    damage, kinds = DAMAGE[what]
    damage(site)
    report = site.check(mend=True)
    assert kinds <= {f.kind for f in report.findings if f.repaired}, report
    assert site.kinds(full=True) == set()
    assert site.git("for-each-ref") == before


@pytest.mark.parametrize("what", sorted(DAMAGE.keys() - REPAIRED))
def test_repair_leaves_alone_what_it_cannot_know(site: Published, what: str) -> None:
    damage, kinds = DAMAGE[what]
    if kinds <= {"dsc-differs", "unfinished"}:
        return
    damage(site)
    tip = site.place.context.superproject.tip(POCKET)
    report = site.check(mend=True)
    assert report.drift != (kinds <= NO_DRIFT), report
    assert kinds <= {f.kind for f in report.findings if not f.repaired}, report
    assert site.place.context.superproject.tip(POCKET) == tip


def test_repair_says_what_it_did(site: Published) -> None:
    site.git("tag", "-d", "debian/1.0")
    site.pool("greet_*.deb").unlink()
    (site.archive.reprepro.private / "intent.json").write_text(
        json.dumps({"publication": 9, "commit": "0" * 40, "jobs": []})
    )
    assert "[unfinished]" in site.place.cli("fsck").text
    done = site.place.cli("fsck", "--repair")
    assert done.code == Exit.OK
    assert done.text.count("repaired: ") == 3
    assert "repaired: staging: greet: refs/tags/debian/1.0 is missing [tag-missing]" in done.text
    assert site.place.cli("fsck").text.startswith("clean: ")


def test_it_sees_no_drift_beside_a_daemon_that_publishes(site: Published, tmp_path: Path) -> None:
    repos = [packages.native(tmp_path / name, name) for name in ("one", "two", "three")]
    for repo in repos:
        site.place.package(repo)
    with site.place.daemon():
        jobs = [site.place.cli("submit", POCKET, r.name, r.commit).text for r in repos]
        until(lambda: all((site.place.site.jobs / job).exists() for job in jobs))
        while any(not site.place.context.jobs.get(j).status.final for j in jobs):
            assert not {k for k in site.kinds() if k not in NO_DRIFT}
        states = [site.place.ended(job).status.state for job in jobs]
    assert states == [State.PUBLISHED] * 3
    assert not {k for k in site.kinds() if k not in NO_DRIFT}


def test_the_man_page_has_every_kind() -> None:
    page = (places.ROOT / "debian/man/invirtibuilder-fsck.1").read_text().replace("\\-", "-")
    listed = page[page.index("Kinds that are drift:") : page.index(".SH OPTIONS")]
    named = set(re.findall(r"^\.BR ([a-z-]+) [,.]$", listed, re.MULTILINE))
    assert set(KINDS) == named


def test_a_mail_comes_when_there_is_drift_only(site: Published, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sendmail = tmp_path / "sendmail"
    sendmail.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >{sent}\ncat >>{sent}\n')
    sendmail.chmod(0o755)
    program = f"{sys.executable} -m invirtibuilder --config {site.place.config}"

    def nightly() -> int:
        return run(
            [places.ROOT / "conf/fsck/nightly", "root@example.org", POCKET],
            env={"SENDMAIL": str(sendmail), "INVIRTIBUILDER": program},
            cwd=places.ROOT,
            check=False,
        ).code

    assert nightly() == 0
    assert not sent.exists()
    site.git("tag", "-d", "debian/1.0")
    sendmail.rename(tmp_path / "gone")
    assert nightly() == 71
    (tmp_path / "gone").rename(sendmail)
    assert nightly() == Exit.DRIFT
    lines = sent.read_text().splitlines()
    assert lines[:2] == ["-t -oi", "To: root@example.org"]
    assert lines[2].endswith("git and the archive differ")
    assert any("[tag-missing]" in line for line in lines)
    site.place.edit("pockets:", "pocket:")
    try:
        assert nightly() == Exit.CONFIG
    finally:
        site.place.edit("pocket:", "pockets:")
    assert "cannot be checked" in sent.read_text()
    # As the units do it: the check and the mail are different accounts' processes.
    found = tmp_path / "found"
    found.write_text("[tag-missing] debian/1.0\n")
    sent.unlink()
    program = str(places.ROOT / "conf/fsck/nightly")
    run(
        [program, "--found", found, "admin@example.org"],
        env={"SENDMAIL": str(sendmail), "MONITOR_EXIT_STATUS": "6"},
    )
    lines = sent.read_text().splitlines()
    assert lines[1] == "To: admin@example.org"
    assert lines[2].endswith("git and the archive differ")
    assert lines[-1] == "[tag-missing] debian/1.0"
