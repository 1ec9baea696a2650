"""A pocket as it was, and what is signed again before it runs out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from invirtibuilder import hosting
from invirtibuilder.apt.publications import Publications
from invirtibuilder.errors import Fault
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import history
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.validity import keep_valid
from invirtibuilder.states import State
from tests.support import place as places
from tests.support.aptclient import AptClient
from tests.support.gitwork import many_commits
from tests.support.line import Line
from tests.support.place import Place, until

HOUR = timedelta(hours=1)


def staging(line: Line) -> Pocket:
    return line.site.pockets["staging"]


def publications(line: Line) -> Publications:
    return line.context.archive(staging(line)).publications


def published(line: Line, name: str, version: str = "1.0") -> str:
    """Publish a version in staging; the superproject's commit."""
    line.package(name, version)
    job = line.run(line.job("staging", name))
    assert job.status.state == State.PUBLISHED
    return str(job.need("publish")["superproject_commit"])


def shown(line: Line, folder: Path, at: str) -> dict[str, str]:
    """What a real apt-get finds with the stanza of that state."""
    apt = AptClient(folder=folder)
    apt.configure(hosting.client(line.site, staging(line), at=at).sources)
    apt.update()
    return {name: apt.candidate(name) for name in ("alpha", "beta", "gamma")}


