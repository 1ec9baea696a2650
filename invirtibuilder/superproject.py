"""The superproject: a branch for each pocket, a submodule and a record for each package.

The tree of a branch: `.gitmodules`; `packages/NAME`, the pinned commit; `records/NAME.json`.
Nobody pushes to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from invirtibuilder import files, gitcmd, gitobjects, model
from invirtibuilder.errors import Exit, Fault, Malformed
from invirtibuilder.gitcmd import git
from invirtibuilder.gitobjects import TREE, decode, encode, entries, read_tree, store_entries

GITLINK = 0o160000
BLOB = 0o100644

_TRAILER = re.compile(r"([A-Z][A-Za-z0-9-]*): (.*)")


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit of the superproject; `parent` is None for a branch's first."""

    id: str
    parent: str | None
    date: datetime
    trailers: Mapping[str, str]


class Moved(Fault):
    """Somebody else moved the branch first."""

    exit = Exit.TEMPORARY
    code = "superproject-moved"


class Chain:
    """Commits on top of one another, each with what becomes of one package."""

    def __init__(self, repo: Any, tip: str | None) -> None:
        self.tip = model.commit_id(tip) if tip else None
        """The last commit."""
        self._repo = repo
        root = _root(repo, self.tip)
        self._packages = gitobjects.Files(_folder(root, repo, "packages"))
        self._records = gitobjects.Files(_folder(root, repo, "records"))
        # A megabyte for 10,000 packages, seldom changed.
        found = gitobjects.entry(root, ".gitmodules")
        self._modules = found[0] if found else None

    def add(
        self,
        *,
        package: str,
        commit: str | None,
        record: Mapping[str, Any],
        subject: str,
        trailers: Mapping[str, str],
        author: tuple[str, str],
        date: datetime,
    ) -> str:
        """Write the commit that pins `package` at `commit`, on top of the last; its id.

        Without a `commit` the package is no longer there. The same arguments give the same id.
        `author` is name and mail; name, mail and trailers may hold any character and are encoded.
        """
        model.package_name(package)
        who = gitobjects.identity(*author, date)
        message = _message(subject, trailers)
        self._change(package, commit, record)
        tree = {
            ".gitmodules": (self._modules_now(), BLOB),
            "packages": (self._packages.store(self._repo), TREE),
            "records": (self._records.store(self._repo), TREE),
        }
        head = [f"tree {store_entries(self._repo, tree).hex()}"]
        head += [f"parent {self.tip}"] if self.tip else []
        text = "\n".join([*head, f"author {who}", f"committer {who}", "", message])
        self.tip = gitobjects.store(self._repo, "commit", text.encode())
        return self.tip

    def _change(self, package: str, commit: str | None, record: Mapping[str, Any]) -> None:
        if commit is None:
            changed = self._packages.drop(package)
            self._records.drop(f"{package}.json")
        else:
            changed = self._packages.put(package, bytes.fromhex(model.commit_id(commit)), GITLINK)
            content = json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
            blob = _store(self._repo, "blob", content.encode())
            self._records.put(f"{package}.json", blob, BLOB)
        if changed:
            self._modules = None

    def _modules_now(self) -> bytes:
        if self._modules is None:
            text = "".join(_module(name) for name in self._packages.names())
            self._modules = _store(self._repo, "blob", text.encode())
        return self._modules


