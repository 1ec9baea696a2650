"""A worker whose own disk is really full: the job waits, nothing is left, and then it is built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from invirtibuilder.errors import Blame
from invirtibuilder.order import Limits
from invirtibuilder.run import run
from invirtibuilder.sandbox.base import Base, BaseSpec
from tests.support.yard import Ended, Yard, yard

SIZE = 48 << 20
LIMITS = Limits(seconds=240, reserve=8 << 20)
FILL = "head -c 100M /dev/zero >filled; sleep {}; echo went on"
MARKER = f"invirtibuilder-full-{os.getpid()}"


@pytest.fixture
def small(base: Base, base_spec: BaseSpec, layers: Path) -> Iterator[Yard]:
    """A worker that writes to a file system of its own, of SIZE bytes."""
    with yard(base, base_spec) as made:
        scratch = made.directory / "work/slot-1/scratch"
        scratch.mkdir()
        options = f"size={SIZE},mode=711"
        run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", scratch])
        try:
            yield made
        finally:
            run(["umount", "-l", scratch])


def left(place: Yard) -> int:
    """Bytes that are free there."""
    status = os.statvfs(place.directory / "work/slot-1/scratch")
    return status.f_bavail * status.f_frsize


def built(place: Yard, name: str, script: str, limits: Limits = LIMITS) -> Ended:
    dsc = place.source(name, build=f"\tsh ./{MARKER}\n", files={MARKER: script})
    ended = place.build(dsc, limits=limits)
    assert not list((place.directory / "work/slot-1/scratch").iterdir())
    return ended


@pytest.mark.root
def test_a_build_that_fills_the_disk(small: Yard) -> None:
    """It has no limit of its own: that there is no room is the machine's fault, and passes."""
    before = left(small)
    ended = built(small, "filler", FILL.format(30))
    assert (ended.codes[0], ended.manifest.blame) == ("disk-full", Blame.MACHINE), ended.log
    assert "went on" not in ended.log
    assert left(small) == before
    # Without a reserve the disk is full to the last byte.
    ended = built(small, "filler-again", FILL.format(3), replace(LIMITS, reserve=None))
    assert (ended.codes[0], ended.manifest.blame) == ("disk-full", Blame.MACHINE), ended.log
    assert built(small, "small", "true").manifest.ok


@pytest.mark.root
def test_a_disk_that_others_have_filled(small: Yard) -> None:
    ballast = small.directory / "work/slot-1/scratch/ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left(small) - (64 << 10))
    dsc = small.source("early")
    for limits in (LIMITS, replace(LIMITS, reserve=None)):
        ended = small.build(dsc, limits=limits)
        assert (ended.codes[0], ended.manifest.blame) == ("disk-full", Blame.MACHINE), ended.log
        shutil.rmtree(dsc.parent / "out")
    ballast.unlink()
    assert small.build(dsc, limits=LIMITS).manifest.ok
