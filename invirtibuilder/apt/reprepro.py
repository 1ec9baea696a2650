"""reprepro, the only writer of a pocket's packages, driven in transactions.

reprepro's database has no journal and its exit code 0 does not mean "done". So the database is
copied before a transaction and put back after a failure or a crash, and what a call was to do
is looked up afterwards. Nothing here is seen by clients; `publications` makes that.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from debian.deb822 import Deb822

from invirtibuilder import files, model
from invirtibuilder.confine import Confinement
from invirtibuilder.errors import ConfigFault, MachineFault, PackageFault
from invirtibuilder.run import CLEAN, Done, Killed, ProcessFault, run

FILE_LIMIT = 16 << 30
"""Bytes that reprepro may write into one file: a torn database once made a 45 GB index."""

TIMEOUT = 1800.0
"""Seconds for one call: on a torn database reprepro may loop for ever."""

PROGRAMS = ("prlimit", "reprepro")
UNPACKERS = ("unzstd", "unxz", "unlzma", "bunzip2", "gunzip", "lunzip")

NOT_STARTED = 127
"""Of a process that could not even be begun: the job waits for that, too."""
INTERRUPTED = 247
"""reprepro's exit code after a SIGTERM or SIGINT."""
# reprepro's RET_ERROR, checksum and missing file; other codes are errno, locks, configuration.
PACKAGE_CODES = frozenset({249, 254, 255})
MACHINE_WORDS = (b"BerkeleyDB", b"No space left", b"Disk quota", b"Read-only file system")

