"""The site of an installed system: fixed paths, and accounts that the package has made."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import sys
from pathlib import Path

from invirtibuilder.accounts import as_account, members
from invirtibuilder.apt.signer import create_key
from invirtibuilder.cli.command import DEFAULT_CONFIG, say
from invirtibuilder.errors import Denied, MachineFault
from invirtibuilder.run import run

DAEMON = "invirtibuilder"
SIGNER = "ib-sign"
SITE = Path("/var/lib/invirtibuilder")
SOCKETS = Path("/run/invirtibuilder")
SERVICE = "invirtibuilder.service"
"""The daemon's unit, which wants the others."""
WORKERS = {"trusted": "ib-build", "untrusted": "ib-build-untrusted"}
"""The account of each trust domain's worker, whose home is its directory."""
ACCOUNTS = (DAEMON, "ib-submit", "ib-git", SIGNER, "ib-notify", *WORKERS.values())
GROUPS = ("ib-submit", "ib-git")
"""Those that the daemon's account has to be in."""
MADE = ("superproject.git", "archive", "jobs", "packages")
"""What a site's directory has as soon as there is a site."""

KEYS = f"""
  directory: {SITE}
  doors: [ib-submit]
  queue_group: ib-submit
  push_group: ib-git
  signer: {SOCKETS}/sign.sock
  notifier: {SOCKETS}/notify.sock"""
DOMAINS = "".join(
    f"\n  {name}: {{socket: {SOCKETS}/worker-{name}.sock}}" for name in reversed(WORKERS)
)


def prepare(name: str) -> str:
    """Make what only root makes, but for the configuration; the fingerprint of the new key.

    Raises Denied for anybody else, and MachineFault for a machine without the accounts, or with
    a part of a site that nobody can complete.
    """
    if os.geteuid() != 0:
        raise Denied(
            f"only root makes the site of this machine, {DEFAULT_CONFIG}",
            hint="`invirtibuilder init DIR` makes one of your own in a directory",
        )
    _check_accounts()
    home = key_home()
    _check_parts(home)
    _directory(DEFAULT_CONFIG.parent, "root", 0o755)
    _directory(SOCKETS, "root", 0o755)
    _directory(SITE, DAEMON, 0o755)
    _directory(home.parent, SIGNER, 0o700)
    for account in WORKERS.values():
        # The build's user passes through, with ids of its own.
        _directory(_home(account), account, 0o711)
    return _new_key(home, name)


def _new_key(home: Path, name: str) -> str:
    """A key in a home that is whole or not there: one of an interrupted run is begun anew."""
    who = as_account(SIGNER)  # root does nothing in a directory of another's
    beside = home.with_name(".gnupg.new")
    run([*who, "rm", "-rf", beside])
    run([*who, "mkdir", "-m", "0700", beside])
    key = create_key(beside, f"{name} archive", f"archive@{name}.invalid", before=who)
    run([*who, "gpgconf", "--homedir", beside, "--kill", "gpg-agent"])
    run([*who, "mv", "-T", beside, home])
    return key


def key_home() -> Path:
    """The GnuPG home, which only the signer looks into."""
    return _home(SIGNER) / "gnupg"


def _home(account: str) -> Path:
    return Path(pwd.getpwnam(account).pw_dir)


def _check_accounts() -> None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    lacking = [name for name in ACCOUNTS if name not in known]
    if lacking:
        raise MachineFault(
            f"this machine has no account {', '.join(lacking)}",
            hint="installing the Debian package invirtibuilder makes them; without it,"
            " `invirtibuilder init DIR` makes a site of one account",
            code="no-account",
        )
    for group in GROUPS:
        if group not in {g.gr_name for g in grp.getgrall()} or DAEMON not in members(group):
            raise MachineFault(
                f"{DAEMON} is not in the group {group}",
                hint=f"adduser {DAEMON} {group}",
                code="no-account",
            )


def _check_parts(home: Path) -> None:
    """Without its configuration a site is not begun again: its key and its record are there."""
    found = [path for path in (home, *(SITE / made for made in MADE)) if os.path.lexists(path)]
    if found:
        there = ", ".join(map(str, found))
        raise MachineFault(
            f"there is a part of a site without its configuration, {DEFAULT_CONFIG}: {there}",
            hint="put the configuration back, from a backup, and repeat this; or, to begin a new"
            " site, move these away",
            code="half-made",
        )


def _directory(path: Path, account: str, mode: int) -> None:
    """Make a directory with this owner and mode; one that is there stays as it is."""
    if not path.is_dir():
        path.mkdir(parents=True, mode=mode)
        path.chmod(mode)
        shutil.chown(path, account, account)


def go_on_as(directory: Path) -> None:
    """Run this command once more, as the account that owns the directory; then start the services.

    Where systemd does not, only say how.
    """
    who = as_account(directory.owner())
    run([*who, sys.executable, *sys.orig_argv[1:]], stdout=1, stderr=2)
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "start", SERVICE])
        say(f"{SERVICE} runs")
    else:
        say("to start it: /usr/share/invirtibuilder/without-systemd start")