@dataclass(frozen=True)
class Superproject:
    """The bare superproject repository."""

    path: Path

    @classmethod
    def create(cls, path: Path, *, hook: str = "", head: str = "main") -> Self:
        """Make the repository, or bring an existing one up to date; `hook` is its pre-receive.

        Without a hook of the site's there is one that refuses every push.
        """
        if not (path / "HEAD").exists():
            path.mkdir(parents=True, exist_ok=True)
            arguments = ("--template=", "--object-format=sha1", f"--initial-branch={head}")
            git(path, "init", "--quiet", "--bare", *arguments)
        else:
            git(path, "symbolic-ref", "HEAD", gitcmd.ref_name(f"refs/heads/{head}"))
        (path / "hooks").mkdir(exist_ok=True)
        files.write_atomic(path / "config", _CONFIGURATION)
        files.write_atomic(path / "description", "The collection: a branch for each pocket.\n")
        files.write_atomic(path / "hooks/pre-receive", hook or _REFUSE, mode=0o755)
        files.sync_directory(path.parent)
        return cls(path)

    def tip(self, branch: str) -> str | None:
        """The commit that this branch is at; None when it has none yet."""
        with gitobjects.opened(self.path) as repo:
            return _tip(repo, branch)

    def pin(self, branch: str, package: str) -> str | None:
        """The commit of this package that the branch pins."""
        with gitobjects.opened(self.path) as repo:
            entry = _entry(repo, _tip(repo, branch), "packages", model.package_name(package))
            return entry[0].hex() if entry and entry[1] == GITLINK else None

    def pins(self, branch: str) -> dict[str, str]:
        """All pins of a branch: package to commit."""
        with gitobjects.opened(self.path) as repo:
            pins = entries(_folder(_root(repo, _tip(repo, branch)), repo, "packages"))
            return {name: sha.hex() for name, (sha, mode) in pins.items() if mode == GITLINK}

    def record(self, branch: str, package: str) -> dict[str, Any] | None:
        """What is recorded of this package's publication on the branch."""
        name = f"{model.package_name(package)}.json"
        with gitobjects.opened(self.path) as repo:
            entry = _entry(repo, _tip(repo, branch), "records", name)
            return _json(repo, entry[0]) if entry else None

    def record_at(self, commit: str, package: str) -> dict[str, Any] | None:
        """What a commit of the superproject records of this package."""
        name = f"{model.package_name(package)}.json"
        with gitobjects.opened(self.path) as repo:
            entry = _entry(repo, model.commit_id(commit), "records", name)
            return _json(repo, entry[0]) if entry else None

    def records_of(self, branch: str, package: str) -> Iterator[dict[str, Any]]:
        """All records that a package has ever had on the branch, the newest first."""
        tip = self.tip(branch)
        path = f"records/{model.package_name(package)}.json"
        listed = git(self.path, "rev-list", tip, "--", path).text.split() if tip else []
        for commit in listed:
            if record := self.record_at(commit, package):
                yield record

    def record_ids(self, commit: str) -> dict[str, str]:
        """The id of each record's content in a commit, by package: equal ones are equal."""
        with gitobjects.opened(self.path) as repo:
            records = entries(_folder(_root(repo, model.commit_id(commit)), repo, "records"))
            return {name.removesuffix(".json"): sha.hex() for name, (sha, _) in records.items()}

    def date(self, commit: str) -> datetime:
        """When a commit of the superproject was made, in UTC."""
        with gitobjects.opened(self.path) as repo:
            seconds = repo.commit(model.commit_id(commit)).committed_date
        return datetime.fromtimestamp(seconds, UTC)

    def records(self, branch: str) -> dict[str, dict[str, Any]]:
        """All records of a branch, by package."""
        with gitobjects.opened(self.path) as repo:
            records = entries(_folder(_root(repo, _tip(repo, branch)), repo, "records"))
            return {
                name.removesuffix(".json"): _json(repo, sha) for name, (sha, _) in records.items()
            }

    @contextmanager
    def chain(self, parent: str | None) -> Iterator[Chain]:
        """Commits on top of `parent`; their objects are there, synced, once the block is left.

        Objects only: no ref moves.
        """
        with gitobjects.opened(self.path) as repo:
            yield Chain(repo, parent)

    def move(self, branch: str, new: str, old: str | None) -> None:
        """The commit point: move the branch from `old` to `new`, once; synced.

        Fine when it is at `new` already. Raises Moved (code superproject-moved) when it is at
        neither.
        """
        try:
            gitcmd.set_ref(self.path, f"refs/heads/{branch}", new, old)
        except gitcmd.RefMoved as fault:
            raise Moved(str(fault), hint="start the publication again") from fault

    def maintain(self) -> None:
        """Let git pack what has become many files; not while a publication is being made."""
        gitcmd.maintain(self.path)

    def contains(self, branch: str, commit: str) -> bool:
        """Whether the branch has this commit of the superproject in its history."""
        tip = self.tip(branch)
        known = gitcmd.types(self.path, [f"{model.commit_id(commit)}^{{commit}}"])[0]
        return bool(tip and known and gitcmd.is_ancestor(self.path, commit, tip))

    def commits_named(self, branch: str, prefix: str) -> list[str]:
        """The commits in the branch's history whose id starts so."""
        tip = self.tip(branch)
        listed = git(self.path, "rev-parse", f"--disambiguate={prefix}").text.split()
        kinds = gitcmd.types(self.path, listed)
        commits = [found[0] for found in kinds if found and found[1] == "commit"]
        return [c for c in commits if tip and gitcmd.is_ancestor(self.path, c, tip)]

    def commit_before(self, branch: str, date: datetime) -> str | None:
        """The newest commit of the branch that was made at this time or before."""
        tip = self.tip(branch)
        seconds = gitobjects.seconds(date)
        if tip is None or seconds < 0:
            return None
        # --until would read a year after 2099 as now (approxidate).
        return git(self.path, "rev-list", "--max-count=1", f"--min-age={seconds}", tip).text or None

    def trailers(self, commit: str) -> dict[str, str]:
        """The trailers of a commit, as they were given to `Chain.add`."""
        with gitobjects.opened(self.path) as repo:
            return _trailers(str(repo.commit(model.commit_id(commit)).message))

    def content(self, commit: str) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        """Pins and records, by package, as this commit of the superproject has them."""
        with gitobjects.opened(self.path) as repo:
            root = _root(repo, model.commit_id(commit))
            pins = entries(_folder(root, repo, "packages")).items()
            records = entries(_folder(root, repo, "records")).items()
            return (
                {name: sha.hex() for name, (sha, mode) in pins if mode == GITLINK},
                {name.removesuffix(".json"): _json(repo, sha) for name, (sha, _) in records},
            )

    def history(self, branch: str) -> list[Commit]:
        """Every commit of a branch, newest first."""
        name = gitcmd.ref_name(f"refs/heads/{branch}")
        if gitcmd.read_ref(self.path, name) is None:
            return []
        done = git(self.path, "log", "-z", "--format=%H %P%n%ct%n%B", name, "--")
        found = []
        for text in filter(None, done.out.decode("utf-8", "replace").split("\0")):
            head, seconds, message = text.split("\n", 2)
            commit, _, parent = head.partition(" ")
            found.append(
                Commit(
                    id=commit,
                    parent=parent or None,
                    date=datetime.fromtimestamp(int(seconds), UTC),
                    trailers=_trailers(message),
                )
            )
        return found


