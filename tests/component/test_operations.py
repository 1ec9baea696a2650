"""Watching, saving and restoring an installed site, whose services are accounts of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.installed import SITE, Installed, installed

pytestmark = pytest.mark.root

BACKUPS = Path("/var/lib/backups")


@pytest.fixture(scope="module")
def system() -> Iterator[Installed]:
    with installed() as made:
        made.services("start")
        made.run("install", "-d", "-o", "invirtibuilder", "-m", "700", BACKUPS)
        yield made
        made.services("stop")


def health(system: Installed, account: str) -> dict[str, Any]:
    return dict(json.loads(system.cli(account, "status", "--site", "--json", check=False).out))


def ownership(system: Installed) -> dict[str, dict[str, str]]:
    """What self-check finds of who owns what; mirrors and sandboxes are other tests'."""
    done = system.cli("root", "self-check", "--json", check=False)
    found = {finding["what"]: finding for finding in json.loads(done.out)["findings"]}
    ours = ("accounts", "configuration", "queue's group", "room for the site", "site's directory")
    kinds = ("socket of", "keys in", "public keys")
    return {what: f for what, f in found.items() if what in ours or what.startswith(kinds)}


def test_root_and_the_daemon_see_all_of_it(system: Installed) -> None:
    for account in ("root", "invirtibuilder"):
        found = health(system, account)
        assert (found["healthy"], found["unseen"]) == (True, []), found
        assert found["up"]
        assert found["services"] == {"signer": True, "notifier": True}
        assert {worker["answers"] for worker in found["workers"]} == {True}
        assert {worker["slots"] for worker in found["workers"]} == {2}
        paths = {disk["path"] for disk in found["disks"]}
        assert "/var/lib/ib-build-untrusted of the worker of untrusted" in paths


def test_others_see_what_is_public(system: Installed) -> None:
    found = health(system, "games")
    assert found["up"]
    assert found["healthy"]
    assert {worker["answers"] for worker in found["workers"]} == {None}
    assert {"events", "queue/new"} <= set(found["unseen"])
    assert len(found["pockets"]) == 3


def test_who_owns_what(system: Installed) -> None:
    found = ownership(system)
    assert {finding["state"] for finding in found.values()} == {"ok"}, found
    assert len([what for what in found if what.startswith("socket of")]) == 4
    system.run("gpasswd", "-d", "invirtibuilder", "ib-submit")
    finding = ownership(system)["queue's group"]
    assert finding["state"] == "missing"
    command, _, rest = finding["advice"].partition("; ")
    assert rest == "restart the daemon"
    system.sh(command)
    assert ownership(system)["queue's group"]["state"] == "ok"


def test_metrics_for_the_node_exporter(system: Installed) -> None:
    folder = Path("/var/lib/textfiles")
    system.run("install", "-d", "-o", "invirtibuilder", folder)
    system.cli("root", "metrics", "--output", str(folder / "site.prom"))
    assert system.run("stat", "-c", "%U %a", folder / "site.prom").text == "invirtibuilder 644"
    assert "\ninvirtibuilder_healthy 1\n" in system.run("cat", folder / "site.prom").text


def test_backup_and_restore(system: Installed) -> None:
    """Into the accounts of an emptied machine: modes and groups are as `init` made them."""
    system.cli("root", "package", "create", "hello")
    listing = ("find", SITE, "-xdev", "-maxdepth", "2", "-printf", "%M %U %G %P\\n")
    skipped = (" run", " archive/", " jobs/", " queue/new/", " superproject.git/")
    before = set(system.run(*listing).text.splitlines())
    done = system.cli("root", "backup", str(BACKUPS))
    assert b"not in it: the signing keys in /var/lib/ib-sign" in done.err
    backup = Path(done.text)
    assert system.run("stat", "-c", "%U %a", backup).text == "invirtibuilder 700"
    system.services("stop", "daemon")
    system.sh('find "$1" -mindepth 1 -delete', SITE)
    restored = system.cli("root", "restore", str(backup))
    assert restored.text.count("published again") == 3
    after = set(system.run(*listing).text.splitlines())
    different = {line for line in before ^ after if not any(word in line for word in skipped)}
    assert not different
    assert system.cli("root", "fsck", "--full").code == 0
    system.services("start")
    assert health(system, "root")["healthy"]
