"""A package's git repository: made by us, written by pushes, read as hostile content."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from invirtibuilder import files, gitcmd, gitobjects, gitshared, model
from invirtibuilder.errors import Fault, MachineFault, Malformed, NotFound
from invirtibuilder.gitcmd import git
from invirtibuilder.run import ProcessFault

KEPT = "refs/invirtibuilder/"
"""Where our own refs are: fetched by anybody, pushed by nobody."""

JOBS = f"{KEPT}jobs/"
"""Where they are that hold a job's objects until it is over, below the job's id."""

FORWARD = "branches that are here move only forward, and tags stay: push the others by themselves"
FETCHED = ("From ", " * ", " = ", "   ", " t ")
"""How git-fetch(1) begins a line about a ref that can be taken."""
WHOLE = "the repository must be whole (not shallow), of SHA-1 objects, and pass git fsck --strict"

IMPORT_TIMEOUT = 3600.0

_SHORT = re.compile(r"[0-9a-f]{4,39}")


@dataclass(frozen=True)
class Repository:
    """A bare repository of the site's."""

    path: Path

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        hook: Sequence[str] | None,
        max_size: int,
        description: str = "",
        head: str = "main",
        shared: bool = False,
    ) -> Self:
        """Make the repository, or bring an existing one's configuration and hook up to date.

        `hook` is the argv of the pre-receive program; `max_size` bounds one push, in bytes;
        `head` is the branch that a clone checks out, when the repository is new. A `shared` one
        is pushed to by another account: see `gitshared`.
        """
        head_ref = gitcmd.ref_name(f"refs/heads/{head}")
        if not (path / "HEAD").exists():
            path.mkdir(parents=True, exist_ok=True)
            arguments = ("--template=", "--object-format=sha1", f"--initial-branch={head}")
            git(path, "init", "--quiet", "--bare", *arguments)
            git(path, "symbolic-ref", "HEAD", head_ref)
        for folder in ("hooks", "info", "objects/info", "refs/heads", "refs/tags"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        (path / "objects/info/alternates").unlink(missing_ok=True)
        files.write_atomic(path / "config", configuration(max_size, shared=shared))
        files.write_atomic(path / "description", model.printable(description) + "\n")
        pre_receive = path / "hooks/pre-receive"
        if hook:
            line = "exec " + shlex.join(hook)
            files.write_atomic(pre_receive, f"#!/bin/sh\n{line}\n", mode=0o755)
        else:
            pre_receive.unlink(missing_ok=True)
        files.sync_tree(path / "refs")
        files.sync_directory(path.parent)
        return cls(path)

    def resolve(self, committish: str) -> str:
        """The full id of the one commit that this id, short id, tag or branch names.

        `refs/tags/NAME` and `refs/heads/NAME` say which of two is meant; git's suffixes (`~1`,
        `^`) are not looked at. Raises NotFound, with codes commit-unknown, commit-ambiguous,
        commit-not-a-commit; Malformed for what cannot be a name.
        """
        name = model.committish(committish)
        found = self._candidates(name)
        peeled = gitcmd.types(self.path, [f"{oid}^{{commit}}" for oid in found.values()])
        commits = {
            label: kind[0] for label, kind in zip(found, peeled, strict=True) if kind is not None
        }
        if len(set(commits.values())) == 1:
            return next(iter(commits.values()))
        if commits:
            listed = ", ".join(f"{label} is {oid[:12]}" for label, oid in commits.items())
            raise NotFound(
                f"{name!r} is ambiguous: {listed}",
                code="commit-ambiguous",
                hint="give the full commit id, or refs/tags/NAME or refs/heads/NAME",
            )
        if found:
            kinds = {t[1] for t in gitcmd.types(self.path, list(found.values())) if t}
            raise NotFound(
                f"{name!r} names no commit but a {' and a '.join(sorted(kinds))}",
                code="commit-not-a-commit",
                hint="give a commit id, a tag or a branch",
            )
        raise NotFound(
            f"no commit {name!r} in {self.path.name}",
            code="commit-unknown",
            hint="git push it first; tags and branches are named as they are on the server",
        )

    def _candidates(self, name: str) -> dict[str, str]:
        """Object ids by what a person would call them."""
        if model.COMMIT.fullmatch(name.lower()):
            known = gitcmd.types(self.path, [name.lower()])[0]
            return {f"object {name.lower()}": known[0]} if known else {}
        refs = [f"refs/tags/{name}", f"refs/heads/{name}"]
        if name.startswith(("refs/tags/", "refs/heads/")):
            refs.append(name)
        found = {}
        for ref in refs:
            if oid := self.ref(ref) if _is_ref(ref) else None:
                found[ref] = oid
        if _SHORT.fullmatch(name.lower()):
            listed = git(self.path, "rev-parse", f"--disambiguate={name.lower()}").text.split()
            kinds = gitcmd.types(self.path, listed)
            named = [k for k in kinds if k and k[1] in ("commit", "tag")] or [k for k in kinds if k]
            found |= {f"{kind} {oid}": oid for oid, kind in named}
        return found

    def reachable(self, commit: str) -> bool:
        """Whether a head, a tag or a kept ref of this repository has the commit in its history."""
        commit = model.commit_id(commit)
        if not gitcmd.types(self.path, [f"{commit}^{{commit}}"])[0]:
            return False
        refs = ("--branches", "--tags", f"--glob={KEPT}*")
        return not git(self.path, "rev-list", "--max-count=1", commit, "--not", *refs).out

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Whether `descendant` has `ancestor` in its history, or is that commit."""
        return gitcmd.is_ancestor(self.path, model.commit_id(ancestor), model.commit_id(descendant))

    def blob(self, commit: str, path: str, limit: int) -> bytes | None:
        """The raw content of a file of a commit, no attribute applied; None when there is none.

        Raises Malformed for a symbolic link, directory or submodule at `path`, and for a file
        larger than `limit` bytes.
        """
        args = ("ls-tree", "-z", "-l", "--full-tree", model.commit_id(commit), "--", path)
        entries = [e for e in git(self.path, *args).out.split(b"\0") if e]
        if not entries:
            return None
        facts, _, name = entries[0].partition(b"\t")
        mode, kind, oid, size = facts.decode().split()
        if len(entries) != 1 or name != path.encode():
            raise Malformed(f"not one file: {path!r}", code="bad-file")
        if kind != "blob" or not mode.startswith("100"):
            what = "a symbolic link" if mode == "120000" else f"a {kind}"
            raise Malformed(f"{path} is {what}, not a file", code="not-a-file")
        if int(size) > limit:
            raise Malformed(f"{path} is larger than {limit} bytes", code="file-too-large")
        return git(self.path, "cat-file", "blob", oid, output_limit=limit).out

    def tree(self, commit: str) -> str:
        """The id of a commit's tree."""
        found = gitcmd.types(self.path, [f"{model.commit_id(commit)}^{{tree}}"])[0]
        if not found:
            raise NotFound(f"no commit {commit} in {self.path.name}", code="commit-unknown")
        return found[0]

    def ref(self, name: str) -> str | None:
        """The id of the object that this ref (full name) names, a tag not peeled."""
        return gitcmd.read_ref(self.path, name)

    def peeled(self, name: str) -> str | None:
        """The id of the commit that this ref names; None without a ref, or when it is none."""
        oid = self.ref(name)
        found = gitcmd.types(self.path, [f"{oid}^{{commit}}"])[0] if oid else None
        return found[0] if found else None

    def commits_of(self, objects: Sequence[str]) -> list[str | None]:
        """The commit that each object is or, a tag, is of; None for what is none."""
        peeled = gitcmd.types(self.path, [f"{oid}^{{commit}}" for oid in objects])
        return [found[0] if found else None for found in peeled]

    def refs(self, prefix: str) -> dict[str, str]:
        """All refs below `prefix` (`refs/tags/`), by full name, not peeled."""
        return gitcmd.read_refs(self.path, prefix)

    def set_ref(self, name: str, new: str | None, old: str | None) -> None:
        """Move a ref from `old` to `new`; fine when it is at `new` already.

        None is "no ref". Raises gitcmd.RefMoved (code ref-moved) when it is at neither.
        """
        gitcmd.set_ref(self.path, name, new, old)

    def set_refs(self, moves: Mapping[str, gitcmd.Move]) -> None:
        """The same for several (name to old and new), as one where none has been moved yet."""
        gitcmd.set_refs(self.path, moves)

    def sync_refs(self, names: Iterable[str]) -> None:
        """Make refs that are there survive a power cut."""
        gitcmd.sync_refs(self.path, names)

    def keep(self, ref: str, object_id: str) -> None:
        """Hold an object by a ref of ours, from now on, whatever is pushed.

        Raises gitcmd.RefMoved when the ref holds something else already.
        """
        self.set_ref(_kept(ref), object_id, None)

    def hold(self, below: str, objects: Mapping[str, str]) -> None:
        """Hold exactly these objects by refs of ours, `below`/NAME each.

        What else was held there is let go.
        """
        there = self.refs(f"{_kept(below)}/")
        wanted = {_kept(f"{below}/{name}"): target for name, target in objects.items()}
        names = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
        self.set_refs({name: (there.get(name), wanted.get(name)) for name in names})
        self.sync_refs(wanted)

    def unkeep(self, ref: str) -> None:
        """Let go of what a ref of ours holds; no error when it is gone."""
        if held := self.ref(_kept(ref)):
            self.set_ref(ref, None, held)

    def tag_object(
        self,
        name: str,
        commit: str,
        message: str,
        tagger_name: str,
        tagger_mail: str,
        date: datetime,
    ) -> str:
        """Write an annotated tag as an object, no ref; the same arguments give the same id."""
        gitcmd.ref_name(f"refs/tags/{name}")
        text = "".join(c for c in message if c == "\n" or c.isprintable()).strip() + "\n"
        data = (
            f"object {model.commit_id(commit)}\ntype commit\ntag {name}\n"
            f"tagger {gitobjects.identity(tagger_name, tagger_mail, date)}\n\n{text}"
        )
        with gitobjects.opened(self.path) as repo:
            return gitobjects.store(repo, "tag", data.encode("utf-8", "backslashreplace"))

    def write_commit(
        self,
        content: Mapping[str, bytes],
        *,
        executable: Collection[str] = (),
        parent: str | None,
        message: str,
        name: str,
        mail: str,
        date: datetime,
    ) -> str:
        """Write a commit that has exactly these files, by path, and no ref for it; its id."""
        who = gitobjects.identity(name, mail, date)
        with gitobjects.opened(self.path) as repo:
            blobs = {
                path: (
                    bytes.fromhex(gitobjects.store(repo, "blob", data)),
                    0o100755 if path in executable else 0o100644,
                )
                for path, data in content.items()
            }
            head = [f"tree {gitobjects.store_tree(repo, blobs).hex()}"]
            head += [f"parent {model.commit_id(parent)}"] if parent else []
            text = "\n".join([*head, f"author {who}", f"committer {who}", "", message])
            return gitobjects.store(repo, "commit", text.encode())

    def maintain(self) -> None:
        """Let git pack what has become many files; not while a publication is being made."""
        gitcmd.maintain(self.path)

    def bundle(self, path: Path, refs: Mapping[str, str]) -> None:
        """Write a git bundle with these refs (full name to object id) and all of their history.

        The refs exist only in the bundle. Raises NotFound when an object is missing.
        """
        with tempfile.TemporaryDirectory(prefix=".bundle.", dir=path.parent) as temporary:
            scratch = Path(temporary, "scratch.git")
            scratch.mkdir()
            git(scratch, "init", "--quiet", "--bare", "--template=", "--object-format=sha1")
            (scratch / "objects/info").mkdir(exist_ok=True)
            alternates = scratch / "objects/info/alternates"
            alternates.write_text(f"{(self.path / 'objects').absolute()}\n")
            for oid, kind in zip(
                refs.values(), gitcmd.types(scratch, list(refs.values())), strict=True
            ):
                if kind is None:
                    raise NotFound(f"no object {oid} in {self.path.name}", code="commit-unknown")
            moves = "".join(
                f"create {gitcmd.ref_name(ref)} {model.commit_id(oid)}\n"
                for ref, oid in refs.items()
            )
            git(scratch, "update-ref", "--stdin", stdin=moves.encode())
            made = Path(temporary, "bundle")
            git(scratch, "bundle", "create", "--quiet", made, *refs, timeout=IMPORT_TIMEOUT)
            listed = git(scratch, "bundle", "list-heads", made).text.split("\n")
            if {tuple(line.split(" ", 1)) for line in listed} != {(o, r) for r, o in refs.items()}:
                raise MachineFault("git wrote a bundle with other refs than asked for")
            made.rename(path)

    def import_from(self, source: Path) -> None:
        """Take over all heads and tags of a local repository, its objects checked.

        Refs that are here already move only forward; the branch that `source` has checked out
        becomes the one that a clone gets. Raises Malformed with what git did not like.
        """
        source = source.absolute()
        if not source.is_dir():
            raise NotFound(f"no git repository {source}", code="no-repository")
        with tempfile.TemporaryDirectory(prefix="invirtibuilder-import.") as temporary:
            # Whoever owns the source: it was named by the one who runs this, and is only read.
            trust = Path(temporary, "gitconfig")
            owned = "".join(f"\tdirectory = {_quoted(str(source / d))}\n" for d in ("", ".git"))
            trust.write_text(f"[safe]\n{owned}")
            env = {"GIT_CONFIG_GLOBAL": str(trust)}
            try:
                self._fetch(source, env)
            except ProcessFault as fault:
                lines = fault.done.err.decode("utf-8", "replace").splitlines()
                told = [line.strip() for line in lines if not line.startswith(FETCHED)]
                rejected = any(line.startswith("! ") for line in told)
                raise Malformed(
                    f"{source} cannot be imported: " + "\n".join(told).strip()[-2000:],
                    code="import",
                    hint=FORWARD if rejected else WHOLE,
                ) from fault

    def _fetch(self, source: Path, env: Mapping[str, str]) -> None:
        specs = ("refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*")
        # Without --quiet, which would leave out the refs that are rejected.
        flags = ("--atomic", "--no-tags", "--no-write-fetch-head", "--no-auto-gc")
        git(
            self.path,
            "fetch",
            *flags,
            "--no-recurse-submodules",
            f"file://{source}",
            *specs,
            env=env,
            options=("fetch.fsckObjects=true",),
            timeout=IMPORT_TIMEOUT,
        )
        there = git(self.path, "ls-remote", "--symref", f"file://{source}", env=env).text
        self._all_arrived(source, there)
        shown = re.match(r"ref: (refs/heads/\S+)\tHEAD\n", there)
        if shown and self.ref(shown.group(1)):
            head = gitshared.head(self.path)
            git(self.path, "symbolic-ref", head, gitcmd.ref_name(shown.group(1)))

    def _all_arrived(self, source: Path, there: str) -> None:
        # git leaves out, without an error, what it would have to be shallow for.
        here = self.refs("refs/")
        wanted = re.findall(r"^([0-9a-f]+)\t(refs/(?:heads|tags)/.*?)(?<!\^\{\})$", there, re.M)
        missing = [name for oid, name in wanted if here.get(name) != oid]
        if missing or not wanted:
            raise Malformed(
                f"{source} cannot be imported: "
                + (f"git did not take {missing[0]}" if missing else "it has no branch"),
                code="import",
                hint=WHOLE,
            )


def configuration(max_size: int, *, shared: bool = False) -> str:
    """The configuration file of a repository that takes pushes of at most `max_size` bytes.

    When it is `shared` these are another account's.
    """
    sections: dict[str, dict[str, str]] = {
        "core": {
            "repositoryFormatVersion": "0",
            "fileMode": "true",
            "bare": "true",
            "logAllRefUpdates": "false",
            # Here, so that no pusher's own configuration says otherwise.
            "hooksPath": "hooks",
            "fsync": "committed,reference",
        },
        "transfer": {"fsckObjects": "true"},
        "receive": {
            "fsckObjects": "true",
            "maxInputSize": str(max_size),
            "denyCurrentBranch": "refuse",
            "advertisePushOptions": "false",
        },
        # A submodule's pinned commit may be one that only a kept ref holds.
        "uploadpack": {"allowReachableSHA1InWant": "true", "allowTipSHA1InWant": "true"},
    }
    for section, values in gitshared.SETTINGS.items() if shared else ():
        sections.setdefault(section, {}).update(values)
    text = "# Written by invirtibuilder; changes are lost.\n"
    for section, values in sections.items():
        text += f"[{section}]\n" + "".join(f"\t{k} = {v}\n" for k, v in values.items())
    return text


def _quoted(text: str) -> str:
    if any(ord(c) < 32 for c in text):
        raise Malformed(f"not a usable path: {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_ref(name: str) -> bool:
    try:
        gitcmd.ref_name(name)
    except Fault:
        return False
    return True


def _kept(ref: str) -> str:
    if not ref.startswith(KEPT):
        raise Malformed(f"not a ref of ours: {ref!r}", code="bad-ref")
    return gitcmd.ref_name(ref)
