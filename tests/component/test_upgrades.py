"""What reprepro is asked when a package is published again: least, when it is a plain upgrade."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.jobs import Job
from invirtibuilder.pipeline import advance
from invirtibuilder.run import Done
from invirtibuilder.spool import Request
from invirtibuilder.stages import dependencies, verify
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.packages import Repo
from tests.support.place import ME, Place

POCKET = "staging"
PLAIN = ["include", "listfilter", "export"]
ALLOWED = f"  {POCKET}:\n    allow_takeover: true\n"
CAREFUL = ["listfilter", "removesrcs", *PLAIN]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reprepro is called for."""
    calls: list[str] = []
    call = Reprepro.call

    def noted(self: Reprepro, action: str, *args: str, lock_fd: int) -> Done:
        calls.append(action)
        return call(self, action, *args, lock_fd=lock_fd)

    monkeypatch.setattr(Reprepro, "call", noted)
    return calls


@pytest.fixture
def made(tmp_path: Path) -> Iterator[tuple[Place, Repo]]:
    with places.canned() as (place, _):
        repo = packages.native(tmp_path / "greet", binaries=("greet", "greet-doc"))
        place.package(repo)
        assert place.submitted(POCKET, repo).status.state == State.PUBLISHED
        yield place, repo


def _next(place: Place, repo: Repo, version: str, control: str = "", pocket: str = POCKET) -> Repo:
    """The next version, published."""
    if control:
        packages.write(repo.path, {"debian/control": control})
    newer = packages.upgraded(repo, version)
    place.push(newer)
    job = place.submitted(pocket, newer)
    assert job.status.state == State.PUBLISHED, job.status
    return newer


def _listed(place: Place) -> list[str]:
    """Names and versions of the pocket's binary packages, as clients see them."""
    dists = place.site.archive / POCKET / "dists" / POCKET
    text = (dists / "main/binary-amd64/Packages").read_text()
    return [p.split("\n")[0][9:] + " " + p.split("Version: ")[1].split("\n")[0]
            for p in text.strip().split("\n\n")]  # fmt: skip


def test_a_plain_upgrade(made: tuple[Place, Repo], asked: list[str]) -> None:
    place, repo = made
    newer = _next(place, repo, "1.1")
    assert asked == PLAIN
    asked.clear()
    # An epoch counts, though no file's name has it.
    _next(place, newer, "1:0.1")
    assert asked == PLAIN
    assert _listed(place) == ["greet 1:0.1", "greet-doc 1:0.1"]
    assert place.cli("fsck", "--full").code == 0


@pytest.mark.parametrize(
    "binaries", [("greet",), ("greet", "greet-doc", "greet-more"), ("greet", "greet-other")]
)
def test_other_binary_packages(
    made: tuple[Place, Repo], asked: list[str], binaries: tuple[str, ...]
) -> None:
    place, repo = made
    control = packages.control("greet", binaries)
    _next(place, repo, "1.1", control)
    assert asked == CAREFUL
    assert _listed(place) == [f"{name} 1.1" for name in binaries]
    assert place.cli("fsck", "--full").code == 0


def test_versions_that_go_back(tmp_path: Path, asked: list[str]) -> None:
    with places.canned() as (place, _):
        repo = packages.native(tmp_path / "greet", version="2.0")
        place.package(repo)
        assert place.submitted("dev", repo).status.state == State.PUBLISHED
        asked.clear()
        _next(place, repo, "1.0", pocket="dev")
        assert asked == CAREFUL


def test_where_packages_may_move_reprepro_is_asked(
    made: tuple[Place, Repo], asked: list[str]
) -> None:
    place, repo = made
    place.edit(f"  {POCKET}:\n", ALLOWED)
    _next(place, repo, "1.1")
    assert asked == CAREFUL


@pytest.fixture
def taken(made: tuple[Place, Repo], tmp_path: Path) -> tuple[Place, Repo, Repo]:
    """A binary package has come from another source, which the pocket allows."""
    place, repo = made
    place.edit(f"  {POCKET}:\n", ALLOWED)
    other = packages.native(tmp_path / "other", "other", "1.0.1", binaries=("other", "greet-doc"))
    place.package(other)
    assert place.submitted(POCKET, other).status.state == State.PUBLISHED
    assert _listed(place) == ["greet 1.0", "greet-doc 1.0.1", "other 1.0.1"]
    return place, repo, other


