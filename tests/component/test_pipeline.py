"""The line from a submission to a publication, with a worker whose results are canned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import packages, site
from tests.support.cannedworker import CannedWorker
from tests.support.site import Place


@pytest.fixture
def line() -> Iterator[tuple[Place, CannedWorker]]:
    with site.canned() as made:
        yield made


def test_first(line: tuple[Place, CannedWorker], tmp_path: Path) -> None:
    place, worker = line
    repo = packages.native(tmp_path / "greet")
    place.package(repo)
    job = place.submitted("staging", repo)
    print((job.directory / "journal").read_text())
    assert job.status.state == "published", job.status
