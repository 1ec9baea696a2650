"""Publications: what clients see of a pocket, immutable, signed, switched at once.

A client asks for InRelease first and for the indices it names afterwards, by their hash. All
publications share one store of indices by hash, so an index stays reachable as long as any kept
publication names it, wherever `dists` points by then. `dists`, `pool` and `by-hash` are symbolic
links within the pocket's directory, which the web server must follow.
"""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from debian.deb822 import Release

from invirtibuilder import files, model
from invirtibuilder.apt.release import COMMIT, release_text
from invirtibuilder.errors import MachineFault

KEEP_SECONDS = 24 * 3600
"""How long a publication is kept after it was superseded, at least."""

KEEP_COUNT = 3
"""How many states before the present one are kept, at least."""

MAX_AHEAD = 5.0
"""Seconds that a Date may be ahead of the clock: APT's Acquire::Max-FutureTime is 10."""

RELEASE_LIMIT = 16 << 20
COMPRESSED = (".gz", ".xz", ".bz2")
PACKED = ("/Packages", "/Sources")
LEVEL = 4
"""Of gzip(1): 6 makes indices that are smaller by a third of a percent, and takes half as long
again."""
NUMBER = re.compile(r"[0-9]{8}")

Prove = Callable[[Path, Path | None], None]
"""Given a publication's indices and those of the one before, raises what is wrong with them."""

Sign = Callable[[bytes], tuple[bytes, bytes]]
"""From the bytes of a Release file to those of InRelease and Release.gpg."""


