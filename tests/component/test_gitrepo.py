"""A package's repository against the real git."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from invirtibuilder import gitobjects, gitshared
from invirtibuilder.errors import Fault, Malformed, NotFound
from invirtibuilder.gitrepo import Repository
from invirtibuilder.run import run
from tests.support.gitwork import Work
from tests.support.place import ROOT

DATE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "hello.git", hook=None, max_size=1 << 20)


@pytest.fixture
def work(tmp_path: Path, repository: Repository) -> Work:
    work = Work.init(tmp_path / "work", repository.path)
    work.commit("one")
    assert work.push("main").code == 0
    return work


def test_create_again_restores_what_is_ours(repository: Repository, work: Work) -> None:
    config = (repository.path / "config").read_text()
    (repository.path / "config").write_text("[core]\n\tbare = true\n\tfsmonitor = touch /x\n")
    (repository.path / "objects/info/alternates").write_text("/elsewhere\n")
    hook = ["/bin/echo", "it's $HOME; `id`"]
    again = Repository.create(repository.path, hook=hook, max_size=1 << 20)
    assert (repository.path / "config").read_text() == config
    assert not (repository.path / "objects/info/alternates").exists()
    assert again.ref("refs/heads/main") == work.head
    told = run([repository.path / "hooks/pre-receive"]).text
    assert told == "it's $HOME; `id`"
    assert not list((repository.path / "hooks").glob("*.sample"))


def test_head_names_the_branch(tmp_path: Path) -> None:
    Repository.create(tmp_path / "x.git", hook=None, max_size=1, head="debian/latest")
    assert (tmp_path / "x.git/HEAD").read_text() == "ref: refs/heads/debian/latest\n"
    with pytest.raises(Malformed):
        Repository.create(tmp_path / "y.git", hook=None, max_size=1, head="../x")


def test_a_repository_that_is_shared_later(repository: Repository, work: Work) -> None:
    """Its refs stay, those that git has packed as well, and so does what a clone checks out."""
    assert work.push("main:refs/heads/deep/er", "main:refs/tags/upstream/1").code == 0
    run(["git", f"--git-dir={repository.path}", "pack-refs", "--all"])
    before = repository.refs("refs/")
    for _ in range(2):
        Repository.create(repository.path, hook=None, max_size=1 << 20, shared=True)
        gitshared.share(repository.path, os.getgid(), ["debian"])
        assert repository.refs("refs/") == {**before, gitshared.HEAD: work.head}
    assert "ref: refs/heads/main\tHEAD" in work.git("ls-remote", "--symref", "origin").text
    work.commit("two")
    assert work.push("main", ":deep/er").code == 0
    assert repository.refs("refs/heads/") == {"refs/heads/main": work.head}
    # What is taken over says anew which branch that is.
    work.git("checkout", "--quiet", "-b", "other")
    repository.import_from(work.path)
    assert "ref: refs/heads/other\tHEAD" in work.git("ls-remote", "--symref", "origin").text
    assert (repository.path / "HEAD").read_text() == f"ref: {gitshared.HEAD}\n"


SWAPPED = """
import itertools, os, sys
from pathlib import Path
from invirtibuilder import gitshared
repository, left = Path(sys.argv[1]), -1
folder, victim = repository / "refs/heads/deep", repository / "hooks"
modes = {path: path.stat().st_mode for path in (victim, victim / "er")}

def hook(event, _args):
    global left
    if event in ("open", "os.scandir", "os.listdir", "os.chown", "os.chmod"):
        left -= 1
        if left == 0:
            folder.rename(repository / "away")
            folder.symlink_to(victim)

sys.addaudithook(hook)
for turn in itertools.count(1):
    left = turn
    gitshared.share(repository, os.getgid())
    found, left = left, -1
    assert modes == {path: path.stat().st_mode for path in modes}, turn
    if found > 0:
        break
    folder.unlink()
    (repository / "away").rename(folder)
print(turn)
"""
"""At each moment at which it opens or changes something, in turn, a link takes a folder's place."""


