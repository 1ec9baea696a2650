"""self-check of who owns what: each fault is found, and the command that is told mends it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from invirtibuilder import hosting
from invirtibuilder.cli.installation import installation
from invirtibuilder.run import run
from invirtibuilder.sandbox.check import MISSING, OK, WEAKER, Finding
from invirtibuilder.sandbox.ids import Ids
from tests.support import place as places
from tests.support.accounts import made_accounts
from tests.support.place import Place


@pytest.fixture
def own() -> Iterator[Place]:
    with places.place() as made, listening(made.directory / "run/worker.sock"):
        hosting.ensure_site(made.site)
        context = made.context
        for pocket in made.site.pockets.values():
            hosting.ensure_pocket(context, pocket)
        yield made


@contextmanager
def listening(path: Path) -> Iterator[None]:
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o660)
        yield


def found(place: Place) -> dict[str, Finding]:
    value = {finding.what: finding for finding in installation(place.site)}
    assert all(f.advice for f in value.values() if f.state != OK)
    return value


def mend(finding: Finding) -> None:
    run(["sh", "-euc", finding.advice])


def test_a_site_as_it_should_be(own: Place) -> None:
    value = found(own)
    assert {finding.state for finding in value.values()} == {OK}, value
    assert {"site's directory", "socket of the worker of trusted", "configuration"} <= set(value)


FAULTS: dict[str, tuple[str, Callable[[Place], object]]] = {
    "everybody writes": ("site's directory", lambda place: place.directory.chmod(0o777)),
    "a socket": (
        "socket of the worker of trusted",
        lambda place: (place.directory / "run/worker.sock").chmod(0o666),
    ),
    "keys": ("keys in {}/gnupg", lambda place: (place.directory / "gnupg").chmod(0o755)),
    "the configuration": ("configuration", lambda place: place.config.chmod(0o666)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_mended(own: Place, fault: str) -> None:
    what, make = FAULTS[fault]
    make(own)
    finding = found(own)[what.format(own.directory)]
    assert finding.state == MISSING
    mend(finding)
    assert {each.state for each in found(own).values()} == {OK}


def test_keys_that_expire(own: Place) -> None:
    home = own.site.signing.home
    key = own.site.signing.key
    gpg: list[str | Path] = [
        "gpg",
        "--homedir",
        home,
        "--batch",
        "--quiet",
        "--quick-set-expire",
        key,
    ]
    for end, state in (("10d", WEAKER), ("seconds=1", MISSING)):
        run([*gpg, end])
        armoured = run(["gpg", "--homedir", home, "--armor", "--export", key]).out
        (own.site.archive / "dev/key.asc").write_bytes(armoured)
        finding = places.until(lambda state=state: _of_keys(own, state))  # type: ignore[misc]
        assert finding.detail.startswith(f"{key} expires at 20")
        assert f"--quick-set-expire {key} 2y" in finding.advice


def _of_keys(place: Place, state: str) -> Finding | None:
    finding = found(place)["public keys of dev"]
    return finding if finding.state == state else None


def test_a_full_disk(own: Place) -> None:
    own.edit("site:\n", "site:\n  reserve: 100000T\n")
    assert found(own)["room for the site"].state == MISSING


def test_who_is_not_there(own: Place) -> None:
    own.edit("site:\n", "site:\n  queue_group: no-such-group\n")
    finding = found(own)["queue's group"]
    assert (finding.state, finding.advice) == (MISSING, "addgroup --system no-such-group")


@pytest.mark.root
def test_accounts_and_their_groups(own: Place, ids: Ids) -> None:
    """As on a site of several accounts: each thing is found in somebody else's hands."""
    with made_accounts(ids) as names:
        daemon, keys, door = names.daemon, names.stranger, names.submitter
        run(["chown", "-R", f"{daemon}:{daemon}", own.directory])
        own.edit("site:\n", f"site:\n  queue_group: {door}\n  signer: run/sign.sock\n")
        with listening(own.directory / "run/sign.sock"):
            value = found(own)
            wrong = {what for what, finding in value.items() if finding.state != OK}
            assert wrong == {
                *("queue's group", "configuration", f"keys in {own.directory}/gnupg"),
                "socket of the signer",
            }
            assert f"adduser {daemon} {door}" in value["queue's group"].advice
            mend(value["socket of the signer"])
            mend(value["configuration"])
            run(["usermod", "-aG", door, daemon])
            assert "chmod 1770" in found(own)["queue's group"].advice
            mend(found(own)["queue's group"])
            run(["chown", "-R", f"{keys}:", own.directory / "gnupg"])
            assert {finding.state for finding in found(own).values()} == {OK}
