"""The superproject against the real git."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import gitcmd
from invirtibuilder.errors import Fault, Malformed
from invirtibuilder.gitobjects import decode, encode
from invirtibuilder.gitrepo import Repository
from invirtibuilder.run import run
from invirtibuilder.superproject import Superproject
from tests.support.gitwork import Work

DATE = datetime(2026, 1, 2, 3, 4, 5, 999999, tzinfo=UTC)

PRINCIPALS = [
    "alice/admin@EXAMPLE.ORG",
    "unix/bob",
    " a  b ",
    "a <root@example.org> 1 +0000\nb",
    "x\nJob: forged",
    "100%41",
    "\u00e9\u202e\u2028\x1b]0;x\x07",
    "\udcff",
    "#;,.:'\"\\",
    "<",
]


@pytest.fixture
def superproject(tmp_path: Path) -> Superproject:
    return Superproject.create(tmp_path / "superproject.git")


VALUES: dict[str, Any] = {
    "commit": "1" * 40,
    "record": {"version": "1.0", "files": [{"name": "x"}]},
    "subject": "1.0 in staging",
    "trailers": {"Job": "x", "Principal": "alice@EXAMPLE.ORG"},
    "author": ("alice@EXAMPLE.ORG", "alice@example.org"),
    "date": DATE,
}


def compose(superproject: Superproject, parent: str | None, package: str, **more: Any) -> str:
    with superproject.chain(parent) as chain:
        return chain.add(package=package, **{**VALUES, **more})


def test_the_state_at_a_date(superproject: Superproject) -> None:
    assert superproject.commit_before("staging", DATE) is None
    first = compose(superproject, None, "hello")
    # Ahead of the clock, as the second of two quick publications is.
    ahead = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    second = compose(superproject, first, "hello", date=ahead)
    superproject.move("staging", second, None)
    a_second = timedelta(seconds=1)
    for date, found in (
        (datetime(1, 1, 1, tzinfo=UTC), None),
        (DATE - a_second, None),
        (DATE, first),
        (ahead - a_second, first),
        (ahead, second),
        (datetime(2999, 1, 1, tzinfo=UTC), second),
    ):
        assert superproject.commit_before("staging", date) == found, date


def test_empty(superproject: Superproject) -> None:
    assert superproject.tip("staging") is None
    assert superproject.pin("staging", "hello") is None
    assert superproject.record("staging", "hello") is None
    assert superproject.records("staging") == {}
    assert superproject.pins("staging") == {}


def test_compose_moves_nothing_and_repeats(superproject: Superproject) -> None:
    first = compose(superproject, None, "hello")
    assert compose(superproject, None, "hello") == first
    assert compose(superproject, None, "hello", commit="2" * 40) != first
    assert superproject.tip("staging") is None
    superproject.move("staging", first, None)
    names = ["libstdc++6", "a.b", "zz", "abc", "ab"]
    tip = first
    for number, name in enumerate(names, 1):
        record = {"version": f"{number}", "caf\u00e9": 1.5}
        tip = compose(superproject, tip, name, commit=f"{number}" * 40, record=record)
    superproject.move("staging", tip, first)
    assert superproject.tip("staging") == tip
    assert superproject.pin("staging", "libstdc++6") == "1" * 40
    assert superproject.pin("staging", "hello") == "1" * 40
    assert set(superproject.pins("staging")) == set(superproject.records("staging"))
    assert set(superproject.pins("staging")) == {"hello", *names}
    assert superproject.record("staging", "ab") == {"version": "5", "caf\u00e9": 1.5}
    assert superproject.record("staging", "absent") is None
    assert superproject.contains("staging", first)
    assert not superproject.contains("staging", "1" * 40)
    assert not superproject.contains("prod", first)
    run(["git", "fsck", "--strict", "--no-dangling"], cwd=superproject.path)
    run(["git", "gc", "--quiet", "--prune=now"], cwd=superproject.path)
    assert superproject.tip("staging") == tip
    assert superproject.pin("staging", "a.b") == "2" * 40
    assert compose(superproject, None, "hello") == first


def test_move_compares(superproject: Superproject) -> None:
    first = compose(superproject, None, "hello")
    second = compose(superproject, first, "other")
    superproject.move("staging", first, None)
    superproject.move("staging", first, None)
    with pytest.raises(Fault) as caught:
        superproject.move("staging", second, None)
    assert caught.value.code == "superproject-moved"
    superproject.move("staging", second, first)
    with pytest.raises(Fault) as caught:
        superproject.move("staging", compose(superproject, first, "third"), first)
    assert caught.value.code == "superproject-moved"
    assert superproject.tip("staging") == second


def test_maintain(superproject: Superproject) -> None:
    tip = None
    # git estimates from one of the 256 folders.
    for number in range(120):
        new = compose(superproject, tip, "hello", record={"number": number})
        superproject.move("staging", new, tip)
        tip = new
    gitcmd.maintain(superproject.path, loose=1)
    assert not list((superproject.path / "objects").glob("[0-9a-f]?"))
    superproject.maintain()
    assert superproject.tip("staging") == tip
    assert superproject.record("staging", "hello") == {"number": 119}
    superproject.move("staging", compose(superproject, tip, "other"), tip)


def test_a_chain_is_what_its_commits_would_be_one_by_one(superproject: Superproject) -> None:
    """Packages come, change and go, with names that sort together."""
    steps: list[tuple[str, str | None]] = [
        (name, f"{number}" * 40)
        for number, name in enumerate(("lib", "lib-x", "lib.a", "lib+", "lib0", "aa", "zz"), 1)
    ]
    steps += [("lib", "8" * 40), ("lib+", None), ("nowhere", None), ("lib+", "9" * 40)]
    tip = None
    one_by_one = []
    for package, commit in steps:
        tip = compose(superproject, tip, package, commit=commit, record={"is": commit})
        one_by_one.append(tip)
    other = Superproject.create(superproject.path.with_name("other.git"))
    with other.chain(None) as chain:
        found = [
            chain.add(package=package, **{**VALUES, "commit": commit, "record": {"is": commit}})
            for package, commit in steps
        ]
        assert list(other.path.glob("objects/??/*")) == list(
            other.path.glob("objects/??/tmp_obj_*")
        )
    assert found == one_by_one
    assert chain.tip
    other.move("dev", chain.tip, None)
    run(["git", "fsck", "--strict"], cwd=other.path)
    assert other.pins("dev") == {name: commit for name, commit in steps if commit}
    assert other.record("dev", "lib") == {"is": "8" * 40}
    modules = run(["git", "cat-file", "-p", "dev:.gitmodules"], cwd=other.path).text
    assert modules.count("[submodule ") == 7
    sorted_by_git = run(["git", "ls-tree", "--name-only", "dev:packages"], cwd=other.path).text
    assert sorted_by_git.split() == sorted(other.pins("dev"))


def test_of_a_chain_that_breaks_nothing_is_there(superproject: Superproject) -> None:
    with pytest.raises(Malformed), superproject.chain(None) as chain:
        chain.add(package="hello", **VALUES)
        chain.add(package="../x", **VALUES)
    assert list(superproject.path.glob("objects/??/*")) == []


def _race(path: Path, news: Sequence[str], old: str, won: Any) -> None:
    for new in news:
        try:
            Superproject(path).move("staging", new, old)
        except Fault:
            continue
        won.put(new)


def test_one_of_many_movers_wins(superproject: Superproject) -> None:
    first = compose(superproject, None, "hello")
    superproject.move("staging", first, None)
    news = [compose(superproject, first, f"package{n}") for n in range(8)]
    context = multiprocessing.get_context("spawn")
    won = context.Queue()
    movers = [
        context.Process(target=_race, args=(superproject.path, news[n::4], first, won))
        for n in range(4)
    ]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join(60)
    winners = {won.get(timeout=10)}
    while not won.empty():
        winners.add(won.get())
    assert winners == {superproject.tip("staging")}


@pytest.mark.parametrize("principal", PRINCIPALS)
def test_no_principal_breaks_the_commit(superproject: Superproject, principal: str) -> None:
    trailers = {"Job": "20260102T030405.000000-abcd", "Principal": principal, "Version": "1:2~3"}
    commit = compose(
        superproject,
        None,
        "hello",
        subject=f"hello for {principal}",
        trailers=trailers,
        author=(principal, principal),
    )
    superproject.move("staging", commit, None)
    run(["git", "fsck", "--strict"], cwd=superproject.path)
    assert superproject.trailers(commit) == trailers
    asked = "--format=%an%n%ae%n%at%n%(trailers:only,unfold)"
    shown = run(["git", "log", asked, commit], cwd=superproject.path).out.decode().split("\n")
    # git shows an author without the punctuation around it; the trailer has the whole.
    assert decode(shown[0]).strip("#;,.:' ") == principal.strip("#;,.:' ") or shown[0] == ""
    assert shown[2] == "1767323045"
    assert [line.split(":")[0] for line in shown[3:6]] == list(trailers)
    assert decode(shown[4].removeprefix("Principal: ")) == principal
    assert all(c.isascii() and c.isprintable() for line in shown for c in line)


def test_encoding_is_reversible() -> None:
    texts = ["", " ", "   ", "%", "%2", "%25", "a%zz", *PRINCIPALS, "".join(map(chr, range(300)))]
    for text in texts:
        for also in ("", " "):
            assert decode(encode(text, also=also)) == text
            assert encode(text, also=also).isascii()
    assert len({encode(text) for text in texts}) == len(set(texts))


def test_bad_names(superproject: Superproject) -> None:
    for name in ("../x", "", "a\nb", "A", '"'):
        with pytest.raises(Malformed):
            compose(superproject, None, name)
        with pytest.raises(Malformed):
            superproject.pin("staging", name)
    for key in ("job", "A b", "A:", ""):
        with pytest.raises(Malformed):
            compose(superproject, None, "hello", trailers={key: "x"})
    for branch in ("../x", "", "a b", "x.lock"):
        with pytest.raises(Malformed):
            superproject.tip(branch)
    with pytest.raises(Malformed):
        compose(superproject, None, "hello", author=(" ", "x"))


def test_clone_with_submodules(tmp_path: Path, superproject: Superproject) -> None:
    """All packages at their pins, one of which only a kept ref holds."""
    pins = {}
    tip = None
    for name in ("hello", "libstdc++6"):
        path = tmp_path / f"packages/{name}.git"
        repository = Repository.create(path, hook=None, max_size=1 << 20)
        work = Work.init(tmp_path / name, path)
        first = work.commit("one")
        pins[name] = work.commit("published", version="1")
        kept = pins[name] if name == "hello" else work.commit("on top of it")
        assert work.push("main").code == 0
        repository.keep("refs/invirtibuilder/dev/1", kept)
        work.git("reset", "--quiet", "--hard", first)
        work.commit("rewritten", version="2")
        assert work.push("--force", "main").code == 0
        run(["git", "gc", "--quiet", "--prune=now"], cwd=path)
        moved = compose(superproject, tip, name, commit=pins[name])
        superproject.move("dev", moved, tip)
        tip = moved
    for version in ("0", "2"):
        target = tmp_path / f"clone{version}"
        clone = ["-c", f"protocol.version={version}", "clone", "--quiet"]
        work.git(*clone, "--recurse-submodules", "-b", "dev", superproject.path, target)
        for name, pin in pins.items():
            assert Work(target / "packages" / name).head == pin
            assert (target / "packages" / name / "version").read_text() == "1"
        assert not Work(target).git("status", "--porcelain").out
        work.git(*clone, "--recurse-submodules", "-b", "dev", f"file://{superproject.path}",
                 tmp_path / f"url{version}")  # fmt: skip
