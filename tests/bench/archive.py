"""How long one more package takes in a pocket with 10, 1,000 and 10,000, beside reprepro and aptly.

Ours is the whole stage `publish`, from the lock to the facts of the job: reprepro's database saved
and synced, one include, one export, a signed publication with by-hash, the superproject's commits,
the tags, the switch; the dates alone are made up, which would have to be waited for. `reprepro
include` exports and signs in place; aptly is `repo add` and `publish update` with by-hash, without
Contents. Wants aptly, and fills each archive first, which takes minutes at 10,000.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import files, gitobjects, hosting
from invirtibuilder.apt.signer import GpgSigner
from invirtibuilder.jobs import Job
from invirtibuilder.run import run
from invirtibuilder.stages.publish import publish
from invirtibuilder.superproject import BLOB, GITLINK
from tests.bench import figures
from tests.bench.figures import Bound, Figures
from tests.support import debs, packages
from tests.support import place as places
from tests.support.debs import PERSON
from tests.support.place import Place

SIZES = (10, 1000, 10000)
POCKET = "staging"
BATCH = 8
OURS, OURS_BATCH, REPREPRO, APTLY = "ours", "ours, eight at once", "reprepro include", "aptly"
MAINTAINER = "Maintainer: Test <test@example.org>\n"


def tar(name: str, data: bytes) -> bytes:
    """A tarball with one file."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as it:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        it.addfile(member, io.BytesIO(data))
    return raw.getvalue()


def ar(members: dict[str, bytes]) -> bytes:
    """An archive as deb(5) has it."""
    out = b"!<arch>\n"
    for name, data in members.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        out += head + data + b"\n" * (len(data) % 2)
    return out


def upload(folder: Path, source: str, version: str) -> Path:
    """A native upload of one binary package, in a millisecond; returns its .changes."""
    control = f"Package: {source}\nVersion: {version}\nArchitecture: all\n{MAINTAINER}"
    control += "Description: test\n"
    deb = folder / f"{source}_{version}_all.deb"
    content = tar(f"./usr/share/{source}", version.encode())
    deb.write_bytes(
        ar(
            {
                "debian-binary": b"2.0\n",
                "control.tar": tar("./control", control.encode()),
                "data.tar": content,
            }
        )
    )
    tarball = folder / f"{source}_{version}.tar.gz"
    tarball.write_bytes(gzip.compress(content, 1, mtime=0))
    head = f"Source: {source}\nBinary: {source}\n"
    dsc = folder / f"{source}_{version}.dsc"
    dsc.write_text(
        f"Format: 3.0 (native)\n{head}Architecture: all\nVersion: {version}\n{MAINTAINER}"
        + debs.checksums([tarball])
    )
    changes = folder / f"{source}_{version}.changes"
    changes.write_text(
        f"Format: 1.8\nDate: Fri, 02 Jan 2026 03:04:05 +0000\n{head}Architecture: source all\n"
        f"Version: {version}\nDistribution: dev\nUrgency: low\n{MAINTAINER}"
        f"Changed-By: Test <test@example.org>\nDescription:\n {source} - test\n"
        f"Changes:\n {source} ({version}) dev; urgency=low\n .\n   * Test.\n"
        + debs.checksums([dsc, tarball, deb], "misc optional ")
    )
    return changes