_CONFIGURATION = """# Written by invirtibuilder; changes are lost.
[core]
\trepositoryFormatVersion = 0
\tfileMode = true
\tbare = true
\tlogAllRefUpdates = false
\thooksPath = hooks
\tfsync = committed,reference
[uploadpack]
\tallowReachableSHA1InWant = true
[receive]
\tfsckObjects = true
\tmaxInputSize = 1048576
"""

_REFUSE = """#!/bin/sh
echo >&2 'refused: nobody pushes to the superproject; use instead:'
echo >&2 'invirtibuilder submit POCKET PACKAGE COMMIT'
exit 1
"""


def _trailers(message: str) -> dict[str, str]:
    lines = message.rstrip("\n").rpartition("\n\n")[2].split("\n")
    found = [_TRAILER.fullmatch(line) for line in lines]
    return {m.group(1): decode(m.group(2)) for m in found if m}


def _tip(repo: Any, branch: str) -> str | None:
    name = gitcmd.ref_name(f"refs/heads/{branch}")
    reference = gitobjects.git.Reference(repo, name)
    if not reference.is_valid():
        # GitPython also calls a ref invalid that it cannot read.
        return gitcmd.read_ref(Path(repo.git_dir), name)
    return str(reference.commit.hexsha)


def _root(repo: Any, commit: str | None) -> bytes:
    return read_tree(repo, repo.commit(commit).tree.binsha) if commit else b""


def _folder(root: bytes, repo: Any, name: str) -> bytes:
    """A tree below the root."""
    found = gitobjects.entry(root, name)
    return read_tree(repo, found[0]) if found and found[1] == TREE else b""


def _entry(repo: Any, commit: str | None, folder: str, name: str) -> gitobjects.Entry | None:
    return gitobjects.entry(_folder(_root(repo, commit), repo, folder), name)


def _json(repo: Any, sha: bytes) -> dict[str, Any]:
    value = json.loads(repo.odb.stream(sha).read())
    if not isinstance(value, dict):
        raise Malformed("a record is not an object")
    return value


def _store(repo: Any, kind: str, data: bytes) -> bytes:
    return bytes.fromhex(gitobjects.store(repo, kind, data))


def _module(name: str) -> str:
    return f'[submodule "{name}"]\n\tpath = packages/{name}\n\turl = ../packages/{name}.git\n'


def _message(subject: str, trailers: Mapping[str, str]) -> str:
    lines = []
    for key, value in trailers.items():
        if not _TRAILER.fullmatch(f"{key}: "):
            raise Malformed(f"not a trailer's name: {key!r}")
        lines.append(f"{key}: {encode(value)}\n")
    return f"{gitobjects.one_line(subject)}\n\n{''.join(lines)}"
