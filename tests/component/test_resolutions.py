"""Build dependencies: what is kept from one build to the next, and what is seen anew."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from invirtibuilder.apt.signer import GpgSigner
from invirtibuilder.errors import Blame, RoomFault
from invirtibuilder.phases.install import installed
from invirtibuilder.phases.resolve import Unresolvable, resolve
from invirtibuilder.sandbox import layers, lists, mirrors, proxy
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.downloads import Downloads
from invirtibuilder.sandbox.ids import Ids, tree_size
from tests.support import debs
from tests.support.aptclient import Server, serving
from tests.support.debs import Binary
from tests.support.mirror import CODENAME, Place, Repository

NEEDS = "Build-Depends: libone, libtwo | libthree\n"
AS_BEFORE = "nothing has changed"


@pytest.fixture(scope="module")
def signer() -> Iterator[GpgSigner]:
    with debs.signing_key() as key:
        yield key


@pytest.fixture
def mirror(tmp_path: Path, signer: GpgSigner) -> Repository:
    made = Repository(folder=tmp_path / "mirror", signer=signer)
    made.publish(Binary(name="libone"), Binary(name="libtwo"), Binary(name="far"))
    return made


@pytest.fixture
def server(mirror: Repository) -> Iterator[Server]:
    with serving(mirror.folder) as made:
        yield made


@pytest.fixture
def pocket(tmp_path: Path, signer: GpgSigner) -> Repository:
    made = Repository(folder=tmp_path / "pocket", signer=signer, publication="publications/1")
    made.publish(Binary(name="other"))
    return made


@pytest.fixture
def place(
    tmp_path: Path, ids: Ids, base: Base, mirror: Repository, server: Server
) -> Iterator[Place]:
    tmp_path.chmod(0o755)
    (tmp_path / "work").mkdir(mode=0o711)
    made = Place(directory=tmp_path / "work", ids=ids, base=base, uri=server.uri, key=mirror.key)
    yield made
    made.remove()


def needed(place: Place, relations: str = NEEDS, pocket: Repository | None = None) -> list[str]:
    """The packages that are to be installed, by their files' names; the log is the place's."""
    with place.workshop(relations, pocket) as workshop:
        return [p.name for p in resolve(workshop, place.base, "thing.dsc").packages]


def install(place: Place, relations: str = NEEDS, pocket: Repository | None = None) -> str:
    """Have them installed; what the files of `libone` says inside."""
    with place.workshop(relations, pocket) as workshop:
        # As a sandbox leaves the order that it has read.
        os.lseek(workshop.content.fileno(), 0, os.SEEK_END)
        resolved = resolve(workshop, place.base, "thing.dsc")
        with installed(workshop, place.base, resolved) as lowers:
            return (lowers[0] / "usr/share/libone/content").read_text()


ONE_AND_TWO = ["libone_1.0_all.deb", "libtwo_1.0_all.deb"]


def test_nothing_is_resolved_downloaded_or_installed_again(place: Place, server: Server) -> None:
    assert install(place) == "1.0 \n"
    assert "apt-get" in place.log
    assert sorted(p for p, _ in server.requests if p.endswith(".deb")) == [
        "/pool/libone_1.0_all.deb",
        "/pool/libtwo_1.0_all.deb",
    ]
    server.requests.clear()
    assert install(place) == "1.0 \n"
    assert AS_BEFORE in place.log
    assert "apt" not in place.log
    assert server.requests == [(f"/dists/{CODENAME}/InRelease", 200)]


def test_only_fields_that_apt_reads_make_a_difference(place: Place) -> None:
    assert needed(place) == ONE_AND_TWO
    assert needed(place, f"Homepage: https://example.org/\n{NEEDS}") == ONE_AND_TWO
    assert AS_BEFORE in place.log
    for more in ("Build-Conflicts: libthree\n", "Build-Depends-Arch: far\n"):
        needed(place, NEEDS + more)
        assert AS_BEFORE not in place.log
    assert needed(place, "Build-Depends-Indep: far\n") == ["far_1.0_all.deb"]


def test_the_profiles_make_a_difference(place: Place) -> None:
    relations = "Build-Depends: libone <!small>\n"
    assert needed(place, relations) == ["libone_1.0_all.deb"]
    place.room = replace(place.room, profiles=("small",))
    assert needed(place, relations) == []


def test_a_change_of_the_mirror_is_seen(place: Place, mirror: Repository) -> None:
    assert install(place) == "1.0 \n"
    mirror.publish(Binary(name="libone", version="2.0"))
    assert install(place) == "2.0 \n"


def test_a_mirror_that_is_down_is_no_reason_for_an_old_answer(
    place: Place, mirror: Repository
) -> None:
    needed(place)
    shutil.rmtree(mirror.folder / "dists")
    with pytest.raises(RoomFault, match="apt-get update"):
        needed(place)


def test_a_mirror_that_takes_connections_and_says_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it for ever; it is nobody's fault but the room's, and nothing is lost."""
    monkeypatch.setattr(mirrors, "RELEASE_SECONDS", 1.0)
    monkeypatch.setattr(proxy, "TIMEOUT", 1.0)
    good = place.room
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        place.room = replace(good, sources=good.sources.replace(place.uri.rstrip("/"), uri))
        with pytest.raises(RoomFault, match="apt-get update") as caught:
            needed(place)
    assert caught.value.blame == Blame.ROOM
    # The log says which mirror, and what it did not do.
    assert f"{uri}/dists/{CODENAME}/InRelease" in place.log
    assert "timed out" in place.log
    place.room = good
    assert needed(place) == ONE_AND_TWO