class Incoming:
    """A directory of uploads of the first `size` packages, and newer versions of any of them."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self.size = size
        self._versions = 1
        self.first = folder / "1"
        self.first.mkdir(parents=True)
        for number in range(size):
            upload(self.first, self.name(number), "1")

    @staticmethod
    def name(number: int) -> str:
        return f"p{number:05d}"

    def newer(self, count: int = 1) -> list[tuple[str, str, Path]]:
        """Name, version and .changes of the next version of some packages."""
        self._versions += 1
        version = str(self._versions)
        folder = self._folder / version
        folder.mkdir()
        names = [self.name(number) for number in range(count)]
        return [(name, version, upload(folder, name, version)) for name in names]


class Ours:
    """A pocket of a site, and the stage `publish` as its daemon's threads run it."""

    def __init__(self, place: Place, incoming: Incoming) -> None:
        self._incoming, self._now = incoming, datetime.now(UTC) - timedelta(days=1)
        self.context = replace(place.context, clock=lambda: self._now)
        self._place = place
        self.pocket = self.context.site.pockets[POCKET]
        hosting.ensure_pocket(self.context, self.pocket)
        names = [incoming.name(number) for number in range(min(BATCH, incoming.size))]
        self._repos = {n: packages.native(place.directory / f"{n}.work", n) for n in names}
        for repo in self._repos.values():
            place.package(repo)
        archive = self.context.archive(self.pocket)
        private = archive.reprepro.private
        folders = (f"--outdir={private.parent}", f"--distdir={private / 'dists'}")
        with files.locked(archive.reprepro.lock, inheritable=True) as fd:
            fill(private, incoming, *folders, codename=self.pocket.codename)
            archive.reprepro.export(lock_fd=fd)
            tip = self._pinned()
            sign, date = self.context.signer(self.pocket).sign, self._now
            archive.publications.stage(2, date=date, valid_for=None, sign=sign, commit=tip)
            archive.publications.switch(2)

    def _pinned(self) -> str:
        """A commit of the superproject with all packages, written at once; its id."""
        superproject = self.context.superproject
        with gitobjects.opened(superproject.path) as repo:

            def stored(data: str) -> bytes:
                return bytes.fromhex(gitobjects.store(repo, "blob", data.encode()))

            # Of those that never change nobody reads it.
            rest = (stored("{}\n"), BLOB)
            names = [self._incoming.name(number) for number in range(self._incoming.size)]
            pins = {name: (bytes.fromhex(self._commit(name)), GITLINK) for name in names}
            modules = "".join(f'[submodule "{name}"]\n\tpath = packages/{name}\n' for name in names)
            tree = {
                ".gitmodules": (stored(modules), BLOB),
                "packages": (gitobjects.store_entries(repo, pins), gitobjects.TREE),
                "records": (
                    gitobjects.store_entries(
                        repo,
                        {
                            f"{name}.json": (stored(_record(name)), BLOB)
                            if name in self._repos
                            else rest
                            for name in names
                        },
                    ),
                    gitobjects.TREE,
                ),
            }
            who = gitobjects.identity("Test", "test@example.org", self._now)
            head = f"tree {gitobjects.store_entries(repo, tree).hex()}\nauthor {who}\n"
            tip = gitobjects.store(repo, "commit", f"{head}committer {who}\n\nAll\n".encode())
        superproject.move(self.pocket.branch, tip, None)
        return tip

    def _commit(self, name: str) -> str:
        repo = self._repos.get(name)
        return repo.commit if repo else hashlib.sha1(name.encode()).hexdigest()

    def jobs(self, uploads: list[tuple[str, str, Path]]) -> list[Job]:
        """Jobs that come to the stage next, each with what the earlier ones have made."""
        return [self._job(*each) for each in uploads]

    def _job(self, name: str, version: str, changes: Path) -> Job:
        job = self._place.job(POCKET, self._repos[name])
        facts: dict[str, list[dict[str, Any]]] = {"source": [], "artifacts": []}
        for path in sorted(changes.parent.glob(f"{name}_{version}*")):
            kind = "artifacts" if path.suffix == ".deb" else "source"
            if path != changes:
                (job.directory / kind).mkdir(exist_ok=True)
                os.link(path, job.directory / kind / path.name)
                size, sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
                facts[kind].append({"name": path.name, "size": size, "sha256": sha256})
        deb = facts["artifacts"][0]["name"]
        admitted = dict.fromkeys(("stamp", "changelog_entry", "pristine_tar", "upstream_tag"))
        admitted |= {"commit": self._commit(name), "pinned": self._commit(name), "tree": "0" * 40}
        admitted |= {"version": version, "changelog_version": version, "urgency": "low"}
        exported = {"files": facts["source"], "dsc": f"{name}_{version}.dsc", "orig_from": {}}
        built = {"files": facts["artifacts"], "debs": {deb: {"Package": name, "Version": version}}}
        job.write_fact("admit", {**admitted, "maintainer": PERSON, "changes": [" * Test."]})
        job.write_fact("export", {**exported, "differences": [], "environment": {}})
        job.write_fact("build", {**built, "environment": {}, "reused": None})
        job.write_fact("verify", {"binaries": [deb], "buildinfo": ""})
        return job

    def add(self, jobs: list[Job]) -> None:
        """Publish what is ready at once in one transaction."""
        self._now += timedelta(seconds=10)
        failed: list[BaseException] = []

        def work(job: Job) -> None:
            try:
                publish(self.context, job)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
        publications = self.context.archive(self.pocket).publications
        before = publications.current() or 0
        with files.locked(self.context.archive(self.pocket).reprepro.lock):
            for thread in threads:
                thread.start()
            while len(self.context.ready.of(POCKET)) < len(jobs):
                time.sleep(0.001)
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        assert publications.current() == before + 1


def _record(name: str) -> str:
    """What is recorded of a package's first version, as far as the next one needs it."""
    deb = {"name": f"{name}_1_all.deb", "sha256": "0" * 64}
    return json.dumps({"version": "1", "binaries": {name: "1"}, "files": [deb]})