def test_sharing_gives_away_what_is_there_and_not_what_a_link_names(
    repository: Repository, work: Work
) -> None:
    assert work.push("main:refs/heads/deep/er/x").code == 0
    (repository.path / "hooks/er").mkdir()
    assert int(run([sys.executable, "-c", SWAPPED, repository.path], cwd=ROOT).text) > 10
    for name in ("deep", "deep/er"):
        assert (repository.path / "refs/heads" / name).stat().st_mode & 0o7777 == gitshared.OPEN


def test_folders_without_an_end_are_in_nobodys_way(repository: Repository) -> None:
    """A pusher's account can make them deeper than Python walks."""
    heads = repository.path / "refs/heads"
    try:
        run(["mkdir", "-p", heads / "/".join("d" * 1500)])
        gitshared.share(repository.path, os.getgid())
    finally:
        run(["rm", "-r", heads / "d"])


def test_resolve(repository: Repository, work: Work) -> None:
    commit = work.head
    work.git("tag", "light")
    work.git("tag", "-a", "-m", "annotated", "debian/1%2.0_rc1-1")
    work.git("tag", "-a", "-m", "nested", "nested", "debian/1%2.0_rc1-1")
    work.git("branch", "debian/latest")
    assert work.push("--all").code == work.push("--tags").code == 0
    tag = repository.ref("refs/tags/nested")
    assert tag and tag != commit
    names = [commit, commit.upper(), commit[:10], commit[:4], "light", "debian/1%2.0_rc1-1"]
    names += [
        "nested",
        "main",
        "debian/latest",
        "refs/heads/main",
        "refs/tags/light",
        tag,
        tag[:12],
    ]
    assert {name: repository.resolve(name) for name in names} == dict.fromkeys(names, commit)


