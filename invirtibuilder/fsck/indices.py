"""What clients see of a pocket: signed, whole, reachable by hash, and what the records say."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder import debchanges, files, model
from invirtibuilder.apt.publications import COMPRESSED, Publications
from invirtibuilder.apt.signer import verified
from invirtibuilder.errors import Fault, Malformed
from invirtibuilder.fsck.content import State
from invirtibuilder.fsck.findings import Finding, Memory
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import database as stored
from invirtibuilder.stages import uploads
from invirtibuilder.stages.context import Context, kept_keys, public_key
from invirtibuilder.superproject import Commit

MAX_RELEASE = 16 << 20
FINGERPRINT = 40
"""Digits of a key's."""
Index = Mapping[str, tuple[str, int]]
"""SHA-256 and size by name, as a Release has them."""


def check(context: Context, pocket: Pocket, state: State, memory: Memory) -> Iterator[Finding]:
    """Every kept publication; the current one's content against the records."""
    checker = _Archive(context, pocket, state, memory)
    seen: set[tuple[str, str]] = set()
    for number in checker.publications.numbers():
        yield from checker.publication(number)
        yield from checker.files(number, seen)
    yield from checker.missing()
    yield from checker.current()


def missing(publications: Publications, state: State) -> list[int]:
    """The publications that commits have made, that are to be kept, and are not there.

    One that was only signed again is there in that of the same commit.
    """
    oldest, there = publications.oldest, set(publications.numbers())
    shown = {_commit(publications, number) for number in there}
    return sorted(
        number
        for number, commit in made(state).items()
        if there and number >= oldest and number not in there and commit.id not in shown
    )


def made(state: State) -> dict[int, Commit]:
    """The publications that commits have made, the newest first.

    Each with the newest of its commits, which is what its Release names.
    """
    found: dict[int, Commit] = {}
    for commit in state.history:
        number = commit.trailers.get("Publication", "")
        if number.isdigit():
            found.setdefault(int(number), commit)
    return found


def _commit(publications: Publications, number: int) -> str:
    try:
        return publications.commit(number)
    except (OSError, Fault, ValueError):
        # Another finding says so.
        return ""