def test_an_unsigned_change_of_the_mirror_is_not_believed(place: Place, mirror: Repository) -> None:
    needed(place)
    release = mirror.folder / "dists" / CODENAME / "InRelease"
    release.write_text(release.read_text().replace("Components: main", "Components: evil"))
    os.utime(release, (1.75e9, 1.75e9))
    with pytest.raises(RoomFault, match="apt-get update"):
        needed(place)


def test_what_changes_between_our_look_and_apts_is_not_kept(
    place: Place, mirror: Repository, server: Server
) -> None:
    def change(path: str) -> None:
        # The second one to ask is APT.
        if path.endswith("InRelease") and [p for p, _ in server.requests if p == path]:
            server.before = None
            mirror.publish(Binary(name="libone", version="2.0"))

    server.before = change
    assert needed(place) == ["libone_2.0_all.deb", "libtwo_1.0_all.deb"]
    assert not list((place.directory / "resolutions").glob("*"))
    assert needed(place) == ["libone_2.0_all.deb", "libtwo_1.0_all.deb"]
    assert AS_BEFORE not in place.log


@pytest.mark.parametrize(
    "changed",
    [
        Binary(name="libone"),
        Binary(name="libthree"),
        Binary(name="another", fields="Provides: virtual, libthree (= 3)\n"),
        Binary(name="bash", version="99"),
    ],
)
def test_a_change_of_the_pocket_that_may_matter_is_seen(
    place: Place, pocket: Repository, changed: Binary
) -> None:
    needed(place, pocket=pocket)
    pocket.next_publication()
    pocket.publish(changed)
    found = needed(place, pocket=pocket)
    assert AS_BEFORE not in place.log
    if changed.name in ("libone", "bash"):
        assert f"{changed.name}_{changed.version or '1.0'}_all.deb" in found


def test_other_publications_of_the_pocket_change_nothing(place: Place, pocket: Repository) -> None:
    assert needed(place, pocket=pocket) == ONE_AND_TWO
    pocket.next_publication()
    pocket.publish(Binary(name="other", version="2.0"), Binary(name="new"))
    assert needed(place, pocket=pocket) == ONE_AND_TWO
    assert AS_BEFORE in place.log


def test_a_changed_pocket_does_not_load_the_mirrors_lists_again(
    place: Place, pocket: Repository, server: Server
) -> None:
    needed(place, pocket=pocket)
    server.requests.clear()
    pocket.next_publication()
    pocket.publish(Binary(name="libone"))
    needed(place, pocket=pocket)
    assert {path for path, _ in server.requests} == {f"/dists/{CODENAME}/InRelease"}


def test_the_pockets_own_packages_are_installed_by_their_hash(
    place: Place, pocket: Repository
) -> None:
    pocket.publish(Binary(name="libone", version="0.5"))
    assert install(place, pocket=pocket) == "0.5 \n"
    pocket.next_publication()
    pocket.publish(Binary(name="libone", version="0.7"))
    assert install(place, pocket=pocket) == "0.7 \n"
    assert install(place) == "1.0 \n"
    assert len(list((place.directory / "slot/layers").glob("[0-9a-f]*"))) == 3


def test_no_solution_is_never_kept(place: Place, mirror: Repository) -> None:
    with pytest.raises(Unresolvable, match="libnobody"):
        needed(place, "Build-Depends: libnobody\n")
    mirror.publish(Binary(name="libnobody"))
    assert needed(place, "Build-Depends: libnobody\n") == ["libnobody_1.0_all.deb"]


def test_apts_word_counts_for_a_day(place: Place) -> None:
    needed(place)
    (kept,) = (place.directory / "resolutions").iterdir()
    value = json.loads(kept.read_text())
    (whole,) = (place.directory / "slot/lists").glob("*/whole.json")
    for made in (value["made"] - lists.FRESH, value["made"] + 3600):
        kept.write_text(json.dumps({**value, "made": made}))
        whole.write_text(json.dumps({**json.loads(whole.read_text()), "made": made}))
        assert needed(place) == ONE_AND_TWO
        assert "apt-get" in place.log
        assert "update" in place.log


@pytest.mark.parametrize("content", ["", "{}", '{"packages": [{}], "names": []}', "[1]"])
def test_a_torn_resolution_is_made_anew(place: Place, content: str) -> None:
    needed(place)
    (kept,) = (place.directory / "resolutions").iterdir()
    kept.write_text(content)
    assert needed(place) == ONE_AND_TWO
    assert AS_BEFORE not in place.log


