"""Run inside/export.py on this machine's tools: the order made as the export stage makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import invirtibuilder
from invirtibuilder.model import upstream_version
from invirtibuilder.run import Done, run
from tests.support.packages import Repo, git

SCRIPT = Path(invirtibuilder.__file__).parent / "inside/export.py"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of it."""

    out: Path
    report: dict[str, Any]
    done: Done

    @property
    def codes(self) -> set[str]:
        return {reason["code"] for reason in self.report["reasons"]}

    @property
    def messages(self) -> str:
        return "\n".join(reason["message"] for reason in self.report["reasons"])

    @property
    def dsc(self) -> Path:
        return self.out / str(self.report["dsc"])

    @property
    def hashes(self) -> dict[str, str]:
        return {file["name"]: file["sha256"] for file in self.report["files"]}


def found(repo: Repo, name: str) -> str | None:
    """The id of what a reference leads to, or None."""
    done = run(["git", "rev-parse", "--verify", "--quiet", name], cwd=repo.path, check=False)
    return done.text or None


def bundle(repo: Repo, path: Path, tag: str) -> dict[str, Any]:
    """Write the bundle; what the order says about its references."""
    refs = {"refs/export/commit": repo.commit}
    pristine = found(repo, "refs/heads/pristine-tar")
    tag_object = found(repo, f"refs/tags/{tag}")
    refs |= {"refs/export/pristine-tar": pristine} if pristine else {}
    refs |= {"refs/export/upstream-tag": tag_object} if tag_object else {}
    for name, oid in refs.items():
        git(repo.path, "update-ref", name, oid)
    git(repo.path, "bundle", "create", "--quiet", str(path), *refs)
    commit = found(repo, f"{tag_object}^{{commit}}") if tag_object else None
    named = {"name": tag, "object": tag_object, "commit": commit} if tag_object else None
    return {"pristine_tar": pristine, "upstream_tag": named}


def export(
    work: Path,
    repo: Repo,
    *,
    store: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    umask: int = 0o022,
    tag: str = "",
    **order: Any,
) -> Exported:
    """Export the repository's commit in `work` and read the report.

    `store` are orig tarballs; `tag` is the upstream tag, by default upstream/VERSION; `order`
    overrides what export.json says.
    """
    (work / "in/orig").mkdir(parents=True)
    for path in store:
        (work / "in/orig" / path.name).write_bytes(path.read_bytes())
    upstream = tag or f"upstream/{upstream_version(repo.version)}"
    said = {
        "package": repo.name,
        "version": repo.version,
        "commit": repo.commit,
        "changelog_entry": None,
        "compression": None,
        "components": [],
        "origs": [path.name for path in store],
    }
    said |= bundle(repo, work / "in/repository.bundle", upstream)
    (work / "in/export.json").write_text(json.dumps({**said, **order}))
    shell = f"umask {umask:04o}; exec /usr/bin/python3 -I {SCRIPT} {work}"
    done = run(["sh", "-c", shell], env=env, check=False)
    assert done.code == 0, done.err.decode()
    assert b"Traceback" not in done.err, done.err.decode()
    report = json.loads((work / "out/report.json").read_text())
    assert report["ok"] == (not report["reasons"])
    assert not list(work.glob("export.*")), "the scratch directory is left"
    return Exported(out=work / "out", report=report, done=done)
