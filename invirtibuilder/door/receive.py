"""The pre-receive hook of the site's repositories: judges a push as a whole.

It gets `OLD NEW REF` lines on standard input, with the new objects in git's quarantine, and ends
with 0 (all of the push is taken) or 1, git's convention, after naming every refusal and what to
push instead.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from invirtibuilder import files, gitcmd
from invirtibuilder.errors import ConfigFault, Fault
from invirtibuilder.gitcmd import MISSING, git
from invirtibuilder.model import printable

MAX_REFS = 20_000
MAX_SHOWN = 50

# Debian Policy 5.6.12 as DEP-14 mangles it.
TAG_VERSION = r"[0-9][A-Za-z0-9.+%_#~-]*"

WITHOUT = "leave the tag out: git push --no-follow-tags origin HEAD"


@dataclass(frozen=True, kw_only=True)
class Update:
    """One ref that a push wants to move."""

    old: str
    new: str
    ref: str

    @property
    def creates(self) -> bool:
        return self.old == MISSING and not self.deletes

    @property
    def deletes(self) -> bool:
        return self.new == MISSING

    @property
    def name(self) -> str:
        """The branch's or tag's name."""
        return self.ref.split("/", 2)[-1]

    def to(self, ref: str) -> str:
        """The command that pushes this update's object to another ref."""
        return f"git push --no-follow-tags origin {shlex.quote(f'{self.new[:16]}:{ref}')}"

    def spec(self) -> str:
        """What `git push` calls this update, whatever the pusher's branches are called."""
        source = "" if self.deletes else self.new[:16]
        return shlex.quote(f"{'' if self.creates else '+'}{source}:{self.ref}")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why one ref may not move, and what to do instead."""

    ref: str
    why: str
    instead: str


@dataclass(frozen=True, kw_only=True)
class Pocket:
    """What a pocket asks of pushes."""

    name: str
    branch: str
    allow_backtracking: bool
    tag_format: str

    @property
    def tag_parts(self) -> tuple[str, str]:
        """What is before and after the version in a version tag's name."""
        before, found, after = self.tag_format.partition("{version}")
        if not found or "{" in before + after:
            raise ConfigFault(f"pocket {self.name}: tag_format needs one {{version}}")
        return before, after


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of one package's repository."""

    repository: Path
    package: str
    superproject: Path
    pockets: Sequence[Pocket]
    env: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def pins(self) -> dict[str, str]:
        """The commit that each pocket without backtracking pins, as far as it is here."""
        pins = {}
        for pocket in self.pockets:
            branch = gitcmd.ref_name(f"refs/heads/{pocket.branch}")
            if pocket.allow_backtracking or not gitcmd.read_ref(self.superproject, branch):
                continue
            path = f"packages/{self.package}"
            entry = git(self.superproject, "ls-tree", "-z", "--full-tree", branch, "--", path)
            if entry.out.startswith(b"160000 commit "):
                pins[pocket.name] = entry.text.split()[2]
        return {name: commit for name, commit in pins.items() if self.commit(commit)}

    def commit(self, oid: str) -> str | None:
        """The commit that this object is or, a tag, names."""
        found = gitcmd.types(self.repository, [f"{oid}^{{commit}}"], env=self.env)[0]
        return found[0] if found else None

    def forward(self, old: str, new: str) -> bool:
        return gitcmd.is_ancestor(self.repository, old, new, env=self.env)

    def judge(self, update: Update) -> Refusal | None:
        """Why this update is refused, if it is."""
        if update.ref.startswith("refs/heads/"):
            return self.head(update)
        if update.ref.startswith("refs/tags/"):
            return self.tag(update)
        if update.ref.startswith("refs/notes/"):
            return None
        return Refusal(
            ref=update.ref,
            why="only branches, tags and notes may be pushed",
            instead="push the commit as a branch: " + update.to("refs/heads/NAME"),
        )

    def head(self, update: Update) -> Refusal | None:
        """Branches: never back behind a commit that a pocket pins; pristine-tar only forward."""
        if update.creates:
            return None
        if update.deletes:
            return self.deleted_head(update)
        if not self.commit(update.new):
            return Refusal(ref=update.ref, why="not a commit", instead="push a commit")
        if self.forward(update.old, update.new):
            return None
        if update.name == "pristine-tar":
            why = "pristine-tar only goes forward: pockets have published tarballs out of it"
        elif lost := self.lost(update):
            why = f"would take what is published in {lost} out of the branch's history"
        else:
            return None
        return Refusal(
            ref=update.ref,
            why=why,
            instead="merge or revert on top of what is here, then: git push origin "
            + shlex.quote(f"HEAD:{update.name}")
            + "; or push a new branch: "
            + update.to(f"{update.ref}-next"),
        )

    def deleted_head(self, update: Update) -> Refusal | None:
        if update.old == MISSING:
            why = "no such branch"
        elif update.name == "pristine-tar":
            why = "pristine-tar stays: pockets have published tarballs out of it"
        elif lost := self.lost(update):
            why = f"the branch stays: what is published in {lost} is in its history"
        else:
            return None
        instead = "push a further commit: git push origin " + shlex.quote(f"HEAD:{update.name}")
        return Refusal(ref=update.ref, why=why, instead=instead)

    def lost(self, update: Update) -> str:
        """The pockets whose pinned commit the branch had, and would have no longer."""
        return " and ".join(
            f"{pocket} ({pin[:12]})"
            for pocket, pin in self.pins.items()
            if self.forward(pin, update.old)
            and (update.deletes or not self.forward(pin, update.new))
        )

    def tag(self, update: Update) -> Refusal | None:
        """Tags: never moved; those of versions come from the daemon."""
        for pocket in self.pockets:
            before, after = pocket.tag_parts
            pattern = re.escape(before) + TAG_VERSION + re.escape(after)
            if re.fullmatch(pattern, update.name):
                if not update.creates and self.same_commit(update):
                    return None
                why = "version tags are made when a pocket publishes the version"
                return Refusal(ref=update.ref, why=why, instead=WITHOUT)
            if before.startswith(update.name + "/") or re.match(pattern + "/", update.name):
                why = f"stands in the way of the version tags {pocket.tag_format}"
                return Refusal(
                    ref=update.ref, why=why, instead=update.to(f"refs/tags/tag-{_flat(update)}")
                )
        if update.creates or update.old == update.new:
            return None
        if update.deletes:
            return Refusal(ref=update.ref, why="tags are never deleted", instead=WITHOUT)
        instead = "make a new tag: " + update.to(f"{update.ref}+ds")
        return Refusal(ref=update.ref, why="tags are never moved", instead=instead)

    def same_commit(self, update: Update) -> bool:
        commit = None if update.deletes else self.commit(update.new)
        return commit is not None and commit == self.commit(update.old)


