"""Two real builds at once in one trust domain: each in a slot, with ids and a base of its own.

What ends them is no verdict on them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.ids import COUNT, Ids
from tests.support import packages
from tests.support.sites import DOMAIN, TestSite, made_site


def test_each_order_has_a_slot(base: Base, layers: Path, tmp_path: Path) -> None:
    with made_site(base, layers, domains={DOMAIN: {"jobs": 2}}) as site:
        repos = [
            packages.native(tmp_path / name, name, "1.0", build="\tsleep 3600\n")
            for name in ("one", "two")
        ]
        for repo in repos:
            site.package(repo.name, repo.path)
        with site.daemon():
            jobs = [site.cli("submit", "dev", repo.name, repo.commit).text for repo in repos]
            until = time.monotonic() + 300
            _wait_for_both(site, jobs, "build-1", until)
            # Both are at it; what they write belongs to different ids.
            slots = [site.slot.with_name(f"slot-{number}") for number in (1, 2)]
            for number, slot in enumerate(slots, 1):
                found = {p.stat().st_uid for p in (slot / "scratch").glob("order-*/*")} - {0}
                first = Ids.of_user(number).first_uid
                assert found
                assert found <= set(range(first, first + COUNT)), "of its own block only"
            # As a machine does that goes down: they are built again.
            told = _orders(site)
            assert len(told) == 2
            for pid in told:
                os.kill(pid, signal.SIGTERM)
            _wait_for_both(site, jobs, "build-2", until)
            for job in jobs:
                site.cli("cancel", job)
            for job in jobs:
                while site.json("status", job)["state"] != "cancelled":
                    time.sleep(0.1)
                    assert time.monotonic() < until
        logs = "".join(_log(site, job, "export-1") for job in jobs)
        assert len(re.findall("base: a copy of the one in slot-1", logs)) == 1
        assert not [path for slot in slots for path in (slot / "scratch").iterdir()]


def _orders(site: TestSite) -> set[int]:
    """The workers at orders of the site's, without the copies of themselves that they begin."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "worker" in words and "--lock-fd" in words and str(site.slot.parent) in words:
                status = (process / "stat").read_text()
                parents[int(process.name)] = int(status.rpartition(")")[2].split()[1])
    return {pid for pid, parent in parents.items() if parent not in parents}


def _wait_for_both(site: TestSite, jobs: list[str], attempt: str, until: float) -> None:
    while not all("sleep 3600" in _log(site, job, attempt) for job in jobs):
        assert time.monotonic() < until, [_log(site, job, attempt)[-2000:] for job in jobs]
        time.sleep(0.1)


def _log(site: TestSite, job: str, attempt: str = "build-1") -> str:
    path = site.directory / "jobs" / job / "attempts" / attempt / "log"
    return path.read_text(errors="replace") if path.exists() else ""