@dataclass(frozen=True)
class _Archive:
    """One pocket's archive."""

    context: Context
    pocket: Pocket
    state: State
    memory: Memory

    @property
    def publications(self) -> Publications:
        return self.context.archive(self.pocket).publications

    def found(self, kind: str, what: str, message: str) -> Finding:
        return Finding(kind=kind, pocket=self.pocket.name, what=what, message=message)

    def dist(self, number: int) -> Path:
        return self.publications.path(number) / "dists" / self.pocket.codename

    def publication(self, number: int) -> Iterator[Finding]:
        """Signatures, then each index and its copy by hash."""
        dist, what = self.dist(number), f"publication {number}"
        try:
            release = files.read_capped(dist / "Release", limit=MAX_RELEASE)
            fields = debchanges.paragraph(release)
            signed = debchanges.paragraph(
                files.read_capped(dist / "InRelease", limit=2 * MAX_RELEASE)
            )
            index = read_index(fields)
        except (OSError, Malformed) as error:
            yield self.found("release-differs", what, f"{what}: {error}")
            return
        if signed != fields:
            yield self.found("release-differs", what, f"{what}: InRelease is not its Release")
        yield from self._signatures(number, dist, what)
        yield from self._indices(dist, index, what)
        if not self._empty_still(number) and commit_of(self.state, number, fields) is None:
            message = f"{what}: no commit of the superproject's branch {self.pocket.branch} made it"
            yield self.found("publication-without-commit", what, message)

    def files(self, number: int, seen: set[tuple[str, str]]) -> Iterator[Finding]:
        """Each of the pool's files that a publication names, where and as it names it."""
        for (_, sha256), name in named(self.publications, number, self.memory):
            if (name, sha256) in seen:
                continue
            seen.add((name, sha256))
            try:
                found = self.memory.sha256(files.contained(self.publications.root, name))
            except Malformed as fault:
                yield self.found("index-differs", name, f"publication {number}: {fault}")
                continue
            if not found:
                message = f"{name}, which publication {number} names, is not there"
                yield self.found("file-missing", name, message)
            elif found != sha256:
                message = f"{name} has SHA-256 {found}, publication {number} names {sha256}"
                yield self.found("file-differs", name, message)

    def missing(self) -> Iterator[Finding]:
        """Those that retention has not removed."""
        for number in missing(self.publications, self.state):
            message = f"publication {number}, which is to be kept, is not there"
            yield self.found("publication-missing", str(self.publications.path(number)), message)

    def _empty_still(self, number: int) -> bool:
        """Whether it is of before the pocket's first commit: the first one, or signed again."""
        first = self.state.history[-1].trailers.get("Publication", "") if self.state.history else ""
        return number == 1 or (number < int(first) if first.isdigit() else not self.state.history)

    def _signatures(self, number: int, dist: Path, what: str) -> Iterator[Finding]:
        """By a key that signs now; an older publication may be of one that no longer does."""
        key = public_key(self.context.site, self.pocket)
        kept = kept_keys(self.context.site, self.pocket)
        ours = set(self.context.signer(self.pocket).keys)
        for name, more in (("InRelease", []), ("Release.gpg", [dist / "Release"])):
            path = dist / name
            signers = self._signers(path, key, more)
            if signers & ours:
                continue
            if signers and number != self._current():
                # A key that is not known has its short id only.
                if any(len(signer) == FINGERPRINT for signer in self._signers(path, kept, more)):
                    continue
                message = (
                    f"{what}: {name} is signed by {' '.join(sorted(signers))}, not in {kept.name}"
                )
                yield self.found("not-comparable", str(path), message)
            else:
                message = f"{what}: {name} is not signed by {' '.join(ours)} as in {key.name}"
                yield self.found("signature-bad", str(path), message)

    def _signers(self, path: Path, key: Path, more: list[Path]) -> set[str]:
        """Whose signatures these are, as `verified` says it."""

        def prove() -> str:
            content = more[0].read_bytes() if more else None
            return " ".join(verified(key.read_bytes(), path.read_bytes(), content))

        return set(self.memory.proven(path, prove, key, *more).split())

    def _current(self) -> int | None:
        try:
            return self.publications.current()
        except (OSError, ValueError):
            return None

    def _indices(self, dist: Path, index: Index, what: str) -> Iterator[Finding]:
        store = self.publications.root / "by-hash" / "SHA256"
        for name, (sha256, _) in sorted(index.items()):
            path = dist / name
            if not path.is_file():
                # An uncompressed one may be named only.
                if not any(name + suffix in index for suffix in COMPRESSED):
                    yield self.found("index-missing", str(path), f"{what}: {name} is missing")
                continue
            if self.memory.sha256(path) != sha256:
                message = f"{what}: {name} is not what its Release names"
                yield self.found("index-differs", str(path), message)
            by_hash = path.parent / "by-hash" / "SHA256" / sha256
            if not by_hash.is_file():
                yield self.found("by-hash-missing", str(by_hash), f"{what}: {name} by its hash")
            elif self.memory.sha256(store / sha256) != sha256:
                message = f"{what}: {name} by its hash has another content"
                yield self.found("by-hash-differs", str(store / sha256), message)

    def current(self) -> Iterator[Finding]:
        """Clients see the newest publication, and in it what is recorded."""
        link = self.publications.root / "dists"
        number = self._current()
        if number is None or not link.is_dir():
            yield self.found("current-missing", str(link), f"{link} names no publication")
            return
        try:
            release = files.read_capped(self.dist(number) / "Release", limit=MAX_RELEASE)
            fields = debchanges.paragraph(release)
            index = read_index(fields)
        except (OSError, Malformed):
            # Said of the publication.
            return
        commit = commit_of(self.state, number, fields)
        if self.state.tip and commit != self.state.tip:
            message = f"publication {number} is of {commit}, the branch is at {self.state.tip}"
            yield self.found("current-differs", str(link), message)
        yield from self._content(number, index)

    def _content(self, number: int, index: Index) -> Iterator[Finding]:
        listed = dict(listed_files(self.dist(number), index))
        recorded = recorded_files(self.state)
        for (name, sha256), package in sorted(recorded.items()):
            if (name, sha256) not in listed:
                message = f"{package}: {name} ({sha256[:12]}) is not in publication {number}"
                yield self.found("not-listed", name, message)
        for (name, sha256), path in sorted(listed.items()):
            if (name, sha256) not in recorded:
                message = f"{path} ({sha256[:12]}) of publication {number} is in no record"
                yield self.found("listed-without-record", name, message)


