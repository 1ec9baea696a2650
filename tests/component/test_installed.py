"""The installed site: what `init` makes, and that no command of root's gets in its way."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from invirtibuilder.errors import Exit
from tests.support.installed import ACCOUNTS, CONFIG, SITE, Installed, installed

pytestmark = pytest.mark.root

KEYS = Path(ACCOUNTS["ib-sign"]) / "gnupg"
MODES = {
    "": "drwxr-xr-x invirtibuilder:invirtibuilder",
    "queue/new": "drwxrwx--T invirtibuilder:ib-submit",
    "queue/tmp": "drwxrwx--T invirtibuilder:ib-submit",
    "queue/bad": "drwxr-xr-x invirtibuilder:invirtibuilder",
    "jobs": "drwxr-x--- invirtibuilder:ib-submit",
    "packages": "drwxr-x--- invirtibuilder:ib-git",
    "events": "drwxr-x--- invirtibuilder:ib-submit",
    "run": "drwxr-xr-x invirtibuilder:invirtibuilder",
    "superproject.git": "drwxr-xr-x invirtibuilder:invirtibuilder",
    "archive": "drwxr-xr-x invirtibuilder:invirtibuilder",
    "archive/dev/private": "drwx------ invirtibuilder:invirtibuilder",
}


@pytest.fixture(scope="module")
def system() -> Iterator[Installed]:
    with installed() as made:
        made.services("start", "signer")
        yield made
        made.services("stop", "signer")


def strangers(system: Installed) -> set[str]:
    """Who has files in the site's directory, or beside the keys, besides the account of each."""
    found = set()
    for path, owner in ((SITE, "invirtibuilder"), ("/var/lib/ib-sign", "ib-sign")):
        lines = system.run("find", path, "-xdev", "-printf", "%u\\n").text.splitlines()
        found |= set(lines) - {owner}
    return found


def test_owners_and_modes(system: Installed) -> None:
    paths = [SITE / name for name in MODES]
    lines = system.run("stat", "-c", "%A %U:%G", "--", *paths).text.splitlines()
    assert dict(zip(MODES, lines, strict=True)) == MODES
    assert strangers(system) == set()
    assert system.run("stat", "-c", "%A %U:%G", CONFIG).text == "-rw-r--r-- root:root"
    listed = system.run("stat", "-c", "%A %U:%G", KEYS.parent, KEYS).text.splitlines()
    assert listed == ["drwx------ ib-sign:ib-sign"] * 2


def test_backtracking_pockets_have_another_domain(system: Installed) -> None:
    value = yaml.safe_load(system.path(CONFIG).read_text())
    domains = {pocket["trust_domain"] for pocket in value["pockets"].values()}
    assert set(value["domains"]) == domains == {"trusted", "untrusted"}
    loose = [p for p in value["pockets"].values() if p.get("allow_backtracking")]
    assert {p["trust_domain"] for p in loose} == {"untrusted"}
    assert b"warning" not in system.cli("root", "check-config").err
    system.cli("root", "pocket", "create", "hot", "--allow-backtracking", "--like", "prod")
    value = yaml.safe_load(system.path(CONFIG).read_text())
    assert value["pockets"]["hot"]["trust_domain"] == "untrusted"
    assert system.run("stat", "-c", "%U", CONFIG).text == "root"
    text = system.path(CONFIG).read_text()
    system.path(CONFIG).write_text(text.replace("domain: untrusted", "domain: trusted"))
    try:
        said = system.cli("root", "check-config").err
        assert b"trust domain trusted builds for dev, hot, where any commit is accepted" in said
        done = system.cli("root", "pocket", "create", "other", "--allow-backtracking", check=False)
        assert (done.code, b"trust_domain: untrusted" in done.err) == (Exit.OK, False)
    finally:
        system.path(CONFIG).write_text(text)


def test_once_more(system: Installed) -> None:
    before = system.path(CONFIG).read_bytes()
    done = system.cli("root", "init")
    assert b"is there already and stays as it is" in done.err
    assert b"/usr/share/invirtibuilder/without-systemd start" in done.err
    assert system.path(CONFIG).read_bytes() == before
    assert strangers(system) == set()


def test_where_systemd_runs_it_starts_the_daemon(system: Installed) -> None:
    """There is none here: a program in its place says what it was told, and by whom."""
    program = system.path("/usr/bin/systemctl")
    kept = program.read_bytes() if program.exists() else b""
    program.unlink(missing_ok=True)
    program.write_text('#!/bin/sh\necho "$(id -un) $*" >/run/told\n')
    program.chmod(0o755)
    system.run("mkdir", "-p", "/run/systemd/system")
    try:
        assert b"invirtibuilder.service runs" in system.cli("root", "init").err
        told = system.path("/run/told").read_text()
        assert told == "root start invirtibuilder.service\n"
    finally:
        system.run("rm", "-r", "/run/systemd")
        program.unlink()
        if kept:
            program.write_bytes(kept)
            program.chmod(0o755)


@pytest.mark.parametrize(
    "words",
    [
        ["package", "create", "hello"],
        ["package", "list"],
        ["pocket", "create", "fresh"],
        ["pocket", "show", "dev"],
        ["key", "new", "prod"],
        ["key", "list"],
        ["acl", "compile"],
        ["acl", "show"],
        ["sources", "dev"],
        ["diff", "dev", "prod"],
        ["fsck", "--repair"],
        ["gc"],
        ["rebuild-state"],
        ["check-config"],
        ["daemon", "--drain"],
        ["status"],
        ["status", "--site"],
        ["metrics"],
        ["queue"],
        ["base", "refresh", "prod"],
    ],
    ids=" ".join,
)
def test_what_root_runs_is_not_in_the_daemons_way(system: Installed, words: list[str]) -> None:
    done = system.cli("root", *words, check=False)
    # 7: the daemon and the workers do not run here.
    assert done.code == (7 if "--site" in words else 0), done.err.decode()
    assert strangers(system) <= ({"root"} if words[0] == "base" else set())


