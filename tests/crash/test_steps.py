"""The daemon is killed at each step of what it does, one after another, and the next one goes on.

A step is a change of a file or the start of a process. Here some of them are tried, others in each
run; all of them with INVIRTIBUILDER_TEST_KILLS=6000. The seed is printed when it fails.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from invirtibuilder import config
from tests.support import crashsite
from tests.support.crashsite import KILLS, SEED, CrashSite, crash_site

STRIDE = max(1, 6000 // KILLS)
MOST = 3000
"""More steps than any of these lives has."""
VERSIONS = 900 // STRIDE + 20


class Versions:
    """The next version of the package, published in staging unless it is only asked for."""

    def __init__(self, site: CrashSite) -> None:
        self._site = site
        self._number = 0

    def ask(self) -> None:
        self._site.submit("staging", "alpha", self._number)
        self._number += 1

    def publish(self) -> None:
        self.ask()
        self._site.finish()


def _submission(site: CrashSite, versions: Versions) -> None:
    versions.ask()


def _promotion(site: CrashSite, versions: Versions) -> None:
    versions.publish()
    site.promote("alpha")


def _rollback(site: CrashSite, versions: Versions) -> None:
    versions.publish()
    site.act("rollback", "staging", site.place.context.superproject.history("staging")[1].id)


def _collection(site: CrashSite, versions: Versions) -> None:
    versions.publish()
    site.act("gc")


def _repair(site: CrashSite, _versions: Versions) -> None:
    """What clients ask for by its hash, and a part of reprepro's database, are gone."""
    archive = site.place.site.archive / "staging"
    shutil.rmtree(archive / "by-hash")
    (archive / "private/db/references.db").unlink()
    site.act("fsck", "--repair")


def _rebuilding(site: CrashSite, _versions: Versions) -> None:
    """What clients see, and all that says so, is gone."""
    archive = site.place.site.archive / "staging"
    for name in ("publications", "by-hash", "private"):
        shutil.rmtree(archive / name)
    (archive / "dists").unlink()
    site.act("rebuild-state")


ACTS: dict[str, Callable[[CrashSite, Versions], None]] = {
    "submit": _submission,
    "promote": _promotion,
    "rollback": _rollback,
    "gc": _collection,
    "fsck": _repair,
    "rebuild-state": _rebuilding,
}


@pytest.mark.parametrize("act", ACTS)
def test_each_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], act: str
) -> None:
    print(f"INVIRTIBUILDER_TEST_SEED={SEED}")
    # So that gc finds something each time.
    monkeypatch.setattr(config, "DAY", 0.0)
    monkeypatch.setitem(crashsite.SHORT, "config.DAY", 0.0)
    # No APT is here for which dates would have to be waited for.
    monkeypatch.setitem(crashsite.SHORT, "stages.transaction.MAX_PAUSE", 0.0)
    with crash_site(f"{SEED}.{act}", names=("alpha",), versions=VERSIONS) as site:
        kept = "    retention: {publications: 2, time: 1s}\n    trust_domain:"
        site.place.edit("    trust_domain:", kept)
        versions = Versions(site)
        for _ in range(3):
            versions.publish()
        kills = 0
        # It has by far the most.
        stride = STRIDE * 4 if act == "rebuild-state" and STRIDE > 1 else STRIDE
        for step in range(site.chance.randint(1, stride), MOST, stride):
            ACTS[act](site, versions)
            if site.live(die=step) == 0:
                break
            kills += 1
            site.finish()
            if kills % 10 == 0:
                site.check()
        else:
            pytest.fail(f"more than {MOST} steps")
        site.check()
    with capsys.disabled():
        print(f"\n{act}: some {step} steps, {kills} kills")
    assert kills > 100 / STRIDE
