"""What comes and goes in one of reprepro's transactions, with as few of its calls as can be."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from debian.deb822 import Changes

from invirtibuilder import files, model
from invirtibuilder.apt.exported import Expected, clash
from invirtibuilder.apt.reprepro import Entry, Reprepro, refusal
from invirtibuilder.errors import MachineFault, Malformed
from invirtibuilder.run import Done

CHANGES_LIMIT = 4 << 20

MANY = 200
"""Names from which on the whole content is listed: a formula of more is not worth it."""

PACKAGES = (".deb", ".udeb")


@dataclass(frozen=True, kw_only=True)
class _Added:
    """What an include was to bring, and what reprepro said to it."""

    source: str
    version: str
    wanted: Mapping[str, str]
    done: Done


class Exchange:
    """Sources that are replaced, added or taken out together, in an open transaction.

    `sources` has the names of the binary packages that are to come with each source, none for
    one that goes. Everything that is there of these sources is taken out at once, so that their
    versions may go backwards and no binary stays that a source has no more. Nothing of those in
    `upgraded`: each of their binary packages comes again, with a higher version, and reprepro
    replaces it. With `take_over` what comes is taken out of other sources, too. Then `add` each
    that comes, and `prove` the whole. Raises MachineFault, also without a transaction; then
    restore.
    """

    def __init__(
        self,
        archive: Reprepro,
        sources: Mapping[str, Collection[str]],
        *,
        upgraded: Collection[str] = (),
        take_over: bool = False,
        lock_fd: int,
    ) -> None:
        if not archive.is_open():
            raise MachineFault(f"{archive.root.name}: no archive transaction is open")
        self._archive = archive
        self._sources = frozenset(map(model.package_name, sources))
        self._lock_fd = lock_fd
        self._added: list[_Added] = []
        self._taken: set[str] = set()
        others = {name: sources[name] for name in self._sources - set(upgraded)}
        binaries = {name for names in others.values() for name in names}
        there = self._listed(others, binaries) if others else []
        if gone := sorted({e.source for e in there if e.source in self._sources}):
            self._call("removesrcs", archive.codename, *gone)
        have = [e for e in there if e.architecture != "source"]
        # What a source of these gives up is nobody's: it may come back to another.
        have = [e for e in have if e.source not in self._sources or e.package in sources[e.source]]
        if take_over:
            have = self._taken_out(have, binaries)
        # The source and version that each binary package is of, as it becomes with each step.
        self._owners = {e.package: (e.source, e.source_version) for e in have}

    def _taken_out(self, have: Sequence[Entry], binaries: Collection[str]) -> list[Entry]:
        """Take these binary packages out of other sources; the rest.

        reprepro would replace those of a lower version only.
        """
        lost = [e for e in have if e.source not in self._sources and e.package in binaries]
        pairs = sorted(
            {(model.package_name(e.package), model.package_name(e.source)) for e in lost}
        )
        if pairs:
            where = " | ".join(f"(Package (== {p}), $Source (== {s}))" for p, s in pairs)
            self._call("removefilter", self._archive.codename, where)
        self._taken = {package for package, _ in pairs}
        return [e for e in have if e not in lost]

    def _listed(self, sources: Collection[str], binaries: Collection[str] = ()) -> list[Entry]:
        """What there is of these sources, and of these binary packages."""
        formula = [f"$Source (== {name})" for name in sorted(sources)]
        formula += [f"Package (== {model.package_name(name)})" for name in sorted(binaries)]
        where = " | ".join(formula) if len(formula) < MANY else ""
        return self._archive.listing(lock_fd=self._lock_fd, where=where)

    def add(self, changes: Path, source: str, version: str) -> None:
        """Add the source and binaries of a .changes.

        A binary package that another source has is refused.
        Raises PackageFault with reprepro's reason, Malformed, or MachineFault.
        """
        if source not in self._sources:
            raise Malformed(f"{source} was not to be exchanged")
        wanted = read_changes(changes, source, version)
        names = {n.split("_")[0] for n in wanted if n.endswith(PACKAGES)}
        self._refuse_clash(names, source)
        done = self._call("include", self._archive.codename, str(changes))
        self._owners = {name: of for name, of in self._owners.items() if of[0] != source}
        self._owners |= dict.fromkeys(names, (source, version))
        self._added.append(_Added(source=source, version=version, wanted=wanted, done=done))

    def _refuse_clash(self, names: Collection[str], source: str) -> None:
        clashes = sorted(
            f"{name} belongs to {' '.join(self._owners[name])}"
            for name in names
            if name in self._owners and self._owners[name][0] != source
        )
        if clashes:
            raise clash(clashes)

    def prove(self) -> None:
        """See that all of it came about: reprepro's exit code 0 does not say so.

        Each file that was added is listed and in the pool with its SHA-256, and synced; nothing
        else of these sources is listed. Raises PackageFault with what reprepro said, or
        MachineFault.
        """
        listed = [e for e in self._listed(self._sources) if e.source in self._sources]
        paths = set()
        for added in self._added:
            entries = [
                e for e in listed if (e.source, e.source_version) == (added.source, added.version)
            ]
            paths |= set(self._proved(added, entries))
        expected = {(added.source, added.version) for added in self._added}
        for entry in listed:
            if (entry.source, entry.source_version) not in expected:
                raise MachineFault(
                    f"{self._archive.root.name}: reprepro did not remove"
                    f" {entry.package} {entry.version} of {entry.source}",
                    code="reprepro-kept",
                )
        folders = {parent for path in paths for parent in path.parents}
        files.sync_all([*paths, *(f for f in folders if f.is_relative_to(self._archive.root))])

    @property
    def expected(self) -> Expected:
        """How what is exported may differ from what was published before."""
        wanted = {name: sha256 for each in self._added for name, sha256 in each.wanted.items()}
        return Expected(sources=self._sources, added=wanted, taken=self._taken)

    def _proved(self, added: _Added, entries: Sequence[Entry]) -> Iterator[Path]:
        """The pool's file for each wanted name; raises when one is not listed or differs."""
        sources = [e.filename.rpartition("/")[0] for e in entries if e.architecture == "source"]
        for name, sha256 in added.wanted.items():
            if name.endswith(PACKAGES):
                architecture = name.rpartition(".")[0].rpartition("_")[2]
                every = self._archive.architectures
                indices = every if architecture == "all" else (architecture,)
                paths = [self._entry(entries, name, i, sha256, added.done) for i in indices]
            elif name.endswith(".dsc"):
                paths = [self._entry(entries, name, "source", "", added.done)]
            else:
                paths = [f"{folder}/{name}" for folder in sources] or [""]
            for path in paths:
                yield self._in_pool(path, name, sha256, added.done)

    def _entry(
        self, entries: Sequence[Entry], name: str, index: str, sha256: str, done: Done
    ) -> str:
        for entry in entries:
            if entry.filename.endswith(f"/{name}") and entry.architecture == index:
                if entry.sha256 == sha256:
                    return entry.filename
                raise refusal(done, f"{name} is listed with other content")
        raise refusal(done, f"{name} was not taken into {self._archive.codename} ({index})")

    def _in_pool(self, path: str, name: str, sha256: str, done: Done) -> Path:
        file = self._archive.root / path
        if not path or not file.is_file():
            raise refusal(done, f"{name} did not come into the pool")
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise MachineFault(f"{path} in the pool has SHA-256 {found}, not {sha256}")
        return file

    def _call(self, action: str, *args: str) -> Done:
        return self._archive.call(action, *args, lock_fd=self._lock_fd)


def read_changes(path: Path, source: str, version: str) -> dict[str, str]:
    """File names and SHA-256 of a .changes for that source and version, .buildinfo left out.

    Raises Malformed for any other, for names that are no plain file names and for none at all.
    """
    changes = Changes(files.read_capped(path, limit=CHANGES_LIMIT))
    if (changes.get("Source"), changes.get("Version")) != (source, version):
        raise Malformed(f"{path.name}: not the .changes of {source} {version}")
    wanted = {
        model.matching(model.FILE_NAME, item["name"], "file name"): model.matching(
            model.SHA256, item["sha256"], "SHA-256"
        )
        for item in changes.get("Checksums-Sha256", [])
        if not item["name"].endswith(".buildinfo")
    }
    if not wanted:
        raise Malformed(f"{path.name}: lists no files")
    return wanted
