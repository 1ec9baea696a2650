"""A maintainer's day: clone, commit, push over a path, submit by branch."""

from __future__ import annotations

from pathlib import Path

from tests.support import packages
from tests.support.packages import git
from tests.support.sites import TestSite


def test_push_then_submit(site: TestSite, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "pushed", "pushed", "1.0", distribution="bookworm")
    url = site.json("package", "create", "pushed")["path"]
    git(repo.path, "push", "--quiet", url, "HEAD:refs/heads/main")
    job = site.publish("staging", "pushed", "main")
    assert job["commit"] == repo.commit
    # The daemon has made the version tag; nobody else moves or makes one.
    assert git(repo.path, "ls-remote", url, "refs/tags/debian/1.0^{}").startswith(repo.commit)
    newer = packages.upgraded(repo, "1.1", distribution="bookworm")
    git(repo.path, "tag", "debian/1.1")
    refused = git(repo.path, "push", url, "HEAD:refs/heads/main", "debian/1.1", check=False)
    assert "refs/heads/main" not in refused
    assert git(repo.path, "ls-remote", url, "refs/heads/main").startswith(repo.commit)
    git(repo.path, "push", "--quiet", url, "HEAD:refs/heads/main")
    # What a pocket pins stays in the branch's history.
    git(repo.path, "checkout", "--quiet", "--orphan", "other")
    git(repo.path, "commit", "--quiet", "--message", "History anew")
    git(repo.path, "push", "--force", url, "HEAD:refs/heads/main", check=False)
    assert git(repo.path, "ls-remote", url, "refs/heads/main").startswith(newer.commit)
    job = site.publish("staging", "pushed", newer.commit[:10])
    assert job["version"] == "1.1"
    git(repo.path, "push", str(site.directory / "superproject.git"), "HEAD:x", check=False)
    assert not git(repo.path, "ls-remote", str(site.directory / "superproject.git"), "x")