@dataclass(frozen=True, kw_only=True)
class Publications:
    """The publications of one pocket, in `root`/publications; its lock is held by the caller."""

    root: Path
    codename: str

    @property
    def _all(self) -> Path:
        return self.root / "publications"

    @property
    def _store(self) -> Path:
        return self.root / "by-hash" / "SHA256"

    @property
    def _signed(self) -> Path:
        """Its time is the Date that was given to be signed last; may be gone after a power cut."""
        return self.root / "private" / "signed"

    @property
    def _oldest(self) -> Path:
        return self.root / "private" / "oldest"

    @property
    def kept_from(self) -> int:
        """What `keep_from` was told last; 0 when that is lost, or was never told."""
        try:
            return int(files.read_capped(self._oldest, limit=20))
        except (FileNotFoundError, ValueError):
            return 0

    @property
    def oldest(self) -> int:
        """From this one on each state that was published is kept, by its first publication."""
        return self.kept_from or min(self.numbers(), default=0)

    def keep_from(self, number: int) -> None:
        """That none before this one needs to be there any more."""
        files.write_atomic(self._oldest, f"{number}\n")

    def path(self, number: int) -> Path:
        """Where publication `number` is; an APT source may name it as its URI."""
        return self._all / f"{number:08d}"

    def current(self) -> int | None:
        """The publication that clients see, None before the first."""
        try:
            target = (self.root / "dists").readlink()
        except FileNotFoundError:
            return None
        return int(target.parent.name)

    def numbers(self) -> list[int]:
        """All complete publications, rising."""
        if not self._all.is_dir():
            return []
        return sorted(int(p.name) for p in self._all.iterdir() if NUMBER.fullmatch(p.name))

    def date(self, number: int) -> datetime:
        """The Date of a publication's Release."""
        return email.utils.parsedate_to_datetime(self._release(self.path(number))["Date"])

    def commit(self, number: int) -> str:
        """The superproject's commit that a publication belongs to; the first has none."""
        return str(self._release(self.path(number)).get(COMMIT, ""))

    def valid_until(self, number: int) -> datetime | None:
        """When a publication's Release stops being valid; None: never."""
        text = self._release(self.path(number)).get("Valid-Until")
        return email.utils.parsedate_to_datetime(text) if text else None

    def next_date(self, now: datetime, *, lost: bool = False) -> datetime:
        """The Date for the next publication: now, but a second after every other's at least.

        APT takes the newer Date, and a file server's clients compare whole seconds. The signer
        takes newer ones only, also than that of one that was signed and then undone. With `lost`,
        clients may have seen publications that are not here: later than any of those until now.
        """
        dates = [self.date(number) for number in self._newest()]
        if self._signed.exists():
            dates.append(datetime.fromtimestamp(int(self._signed.stat().st_mtime), UTC))
        later = [date + timedelta(seconds=1) for date in dates]
        first = now.astimezone(UTC).replace(microsecond=0)
        if lost:
            first += timedelta(seconds=MAX_AHEAD + 1)
        return max([first, *later])

    def pause(self, now: datetime) -> float:
        """Seconds to wait before the next publication so that APT takes it for a present one."""
        return max(0.0, (self.next_date(now) - now).total_seconds() - MAX_AHEAD)

    def _newest(self) -> set[int]:
        current = self.current()
        return {*self.numbers()[-1:], *([] if current is None else [current])}

    def stage(
        self,
        number: int,
        *,
        date: datetime,
        valid_for: float | None,
        sign: Sign,
        commit: str = "",
        again: int | None = None,
        prove: Prove = lambda dist, before: None,
    ) -> Path:
        """Make publication `number` of what reprepro exported; clients do not see it yet.

        `date` comes from next_date, `valid_for` is in seconds, `commit` is the superproject's
        that it belongs to and is told in Release. With `again`, it is made of that publication
        instead, commit included. `prove` looks at the indices before they are signed. A staged
        publication of that number is replaced. Everything is synced when it returns. Raises
        MachineFault when the export does not fit its own Release, when `number` is the current
        one, and what `prove` and `sign` raise; then nothing but the store of indices has changed.
        """
        if number == self.current():
            raise MachineFault(f"{self.root.name}: publication {number} is the current one")
        self._store.mkdir(parents=True, exist_ok=True)
        self._all.mkdir(exist_ok=True)
        for folder in (self._all, self._store, self._store.parent):
            folder.chmod(0o755)
        new = self._all / ".new"
        files.remove_tree(new)
        dist = new / "dists" / self.codename
        dist.mkdir(parents=True)
        (new / "pool").symlink_to("../../pool")
        exported = self.root / "private" if again is None else self.path(again)
        if again is not None:
            commit = self.commit(again)
        indices = self._indices(exported)
        for name in self._present(exported, indices):
            # What reprepro can still write is copied: what it has is not what clients see.
            copy = _linked if again is not None else shutil.copyfile
            copy(exported / "dists" / self.codename / name, _parent_made(dist / name))
            self._add(dist / name, indices[name])
        current = self.current()
        prove(dist, None if current is None else self.path(current) / "dists" / self.codename)
        if again is None:
            indices |= _pack(dist, [n for n in indices if n.endswith(PACKED)])
        text = release_text(self._release(exported), indices, date, valid_for, commit)
        with ThreadPoolExecutor(max_workers=1) as beside:
            # gpg takes its time.
            signing = beside.submit(self._write_signed, dist, text, date, sign)
            for path in (new, *new.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() else 0o644)
            files.sync_all(path for name in indices if (path := dist / name).is_file())
            self._fill_store(dist, indices)
            signing.result()
        files.sync_tree(new)
        self.drop(number)
        new.rename(self.path(number))
        files.sync_directory(self._all)
        files.sync_directory(self.root)
        return self.path(number)

    def _release(self, base: Path) -> Release:
        path = base / "dists" / self.codename / "Release"
        try:
            return Release(files.read_capped(path, limit=RELEASE_LIMIT))
        except FileNotFoundError as error:
            raise MachineFault(f"{path} is missing") from error

    def _indices(self, base: Path) -> dict[str, tuple[str, int]]:
        """SHA-256 and size of each index that a Release names, by its name."""
        return {
            item["name"]: (
                model.matching(model.SHA256, item["sha256"], "SHA-256"),
                int(item["size"]),
            )
            for item in self._release(base).get("SHA256", [])
        }

    def _present(self, base: Path, indices: Mapping[str, tuple[str, int]]) -> list[str]:
        """The indices that there are; an uncompressed one may be named only."""
        dist = base / "dists" / self.codename
        present = [n for n in indices if files.contained(dist, n).is_file()]
        for name in indices.keys() - set(present):
            if not any(name + suffix in present for suffix in COMPRESSED):
                raise MachineFault(f"{self.root.name}: reprepro's Release names {name}: missing")
        return present

    def _add(self, target: Path, expected: tuple[str, int]) -> None:
        with target.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if (found, target.stat().st_size) != expected:
            raise MachineFault(f"{target.name} is not what reprepro's Release names")
        by_hash = target.parent / "by-hash"
        if not by_hash.is_symlink():
            by_hash.symlink_to(os.path.relpath(self.root / "by-hash", by_hash.parent))

    def _write_signed(self, dist: Path, text: bytes, date: datetime, sign: Sign) -> None:
        self._signed.touch(mode=0o600)
        os.utime(self._signed, (date.timestamp(), date.timestamp()))
        inrelease, detached = sign(text)
        if text.rstrip(b"\n") not in inrelease or not detached.strip():
            raise MachineFault(f"{self.root.name}: what was signed is not this Release")
        for name, data in (
            ("Release", text),
            ("InRelease", inrelease),
            ("Release.gpg", detached),
        ):
            (dist / name).write_bytes(data)
            (dist / name).chmod(0o644)
            os.utime(dist / name, (date.timestamp(), date.timestamp()))

    def _fill_store(self, dist: Path, indices: Mapping[str, tuple[str, int]]) -> None:
        """Add the (synced) indices to the store under their hashes."""
        for name, (sha256, size) in indices.items():
            kept = self._store / sha256
            if (dist / name).is_file() and not (kept.is_file() and kept.stat().st_size == size):
                beside = self._store / ".new"
                beside.unlink(missing_ok=True)
                if not _linked(dist / name, beside):
                    files.sync_file(beside)
                beside.rename(kept)
        files.sync_directory(self._store)
        files.sync_directory(self._store.parent)

    def switch(self, number: int) -> None:
        """Show publication `number` to clients, at once; safe to repeat."""
        if not self.path(number).is_dir():
            raise MachineFault(f"{self.root.name}: there is no publication {number}")
        beside = self.root / ".dists.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(f"publications/{number:08d}/dists")
        beside.rename(self.root / "dists")
        files.sync_directory(self.root)

    def drop(self, number: int) -> None:
        """Remove a publication, whole; no error when there is none. Never the current one."""
        if number == self.current():
            raise MachineFault(f"{self.root.name}: publication {number} is the current one")
        gone = self._all / ".gone"
        files.remove_tree(gone)
        if self.path(number).is_dir():
            self.path(number).rename(gone)
            files.sync_directory(self._all)
            files.remove_tree(gone)

    def outdated(self, now: datetime, *, seconds: float, count: int) -> dict[int, datetime]:
        """Publications that were superseded over `seconds` ago, but for the last `count` states.

        Each with when it was superseded. Never the current one, nor one after it. A state is what
        a commit of the superproject has: of the publications that only signed it again, the newest
        is enough.
        """
        current = self.current()
        older = [n for n in self.numbers() if current is not None and n <= current]
        states = {self.commit(number): number for number in older}
        kept = set(sorted(states.values())[-count - 1 :])
        # Each with the one that superseded it; so the current one is none of them.
        dates = {n: self.date(by) for n, by in itertools.pairwise(older) if n not in kept}
        old = now - timedelta(seconds=seconds)
        return {number: date for number, date in dates.items() if date < old}

    def prune(
        self, now: datetime, *, seconds: float = KEEP_SECONDS, count: int = KEEP_COUNT
    ) -> list[int]:
        """Remove what is `outdated`; returns what was removed."""
        removed = list(self.outdated(now, seconds=seconds, count=count))
        self.remove(removed)
        return removed

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove publications, and the indices that none names any more."""
        numbers = sorted(numbers)
        left = {self.commit(number) for number in self.numbers() if number not in numbers}
        if gone := [n for n in numbers if self.path(n).is_dir() and self.commit(n) not in left]:
            self.keep_from(gone[-1] + 1)
        for number in numbers:
            self.drop(number)
        self._prune_store()

    def pool_files(self, number: int, known: dict[str, frozenset[str]]) -> frozenset[str]:
        """The files that a publication names, as `pool/...`.

        `known` keeps what each index names, by its SHA-256. Filling it needs no lock. Raises
        MachineFault, also for an index that does not say which files it means.
        """
        found: set[str] = set()
        path = self.path(number)
        for name, (sha256, _) in self._indices(path).items():
            file = path / "dists" / self.codename / name
            if not name.endswith(PACKED) or not file.is_file():
                continue
            if sha256 not in known:
                known[sha256] = frozenset(_named(file))
            found |= known[sha256]
        return frozenset(found)

    def _prune_store(self) -> None:
        if not self._store.is_dir():
            return
        named = {
            sha256
            for number in self.numbers()
            for sha256, _ in self._indices(self.path(number)).values()
        }
        for file in self._store.iterdir():
            if file.name not in named:
                file.unlink()


def _pack(dist: Path, names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Write each of these indices compressed beside it; by name, their SHA-256 and size."""

    def packed(name: str) -> tuple[str, int]:
        data = gzip.compress((dist / name).read_bytes(), LEVEL, mtime=0)
        (dist / f"{name}.gz").write_bytes(data)
        return hashlib.sha256(data).hexdigest(), len(data)

    # zlib lets other threads go on.
    with ThreadPoolExecutor() as pool:
        found = pool.map(packed, names)
        return {f"{name}.gz": made for name, made in zip(names, found, strict=True)}


