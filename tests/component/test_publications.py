"""Publications, signatures and stanzas, against the real reprepro, gpg and apt-get."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from invirtibuilder import files
from invirtibuilder.apt import signer, stanza
from invirtibuilder.apt.publications import Publications
from invirtibuilder.apt.reprepro import Reprepro
from invirtibuilder.apt.signer import GpgSigner
from invirtibuilder.errors import MachineFault, Malformed
from invirtibuilder.run import run
from tests.support import debs
from tests.support.aptclient import AptClient, Server, file_uri, serving
from tests.support.crowd import Crowd

ARCHITECTURE = debs.machine_architecture()


@pytest.fixture(scope="module")
def key() -> Iterator[GpgSigner]:
    with debs.signing_key() as made:
        yield made


@dataclass(kw_only=True)
class Pocket:
    """A pocket's archive, and a way to publish with dates that stay behind the clock."""

    archive: Reprepro
    publications: Publications
    key: GpgSigner
    work: Path
    start: datetime

    def include(self, version: str, *, commit: bool = True) -> Path:
        changes = debs.upload(self.work / version, "foo", version)
        with files.locked(self.archive.lock, inheritable=True) as fd:
            self.archive.begin()
            debs.exchange(self.archive, changes, lock_fd=fd)
            self.archive.export(lock_fd=fd)
            if commit:
                self.archive.commit()
        return changes.with_name(f"foo_{version}_all.deb")

    def stage(self, number: int, *, date: datetime | None = None, **more: int | None) -> Path:
        return self.publications.stage(
            number,
            date=date or self.publications.next_date(self.start),
            valid_for=more.get("valid_for"),
            sign=self.key.sign,
            commit=f"{number:040x}",
            again=more.get("again"),
        )

    def publish(self, version: str) -> bytes:
        """Publish a version; returns the bytes of its .deb."""
        deb = self.include(version)
        number = (self.publications.current() or 0) + 1
        self.stage(number)
        self.publications.switch(number)
        return deb.read_bytes()


@pytest.fixture
def pocket(tmp_path: Path, key: GpgSigner) -> Pocket:
    root = tmp_path / "archive" / "dev"
    archive = Reprepro(
        root=root,
        codename="dev",
        components=["main", "contrib"],
        architectures=[ARCHITECTURE],
        origin="Example",
        label="Example dev",
        suite="dev",
        description="Test archive",
    )
    archive.create()
    return Pocket(
        archive=archive,
        publications=Publications(root=root, codename="dev"),
        key=key,
        work=tmp_path / "in",
        start=datetime.now(UTC) - timedelta(hours=1),
    )


@pytest.fixture
def web(pocket: Pocket) -> Iterator[Server]:
    with serving(pocket.archive.root.parent) as server:
        yield server


def client(folder: Path, pocket: Pocket, uri: str, *, check_valid_until: bool = True) -> AptClient:
    made = AptClient(folder=folder)
    sources = stanza.sources(
        uri,
        "dev",
        ["main", "contrib"],
        pocket.key.public_key(),
        check_valid_until=check_valid_until,
    )
    made.configure(sources, stanza.preferences("Example", label="Example dev", codename="dev"))
    return made


def asked(server: Server, part: str) -> list[int]:
    return [code for path, code in server.requests if part in path]


def test_apt_installs_over_file_and_http(pocket: Pocket, web: Server, tmp_path: Path) -> None:
    clients = [
        client(tmp_path / "file", pocket, file_uri(pocket.archive.root)),
        client(tmp_path / "http", pocket, web.uri + "dev"),
    ]
    for version in ("1.0", "2.0"):
        deb = pocket.publish(version)
        for apt in clients:
            apt.update()
            assert apt.candidate("foo") == version
            assert apt.download("foo") == deb
            apt.apt("apt-get", "source", "--download-only", "foo")
            assert (apt.folder / "out" / f"foo_{version}.dsc").is_file()
            assert "990" in apt.apt("apt-cache", "policy", "foo").text
    assert set(asked(web, "/by-hash/SHA256/")) == {200}
    assert not asked(web, "/Packages")
    assert not asked(web, "/Sources")


