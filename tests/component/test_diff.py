"""diff: two pockets, two commits of the superproject, two dates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from invirtibuilder import differences, model
from invirtibuilder.errors import Exit, NotFound
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.gitwork import many_commits
from tests.support.packages import Repo
from tests.support.place import Place


@dataclass(frozen=True, kw_only=True)
class Two:
    """`greet` 1.0 in prod and 1.25 in staging, `only` in staging."""

    place: Place
    greet: Repo
    newer: Repo
    only: Repo
    commits: list[str]  # of staging, oldest first

    def diff(self, a: str, b: str) -> dict[str, Any]:
        return {change["package"]: change for change in self.place.json("diff", a, b)["changes"]}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("diff")
    with places.canned() as (place, _):
        greet = packages.native(folder / "greet", binaries=("greet", "greet-doc"))
        only = packages.native(folder / "only", "only")
        for repo in (greet, only):
            place.package(repo)
        for pocket, repo in (("prod", greet), ("staging", greet), ("staging", only)):
            assert place.submitted(pocket, repo).status.state == State.PUBLISHED
        newer = greet
        for number in range(1, 26):
            more = {"debian/control": packages.control("greet", ["greet", "greet-extra"])}
            newer = packages.upgraded(
                newer, f"1.{number}", files=more, date=packages.DATE + 60 * number
            )
        place.push(newer)
        assert place.submitted("staging", newer).status.state == State.PUBLISHED
        history = place.context.superproject.history("staging")
        commits = [commit.id for commit in reversed(history)]
        yield Two(place=place, greet=greet, newer=newer, only=only, commits=commits)


def test_two_pockets(two: Two) -> None:
    found = two.diff("prod", "staging")
    assert {name: change["kind"] for name, change in found.items()} == {
        "greet": "changed",
        "only": "added",
    }
    greet = found["greet"]
    assert (greet["old"], greet["new"]) == ("1.0", "1.25")
    assert (greet["old_commit"], greet["new_commit"]) == (two.greet.commit, two.newer.commit)
    assert greet["binaries"] == {
        "greet": ["1.0", "1.25"],
        "greet-doc": ["1.0", None],
        "greet-extra": [None, "1.25"],
    }
    assert (greet["came"]["count"], greet["came"]["more"]) == (25, 0)
    assert len(greet["came"]["entries"]) == 25
    assert greet["came"]["entries"][0]["commit"] == two.newer.commit
    assert greet["went"] == {"count": 0, "more": 0, "entries": []}
    # Of what is new there is its commit, not all that it has ever been.
    assert found["only"]["binaries"] == {"only": [None, "1.0"]}
    assert (found["only"]["new"], found["only"]["new_commit"]) == ("1.0", two.only.commit)
    assert found["only"]["came"]["count"] == 0


def test_the_other_way_round(two: Two) -> None:
    found = two.diff("staging", "prod")
    assert found["only"]["kind"] == "removed"
    assert found["greet"]["came"]["count"] == 0
    assert found["greet"]["went"]["count"] == 25


def test_a_person_sees_it(two: Two) -> None:
    lines = two.place.cli("diff", "prod", "staging").text.splitlines()
    assert lines[0].startswith("--- prod ")
    assert lines[1].startswith(f"+++ staging {two.commits[-1][:12]} ")
    assert "~ greet 1.0 -> 1.25" in lines
    assert "    greet-doc: 1.0 -> none" in lines
    assert f"      {two.newer.commit[:12]} greet 1.25 (Ada Test)" in lines
    assert "      and 5 more" in lines
    assert f"+ only 1.0 at {two.only.commit[:12]}" in lines
    assert f"- only 1.0 at {two.only.commit[:12]}" in two.place.cli("diff", "staging", "prod").text


def test_a_log_without_end_is_cut_and_says_so(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "MAX_LOG", 7)
    site = two.place.site
    found = differences.compare(site, *differences.sides(site, "prod", "staging"))
    log = found.as_json()["changes"][0]["came"]
    assert (len(log["entries"]), log["count"], log["more"]) == (7, 25, 18)
    assert "      and 18 more" in differences.text(found)


def test_states_of_one_pocket(two: Two) -> None:
    first, second, third = two.commits
    assert set(two.diff(first, second)) == {"only"}
    assert set(two.diff(f"staging@{second[:10]}", "staging")) == {"greet"}
    assert two.diff(third, "staging") == {}
    assert set(two.diff(first[:12], "staging")) == {"greet", "only"}
    history = two.place.context.superproject.history("staging")
    moment = model.iso(history[1].date)
    assert set(two.diff(f"staging@{moment}", "staging")) == {"greet"}
    assert set(two.diff(moment, "staging")) == {"greet"}
    later = model.iso(history[0].date + timedelta(hours=1))
    assert two.diff(later, "staging") == {}
    # The commit says of which pocket the date is.
    assert set(two.diff(first, later)) == {"greet", "only"}
    assert set(two.diff(moment, third)) == {"greet"}
    assert two.place.cli("diff", "dev", "prod").text.startswith("--- dev empty\n")
    assert two.place.cli("diff", "prod", "prod").text.endswith("no difference")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("none", "staging"),
        ("none@2026-01-01", "staging"),
        ("staging@1999-01-01", "staging"),
        ("deadbeef", "staging"),
        ("2026-01-01", "2026-01-02"),
        ("--help@", "staging"),
    ],
)
def test_what_is_not_there(two: Two, a: str, b: str) -> None:
    done = two.place.cli("diff", "--", a, b)
    assert done.code == Exit.NO_INPUT, done
    assert b"hint: " in done.err


def test_the_start_of_an_id_in_two_pockets_is_ambiguous() -> None:
    """Whichever pocket the other side is of."""
    with places.place() as place:
        site = place.site
        dev, prod = (many_commits(site.superproject, name, 1000) for name in ("dev", "prod"))
        starts = [[commit[:4] for commit in commits] for commits in (dev, prod)]
        both = (s for s in starts[0] if [found.count(s) for found in starts] == [1, 1])
        short = next(both)
        one, other = (next(c for c in found if c.startswith(short)) for found in (dev, prod))
        for words in ((short, one), (short, "prod"), ("dev", short), (short, "2999-01-01")):
            with pytest.raises(NotFound) as caught:
                differences.sides(site, *words)
            assert caught.value.code == "state-ambiguous", words
            assert f"dev@{one}, prod@{other}" in str(caught.value)
        for words in ((f"prod@{short}", "dev"), (other, "dev"), (other[:40].upper(), "dev")):
            side, _ = differences.sides(site, *words)
            assert (side.pocket, side.commit) == ("prod", other)
        # Who may see one of them only is told nothing of the other.
        side, _ = differences.sides(site, short, "dev", may_see=lambda pocket: pocket == "prod")
        assert side.commit == other
        with pytest.raises(NotFound) as caught:
            differences.sides(site, short, "dev", may_see=lambda pocket: False)
        assert caught.value.code == "no-state"