LIST_FORMAT = "\\t".join(
    (
        "${package}",
        "${version}",
        "${$architecture}",
        "${$component}",
        "${$source}",
        "${$sourceversion}",
        "${$fullfilename}",
        "${SHA256}\\n",
    )
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One package as one architecture's index lists it."""

    package: str
    version: str
    architecture: str  # of the index: "source" or a binary one; arch:all is in each of those
    component: str
    source: str
    source_version: str
    filename: str  # relative to the pocket's directory: pool/...; of a source its .dsc
    sha256: str  # empty for a source

    @property
    def file(self) -> str:
        """The file's name without its directory."""
        return self.filename.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Reprepro:
    """The reprepro base of one pocket, in `root`/private, with its pool in `root`/pool.

    The caller holds an exclusive, inheritable lock on `lock` around every method but `create`,
    and gives its descriptor as `lock_fd`, so that an orphaned reprepro keeps it until it ends.
    """

    root: Path
    codename: str
    components: Sequence[str]
    architectures: Sequence[str]  # without "source"
    origin: str
    label: str
    suite: str
    description: str
    timeout: float = TIMEOUT
    trial: bool = False  # the copy that `tried` gives

    @property
    def private(self) -> Path:
        """reprepro's base; no client reads it."""
        return self.root / "private"

    @property
    def lock(self) -> Path:
        """The file to lock."""
        return self.private / ".lock"

    @property
    def _work(self) -> Path:
        return self.private / "trial" if self.trial else self.private

    @property
    def _db(self) -> Path:
        return self._work / "db"

    @property
    def _dists(self) -> Path:
        return self._work / "dists"

    @property
    def _saved(self) -> Path:
        return self.private / "db.txn"

    def create(self) -> None:
        """Make the directories and conf/distributions; safe to repeat, rewrites changed settings.

        Raises ConfigFault for settings that reprepro cannot hold, and when an architecture or a
        component goes away from a pocket that may have packages in it.
        """
        text = self._distributions()
        for public in (self.root, self.root / "pool"):
            if not public.is_dir():
                public.mkdir(parents=True)
                public.chmod(0o755)
        self.private.mkdir(mode=0o700, exist_ok=True)
        for name in ("conf", "db", "dists", "gnupg"):
            (self.private / name).mkdir(mode=0o700, exist_ok=True)
        conf = self.private / "conf" / "distributions"
        old = conf.read_text() if conf.exists() else ""
        if old == text:
            return
        if old and (self._db / "packages.db").exists():
            self._refuse_loss(old)
        files.write_atomic(conf, text)
        files.sync_directory(self.private)
        files.sync_directory(self.root)

    def _distributions(self) -> str:
        fields = {
            "Origin": self.origin,
            "Label": self.label,
            "Suite": self.suite,
            "Codename": self.codename,
            "Architectures": " ".join((*self.architectures, "source")),
            "Components": " ".join(self.components),
            # Packages for the installer get indices of their own.
            "UDebComponents": " ".join(self.components),
            "Description": self.description,
            # `publications` compresses them, several at once: here it would be most of an export.
            "DebIndices": "Packages Release .",
            "UDebIndices": "Packages .",
            "DscIndices": "Sources Release .",
        }
        for name, value in fields.items():
            if not value.strip() or not value.isprintable():
                raise ConfigFault(f"{self.root.name}: not a valid {name}: {value!r}")
        return "".join(f"{name}: {value}\n" for name, value in fields.items())

    def _refuse_loss(self, old: str) -> None:
        before = Deb822(old)
        now = Deb822(self._distributions())
        for field in ("Codename", "Architectures", "Components"):
            lost = set(before[field].split()) - set(now[field].split())
            if lost:
                raise ConfigFault(
                    f"{self.root.name}: {field} no longer has {' '.join(sorted(lost))}, "
                    "whose packages would vanish",
                    hint="put it back, or make a new pocket",
                    code="archive-shrinks",
                )

    # The transaction.

    def is_open(self) -> bool:
        """Whether a transaction was begun and neither committed nor restored."""
        return self._saved.is_dir()

    def begin(self) -> None:
        """Open a transaction. Raises MachineFault when one is open: restore or commit first."""
        if self.is_open():
            raise MachineFault(f"{self.root.name}: an archive transaction is open")
        self._sweep()
        copy = self.private / "db.txn.tmp"
        self._copy(copy)
        files.sync_tree(copy)
        copy.rename(self._saved)
        files.sync_directory(self.private)

    def _copy(self, target: Path) -> None:
        (self._db / "lockfile").unlink(missing_ok=True)
        target.mkdir()
        for path in self._db.iterdir() if self._db.is_dir() else ():
            # Not copytree: its error does not say that the disk is full.
            shutil.copyfile(path, target / path.name)

    def empty(self) -> None:
        """Forget everything, damaged or not. In a transaction."""
        if not self.is_open():
            raise MachineFault(f"{self.root.name}: no archive transaction is open")
        files.remove_tree(self._db)
        self._db.mkdir(mode=0o700)

    @contextmanager
    def tried(self) -> Iterator[Reprepro]:
        """A copy, for calls that would change the database or that a damaged one may not bear."""
        copy = replace(self, trial=True)
        files.remove_tree(copy._work)
        copy._work.mkdir(mode=0o700)
        try:
            copy._dists.mkdir()
            self._copy(copy._db)
            yield copy
        finally:
            files.remove_tree(copy._work)

    def commit(self) -> None:
        """Keep what the transaction did; no error when none is open."""
        if self.is_open():
            files.sync_tree(self._db)
            self._saved.rename(self.private / "db.txn.done")
            files.sync_directory(self.private)
        self._sweep()

    def restore(self) -> None:
        """Undo an open transaction, and clean up after a crash at any moment, this one's too.

        Files that came into the pool stay there, unknown to the database; an include replaces
        or reuses them.
        """
        if self.is_open():
            # Until the last rename the copy is there, so a crash in between repeats this.
            files.remove_tree(self.private / "db.old")
            if self._db.exists():
                self._db.rename(self.private / "db.old")
            # So that what is undone cannot be published by mistake: export anew.
            files.remove_tree(self.private / "dists")
            (self.private / "dists").mkdir(mode=0o700)
            files.sync_directory(self.private)
            self._saved.rename(self._db)
            files.sync_directory(self.private)
        (self._db / "lockfile").unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        for name in ("db.txn.tmp", "db.txn.done", "db.old", "trial"):
            files.remove_tree(self.private / name)

    # What a transaction does.

    def references(self, *, lock_fd: int) -> set[str]:
        """The pool's files that the present content has."""
        lines = self.call("dumpreferences", lock_fd=lock_fd).text.splitlines()
        return {line.rpartition(" ")[2] for line in lines}

    def checksums(self, *, lock_fd: int) -> dict[str, str]:
        """The SHA-256 of each of the pool's files that the database knows."""
        listed = self.call("_listchecksums", lock_fd=lock_fd).text.splitlines()
        lines = (line.split() for line in listed)
        # path :1:SHA-1 :2:SHA-256 MD5 size
        return {path: word[3:] for path, *words in lines for word in words if word[:3] == ":2:"}

    def forget(self, files_: Sequence[str], *, lock_fd: int) -> None:
        """Have the database no longer know of files (`pool/...`) that nothing refers to.

        In a transaction; the files are to be removed after it, so that the database never knows of
        one that is not there. Raises MachineFault for one that is referred to.
        """
        if not self.is_open():
            raise MachineFault(f"{self.root.name}: no archive transaction is open")
        if wanted := self.references(lock_fd=lock_fd) & set(files_):
            raise MachineFault(f"{self.root.name}: {sorted(wanted)[0]} is in use")
        known = set(self.call("dumpunreferenced", lock_fd=lock_fd).text.splitlines())
        there = [file for file in files_ if file in known]
        for start in range(0, len(there), 200):
            self.call("_forget", *there[start : start + 200], lock_fd=lock_fd)

    def export(self, *, lock_fd: int) -> None:
        """Write the indices of the present content to private/dists, and sync the database.

        In a transaction, as it writes to the database's caches. `restore` removes what it wrote,
        so a publication after that needs an export first.
        """
        self.call("export", self.codename, lock_fd=lock_fd)
        if not (self._dists / self.codename / "Release").is_file():
            raise MachineFault(f"{self.root.name}: reprepro exported nothing")
        if not self.trial:
            files.sync_tree(self._db)

    def listing(self, *, lock_fd: int, where: str = "") -> list[Entry]:
        """The present content, one entry for each package and index.

        Only that which fits the formula `where` (reprepro(1), listfilter), if there is one.
        """
        words = ("listfilter", self.codename, where) if where else ("list", self.codename)
        done = self.call(*words, lock_fd=lock_fd)
        return [self._entry(line) for line in done.text.splitlines()]

    def _entry(self, line: str) -> Entry:
        fields = line.split("\t")
        if len(fields) != 8:
            message = f"{self.root.name}: reprepro lists {model.printable(line)[:200]!r}"
            raise MachineFault(message, code="reprepro-failed")
        package, version, architecture, component, source, source_version, path, sha256 = fields
        # reprepro joins its base, not its output directory, to the name in the pool.
        filename = path.removeprefix(f"{self.private}/")
        files.contained(self.root, filename)
        return Entry(
            package=package,
            version=version,
            architecture=architecture,
            component=component,
            source=source,
            source_version=source_version,
            filename=filename,
            sha256=sha256,
        )

    def _confinement(self, action: str, args: Sequence[str]) -> Confinement:
        """What reprepro may do: a hostile package may have taken it over.

        It can write only what is looked at anew afterwards, and asks no gpg, as nothing is signed
        here. Some packages need another program to unpack them.
        """
        found = (shutil.which(name, path=CLEAN["PATH"]) for name in (*PROGRAMS, *UNPACKERS))
        return Confinement(
            read=(self.private / "conf", *(Path(a).parent for a in args if a.endswith(".changes"))),
            write=(self._db, self._dists, self.root / "pool"),
            execute=[Path(name) for name in found if name],
            forks=action == "include",
            # The database is synced whole before anything counts, and the pool with it.
            syncs=False,
        )

    def call(self, action: str, *args: str, lock_fd: int) -> Done:
        """One call of reprepro. Raises PackageFault (a .changes is refused) or MachineFault."""
        argv = [
            "reprepro",
            f"--basedir={self.private}",
            f"--confdir={self.private / 'conf'}",
            f"--dbdir={self._db}",
            f"--distdir={self._dists}",
            f"--outdir={self.root}",
            "--keepunreferencedfiles",
        ]
        if action in ("list", "listfilter"):
            argv.append(f"--list-format={LIST_FORMAT}")
        elif action != "export":
            argv.append("--export=silent-never")
        try:
            return run(
                [*argv, action, *args],
                timeout=self.timeout,
                env={"GNUPGHOME": str(self.private / "gnupg")},
                pass_fds=(lock_fd,),
                file_limit=FILE_LIMIT,
                enter=self._confinement(action, args).enter,
            )
        except Killed:
            raise
        except ProcessFault as fault:
            done = fault.done
            if done.code == INTERRUPTED:
                raise Killed(done, "killed from outside") from fault
            if done.code == NOT_STARTED:
                raise Killed(done, "cannot be started") from fault
            # It names a file by its full path below `root` only when it cannot read that.
            ours = any(word in done.err for word in (*MACHINE_WORDS, f"{self.root}/".encode()))
            if action == "include" and done.code in PACKAGE_CODES and not ours:
                raise refusal(done, "reprepro refuses it") from fault
            raise MachineFault(f"reprepro failed: {fault}", code="reprepro-failed") from fault


def refusal(done: Done, what: str) -> PackageFault:
    """A fault with what reprepro said about a .changes, without warnings and our directories."""
    text = done.err.decode("utf-8", "replace").replace(f"{Path(done.argv[-1]).parent}/", "")
    lines = (model.printable(line) for line in text.splitlines())
    # Nor what gpgme says when it finds no gpg, which nothing here needs.
    noise = ("Warning:", "There have been errors", "To ignore use", "gpgme gave error")
    said = [line for line in lines if line and not line.startswith(noise)]
    message = "; ".join([what, *(line[:500] for line in said[:10])])
    clash = "different checksums" in message or "differ" in message
    hint = "the pocket has another file of this name: use a new version" if clash else ""
    return PackageFault(message, hint=hint, code="reprepro-refused")