def test_file_client_stays_whole_when_its_publication_has_gone(
    pocket: Pocket, tmp_path: Path
) -> None:
    """APT may keep links into a file: repository instead of copies of its indices."""
    pocket.publish("1.0")
    apt = client(tmp_path / "file", pocket, file_uri(pocket.archive.root))
    apt.update()
    pocket.publish("2.0")
    far = datetime.now(UTC) + timedelta(days=9)
    assert pocket.publications.prune(far, count=0) == [1]
    assert apt.candidate("foo") == "1.0"
    apt.update()
    assert apt.candidate("foo") == "2.0"


def test_fixed_publication_is_a_repository_of_its_own(
    pocket: Pocket, web: Server, tmp_path: Path
) -> None:
    old = pocket.publish("1.0")
    pocket.publish("2.0")
    for name, uri in (
        ("file", file_uri(pocket.publications.path(1))),
        ("http", web.uri + "dev/publications/00000001"),
    ):
        apt = client(tmp_path / name, pocket, uri, check_valid_until=False)
        apt.update()
        assert apt.candidate("foo") == "1.0"
        assert apt.download("foo") == old


def test_client_between_two_requests_gets_the_old_indices(
    pocket: Pocket, web: Server, tmp_path: Path
) -> None:
    pocket.publish("1.0")
    pocket.include("2.0")
    pocket.stage(2)
    apt = client(tmp_path / "http", pocket, web.uri + "dev")

    def switch(path: str) -> None:
        # InRelease was given; the client has not asked for an index yet.
        if "/by-hash/" in path and pocket.publications.current() == 1:
            pocket.publications.switch(2)
            assert pocket.publications.prune(datetime.now(UTC)) == []

    web.before = switch
    apt.update()
    assert pocket.publications.current() == 2
    assert apt.candidate("foo") == "1.0"
    assert apt.download("foo")
    apt.update()
    assert apt.candidate("foo") == "2.0"


def test_no_client_fails_while_publishing_and_pruning(
    pocket: Pocket, web: Server, tmp_path: Path
) -> None:
    # By its dates an hour lies between two publications, and a client is done within a day.
    pocket.start = pocket.start.replace(microsecond=0) - timedelta(days=365)
    pocket.publish("0")
    apts = [
        client(tmp_path / "file", pocket, file_uri(pocket.archive.root)),
        client(tmp_path / "http", pocket, web.uri + "dev"),
    ]
    removed: list[int] = []

    def publish(number: int) -> None:
        pocket.start += timedelta(hours=1)
        pocket.publish(str(number))
        removed.extend(pocket.publications.prune(pocket.start))

    def enough(_: int) -> bool:
        return crowd.number >= 40 and min(crowd.ended) >= 5

    crowd = Crowd(clients=apts, enough=enough, within=23)
    crowd.while_running(publish)
    assert crowd.failures == []
    # The last day's are kept, with the one that was current when it began.
    last = crowd.number + 1
    assert removed == list(range(1, last - 25))
    assert pocket.publications.numbers() == list(range(last - 25, last + 1))
    for apt in apts:
        apt.update()
        assert apt.candidate("foo") == str(crowd.number)


def test_rollback_is_a_new_publication(pocket: Pocket, web: Server, tmp_path: Path) -> None:
    apt = client(tmp_path / "http", pocket, web.uri + "dev")
    pocket.publish("2.0")
    apt.update()
    changes = debs.upload(pocket.work / "old", "foo", "1.0")
    with files.locked(pocket.archive.lock, inheritable=True) as fd:
        pocket.archive.begin()
        debs.exchange(pocket.archive, changes, lock_fd=fd)
        pocket.archive.export(lock_fd=fd)
        pocket.archive.commit()
    pocket.stage(2)
    pocket.publications.switch(2)
    apt.update()
    assert apt.candidate("foo") == "1.0"


def test_dates_rise_whatever_the_clock_says(pocket: Pocket, web: Server, tmp_path: Path) -> None:
    now = pocket.start.replace(microsecond=900_000)
    apt = client(tmp_path / "http", pocket, web.uri + "dev")
    dates = []
    for number, clock in enumerate((now, now, now - timedelta(days=3)), start=1):
        pocket.include(str(number))
        date = pocket.publications.next_date(clock)
        path = pocket.stage(number, date=date)
        pocket.publications.switch(number)
        assert pocket.publications.date(number) == date
        for name in ("InRelease", "Release", "Release.gpg"):
            assert (path / "dists/dev" / name).stat().st_mtime == date.timestamp()
        dates.append(date)
        # The lists are kept: an equal or lower Date would hide the new version.
        apt.update()
        assert apt.candidate("foo") == str(number)
    first = now.replace(microsecond=0)
    assert dates == [first + timedelta(seconds=n) for n in range(3)]
    assert pocket.publications.pause(dates[2]) == 0.0
    assert pocket.publications.pause(dates[2] - timedelta(seconds=60)) == 56.0


