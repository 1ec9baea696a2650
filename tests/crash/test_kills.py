"""The daemon, its tools and its workers are killed, again and again: nothing lost, nothing doubled.

Each run takes other instants. The seed is printed when it fails; to repeat it, or for thousands of
kills: INVIRTIBUILDER_TEST_SEED=SEED, INVIRTIBUILDER_TEST_KILLS=NUMBER.
"""

from __future__ import annotations

import pytest

from invirtibuilder import config
from tests.support import crashsite
from tests.support.crashsite import KILLS, SEED, CrashSite, crash_site, watching

NAMES = ("alpha", "beta", "gamma")


def ask_for_something_else(site: CrashSite) -> None:
    """What also changes the archive, or git: gc, repairs, and ways back."""
    chosen = site.chance.choice(("gc", "fsck --repair", "rebuild-state", "staging", "dev", "prod"))
    if chosen in site.place.site.pockets:
        site.roll_back(chosen)
    else:
        site.act(*chosen.split())


def test_kills_at_random(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that gc finds something.
    monkeypatch.setattr(config, "DAY", 1.0)
    monkeypatch.setitem(crashsite.SHORT, "config.DAY", 1.0)
    print(f"INVIRTIBUILDER_TEST_SEED={SEED}")
    most = 4 + KILLS // 9
    with crash_site(SEED, names=NAMES, versions=most, share=0.1) as site:
        kept = "    retention: {publications: 3, time: 20s}\n    trust_domain:"
        site.place.edit("    trust_domain:", kept)
        todo = [(p, n, v) for v in range(most) for n in NAMES for p in ("staging", "dev", "prod")]
        todo.reverse()
        with watching(site.place) as seen:
            while site.kills.total() < KILLS:
                while site.unfinished() < 4:
                    assert todo, "more packages are needed for so many kills"
                    if site.chance.random() < 0.15:
                        ask_for_something_else(site)
                        continue
                    pocket, name, version = todo.pop()
                    if pocket == "prod" and version % 2:
                        site.promote(name)
                    else:
                        site.submit(pocket, name, version)
                site.die_somehow()
                if site.kills.total() % 40 == 0:
                    site.finish()
                    site.check()
            site.finish()
            states = site.check()
        told = f"{site.kills.total()} kills {dict(site.kills)}, jobs {dict(states)},"
        told += f" {seen.updates} updates, {seen.downloads} downloads"
        with capsys.disabled():
            print(f"\n{told}")
        assert not seen.failures, seen.failures[:3]
        assert seen.updates > KILLS / 20, told
        assert states["published"] > states["failed"], told