@pytest.mark.parametrize(
    "name",
    [
        "absent",
        "0" * 40,
        "abcd1234",
        "HEAD",
        "main~1",
        "main@1",
        "refs/heads/x",
        "refs/x",
        "a.lock",
    ],
)
def test_resolve_unknown(repository: Repository, work: Work, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        repository.resolve(name)
    assert caught.value.code == "commit-unknown"
    assert "push it first" in caught.value.hint


@pytest.mark.parametrize("name", ["--output=x", "main..main", "main^", "a b", "", ":/one", "@{-1}"])
def test_resolve_malformed(repository: Repository, work: Work, name: str) -> None:
    with pytest.raises(Malformed):
        repository.resolve(name)


def test_resolve_other_objects(repository: Repository, work: Work) -> None:
    for name, of in (("tree", "HEAD^{tree}"), ("blob", "HEAD:file")):
        work.git("tag", name, of)
        assert work.push(f"refs/tags/{name}").code == 0
        for committish in (
            name,
            work.git("rev-parse", of).text,
            work.git("rev-parse", of).text[:9],
        ):
            with pytest.raises(NotFound, match=f"no commit but a {name}") as caught:
                repository.resolve(committish)
            assert caught.value.code == "commit-not-a-commit"


def test_resolve_ambiguous(repository: Repository, work: Work) -> None:
    first = work.head
    second = work.commit("two")
    work.git("tag", "twice", first)
    work.git("branch", "twice", second)
    work.git("branch", first[:8], second)
    assert work.push("main", "refs/tags/twice", "refs/heads/twice", first[:8]).code == 0
    for name in ("twice", first[:8]):
        with pytest.raises(NotFound) as caught:
            repository.resolve(name)
        assert caught.value.code == "commit-ambiguous"
        assert first[:12] in str(caught.value) and second[:12] in str(caught.value)
    assert repository.resolve("refs/tags/twice") == first
    assert repository.resolve("refs/heads/twice") == second
    assert repository.resolve(first) == first


def test_resolve_ambiguous_short_ids(repository: Repository, work: Work) -> None:
    tree = work.git("rev-parse", "HEAD^{tree}").text
    seen: dict[str, str] = {}
    for number in range(3000):
        commit = _commit_id(tree, number)
        if other := seen.get(commit[:4]):
            pair = (other, str(number))
            break
        seen[commit[:4]] = str(number)
    made = [work.git("commit-tree", "-m", n, tree).text for n in pair]
    assert made[0][:4] == made[1][:4]
    assert work.push(*(f"{c}:refs/heads/b{i}" for i, c in enumerate(made))).code == 0
    with pytest.raises(NotFound) as caught:
        repository.resolve(made[0][:4])
    assert caught.value.code == "commit-ambiguous"
    assert all(c[:12] in str(caught.value) for c in made)
    assert repository.resolve(made[0][:12]) == made[0]


def _commit_id(tree: str, number: int) -> str:
    import hashlib

    who = "Ada Test <ada@example.org> 1750000000 +0000"
    body = f"tree {tree}\nauthor {who}\ncommitter {who}\n\n{number}\n".encode()
    return hashlib.sha1(b"commit %d\0" % len(body) + body).hexdigest()


def test_reachable_and_kept(repository: Repository, work: Work) -> None:
    first = work.head
    second = work.commit("two")
    assert not repository.reachable(second)
    assert work.push("main").code == 0
    assert repository.reachable(first) and repository.reachable(second)
    assert repository.is_ancestor(first, second) and not repository.is_ancestor(second, first)
    kept = "refs/invirtibuilder/dev/1.0_1"
    repository.keep(kept, second)
    repository.keep(kept, second)
    with pytest.raises(Fault) as caught:
        repository.keep(kept, first)
    assert caught.value.code == "ref-moved"
    work.git("reset", "--hard", first)
    assert work.push("--force", "main").code == 0
    assert repository.reachable(second)
    run(["git", "gc", "--quiet", "--prune=now"], cwd=repository.path)
    assert repository.resolve(second) == second
    repository.unkeep(kept)
    repository.unkeep(kept)
    assert not repository.reachable(second)
    with pytest.raises(Malformed):
        repository.keep("refs/heads/main", first)


def test_hold_is_exact(repository: Repository, work: Work) -> None:
    first, second = work.head, work.commit("two")
    assert work.push("main").code == 0
    below = "refs/invirtibuilder/jobs/1"
    repository.keep(f"{below}0/commit", first)
    repository.hold(below, {"commit": first, "upstream-tag": first})
    repository.hold(below, {"commit": second, "pristine-tar": first})
    kept = {f"{below}/commit": second, f"{below}/pristine-tar": first}
    assert repository.refs(f"{below}/") == kept
    repository.hold(below, {"commit": second, "pristine-tar": first})
    repository.hold(below, {})
    repository.hold(below, {})
    assert repository.refs("refs/invirtibuilder/") == {f"{below}0/commit": first}
    with pytest.raises(Malformed):
        repository.hold("refs/heads", {"main": first})


def test_refs(repository: Repository, work: Work) -> None:
    work.git("tag", "-a", "-m", "x", "v1")
    odd = "refs/heads/a\u2028b"
    assert work.push("v1", f"main:{odd}", "main:refs/heads/main/../x").code != 0
    assert work.push("v1", f"main:{odd}").code == 0
    run(["git", "pack-refs", "--all"], cwd=repository.path)
    assert repository.refs("refs/heads/") == {"refs/heads/main": work.head, odd: work.head}
    assert repository.peeled("refs/tags/v1") == work.head != repository.ref("refs/tags/v1")
    assert repository.ref("refs/tags/v") is None
    assert repository.peeled("refs/tags/v") is None
    for name in ("refs/heads/", "HEAD", "refs/heads/*", "refs/../config"):
        with pytest.raises(Malformed):
            repository.ref(name)


def test_set_ref_compares(repository: Repository, work: Work) -> None:
    first, second = work.head, work.commit("two")
    assert work.push("HEAD:refs/heads/b").code == 0
    name = "refs/tags/debian/1.0"
    repository.set_ref(name, first, None)
    repository.set_ref(name, first, None)
    with pytest.raises(Fault) as caught:
        repository.set_ref(name, second, None)
    assert caught.value.code == "ref-moved"
    repository.set_ref(name, second, first)
    with pytest.raises(Fault):
        repository.set_ref(name, None, first)
    repository.set_ref(name, None, second)
    assert repository.ref(name) is None
    with pytest.raises(Fault):
        repository.set_ref(name, "1" * 40, None)


def test_refs_are_set_together_or_as_far_as_is_left(repository: Repository, work: Work) -> None:
    first, second = work.head, work.commit("two")
    assert work.push("main").code == 0
    one, two, three = (f"refs/tags/debian/{n}" for n in "123")
    repository.set_ref(one, first, None)
    # The one is there already: what a crash has left.
    repository.set_refs({one: (None, first), two: (None, second)})
    assert repository.refs("refs/tags/") == {one: first, two: second}
    with pytest.raises(Fault) as caught:
        repository.set_refs({one: (None, second), three: (None, first)})
    assert caught.value.code == "ref-moved"
    assert repository.refs("refs/tags/") == {one: first, two: second}
    repository.set_refs({one: (first, None), two: (second, first)})
    assert repository.refs("refs/tags/") == {two: first}


def test_blob_and_tree(repository: Repository, work: Work) -> None:
    (work.path / "debian").mkdir()
    (work.path / "debian/changelog").write_bytes(b"$Format:%H$\r\n\0")
    (work.path / ".gitattributes").write_text("* text eol=lf export-subst\n")
    (work.path / "link").symlink_to("/etc/passwd")
    work.git("add", ".")
    commit = work.commit("files", big="x" * 1000)
    assert work.push("main").code == 0
    stored = work.git("cat-file", "blob", "HEAD:debian/changelog").out
    assert repository.blob(commit, "debian/changelog", 100) == stored
    assert repository.blob(commit, "debian/absent", 100) is None
    assert repository.blob(commit, "deb*/changelog", 100) is None
    assert repository.blob(commit, ":(glob)**", 100) is None
    assert repository.blob(commit, "big", 1000) == b"x" * 1000
    for path, code in (("big", "file-too-large"), ("link", "not-a-file"), ("debian", "not-a-file")):
        with pytest.raises(Malformed) as caught:
            repository.blob(commit, path, 999)
        assert caught.value.code == code
    with pytest.raises(Malformed):
        repository.blob("--help", "big", 9)
    assert repository.tree(commit) == work.git("rev-parse", "HEAD^{tree}").text
    with pytest.raises(NotFound):
        repository.tree("1" * 40)


def test_tag_object(repository: Repository, work: Work) -> None:
    def make() -> str:
        return repository.tag_object(
            "debian/1%2.0-1", work.head, "hello 1:2.0-1\n\nJob: x\x1b[0m", "The\nArchive <x>",
            "a b@example.org", DATE,
        )  # fmt: skip

    oid = make()
    assert make() == oid
    assert repository.refs("refs/tags/") == {}
    repository.set_ref("refs/tags/debian/1%2.0-1", oid, None)
    assert repository.peeled("refs/tags/debian/1%2.0-1") == work.head
    run(["git", "fsck", "--strict", "--no-dangling"], cwd=repository.path)
    shown = run(["git", "cat-file", "tag", oid], cwd=repository.path).text
    assert "tagger The%0AArchive %3Cx%3E <a%20b@example.org> 1767323045 +0000" in shown
    assert shown.endswith("\n\nhello 1:2.0-1\n\nJob: x[0m")


def test_a_torn_object_is_written_again(repository: Repository, work: Work) -> None:
    def make() -> str:
        return repository.tag_object("v1", work.head, "x", "Ada", "a@b", DATE)

    oid = make()
    file = repository.path / "objects" / oid[:2] / oid[2:]
    for torn in (b"", file.read_bytes()[:20]):
        file.chmod(0o644)
        file.write_bytes(torn)
        assert make() == oid
        run(["git", "cat-file", "tag", oid], cwd=repository.path)
    assert not list(file.parent.glob("tmp*"))


def test_bundle(tmp_path: Path, repository: Repository, work: Work) -> None:
    work.git("tag", "-a", "-m", "x", "upstream/1.0")
    work.git("checkout", "--quiet", "--orphan", "pristine-tar")
    tar = work.commit("tarball", delta="x")
    assert work.push("main", "pristine-tar", "upstream/1.0").code == 0
    tag = repository.ref("refs/tags/upstream/1.0")
    main = repository.ref("refs/heads/main")
    assert tag and main
    before = repository.refs("refs/")
    wanted = {
        "refs/heads/job": main,
        "refs/heads/same": main,
        "refs/heads/pristine-tar": tar,
        "refs/tags/upstream/1.0": tag,
    }
    repository.bundle(tmp_path / "b", wanted)
    assert repository.refs("refs/") == before
    assert not list(tmp_path.glob(".bundle*"))
    fresh = Work.init(tmp_path / "fresh")
    fresh.git("fetch", "--quiet", tmp_path / "b", "refs/*:refs/*")
    listed = fresh.git("for-each-ref", "--format=%(refname) %(objectname)").text.split("\n")
    assert dict(line.split(" ") for line in listed) == wanted
    fresh.git("fsck", "--strict")
    with pytest.raises(NotFound):
        repository.bundle(tmp_path / "c", {"refs/heads/x": "1" * 40})
    assert not (tmp_path / "c").exists()


def test_import_from(tmp_path: Path, repository: Repository) -> None:
    source = Work.init(tmp_path / "source")
    source.commit("one")
    source.git("tag", "debian/1.0-1")
    source.git("checkout", "--quiet", "-b", "debian/latest")
    (source.path / ".git/hooks").mkdir(exist_ok=True)
    if os.geteuid() == 0:
        run(["chown", "-R", "1234:1234", source.path])
    repository.import_from(source.path)
    assert set(repository.refs("refs/")) == {
        "refs/heads/main",
        "refs/heads/debian/latest",
        "refs/tags/debian/1.0-1",
    }
    assert (repository.path / "HEAD").read_text() == "ref: refs/heads/debian/latest\n"
    repository.import_from(source.path)
    run(["git", "fsck", "--strict"], cwd=repository.path)


def test_import_names_the_refs_that_do_not_move_forward(
    tmp_path: Path, repository: Repository
) -> None:
    for name in ("source", "other"):
        source = Work.init(tmp_path / name)
        source.commit(f"one of {name}")
        source.git("tag", f"by-{name}")
        if name == "source":
            repository.import_from(source.path)
    before = repository.refs("refs/")
    with pytest.raises(Malformed, match=r"main .*non-fast-forward"):
        repository.import_from(source.path)
    assert repository.refs("refs/") == before


def test_import_refuses_malformed_objects(tmp_path: Path, repository: Repository) -> None:
    source = Work.init(tmp_path / "source")
    blob = source.object("blob", b"x")
    tree = source.object("tree", b"100644 .git\0" + bytes.fromhex(blob))
    commit = source.git("commit-tree", "-m", "x", tree).text
    source.git("update-ref", "refs/heads/main", commit)
    with pytest.raises(Malformed, match="hasDotgit"):
        repository.import_from(source.path)
    assert repository.refs("refs/") == {}


def test_import_refuses_shallow_absent_empty_and_sha256(
    tmp_path: Path, repository: Repository
) -> None:
    source = Work.init(tmp_path / "source")
    source.commit("one")
    source.commit("two")
    shallow = tmp_path / "shallow"
    source.git("clone", "--quiet", "--depth=1", f"file://{source.path}", shallow)
    other = tmp_path / "sha256"
    run(["git", "init", "--quiet", "--object-format=sha256", other])
    Work(other).commit("one")
    Work.init(tmp_path / "empty")
    for path in (shallow, other, tmp_path / "empty"):
        with pytest.raises(Malformed):
            repository.import_from(path)
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(Fault):
            repository.import_from(path)
    assert repository.refs("refs/") == {}


def test_gitpython_starts_no_git(repository: Repository) -> None:
    with (
        gitobjects.opened(repository.path) as repo,
        pytest.raises(gitobjects.git.GitCommandNotFound),
    ):
        repo.git.version()