def test_roots_environment_stays_with_root(system: Installed) -> None:
    """Python says once a start what it imports, where its environment asks for that."""
    argv = ("env", "PYTHONPROFILEIMPORTTIME=1", "/usr/bin/python3", "-m", "invirtibuilder")
    told = system.run(*argv, "package", "list").err.decode()
    started, _, anew = told.partition("as invirtibuilder, whose /var/lib/invirtibuilder is")
    assert "import time:" in started
    assert anew.strip() == ""


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_a_backup_says_how_its_directory_is_made(system: Installed, there: bool) -> None:
    """It is made as the site's account, which writes nowhere but where somebody lets it."""
    target = f"/run/backups-{there}"
    if there:
        system.path(target).mkdir(0o755)
    done = system.cli("root", "backup", target, check=False)
    said = done.err.decode()
    assert (done.code, "Traceback" in said) == (Exit.DENIED, False), said
    assert f"invirtibuilder may not write in {target}" in said
    hint = re.search("as root: `(.*)`", said)
    assert hint
    assert hint[1] == f"install -d -o invirtibuilder -m 700 {target}"
    system.sh(hint[1])
    made = Path(system.cli("root", "backup", target).text)
    assert made.parent == Path(target)
    assert system.run("stat", "-c", "%A %U", target).text == "drwx------ invirtibuilder"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["init"], "or as root"),
        (["package", "create", "hello"], "run this as invirtibuilder, or as root"),
        (["pocket", "create", "mine"], "run this as root"),
        (["acl", "compile"], "run this as invirtibuilder, or as root"),
        (["fsck"], "run this as invirtibuilder, or as root"),
        (["gc", "--dry-run"], "run this as invirtibuilder, or as root"),
        (["rebuild-state"], "run this as invirtibuilder, or as root"),
        (["daemon"], "run this as invirtibuilder, or as root"),
        (["key", "new", "prod"], "run this as root"),
        (["key", "list"], "run it as one of them"),
        (["status"], "invirtibuilder and members of the group ib-submit and root may"),
        (["package", "list"], "members of the group ib-git and root may"),
        (["queue"], "members of the group ib-submit and root may"),
        (["submit", "dev", "hello", "main"], "queue_group"),
        (["worker", "--check", "--directory", "/var/lib/ib-build"], "run this as ib-build"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_others_are_told_as_whom(system: Installed, words: list[str], hint: str) -> None:
    done = system.cli("ib-notify", *words, check=False)
    assert (done.code, hint in done.err.decode()) == (Exit.DENIED, True), done.err.decode()


@pytest.mark.parametrize(
    "words",
    [["pocket", "list"], ["sources", "dev"], ["check-config"]],
    ids=" ".join,
)
def test_everybody_may_look(system: Installed, words: list[str]) -> None:
    assert system.cli("ib-notify", *words).code == 0


def test_a_half_made_site_is_not_begun_again(system: Installed) -> None:
    config = system.path(CONFIG)
    kept = config.with_name("kept")
    config.rename(kept)
    try:
        done = system.cli("root", "init", check=False)
        assert done.code == Exit.MACHINE
        said = done.err.decode()
        for path in ("superproject.git", "archive", "jobs", "packages"):
            assert f"{SITE}/{path}" in said
        assert f"{KEYS}" in said
        assert "put the configuration back" in said
        assert not config.exists()
    finally:
        kept.rename(config)
    assert system.cli("root", "init").code == 0


def test_what_an_interrupted_init_left_is_begun_anew(tmp_path: Path) -> None:
    with installed(begun=False) as system:
        done = system.cli("ib-notify", "init", check=False)
        assert (done.code, b"`invirtibuilder init DIR`" in done.err) == (Exit.DENIED, True)
        system.run("userdel", "ib-notify")
        done = system.cli("root", "init", check=False)
        assert done.code == Exit.MACHINE
        assert b"no account ib-notify" in done.err
        system.run("useradd", "--system", "ib-notify")
        system.run("gpasswd", "-d", "invirtibuilder", "ib-submit")
        done = system.cli("root", "init", check=False)
        assert b"adduser invirtibuilder ib-submit" in done.err
        system.run("usermod", "-aG", "ib-submit", "invirtibuilder")
        # What a run that was killed while gpg made the key leaves behind.
        system.sh('mkdir -m 700 "$1/.gnupg.new" && chown ib-sign "$1/.gnupg.new"', KEYS.parent)
        system.cli("root", "init")
        status = system.path(KEYS).stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert not system.path(KEYS.parent / ".gnupg.new").exists()


def test_nobody_takes_anothers_request_away(system: Installed) -> None:
    """Who may put requests into the queue neither removes nor changes those that are there."""
    system.cli("root", "base", "refresh", "prod")
    queue = SITE / "queue/new"
    there = system.sh('cd "$1" && sha256sum -- *', queue)
    spoil = 'cd "$1"; for f in *; do mv "$f" x; cp /dev/null "$f"; ln -sf x "$f"; rm -f "$f"; done'
    for account in ("ib-submit", "invirtibuilder"):
        ids = (f"--reuid={account}", f"--regid={account}", "--init-groups")
        system.run("setpriv", *ids, "sh", "-uc", spoil, "sh", queue, check=False)
        # The control: the daemon's account can.
        now = system.run("sh", "-c", 'cd "$1" && sha256sum -- * || :', "sh", queue).text
        assert (now == there) == (account == "ib-submit")
