"""Packages that are exported and built in throw-away machines."""

from __future__ import annotations

from pathlib import Path

from invirtibuilder.sandbox.base import Base
from tests.support import packages
from tests.support.sites import made_site


def test_a_machine_builds_the_same_bit_for_bit(base: Base, layers: Path, tmp_path: Path) -> None:
    """From commit to publication, emulated; with a build dependency, so in a layer of its own."""
    repo = packages.native(tmp_path / "tiny", "tiny", "1.0", build_depends="hello")
    with made_site(base, layers) as site:
        site.configure(pockets__prod__isolation="vm", pockets__prod__vm={"emulation": True})
        site.configure(pockets__dev__isolation="vm")
        site.package("tiny", repo.path)
        with site.daemon():
            caged = site.publish("staging", "tiny", repo.commit)
            booted = site.publish("prod", "tiny", repo.commit)
            _, unasked = site.submit("dev", "tiny", repo.commit)
        facts = [site.fact(job["job"], "build") for job in (caged, booted)]
        debs = [
            {f["name"]: f["sha256"] for f in fact["files"] if f["name"].endswith("deb")}
            for fact in facts
        ]
        assert debs[0]
        assert debs[0] == debs[1]
        assert facts[1]["environment"]["machine"] in ("kvm", "tcg")
        assert facts[0]["environment"]["layer"] != facts[1]["environment"]["layer"]
        exports = [site.fact(job["job"], "export")["files"] for job in (caged, booted)]
        assert exports[0] == exports[1]
        assert "machine: " in site.cli("log", booted["job"]).text
        assert not list((site.slot / "scratch").iterdir())
        # A pocket that did not ask for emulation is not slow in silence.
        if facts[1]["environment"]["machine"] == "tcg":
            assert (unasked["state"], unasked["blame"]) == ("failed", "machine")
            (reason,) = unasked["reasons"]
            assert reason["code"] == "no-kvm"
            assert "emulation: true" in reason["hint"]
        else:
            assert unasked["state"] == "published"