def test_records_say_who_has_a_package_that_has_moved(taken: tuple[Place, Repo, Repo]) -> None:
    place, repo, other = taken
    superproject = place.context.superproject
    record = superproject.record(POCKET, "greet") or {}
    assert record["binaries"] == {"greet": "1.0"}
    assert record["taken"] == {"greet-doc": "other"}
    assert superproject.pins(POCKET) == {"greet": repo.commit, "other": other.commit}
    assert place.cli("fsck", "--full").text.startswith("clean: ")
    # What is made anew is the same.
    shutil.rmtree(place.site.archive / POCKET / "private")
    shutil.rmtree(place.site.archive / POCKET / "publications")
    assert place.cli("rebuild-state").code == 0
    assert _listed(place) == ["greet 1.0", "greet-doc 1.0.1", "other 1.0.1"]
    assert place.cli("fsck", "--full").code == 0
    # Where nobody has taken anything from it, it comes whole.
    job = place.submitted("prod", repo)
    assert job.status.state == State.PUBLISHED, job.status
    names = {file["name"] for file in job.need("publish")["files"]}
    assert {"greet_1.0_all.deb", "greet-doc_1.0_all.deb"} < names


def _rolled_back(place: Place, *packages_: str) -> Job:
    """The pocket, or packages of it, as they were at first."""
    place.edit("      cancel:", f"      rollback: [{ME}]\n      cancel:")
    first = place.context.superproject.history(POCKET)[-1].id
    request = Request.new("rollback", [POCKET, first, *packages_], principal=ME, via="test")
    job = place.context.jobs.create(request)
    advance(place.context, job)
    assert job.status.state == State.PUBLISHED, job.status
    assert place.cli("fsck", "--full").text.startswith("clean: ")
    return job


@pytest.mark.parametrize("still", [True, False], ids=["allowed still", "no more"])
def test_what_was_taken_comes_back(taken: tuple[Place, Repo, Repo], still: bool) -> None:
    place, _, _ = taken
    if not still:
        place.edit(ALLOWED, f"  {POCKET}:\n")
    job = _rolled_back(place)
    assert (
        "greet: 1.0 has the same binary packages again" in (job.directory / "journal").read_text()
    )
    assert _listed(place) == ["greet 1.0", "greet-doc 1.0"]


def test_what_was_taken_comes_back_alone(taken: tuple[Place, Repo, Repo]) -> None:
    """In a lower version than it was taken in."""
    place, _, _ = taken
    _rolled_back(place, "greet")
    assert _listed(place) == ["greet 1.0", "greet-doc 1.0", "other 1.0.1"]
    record = place.context.superproject.record(POCKET, "other") or {}
    assert record["binaries"] == {"other": "1.0.1"}


def test_what_has_moved_on_comes_back(made: tuple[Place, Repo], tmp_path: Path) -> None:
    """Where nothing may be taken over: one source gave it up, another has come with it."""
    place, repo = made
    _next(place, repo, "1.1", packages.control("greet", ["greet"]))
    other = packages.native(tmp_path / "other", "other", "1.2", binaries=("greet-doc",))
    place.package(other)
    assert place.submitted(POCKET, other).status.state == State.PUBLISHED
    assert _listed(place) == ["greet 1.1", "greet-doc 1.2"]
    _rolled_back(place)
    assert _listed(place) == ["greet 1.0", "greet-doc 1.0"]


def test_packages_for_the_installer_have_owners_too(made: tuple[Place, Repo]) -> None:
    place, _ = made
    pocket = place.site.pockets[POCKET]
    index = place.site.archive / POCKET / "dists" / POCKET
    index /= "main/debian-installer/binary-amd64/Packages"
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text("Package: greet-udeb\nSource: greet\nVersion: 1.0\n\n")
    wanted = ["greet", "greet-udeb", "other"]
    found = dependencies.owners(place.context, pocket, wanted)
    assert found == {"greet": "greet", "greet-udeb": "greet"}


def test_what_another_source_has_taken_is_not_taken_back(
    taken: tuple[Place, Repo, Repo], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was allowed for a while; now reprepro itself would do it, and nobody else has looked."""
    place, repo, _ = taken
    place.edit(ALLOWED, f"  {POCKET}:\n")
    before = _listed(place)
    newer = packages.upgraded(repo, "1.1")
    place.push(newer)
    monkeypatch.setattr(verify, "_clashes", lambda *_: [])
    asked.clear()
    job = place.submitted(POCKET, newer)
    assert job.status.state == State.FAILED, job.status
    assert [reason["code"] for reason in job.status.reasons] == ["binary-clash"]
    assert "greet-doc belongs to other" in job.status.reasons[0]["message"]
    assert _listed(place) == before
    assert place.cli("fsck", "--full").text.startswith("clean: ")