def test_apt_gets_a_pocket_as_it_was(line: Line, tmp_path: Path) -> None:
    first = published(line, "alpha")
    jobs = []
    for name in ("beta", "gamma"):
        line.package(name)
        jobs.append(line.until(line.job("staging", name), "publish"))
    line.together(*jobs)
    second, third = (job.need("publish")["superproject_commit"] for job in jobs)
    last = published(line, "alpha", "2.0")
    dates = [publications(line).date(number) for number in (2, 3, 4)]

    old = {"alpha": "1.0", "beta": "", "gamma": ""}
    assert shown(line, tmp_path / "first", first[:12]) == old
    batch = {"alpha": "1.0", "beta": "1.0", "gamma": "1.0"}
    for number, at in enumerate((second, third, dates[1].isoformat())):
        assert shown(line, tmp_path / f"batch{number}", at) == batch
    assert shown(line, tmp_path / "last", last)["alpha"] == "2.0"
    assert shown(line, tmp_path / "now", f"{datetime.now(UTC):%Y-%m-%d}")["alpha"] == "2.0"

    point = history.point(line.site, staging(line), second.upper())
    assert (point.commit, point.last, point.publication) == (second, third, 3)
    assert "published together with later ones" in point.text
    assert "together" not in history.point(line.site, staging(line), third).text
    stanza = hosting.client(line.site, staging(line), at=second).sources
    assert stanza.startswith("# staging as it was: ")
    assert second[:12] in stanza.splitlines()[0]
    assert third[:12] in stanza.splitlines()[0]
    assert "Check-Valid-Until: no" in stanza
    before = history.commit_at(line.site, staging(line), dates[1].strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert before == third


NO_STATES = {
    "1999-12-31": "no-state",
    "0" * 40: "no-state",
    **dict.fromkeys(("2026-13-01", "main", "abc", "--all", "2026-01-01\n", ""), "bad-moment"),
}


def test_what_names_no_state(line: Line) -> None:
    published(line, "alpha")
    # A commit of the package is none of the superproject.
    for words, code in {**NO_STATES, line.work["alpha"].head: "no-state"}.items():
        with pytest.raises(Fault) as caught:
            history.point(line.site, staging(line), words)
        assert caught.value.code == code, words
        assert caught.value.hint


def test_the_start_of_two_ids_names_no_state(line: Line) -> None:
    commits = many_commits(line.site.superproject, "staging", 1000)
    starts = Counter(commit[:4] for commit in commits)
    short = next(start for start, count in starts.items() if count == 2)
    named = [commit for commit in commits if commit.startswith(short)]
    with pytest.raises(Fault) as caught:
        history.commit_at(line.site, staging(line), short)
    assert caught.value.code == "state-ambiguous"
    assert all(commit in str(caught.value) for commit in named)
    assert "more digits" in caught.value.hint
    for commit in named:
        assert history.commit_at(line.site, staging(line), commit[:12]) == commit


def test_another_pockets_commit_is_no_state_of_this_one(line: Line) -> None:
    commit = published(line, "alpha")
    with pytest.raises(Fault) as caught:
        history.point(line.site, line.site.pockets["dev"], commit)
    assert caught.value.code == "no-state"


def test_a_state_that_is_no_longer_kept_says_so(line: Line) -> None:
    first = published(line, "alpha")
    published(line, "alpha", "2.0")
    removed = publications(line).prune(datetime.now(UTC) + 99 * HOUR, count=0)
    assert removed == [1, 2]
    with pytest.raises(Fault) as caught:
        hosting.client(line.site, staging(line), at=first)
    assert caught.value.code == "state-gone"
    assert "publication 2" in str(caught.value)


@dataclasses.dataclass
class Clock:
    """A clock that is moved by hand, and a pocket whose publications run out."""

    context: Context
    pocket: Pocket
    now: datetime

    @classmethod
    def of(cls, line: Line, valid_for: float | None) -> Clock:
        made = cls(line.context, staging(line), datetime.now(UTC))
        made.pocket = dataclasses.replace(made.pocket, valid_for=valid_for)
        pockets = {**line.site.pockets, "staging": made.pocket}
        site = dataclasses.replace(line.site, pockets=pockets)
        line.context = made.context = dataclasses.replace(
            line.context, site=site, clock=lambda: made.now
        )
        return made

    def keep(self) -> float | None:
        return keep_valid(self.context, self.pocket)


def test_a_publication_is_signed_again_before_it_runs_out(line: Line) -> None:
    clock = Clock.of(line, 7200.0)
    commit = published(line, "alpha")
    made = publications(line)
    date = made.date(2)
    assert made.valid_until(2) == date + 2 * HOUR
    assert clock.keep() == pytest.approx(3600, abs=60)
    assert made.current() == 2

    clock.now = date + HOUR
    assert clock.keep() == pytest.approx(3600, abs=60)
    assert made.current() == 3
    assert made.date(3) == date + HOUR
    assert made.valid_until(3) == date + 3 * HOUR
    # The same content, of the same commit, which can be had as long as one of them is kept.
    assert made.commit(3) == commit == line.context.superproject.tip("staging")
    assert made.prune(clock.now + 99 * HOUR, count=0) == [1, 2]
    assert history.point(line.site, staging(line), commit).publication == 3
    dists = [made.path(3) / "dists/staging", line.site.archive / "staging/private/dists/staging"]
    one, other = (path / "main/binary-amd64/Packages" for path in dists)
    assert one.read_bytes() == other.read_bytes()
    # And the next change goes on from there.
    assert published(line, "beta") == line.context.superproject.tip("staging")
    assert made.current() == 4


def test_a_publication_that_no_longer_has_to_run_out_does_not(line: Line) -> None:
    Clock.of(line, 7200.0)
    published(line, "alpha")
    assert publications(line).valid_until(2)
    clock = Clock.of(line, None)
    assert clock.keep() is None
    assert publications(line).current() == 3
    assert publications(line).valid_until(3) is None
    assert clock.keep() is None
    assert publications(line).current() == 3


@pytest.fixture
def place() -> Iterator[Place]:
    with places.canned() as (made, _):
        yield made


def test_the_daemon_signs_again(place: Place) -> None:
    """The pocket was made without `valid_for`: what it has published runs out from now on."""
    place.edit(
        "    description: what is to be", "    valid_for: 2h\n    description: what is to be"
    )
    with place.daemon():
        made = place.context.archive(place.site.pockets["staging"]).publications
        until(lambda: made.valid_until(made.current() or 1))
    assert made.current() == 2
    other = place.context.archive(place.site.pockets["prod"]).publications
    assert other.current() == 1
    checked = place.cli("fsck")
    assert checked.code == 0, (checked.text, checked.err)