def _flat(update: Update) -> str:
    return update.name.replace("/", "-")


def updates(lines: Iterable[bytes]) -> list[Update]:
    """The push as git tells it. Raises Fault for a ref that is not UTF-8, and for too many."""
    found = []
    for line in lines:
        old, new, ref = line.rstrip(b"\n").split(b" ", 2)
        try:
            found.append(Update(old=old.decode(), new=new.decode(), ref=ref.decode()))
        except UnicodeDecodeError as error:
            raise Fault(f"not UTF-8: {ref!r}; push it under another name") from error
        if len(found) > MAX_REFS:
            raise Fault(f"more than {MAX_REFS} refs in one push; push some of them at a time")
    return found


def told(refusals: Sequence[Refusal], taken: Sequence[Update]) -> list[str]:
    """The lines that the pusher sees."""
    lines = ["refused; nothing of this push was taken:"]
    for refusal in refusals[:MAX_SHOWN]:
        lines += [f"* {refusal.ref}: {refusal.why}", f"  instead: {refusal.instead}"]
    if len(refusals) > MAX_SHOWN:
        lines.append(f"  and {len(refusals) - MAX_SHOWN} more")
    if taken:
        specs = " ".join(update.spec() for update in taken[:MAX_SHOWN])
        lines += ["the rest can be pushed alone:"]
        lines += [f"  git push --no-follow-tags origin {specs}"]
    return [printable(line) for line in lines]


def pockets(path: Path) -> list[Pocket]:
    """The pockets that the daemon wrote for us."""
    listed = files.read_json(path)["pockets"]
    return [
        Pocket(
            name=name,
            branch=pocket["branch"],
            allow_backtracking=bool(pocket["allow_backtracking"]),
            tag_format=pocket["tag_format"],
        )
        for name, pocket in sorted(listed.items())
    ]


def _as_it_is(update: Update) -> Update:
    # Of a deletion git compares the old value only when it is an object that exists here.
    if not update.deletes:
        return update
    return replace(update, old=gitcmd.read_ref(Path.cwd(), update.ref) or MISSING)


def judged(arguments: argparse.Namespace, lines: Iterable[bytes]) -> list[str]:
    """What to tell the pusher: nothing, when the push is taken."""
    push = [_as_it_is(update) for update in updates(lines)]
    if arguments.superproject_itself:
        instead = "invirtibuilder submit POCKET PACKAGE COMMIT"
        why = "the superproject is written by the daemon alone"
        return told([Refusal(ref=u.ref, why=why, instead=instead) for u in push], [])
    rules = Rules(
        repository=Path.cwd(),
        package=arguments.package,
        superproject=arguments.superproject,
        pockets=pockets(arguments.pockets),
        env=gitcmd.quarantine(),
    )
    verdicts = [(update, rules.judge(update)) for update in push]
    refusals = [refusal for _, refusal in verdicts if refusal]
    return told(refusals, [u for u, r in verdicts if not r]) if refusals else []


def main(argv: Sequence[str] | None = None) -> int:
    """The hook; git runs it in the repository."""
    parser = argparse.ArgumentParser(prog="pre-receive", description=__doc__)
    parser.add_argument("--superproject-itself", action="store_true")
    parser.add_argument("--package", default="")
    parser.add_argument("--superproject", type=Path, default=Path("/nonexistent"))
    parser.add_argument("--pockets", type=Path, default=Path("/nonexistent"))
    arguments = parser.parse_args(argv)
    try:
        lines = judged(arguments, sys.stdin.buffer)
    except (Fault, OSError, KeyError, TypeError, ValueError) as error:
        lines = [printable(f"refused: the push could not be checked: {error}")]
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