def test_release_is_rewritten(pocket: Pocket) -> None:
    pocket.include("1.0")
    date = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    path = pocket.stage(1, date=date, valid_for=86400) / "dists/dev"
    text = (path / "Release").read_text()
    for line in (
        *("Origin: Example", "Label: Example dev", "Suite: dev", "Codename: dev"),
        f"Architectures: {ARCHITECTURE}",
        "Components: main contrib",
        "Date: Fri, 02 Jan 2026 03:04:05 UTC",
        "Valid-Until: Sat, 03 Jan 2026 03:04:05 UTC",
        "Acquire-By-Hash: yes",
    ):
        assert line in text.splitlines()
    assert text.count("Date:") == 1
    for line in text[text.index("SHA256:") :].splitlines()[1:]:
        sha256, size, name = line.split()
        by_hash = (path / name).parent / "by-hash" / "SHA256" / sha256
        assert hashlib.sha256(by_hash.read_bytes()).hexdigest() == sha256
        assert by_hash.stat().st_size == int(size)
        assert by_hash.stat().st_mode & 0o777 == 0o644
        if name.endswith(("/Packages", "/Sources")):
            assert gzip.decompress((path / f"{name}.gz").read_bytes()) == (path / name).read_bytes()
    assert f"main/binary-{ARCHITECTURE}/Packages.gz" in text
    assert "main/source/Sources.gz" in text


def test_clients_can_read_it_all_whatever_the_umask(pocket: Pocket) -> None:
    shutil.rmtree(pocket.archive.root)
    old = os.umask(0o077)
    try:
        pocket.archive.create()
        pocket.publish("1.0")
    finally:
        os.umask(old)
    root = pocket.archive.root
    for path in (root, *root.rglob("*")):
        if path != pocket.archive.private and pocket.archive.private not in path.parents:
            wanted = 0o755 if path.is_dir() else 0o644
            assert path.stat().st_mode & 0o777 == wanted, path
    assert pocket.archive.private.stat().st_mode & 0o777 == 0o700


def test_signatures_are_of_this_release(pocket: Pocket, tmp_path: Path) -> None:
    pocket.include("1.0")
    path = pocket.stage(1) / "dists/dev"
    ring = tmp_path / "ring.asc"
    ring.write_bytes(pocket.key.public_key())
    dearmoured = tmp_path / "ring.gpg"
    run(["gpg", "--homedir", pocket.key.gnupghome, "--dearmor", "--output", dearmoured, ring])
    verify: list[str | Path] = ["gpgv", "--keyring", dearmoured, "--status-fd", "1"]
    for done in (
        run([*verify, path / "InRelease"]),
        run([*verify, path / "Release.gpg", path / "Release"]),
    ):
        # VALIDSIG's eighth field is the digest: 10 is SHA-512.
        valid = next(ln.split() for ln in done.text.splitlines() if "VALIDSIG" in ln)
        assert (valid[2], valid[9]) == (pocket.key.key, "10")


def test_export_that_does_not_fit_its_release_is_not_published(pocket: Pocket) -> None:
    pocket.publish("1.0")
    pocket.include("2.0")
    index = pocket.archive.private / f"dists/dev/main/binary-{ARCHITECTURE}/Packages"
    index.write_bytes(index.read_bytes() + b"x")
    with pytest.raises(MachineFault, match="is not what"):
        pocket.stage(2)
    assert pocket.publications.numbers() == [1]


def test_what_was_undone_is_not_published(pocket: Pocket) -> None:
    pocket.publish("1.0")
    pocket.include("2.0", commit=False)
    pocket.archive.restore()
    with pytest.raises(MachineFault):
        pocket.stage(2)
    assert pocket.publications.numbers() == [1]


def test_missing_index_is_not_published(pocket: Pocket) -> None:
    pocket.include("1.0")
    (pocket.archive.private / "dists/dev/main/source/Sources").unlink()
    with pytest.raises(MachineFault, match="missing"):
        pocket.stage(1)
    assert pocket.publications.numbers() == []


