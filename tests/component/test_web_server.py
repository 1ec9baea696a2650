"""What a web server in hostile hands serves is not believed by the real apt-get."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from invirtibuilder.run import run
from invirtibuilder.states import State
from tests.support import packages
from tests.support import place as places
from tests.support.aptclient import AptClient, Server, serving
from tests.support.place import Place


@dataclass(frozen=True, kw_only=True)
class Web:
    """A copy of a site's archive that its web server may change, and clients of staging."""

    place: Place
    server: Server
    folder: Path
    work: Path

    @property
    def dist(self) -> Path:
        """What clients see of staging."""
        return self.folder / "staging/dists/staging"

    def client(self, name: str) -> AptClient:
        made = AptClient(folder=self.work / name)
        made.configure(self.place.cli("sources", "staging", check=True).text)
        return made

    def fetch(self) -> None:
        """Show what the site has published by now."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.place.site.archive, self.folder, symlinks=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    work = tmp_path_factory.mktemp("web")
    folder = work / "served"
    folder.mkdir()
    with places.canned() as (place, _), serving(folder) as server:
        place.edit("site:\n", f"site:\n  url: {server.uri.rstrip('/')}\n")
        place.edit("    description: what is to be", "    valid_for: 7d\n    description: to be")
        greet = packages.native(work / "greet", "greet")
        place.package(greet)
        for pocket in ("staging", "dev"):
            assert place.submitted(pocket, greet).status.state == State.PUBLISHED
        yield Web(place=place, server=server, folder=folder, work=work)


@pytest.fixture
def web(site: Web, request: pytest.FixtureRequest) -> Iterator[Web]:
    """The same for each test, which may change what is served."""
    site.fetch()
    yield site
    for path in site.work.glob("client*"):
        shutil.rmtree(path)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file of the copy, and nothing that it is linked to."""
    data = change(path.read_bytes())
    path.unlink()
    path.write_bytes(data)
    newer(path)


def newer(path: Path) -> None:
    """Else a client that has one of the same second is told that nothing has changed."""
    later = time.time() + 60
    os.utime(path, (later, later))


def altered(web: Web) -> None:
    rewrite(web.dist / "InRelease", lambda data: data.replace(b"\nLabel: ", b"\nLabel: x", 1))
    (web.dist / "Release.gpg").unlink()


def unsigned(web: Web) -> None:
    (web.dist / "InRelease").unlink()
    (web.dist / "Release.gpg").unlink()


def of_another_key(web: Web) -> None:
    home = web.work / "client-of-nobody"
    home.mkdir(mode=0o700)
    gpg: list[str | Path] = ["gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", ""]
    run([*gpg, "--quick-generate-key", "Mallory <mallory@example.org>", "ed25519", "sign"])
    for name, how in (("InRelease", "--clearsign"), ("Release.gpg", "--detach-sign")):
        (web.dist / name).unlink()
        run([*gpg, "--armor", "--output", web.dist / name, how, web.dist / "Release"])
        newer(web.dist / name)
    run(["gpgconf", "--homedir", home, "--kill", "all"])


def other_indices(web: Web) -> None:
    for path in (web.folder / "staging/by-hash/SHA256").iterdir():
        rewrite(path, lambda data: data[:-1] + b"x")


REFUSED: dict[str, tuple[Callable[[Web], None], bytes]] = {
    "an altered Release": (altered, rb"BADSIG|not signed|invalid"),
    "no signature": (unsigned, rb"not signed"),
    "another key's signature": (of_another_key, rb"NO_PUBKEY|not signed"),
    "altered indices": (other_indices, rb"Hash Sum mismatch|unexpected size"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_changed_repository_is_refused(web: Web, what: str) -> None:
    change, why = REFUSED[what]
    new, old = web.client("client-new"), web.client("client-old")
    old.update()
    assert old.candidate("greet") == "1.0"
    change(web)
    done = new.update(check=False)
    assert done.code != 0
    assert re.search(why, done.err), done.err.decode()
    assert new.candidate("greet") in ("", "(none)")
    if what != "altered indices":  # those it has already
        assert old.update(check=False).code != 0
    assert old.candidate("greet") == "1.0"
    # The same client takes what was not changed.
    web.fetch()
    new.update()
    assert b"1.0" in new.download("greet")


def test_a_changed_package_is_refused(web: Web) -> None:
    client = web.client("client")
    client.update()
    (deb,) = (web.folder / "staging/pool").rglob("greet_1.0_*.deb")
    rewrite(deb, lambda data: data[:-1] + b"x")
    done = client.apt("apt-get", "download", "greet", check=False)
    assert done.code != 0
    assert b"Hash Sum mismatch" in done.err
    assert [path.name for path in (client.folder / "out").iterdir()] == [f"{deb.name}.FAILED"]
    web.fetch()
    assert b"1.0" in client.download("greet")


def test_an_old_state_is_refused_once_it_has_run_out(web: Web) -> None:
    """Until then, a server can hold back what is new."""
    for days, code in (("+6d", 0), ("+8d", 100)):
        client = web.client(f"client{days}")
        # APT takes its own lists to be new while they are in their files' future.
        done = client.apt("faketime", "-f", days, "apt-get", "update", check=False)
        assert done.code == code, done.err.decode()
        assert (b"is expired" in done.err) is (code != 0)


def another_pocket(web: Web) -> None:
    """dev's publication, validly signed, where staging's is asked for."""
    target = web.folder / "staging"
    shutil.rmtree(target)
    shutil.copytree(web.folder / "dev", target, symlinks=True)
    number = (target / "dists").readlink().parts[1]
    (target / "publications" / number / "dists/dev").rename(web.dist.resolve(strict=False))
    newer(web.dist / "InRelease")


def test_another_pockets_state_is_refused_where_the_pocket_was_known(web: Web) -> None:
    client = web.client("client")
    client.update()
    another_pocket(web)
    done = client.update(check=False)
    assert done.code != 0
    assert b"changed its 'Codename' value from 'staging' to 'dev'" in done.err


def test_a_pocket_with_a_key_of_its_own_is_no_other(web: Web) -> None:
    """A new client, too, refuses it; of pockets that share a key APT only warns it."""
    another_pocket(web)
    shared = web.client("client-shared").update()
    assert b"Conflicting distribution" in shared.err
    place = web.place
    before = place.config.read_text()
    home = place.directory / "gnupg-staging"
    key = place.cli("key", "new", "staging", check=True).text.split()[0]
    shutil.copytree(place.site.signing.home, home, ignore=shutil.ignore_patterns("S.*"))
    place.edit(
        "    valid_for: 7d\n", f"    valid_for: 7d\n    signing: {{home: {home}, key: {key}}}\n"
    )
    try:
        with place.daemon():
            client = web.client("client-own")
        done = client.update(check=False)
        assert done.code != 0
        assert b"NO_PUBKEY" in done.err
        web.fetch()
        client.update()
        assert client.candidate("greet") == "1.0"
    finally:
        place.config.write_text(before)
        with place.daemon():
            pass