class Plain:
    """reprepro alone, which signs what it exports."""

    def __init__(self, base: Path, incoming: Incoming, key: GpgSigner) -> None:
        self._base, self._env = base, {"GNUPGHOME": str(key.gnupghome)}
        (base / "conf").mkdir(parents=True)
        (base / "conf/distributions").write_text(
            "Codename: dev\nSuite: dev\nOrigin: Example\nLabel: Example\nComponents: main\n"
            f"Architectures: {debs.machine_architecture()} source\n"
        )
        fill(base, incoming)
        with (base / "conf/distributions").open("a") as conf:
            conf.write(f"SignWith: {key.key}\n")
        run(["reprepro", "-b", base, "export", "dev"], env=self._env)

    def add(self, uploads: list[tuple[str, str, Path]]) -> None:
        for _, _, changes in uploads:
            run(["reprepro", "-b", self._base, "include", "dev", changes], env=self._env)


class Aptly:
    """aptly with a published repository, indices by hash."""

    def __init__(self, root: Path, incoming: Incoming, key: GpgSigner) -> None:
        self._config = root / "aptly.conf"
        self._env = {"GNUPGHOME": str(key.gnupghome), "HOME": str(root)}
        root.mkdir()
        self._config.write_text(json.dumps({"rootDir": str(root), "gpgProvider": "gpg"}))
        self._aptly("repo", "create", "-distribution=dev", "dev")
        self._aptly("repo", "add", "dev", str(incoming.first))
        how = ("-acquire-by-hash", "-skip-contents", f"-gpg-key={key.key}", "-batch")
        self._aptly("publish", "repo", *how, f"-architectures={debs.machine_architecture()}", "dev")
        self._how = how[1:]

    def add(self, uploads: list[tuple[str, str, Path]]) -> None:
        for name, version, changes in uploads:
            found = [str(p) for p in changes.parent.glob(f"{name}_{version}*.d[es][bc]")]
            self._aptly("repo", "add", "dev", *found)
        self._aptly("publish", "update", *self._how, "dev")

    def _aptly(self, *words: str) -> None:
        run(["aptly", f"-config={self._config}", *words], env=self._env, timeout=1800)


def fill(base: Path, incoming: Incoming, *options: str | Path, codename: str = "dev") -> None:
    """Add all first versions at once; processincoming takes copies, as it deletes them."""
    copies = base / "incoming"
    shutil.copytree(incoming.first, copies, copy_function=os.link)
    (base / "temporary").mkdir()
    (base / "conf/incoming").write_text(
        f"Name: all\nIncomingDir: {copies}\nTempDir: {base / 'temporary'}\nDefault: {codename}\n"
    )
    argv = ["reprepro", "-b", base, *options, "--silent", "processincoming", "all"]
    run(argv, timeout=1800)
    (base / "conf/incoming").unlink()


def of_size(size: int, rounds: int, key: GpgSigner, folder: Path) -> Figures:
    """One more version of one package, by each, in turn."""
    incoming = Incoming(folder / "incoming", size)
    plain = Plain(folder / "plain", incoming, key)
    aptly = Aptly(folder / "aptly", incoming, key)
    one: list[tuple[str, str, Path]] = []
    first: list[Job] = []
    several: list[Job] = []
    with places.place() as place:
        ours = Ours(place, incoming)

        def fresh() -> None:
            one[:] = incoming.newer()
            first[:] = ours.jobs(one)
            several[:] = ours.jobs(incoming.newer(BATCH))

        cases = {
            REPREPRO: lambda: plain.add(one),
            OURS: lambda: ours.add(first),
            APTLY: lambda: aptly.add(one),
            OURS_BATCH: lambda: ours.add(several),
        }
        return figures.measured(cases, rounds, before=fresh)


def main() -> int:
    """Print each size's figures; 1 if a bound does not hold."""
    parser = figures.arguments("a publication as the archive grows, beside its peers", 5)
    parser.add_argument("--sizes", metavar="N", type=int, nargs="+", default=SIZES)
    args = parser.parse_args()
    bad = 0
    medians = []
    with debs.signing_key() as key:
        for size in args.sizes:
            with tempfile.TemporaryDirectory(prefix="ib-bench-", dir="/var/tmp") as folder:
                if not args.json:
                    print(f"{size} packages:", flush=True)
                found = of_size(size, args.rounds, key, Path(folder))
            bounds = [Bound(case=OURS, base=APTLY, most=1)]
            if size == max(SIZES):
                bounds += [
                    Bound(case=OURS, base=REPREPRO, most=1.5),
                    Bound(case=OURS_BATCH, base=REPREPRO, most=2),
                ]
            bad |= figures.report(found, base=REPREPRO, bounds=bounds, as_json=args.json)
            medians.append(found.median(OURS))
    if not args.json and len(medians) > 1:
        grown = f"from {args.sizes[0]} to {args.sizes[-1]} packages"
        print(f"ours grows {medians[-1] / medians[0]:.1f} times {grown}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
