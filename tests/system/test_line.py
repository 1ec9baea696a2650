"""From a commit to apt-get install, by the command line of a user."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support import packages
from tests.support.sites import TestSite


def test_a_native_package_in_dev_and_staging(site: TestSite, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "greet", "greet", "1.0")
    site.package("greet", repo.path)
    dev = site.publish("dev", "greet", repo.commit)
    assert dev["version"].startswith("1.0~dev+")
    staging = site.publish("staging", "greet", repo.commit)
    assert staging["version"] == "1.0"
    said = site.installs("dev", "greet", "--", "dpkg-query", "-W", "greet")
    assert said.endswith(f"greet\t{dev['version']}")
    said = site.installs("staging", "greet", "--", "dpkg-query", "-W", "greet")
    assert said.endswith("greet\t1.0")


def test_the_same_build_goes_from_staging_to_prod(site: TestSite, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "same", "same", "1.0")
    site.package("same", repo.path)
    staging = site.publish("staging", "same", repo.commit)
    prod = site.publish("prod", "same", repo.commit)
    assert site.fact(prod["job"], "build")["reused"] == staging["job"]
    assert staging["published"]["files"] == prod["published"]["files"]


def test_a_failing_build_changes_nothing(site: TestSite, tmp_path: Path) -> None:
    repo = packages.failing(tmp_path / "broken")
    site.package("broken", repo.path)
    before = site.state("dev")
    done, job = site.submit("dev", "broken", repo.commit)
    assert done.code == 4
    assert (job["state"], job["blame"]) == ("failed", "package")
    assert job["reasons"][0]["code"] == "build-failed"
    assert site.state("dev") == before


def test_an_unresolvable_dependency_is_named(site: TestSite, tmp_path: Path) -> None:
    repo = packages.unresolvable(tmp_path / "lonely")
    site.package("lonely", repo.path)
    before = site.state("dev")
    done, job = site.submit("dev", "lonely", repo.commit)
    assert done.code == 4
    reason = job["reasons"][0]
    assert reason["code"] == "unresolvable"
    assert "Depends" in reason["message"]
    assert site.state("dev") == before


def test_the_pockets_own_package_is_a_build_dependency(site: TestSite, tmp_path: Path) -> None:
    library = packages.library(tmp_path / "library")
    site.package("libgreet-data", library.path)
    published = site.publish("dev", "libgreet-data", library.commit)
    consumer = packages.consumer(tmp_path / "consumer")
    site.package("greeter", consumer.path)
    job = site.publish("dev", "greeter", consumer.commit)
    used = site.fact(job["job"], "build")["dependencies"]
    ours = {f["sha256"] for f in published["published"]["files"]}
    assert ours & set(used.values())


def test_the_collection_can_be_cloned(site: TestSite, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "clonable", "clonable", "1.0")
    site.package("clonable", repo.path)
    site.publish("dev", "clonable", repo.commit)
    target = tmp_path / "collection"
    subprocess.run(
        [
            *("git", "-c", "protocol.file.allow=always", "clone", "-q", "--recurse-submodules"),
            *("-b", "dev", str(site.directory / "superproject.git"), str(target)),
        ],
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )
    assert (target / "packages/clonable/debian/changelog").exists()