def test_failed_or_foreign_signature_is_not_published(pocket: Pocket) -> None:
    pocket.include("1.0")
    now = datetime.now(UTC)

    def foreign(_: bytes) -> tuple[bytes, bytes]:
        return pocket.key.sign(b"Origin: Other\n")

    for sign in (foreign, GpgSigner(gnupghome=pocket.key.gnupghome, key="nobody").sign):
        with pytest.raises(MachineFault):
            pocket.publications.stage(1, date=now, valid_for=None, sign=sign)
    assert pocket.publications.numbers() == []
    assert pocket.publications.current() is None


def test_stage_and_switch_can_be_redone(pocket: Pocket, tmp_path: Path) -> None:
    pocket.publish("1.0")
    pocket.include("2.0")
    date = pocket.publications.next_date(pocket.start)
    first = (pocket.stage(2, date=date) / "dists/dev/Release").read_bytes()
    (pocket.archive.root / "publications/.new/dists").mkdir(parents=True)
    (pocket.archive.root / ".dists.new").symlink_to("nowhere")
    assert (pocket.stage(2, date=date) / "dists/dev/Release").read_bytes() == first
    assert pocket.publications.current() == 1
    pocket.publications.switch(2)
    pocket.publications.switch(2)
    with pytest.raises(MachineFault):
        pocket.stage(2)
    with pytest.raises(MachineFault):
        pocket.publications.drop(2)
    with pytest.raises(MachineFault):
        pocket.publications.switch(3)
    apt = client(tmp_path / "file", pocket, file_uri(pocket.archive.root))
    apt.update()
    assert apt.candidate("foo") == "2.0"


def test_dropped_publication_leaves_no_trace_for_clients(pocket: Pocket, tmp_path: Path) -> None:
    deb = pocket.publish("1.0")
    pocket.include("2.0")
    pocket.stage(2)
    pocket.publications.drop(2)
    pocket.publications.drop(2)
    assert pocket.publications.numbers() == [1]
    apt = client(tmp_path / "file", pocket, file_uri(pocket.archive.root))
    apt.update()
    assert apt.download("foo") == deb


def test_prune_keeps_by_time_and_count_and_never_the_current(pocket: Pocket) -> None:
    base = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(1, 8):
        pocket.include(str(number))
        pocket.stage(number, date=base + timedelta(hours=number))
        pocket.publications.switch(number)
    store = pocket.archive.root / "by-hash/SHA256"
    prune = pocket.publications.prune
    hour = timedelta(hours=1)

    # Number 2 was superseded at 03:00; 24 hours later it is still kept.
    assert prune(base + 26.5 * hour) == [1]
    assert prune(base + 27 * hour) == []
    before = len(list(store.iterdir()))
    assert prune(base + 1000 * hour) == [2, 3]
    assert pocket.publications.numbers() == [4, 5, 6, 7]
    assert 0 < len(list(store.iterdir())) < before
    assert prune(base + 1000 * hour, count=0) == [4, 5, 6]
    assert pocket.publications.current() == 7
    dist = pocket.publications.path(7) / "dists/dev"
    named = [ln.split() for ln in (dist / "Release").read_text().splitlines() if ln[0] == " "]
    kept = {file.name for file in store.iterdir()}
    assert kept == {sha for sha, _, name in named if (dist / name).exists()}


def test_what_was_only_signed_again_is_no_state_of_its_own(pocket: Pocket) -> None:
    base = datetime(2026, 1, 1, tzinfo=UTC)
    hour = timedelta(hours=1)
    pocket.include("1")
    for number in range(1, 9):
        if number == 3:
            pocket.include("2")
        again = number - 1 if number not in (1, 3) else 0
        pocket.stage(number, date=base + number * hour, again=again or None)
        pocket.publications.switch(number)
    prune = pocket.publications.prune
    # The older ones of a state stay as long as a client may use them; 3 was superseded at 04:00.
    assert prune(base + 28 * hour, count=1) == [1]
    # Of each of the two states the newest.
    assert prune(base + 1000 * hour, count=5) == [3, 4, 5, 6, 7]
    assert prune(base + 1000 * hour, count=1) == []
    assert prune(base + 1000 * hour, count=0) == [2]


