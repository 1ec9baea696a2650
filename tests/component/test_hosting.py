"""Pushes to a repository of the site's, with the real git, over a path and over ssh."""

from __future__ import annotations

import re
import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from invirtibuilder.gitrepo import Repository
from invirtibuilder.run import Done, run
from invirtibuilder.superproject import Superproject
from tests.support import sshd
from tests.support.gitwork import ENVIRONMENT, ROOT, Work, hook, write_pockets

DATE = datetime(2026, 1, 2, tzinfo=UTC)
POCKETS = {
    "dev": {"branch": "dev", "allow_backtracking": True, "tag_format": "debian/{version}"},
    "prod": {"branch": "production", "allow_backtracking": False, "tag_format": "site/{version}"},
    "staging": {"branch": "staging", "allow_backtracking": False, "tag_format": "debian/{version}"},
}


@dataclass(frozen=True)
class Site:
    """A site with one package, and a pusher's working tree."""

    path: Path
    repository: Repository
    superproject: Superproject
    work: Work

    def pin(self, branch: str, commit: str) -> None:
        """Pin the commit, as publish does."""
        tip = self.superproject.tip(branch)
        with self.superproject.chain(tip) as chain:
            new = chain.add(
                package="hello",
                commit=commit,
                record={},
                subject="x",
                trailers={"Job": "x"},
                author=("Ada", "ada@example.org"),
                date=DATE,
            )
        self.superproject.move(branch, new, tip)

    def tag(self, name: str, commit: str) -> str:
        """Make a version tag, as publish does."""
        tag = self.repository.tag_object(name, commit, "x", "Archive", "a@example.org", DATE)
        self.repository.set_ref(f"refs/tags/{name}", tag, None)
        return tag

    def taken(self, *args: str) -> None:
        done = self.work.push(*args)
        assert done.code == 0, done.err.decode()

    def refused(self, *args: str) -> str:
        """What the pusher was told; no ref has moved."""
        before = self.repository.refs("refs/")
        done = self.work.push(*args)
        assert done.code != 0
        assert self.repository.refs("refs/") == before
        return told(done)


def told(done: Done) -> str:
    lines = done.err.decode().split("\n")
    return "\n".join(line.removeprefix("remote: ").rstrip() for line in lines)


def commands(text: str) -> list[str]:
    """The push commands that a refusal names."""
    found = re.findall(r"git push [^;\n]*", text)
    assert found, text
    return found