def test_lists_that_were_left_half_made_are_begun_anew(place: Place, server: Server) -> None:
    needed(place)

    def fail() -> None:
        raise RoomFault("killed")

    with pytest.raises(RoomFault, match="killed"), place.workshop(NEEDS) as workshop:
        (name,) = (path.name for path in (place.directory / "slot/lists").iterdir())
        with lists.held(place.directory / "slot/lists", name, workshop.ids) as there:
            there.update(None, fail)
    shutil.rmtree(place.directory / "resolutions")
    server.requests.clear()
    assert needed(place) == ONE_AND_TWO
    assert any("Packages" in path for path, _ in server.requests)


class TestDownloads:
    """What was downloaded once."""

    def test_is_used_for_another_layer(self, place: Place, server: Server) -> None:
        install(place)
        server.requests.clear()
        install(place, "Build-Depends: libone\n")
        assert not [path for path, _ in server.requests if path.endswith(".deb")]

    def test_is_hashed_each_time(self, place: Place, server: Server) -> None:
        install(place)
        for path in (place.directory / "downloads").iterdir():
            path.chmod(0o644)
            path.write_bytes(path.read_bytes().replace(b"libone", b"libevl"))
        server.requests.clear()
        assert install(place, "Build-Depends: libone\n") == "1.0 \n"
        assert "/pool/libone_1.0_all.deb" in {path for path, _ in server.requests}

    def test_is_not_what_a_mirror_says_but_what_apt_expects(
        self, place: Place, mirror: Repository
    ) -> None:
        (deb,) = mirror.folder.glob("pool/libone_*")
        deb.write_bytes(deb.read_bytes()[:-1] + b"x")
        with pytest.raises(RoomFault, match=r"libone_1\.0_all\.deb cannot be downloaded"):
            install(place)
        names = {path.name for path in (place.directory / "downloads").iterdir()}
        assert all(len(name) == 64 for name in names)
        assert not list((place.directory / "resolutions").iterdir())

    def test_the_least_used_goes_first(self, tmp_path: Path) -> None:
        downloads = Downloads(directory=tmp_path / "kept", size=2500)
        hashes = [put(downloads, bytes([n]) * 1000) for n in range(3)]
        for age, sha256 in enumerate((hashes[0], hashes[2], hashes[1])):
            os.utime(tmp_path / "kept" / sha256, (1e9 - age, 1e9 - age))
        assert downloads.take(hashes[0], tmp_path / "used")
        downloads.collect()
        assert {p.name for p in (tmp_path / "kept").iterdir()} == {hashes[0], hashes[2]}
        (tmp_path / "kept" / hashes[0]).unlink()
        assert (tmp_path / "used").read_bytes() == bytes(1000)

    def test_nothing_is_left_of_one_that_was_killed(self, tmp_path: Path) -> None:
        downloads = Downloads(directory=tmp_path / "kept", size=1 << 20)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            downloads.add("0" * 64, 1000, lambda size: os.read(reader, size))
            os._exit(0)
        os.write(writer, b"half")
        until_in(tmp_path / "kept")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not list((tmp_path / "kept").iterdir())
        assert not downloads.take("0" * 64, tmp_path / "used")


def put(downloads: Downloads, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    parts = iter((data, b""))
    downloads.add(sha256, len(data), lambda _: next(parts))
    return sha256


def until_in(folder: Path) -> None:
    while not folder.is_dir():
        os.sched_yield()


class TestLayers:
    """How many layers are kept."""

    def make(self, store: Path, name: str, ids: Ids, most: int) -> None:
        with layers.made(store, name, ids, most=most) as tree:
            entered = tree_size(ids, tree)
            assert entered > 0

    def test_those_in_use_stay(self, tmp_path: Path, ids: Ids) -> None:
        tmp_path.chmod(0o711)
        self.make(tmp_path, "a", ids, 1 << 30)
        self.make(tmp_path, "b", ids, 1 << 30)
        size = int((tmp_path / "a" / layers.SIZE).read_text())
        os.utime(tmp_path / "a" / "lock", (1e9, 1e9))
        lock = (tmp_path / "a" / "lock").open()
        with lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            self.make(tmp_path, "c", ids, size)
            assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c"]
        self.make(tmp_path, "d", ids, 2 * size)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "d"]
        for name in "cd":
            layers.discard(tmp_path / name, ids)


def test_lists_are_bounded(tmp_path: Path, ids: Ids) -> None:
    tmp_path.chmod(0o711)
    for number in range(lists.KEPT + 1):
        with lists.held(tmp_path, f"n{number}", ids) as there:
            there.update(None, lambda: None)
        os.utime(tmp_path / f"n{number}" / "lock", (1e9 + number, 1e9 + number))
    lists.collect(tmp_path, ids)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n1", "n2", "n3"]
    for path in tmp_path.iterdir():
        layers.discard(path, ids)