def _named(index: Path) -> Iterator[str]:
    """The pool's files that an index names: Packages or Sources."""
    with index.open("rb") as lines:
        if index.name == "Sources":
            yield from _sources_files(lines)
        else:
            yield from (line[10:].strip().decode() for line in lines if line[:10] == b"Filename: ")


def _sources_files(lines: Iterable[bytes]) -> Iterator[str]:
    """Of each source in an index, Directory and the names in Checksums-Sha256.

    By hand: a parser takes seconds for 10,000 sources. Raises MachineFault.

    >>> text = b"Package: a\\nDirectory: pool/a\\nFiles:\\n 0 1 no\\nChecksums-Sha256:\\n 0 1 a.dsc"
    >>> list(_sources_files(text.splitlines(keepends=True)))
    ['pool/a/a.dsc']
    """
    field, folder, names, some = b"", b"", list[bytes](), False
    for line in itertools.chain(lines, [b"\n"]):
        if line == b"\n":
            if some and not (folder and names):
                raise MachineFault("an index has a source without Directory or Checksums-Sha256")
            yield from ((folder + b"/" + name).decode() for name in names)
            field, folder, names, some = b"", b"", [], False
            continue
        some = True
        if line[:1] not in (b" ", b"\t"):
            field, _, line = line.partition(b":")
            field = field.lower()
            if field == b"directory":
                folder = line.strip()
        if field == b"checksums-sha256" and (words := line.split()):
            names.append(words[-1])


def _parent_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _linked(source: Path, target: Path) -> bool:
    """Make `target` the same file as `source`; False where it had to be a copy."""
    try:
        target.hardlink_to(source)
    except OSError:
        # Another file system, or more links than one allows.
        shutil.copyfile(source, target)
        return False
    return True