@pytest.fixture(params=["path", "ssh"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    path = tmp_path / "site"
    write_pockets(tmp_path / "pockets.json", POCKETS)
    program = hook(path / "superproject.git", tmp_path / "pockets.json", "hello")
    repository = Repository.create(path / "packages/hello.git", hook=program, max_size=1 << 20)
    refuse = [sys.executable, "-m", "invirtibuilder.door.receive", "--superproject-itself"]
    script = f"#!/bin/sh\nexec {shlex.join(refuse)}\n"
    superproject = Superproject.create(path / "superproject.git", hook=script)
    if request.param == "path":
        work = Work.init(tmp_path / "work", repository.path)
        yield Site(path, repository, superproject, work)
        return
    env = {
        "PYTHONPATH": str(ROOT),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    shell = 'exec git-shell -c "$SSH_ORIGINAL_COMMAND"'
    with sshd.running(tmp_path / "sshd", shell, env) as door:
        client = {"GIT_SSH_COMMAND": door.ssh}
        work = Work.init(tmp_path / "work", door.url(repository.path), client)
        yield Site(path, repository, superproject, work)


@pytest.fixture
def local(tmp_path: Path) -> Site:
    """The same over a path alone, for what does not depend on the way."""
    path = tmp_path / "site"
    write_pockets(tmp_path / "pockets.json", POCKETS)
    program = hook(path / "superproject.git", tmp_path / "pockets.json", "hello")
    repository = Repository.create(path / "packages/hello.git", hook=program, max_size=1 << 20)
    superproject = Superproject.create(path / "superproject.git")
    return Site(path, repository, superproject, Work.init(tmp_path / "work", repository.path))


def test_heads(site: Site) -> None:
    """Only forward where a pocket pins a commit of the branch; the hints' commands work."""
    work = site.work
    first = work.commit("one")
    pinned = work.commit("two")
    later = work.commit("three")
    site.taken("main", "main:refs/heads/free")
    site.pin("dev", later)
    site.pin("staging", pinned)

    work.git("reset", "--quiet", "--hard", pinned)
    ahead = work.commit("instead of three")
    site.taken("+main")

    work.git("reset", "--quiet", "--hard", first)
    rewritten = work.commit("instead of two")
    text = site.refused("+main")
    assert "refs/heads/main: would take what is published in staging" in text
    assert pinned[:12] in text
    merge, branch = commands(text)
    assert merge == "git push origin HEAD:main"
    work.git("merge", "--quiet", "-s", "ours", "--no-edit", ahead)
    work.git(*shlex.split(merge)[1:])
    work.git(*shlex.split(branch)[1:])
    assert site.repository.ref("refs/heads/main-next") == rewritten
    assert site.repository.is_ancestor(pinned, site.repository.resolve("main"))

    text = site.refused(":main")
    assert "the branch stays: what is published in staging" in text
    work.commit("another")
    work.git(*shlex.split(commands(text)[0])[1:])
    assert "published in staging" in site.refused(":free")
    site.taken(":main-next")
    site.taken(f"{first}:refs/heads/old")
    site.taken(f"+{rewritten}:refs/heads/old")
    site.taken(":old")


def test_version_tags(site: Site) -> None:
    """Only the daemon makes them; the hints' commands work."""
    work = site.work
    commit = work.commit("one")
    site.taken("main")
    work.git("tag", "debian/1.0-1")
    work.git("tag", "site/1%2.0_rc1")
    work.git("tag", "upstream/1.0")
    work.commit("two")
    text = site.refused("main", "--tags")
    assert "refs/tags/debian/1.0-1: version tags are made when a pocket publishes" in text
    assert "refs/tags/site/1%2.0_rc1: version tags" in text
    assert "refs/tags/upstream/1.0:" not in text
    rest = commands(text)[-1]
    work.git(*shlex.split(rest)[1:])
    assert site.repository.refs("refs/") == {
        "refs/heads/main": work.head,
        "refs/tags/upstream/1.0": commit,
    }
    text = site.refused("refs/tags/debian/1.0-1")
    work.commit("three")
    work.git(*shlex.split(commands(text)[0])[1:])
    assert site.repository.ref("refs/heads/main") == work.head

    site.tag("debian/1.0-1", commit)
    assert "version tags" in site.refused(":refs/tags/debian/1.0-1")
    work.git("tag", "-a", "-f", "-m", "elsewhere", "debian/1.0-1")
    assert "version tags" in site.refused("+refs/tags/debian/1.0-1")
    # gbp import-dsc makes the tag itself: the same commit is fine.
    work.git("tag", "-a", "-f", "-m", "gbp", "debian/1.0-1", commit)
    site.taken("main", "+refs/tags/debian/1.0-1")
    assert site.repository.peeled("refs/tags/debian/1.0-1") == commit
    work.commit("four")
    site.taken("main", "refs/tags/debian/1.0-1")


def test_pristine_tar(site: Site) -> None:
    work = site.work
    first = work.commit("one")
    work.commit("two")
    site.taken("main:pristine-tar")
    work.git("checkout", "--quiet", "-b", "other", first)
    work.commit("instead of two")
    text = site.refused("+other:pristine-tar")
    assert "pristine-tar only goes forward" in text
    work.git("merge", "--quiet", "-s", "ours", "--no-edit", "main")
    work.git(*shlex.split(commands(text)[0])[1:])
    assert site.repository.ref("refs/heads/pristine-tar") == work.head
    assert "pristine-tar stays" in site.refused(":pristine-tar")


def test_other_tags(site: Site) -> None:
    work = site.work
    work.commit("one")
    work.git("tag", "-a", "-m", "x", "upstream/1.0")
    site.taken("main", "upstream/1.0")
    again = work.commit("two")
    work.git("tag", "-f", "upstream/1.0")
    text = site.refused("+refs/tags/upstream/1.0")
    assert "tags are never moved" in text
    work.git(*shlex.split(commands(text)[0])[1:])
    assert site.repository.ref("refs/tags/upstream/1.0+ds") == again
    text = site.refused(":refs/tags/upstream/1.0")
    assert "tags are never deleted" in text
    work.git(*shlex.split(commands(text)[0])[1:])
    assert site.repository.ref("refs/heads/main") == again


def test_other_refs(site: Site) -> None:
    work = site.work
    work.commit("one")
    work.git("notes", "add", "-m", "fine")
    site.taken("main", "refs/notes/*:refs/notes/*")
    site.repository.keep("refs/invirtibuilder/dev/1", work.head)
    for ref in ("refs/invirtibuilder/dev/2", "refs/replace/" + work.head, "refs/x/y"):
        text = site.refused(f"main:{ref}")
        assert f"{ref}: only branches, tags and notes" in text
    command = commands(text)[0].replace("NAME", "topic")
    work.git(*shlex.split(command)[1:])
    assert site.repository.ref("refs/heads/topic") == work.head
    assert "only branches" in site.refused(":refs/invirtibuilder/dev/1")


def test_all_refusals_at_once(local: Site) -> None:
    work = local.work
    first = work.commit("one")
    work.commit("two")
    work.git("tag", "upstream/1.0")
    local.taken("main", "main:pristine-tar", "refs/tags/upstream/1.0")
    local.pin("staging", work.head)
    local.pin("production", work.head)
    work.git("tag", "debian/9")
    text = local.refused(
        f"+{first}:refs/heads/main",
        f"+{first}:refs/heads/pristine-tar",
        f"+{first}:refs/tags/upstream/1.0",
        "refs/tags/debian/9",
        "main:refs/invirtibuilder/x",
        f"{first}:refs/heads/fine",
    )
    assert text.count("\n* ") == 5
    assert "published in prod" in text and " and staging (" in text
    work.git(*shlex.split(commands(text)[-1])[1:])
    assert local.repository.ref("refs/heads/fine") == first


def test_nothing_stands_in_the_way_of_version_tags(local: Site) -> None:
    """refs/tags/debian would keep git from ever making refs/tags/debian/1.0."""
    work = local.work
    work.commit("one")
    for name in ("debian", "debian/1.0/x", "site/2/3"):
        text = local.refused(f"main:refs/tags/{name}")
        assert "stands in the way" in text
        work.git(*shlex.split(commands(text)[0])[1:])
    local.taken("main:refs/tags/debian/unstable", "main:refs/tags/debians")


def test_ref_names_are_printed_safely(local: Site) -> None:
    work = local.work
    work.commit("one")
    text = local.refused("main:refs/invirtibuilder/a\u202eb$(id)'\u009b")
    assert "refs/invirtibuilder/a\\u202eb$(id)'" in text
    assert "\u202e" not in text.split("error:")[0].split("To ")[0]
    oid = work.head
    packet = f"{'0' * 40} {oid} ".encode() + b"refs/heads/\xff\xfe"
    assert b"not UTF-8" in raw_push(local, packet, work.git("pack-objects", "--stdout").out)
    assert local.repository.refs("refs/") == {}


def raw_push(site: Site, command: bytes, pack: bytes = b"") -> bytes:
    """What git-receive-pack answers to a client that says what it likes."""
    line = command + b"\0 report-status delete-refs"
    data = b"%04x" % (len(line) + 4) + line + b"0000" + pack
    argv = ["git", "receive-pack", str(site.repository.path)]
    done = run(argv, stdin=data, env=ENVIRONMENT, check=False)
    return done.out + done.err


def test_a_client_that_lies_about_the_old_value(local: Site) -> None:
    """Of a deletion git compares the old value only when that is an object it has."""
    work = local.work
    free = work.commit("zero")
    commit = work.commit("one")
    work.git("tag", "upstream/1.0")
    local.taken("main", "main:pristine-tar", "upstream/1.0")
    local.tag("debian/1", commit)
    local.pin("staging", commit)
    before = local.repository.refs("refs/")
    for old in ("0" * 40, "1" * 40):
        for ref in (*before, "refs/heads/absent"):
            raw_push(local, f"{old} {'0' * 40} {ref}".encode())
            assert local.repository.refs("refs/") == before, (old, ref)
    # The same client, telling the truth, may delete what nobody protects.
    local.taken(f"{free}:refs/heads/topic")
    answer = raw_push(local, f"{free} {'0' * 40} refs/heads/topic".encode())
    assert local.repository.refs("refs/") == before, answer


def test_superproject_takes_no_push(site: Site) -> None:
    site.pin("staging", "1" * 40)
    tip = site.superproject.tip("staging")
    work = site.work
    work.commit("one")
    url = work.git("remote", "get-url", "origin").text
    work.git("remote", "set-url", "origin", url.replace("packages/hello.git", "superproject.git"))
    for spec in ("main", "+main:staging", ":staging", "main:refs/tags/x"):
        done = work.push(spec)
        assert done.code != 0
        assert "invirtibuilder submit POCKET PACKAGE COMMIT" in told(done)
    refs = run(["git", "for-each-ref"], cwd=site.superproject.path).text
    assert refs == f"{tip} commit\trefs/heads/staging"


def test_superproject_refuses_without_a_hook_of_the_site(local: Site) -> None:
    local.work.commit("one")
    local.work.git("remote", "set-url", "origin", str(local.superproject.path))
    done = local.work.push("main")
    assert done.code != 0 and "invirtibuilder submit" in told(done)


def malformed(work: Work, kind: str) -> str:
    """A commit of an object that git fsck does not like."""
    blob = bytes.fromhex(work.object("blob", b"x"))
    modules = b'[submodule "a"]\n\tpath = %s\n\turl = %s\n'
    trees = {
        "zero-padded": b"0100644 a\0" + blob,
        "dot-git": b"100644 .git\0" + blob,
        "dot-git-in-capitals": b"40000 .GIT\0" + bytes.fromhex(work.object("tree", b"")),
        "dotdot": b"40000 ..\0" + bytes.fromhex(work.object("tree", b"")),
        "slash": b"100644 a/b\0" + blob,
        "twice": (b"100644 a\0" + blob) * 2,
        "unsorted": b"100644 b\0" + blob + b"100644 a\0" + blob,
        "null": b"100644 a\0" + bytes(20),
        "modules-link": b"120000 .gitmodules\0" + blob,
        "modules-url": _modules(work, modules % (b"a", b"-u./payload")),
        "modules-path": _modules(work, modules % (b"-a", b"x")),
        "modules-name": _modules(work, (modules % (b"a", b"x")).replace(b'"a"', b'"../../x"')),
        "modules-newline": _modules(work, modules % (b"a", b'"https://a\\n.example/"')),
    }
    if kind == "commit":
        tree = work.object("tree", b"100644 a\0" + blob)
        return work.object("commit", f"tree {tree}\nauthor x\ncommitter x\n\nx\n".encode())
    tree = work.object("tree", trees[kind])
    who = "Ada <ada@example.org> 1 +0000"
    return work.object("commit", f"tree {tree}\nauthor {who}\ncommitter {who}\n\nx\n".encode())


def _modules(work: Work, content: bytes) -> bytes:
    return b"100644 .gitmodules\0" + bytes.fromhex(work.object("blob", content))


@pytest.mark.parametrize(
    "kind",
    [
        *("commit", "zero-padded", "dot-git", "dot-git-in-capitals", "dotdot", "slash", "twice"),
        *("unsorted", "null", "modules-link", "modules-url", "modules-path", "modules-name"),
        "modules-newline",
    ],
)
def test_malformed_objects_are_refused(local: Site, kind: str) -> None:
    commit = malformed(local.work, kind)
    done = local.work.git(*("push", "--quiet", "origin", f"{commit}:refs/heads/main"), check=False)
    assert done.code != 0
    assert "fsck error" in told(done) or "error in" in told(done) or "unpack" in told(done)
    assert local.repository.refs("refs/") == {}
    known = run(["git", "cat-file", "-e", commit], cwd=local.repository.path, check=False)
    assert known.code != 0


def test_a_corrupt_pack_is_refused(local: Site) -> None:
    commit = local.work.commit("one")
    pack = bytearray(local.work.git("pack-objects", "--stdout", "--all").out)
    pack[20] ^= 0xFF
    answer = raw_push(local, f"{'0' * 40} {commit} refs/heads/main".encode(), bytes(pack))
    assert b"unpack ok" not in answer
    assert local.repository.refs("refs/") == {}


def test_missing_objects_are_refused(local: Site) -> None:
    work = local.work
    tree = work.object("tree", b"100644 a\0" + bytes.fromhex("1" * 40))
    who = "Ada <ada@example.org> 1 +0000"
    commit = work.object("commit", f"tree {tree}\nauthor {who}\ncommitter {who}\n\nx\n".encode())
    pack = work.git("pack-objects", "--stdout", stdin=f"{commit}\n{tree}\n".encode()).out
    answer = raw_push(local, f"{'0' * 40} {commit} refs/heads/main".encode(), pack)
    assert b"unpack ok" not in answer or b"missing necessary objects" in answer
    assert local.repository.refs("refs/") == {}


def test_size_is_bounded(site: Site) -> None:
    work = site.work
    noise = run(["head", "-c", str(3 << 20), "/dev/urandom"]).out
    (work.path / "big").write_bytes(noise)
    work.git("add", "big")
    work.commit("big")
    text = site.refused("main")
    assert "exceeds maximum allowed size" in text
    objects = sum(f.stat().st_size for f in (site.repository.path / "objects").rglob("*"))
    assert objects < 1 << 20


def test_two_pushes_at_once(site: Site) -> None:
    """Of two that start from the same commit one wins; both branches of two get through."""
    work = site.work
    base = work.commit("one")
    site.taken("main")
    site.pin("staging", base)
    heads = []
    for number in range(4):
        work.git("reset", "--quiet", "--hard", base)
        heads.append(work.commit(f"number {number}"))
    results: dict[str, int] = {}

    def push(head: str) -> None:
        done = work.push(f"{head}:refs/heads/main", f"{head}:refs/heads/b-{head[:4]}", "--atomic")
        results[head] = done.code

    threads = [threading.Thread(target=push, args=(head,)) for head in heads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    winners = [head for head, code in results.items() if code == 0]
    assert len(results) == 4 and len(winners) == 1
    assert site.repository.refs("refs/heads/") == {
        "refs/heads/main": winners[0],
        f"refs/heads/b-{winners[0][:4]}": winners[0],
    }
    threads = [
        threading.Thread(target=work.push, args=(f"{head}:refs/heads/c{number}",))
        for number, head in enumerate(heads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    made = site.repository.refs("refs/heads/")
    assert [made.get(f"refs/heads/c{number}") for number in range(4)] == heads
    run(["git", "fsck", "--strict"], cwd=site.repository.path)


def test_a_hook_that_cannot_check_refuses(local: Site) -> None:
    local.work.commit("one")
    local.taken("main")
    for content in ("{", '{"pockets": {"staging": {}}}', "[]"):
        (local.path.parent / "pockets.json").write_text(content)
        local.work.commit("more")
        assert "could not be checked" in local.refused("main", "HEAD:refs/tags/v1")
    (local.path.parent / "pockets.json").unlink()
    assert "could not be checked" in local.refused("main")


def test_the_pushers_configuration_does_not_replace_the_hook(local: Site) -> None:
    """core.hooksPath of whoever runs git over a path."""
    config = local.path.parent / "gitconfig"
    config.write_text("[core]\n\thooksPath = /nonexistent\n")
    work = Work(local.work.path, {"GIT_CONFIG_GLOBAL": str(config)})
    work.commit("one")
    done = work.push("main:refs/tags/debian/1")
    assert done.code != 0 and "version tags" in told(done)
    assert local.repository.refs("refs/") == {}


def test_clone_over_ssh_has_every_pin(tmp_path: Path) -> None:
    """git clone --recurse-submodules over ssh, a pin that only a kept ref holds included."""
    repository = Repository.create(tmp_path / "packages/hello.git", hook=None, max_size=1 << 20)
    superproject = Superproject.create(tmp_path / "superproject.git")
    work = Work.init(tmp_path / "work", repository.path)
    work.commit("one")
    pinned = work.commit("published")
    assert work.push("main").code == 0
    repository.keep("refs/invirtibuilder/dev/1", pinned)
    work.git("reset", "--quiet", "--hard", "HEAD^")
    assert work.push("+main").code == 0
    Site(tmp_path, repository, superproject, work).pin("dev", pinned)
    shell = 'exec git-shell -c "$SSH_ORIGINAL_COMMAND"'
    env = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    with sshd.running(tmp_path / "sshd", shell, env) as door:
        over = Work(work.path, {"GIT_SSH_COMMAND": door.ssh})
        url = door.url(superproject.path)
        over.git("clone", "--quiet", "--recurse-submodules", "-b", "dev", url, tmp_path / "clone")
        assert Work(tmp_path / "clone/packages/hello").head == pinned
        other = run([*shlex.split(door.ssh), "-p", str(door.port), f"{door.user}@127.0.0.1", "id"],
                    check=False)  # fmt: skip
        assert other.code != 0 and b"uid=" not in other.out