def named(
    publications: Publications, number: int, memory: Memory
) -> list[tuple[tuple[str, str], str]]:
    """Name, SHA-256 and place of each file that a publication names; none when it is damaged."""
    dist = publications.path(number) / "dists" / publications.codename
    found: list[tuple[tuple[str, str], str]] = []
    try:
        release = files.read_capped(dist / "Release", limit=MAX_RELEASE)
        for name, (sha256, size) in read_index(debchanges.paragraph(release)).items():
            key = f"{name} {sha256}"
            if key not in memory.listed and (dist / name).is_file():
                memory.listed[key] = list(listed_files(dist, {name: (sha256, size)}))
            found += memory.listed.get(key, [])
    except (OSError, Malformed):
        # Another finding says so.
        return []
    return found


def listed(context: Context, pocket: Pocket, number: int) -> dict[tuple[str, str], str]:
    """Where in the pool each file is that a publication names, by name and SHA-256."""
    dist = context.archive(pocket).publications.path(number) / "dists" / pocket.codename
    fields = debchanges.paragraph(files.read_capped(dist / "Release", limit=MAX_RELEASE))
    return dict(listed_files(dist, read_index(fields)))


def of_publication(
    context: Context, pocket: Pocket, state: State, memory: Memory, number: int
) -> Iterator[Finding]:
    """What is wrong with one publication by itself."""
    return _Archive(context, pocket, state, memory).publication(number)


def newest(context: Context, pocket: Pocket, state: State) -> int | None:
    """The publication of the branch's newest commit; of an empty branch the newest one."""
    publications = context.archive(pocket).publications
    for number in reversed(publications.numbers()):
        release = publications.path(number) / "dists" / pocket.codename / "Release"
        try:
            fields = debchanges.paragraph(files.read_capped(release, limit=MAX_RELEASE))
        except (OSError, Malformed):
            continue
        if commit_of(state, number, fields) == state.tip:
            return number
    return None


def commit_of(state: State, number: int, fields: Mapping[str, str]) -> str | None:
    """The newest superproject commit that a publication with this Release belongs to."""
    named = fields.get("superproject-commit")
    for commit in state.history:
        if commit.id == named or (
            named is None and commit.trailers.get("Publication") == str(number)
        ):
            return commit.id
    return None


def recorded_files(state: State) -> dict[tuple[str, str], str]:
    """The package of each recorded file, by name and SHA-256; those that APT is to have."""
    return {
        (str(file["name"]), str(file["sha256"])): package
        for package, record in state.records.items()
        for file in uploads.published_files(record)
    }


def read_index(fields: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """The files that a Release names, with SHA-256 and size. Raises Malformed."""
    index = {}
    for line in fields.get("sha256", "").split("\n"):
        words = line.split()
        if len(words) == 3 and words[1].isdigit():
            files.contained(Path("/"), words[2])
            index[words[2]] = (model.matching(model.SHA256, words[0], "SHA-256"), int(words[1]))
    return index


def listed_files(dist: Path, index: Index) -> Iterator[tuple[tuple[str, str], str]]:
    """Name and SHA-256 of each file in the pool that the uncompressed indices name, and where."""
    for name in index:
        path = dist / name
        if not path.is_file():
            continue
        if path.name == "Packages":
            for stanza in stanzas(path):
                filename = stanza.get("filename", "")
                yield (filename.rpartition("/")[2], stanza.get("sha256", "")), filename
        elif path.name == "Sources":
            for stanza in stanzas(path):
                for line in stanza.get("checksums-sha256", "").split("\n"):
                    words = line.split()
                    if len(words) == 3:
                        yield (words[2], words[0]), f"{stanza.get('directory', '')}/{words[2]}"


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The paragraphs of an index, field names in lower case."""
    fields: dict[str, str] = {}
    name = ""
    for line in _lines(path):
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif line[0] in " \t":
            fields[name] = fields.get(name, "") + "\n" + line.strip()
        else:
            name, _, value = line.partition(":")
            name = name.lower()
            fields[name] = value.strip()
    if fields:
        yield fields


def _lines(path: Path) -> Iterator[str]:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as stream:
            yield from stream
    else:
        with path.open(encoding="utf-8", errors="replace") as stream:
            yield from stream


def database(context: Context, pocket: Pocket, state: State, lock_fd: int) -> Iterator[Finding]:
    """reprepro's database is sound and has what the records have; the pocket's lock is held."""
    reprepro = context.archive(pocket).reprepro
    for what, message in stored.wrong(reprepro, state.records, lock_fd=lock_fd):
        yield Finding(kind="database-differs", pocket=pocket.name, what=what, message=message)