def test_pool_files_are_all_that_the_indices_name(pocket: Pocket) -> None:
    pocket.publish("1.0")
    known: dict[str, frozenset[str]] = {}
    with files.locked(pocket.archive.lock, inheritable=True) as fd:
        expected = pocket.archive.references(lock_fd=fd)
    assert {Path(name).suffix for name in expected} == {".deb", ".dsc", ".xz"}
    assert pocket.publications.pool_files(1, known) == expected
    # What is not understood is no reason to take a file for one that nobody needs.
    sources = pocket.publications.path(1) / "dists/dev/main/source/Sources"
    text = sources.read_text()
    for field in ("Directory", "Checksums-Sha256"):
        sources.write_text(text.replace(f"{field}:", "Other:"))
        with pytest.raises(MachineFault, match="without Directory or"):
            pocket.publications.pool_files(1, {})
    assert pocket.publications.pool_files(1, known) == expected


def test_key_that_is_missing_or_locked_is_said_so(key: GpgSigner, tmp_path: Path) -> None:
    missing = GpgSigner(gnupghome=key.gnupghome, key="0" * 40)
    for use in (lambda: missing.sign(b"x\n"), missing.public_key):
        with pytest.raises(MachineFault) as fault:
            use()
        assert fault.value.code == "key-missing"
    with debs.signing_key() as locked:
        run(
            [
                *("gpg", "--homedir", locked.gnupghome, "--batch", "--pinentry-mode", "loopback"),
                *("--passphrase", "secret", "--quick-generate-key"),
                *("Locked <locked@example.org>", "ed25519", "sign", "never"),
            ]
        )
        locked.close()
        with pytest.raises(MachineFault) as fault:
            GpgSigner(gnupghome=locked.gnupghome, key="locked@example.org").sign(b"x\n")
        assert fault.value.code == "key-locked"
        with pytest.raises(MachineFault) as fault:
            signer.create_key(locked.gnupghome, "Locked", "locked@example.org")
        assert fault.value.code == "key-not-made"


def test_one_key_takes_over_from_another_and_no_client_breaks(
    pocket: Pocket, web: Server, tmp_path: Path
) -> None:
    with debs.signing_key() as old:
        new = GpgSigner(
            gnupghome=old.gnupghome,
            key=signer.create_key(old.gnupghome, "New Archive", "new@example.org"),
        )
        both = GpgSigner(gnupghome=old.gnupghome, key=old.key, also=(new.key,))
        apts = []
        for number, keys in enumerate((old, new, both)):
            pocket.key = keys
            apts.append(client(tmp_path / str(number), pocket, web.uri + "dev"))
        # Who signs, and how each client ends.
        for number, (keys, ends) in enumerate(
            [(old, (0, 100, 0)), (both, (0, 0, 0)), (new, (100, 0, 0))], start=1
        ):
            pocket.key = keys
            pocket.publish(f"{number}.0")
            assert [apt.update(check=False).code for apt in apts] == [*ends]
            assert apts[2].candidate("foo") == f"{number}.0"
        assert [(k.fingerprint, k.secret) for k in both.described()] == [
            (old.key, True),
            (new.key, True),
        ]
        half = GpgSigner(gnupghome=old.gnupghome, key=old.key, also=("0" * 40,))
        for use in (lambda: half.sign(b"x\n"), half.public_key):
            with pytest.raises(MachineFault, match="0000 is not in") as fault:
                use()
            assert fault.value.code == "key-missing"
        assert not half.described()[1].secret


def test_agent_ends_with_close() -> None:
    def agents(home: Path) -> list[bytes]:
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                lines.append(path.read_bytes())
        return [line for line in lines if str(home).encode() in line and b"gpg-agent" in line]

    with debs.signing_key() as made:
        made.sign(b"x\n")
        assert agents(made.gnupghome)
    assert not agents(made.gnupghome)


@pytest.mark.parametrize("value", ["", "a b", "a\nSigned-By: x"])
def test_stanzas_cannot_be_broken_out_of(value: str) -> None:
    with pytest.raises(Malformed):
        stanza.sources(value, "dev", ["main"], "KEY")
    with pytest.raises(Malformed):
        stanza.sources("http://example.org", "dev", ["main", value], "KEY")
    if value != "a b":
        with pytest.raises(Malformed):
            stanza.preferences("Example", label=value, codename="dev")
    with pytest.raises(Malformed):
        stanza.preferences("Example, Inc", label="x", codename="dev")
