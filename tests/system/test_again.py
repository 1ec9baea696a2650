"""A source package that is made anew in a sandbox is the published one, byte for byte."""

from __future__ import annotations

from pathlib import Path

from tests.support import packages
from tests.support.sites import TestSite


def test_sources_come_out_the_same_again(site: TestSite, tmp_path: Path) -> None:
    native = packages.native(tmp_path / "anew", "anew", "1.0")
    site.package("anew", native.path)
    dev = site.publish("dev", "anew", native.commit)
    site.publish("staging", "anew", native.commit)
    value = site.json("fsck", "dev", "staging", "--level", "c")
    assert value["findings"] == []
    assert value["packages"] == 2
    # Other bytes in the same environment are drift; so it is compared.
    commit = dev["published"]["superproject_commit"]
    assert site.json("diff", commit, "dev")["changes"] == []
