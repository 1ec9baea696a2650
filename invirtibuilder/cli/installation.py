"""What of an installed site belongs to whom: accounts, groups, modes, sockets, keys, room."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from invirtibuilder import model
from invirtibuilder.accounts import members, named
from invirtibuilder.apt.publickeys import expiries
from invirtibuilder.errors import Fault
from invirtibuilder.health import KEY_LEFT
from invirtibuilder.sandbox.check import MISSING, OK, WEAKER, Finding
from invirtibuilder.settings import Site
from invirtibuilder.stages.context import public_key

ETC = Path("/etc/invirtibuilder")
ACCOUNTS = (
    *("invirtibuilder", "ib-submit", "ib-git", "ib-sign", "ib-notify"),
    *("ib-build", "ib-build-untrusted"),
)
"""What the package makes."""
ANEW = "dpkg-reconfigure invirtibuilder"


def installation(site: Site) -> Iterator[Finding]:
    """Whether each of them is as it has to be; what does not concern this site is left out."""
    owner = site.directory.stat()
    yield _modes("site's directory", site.directory, 0o022, "go-w")
    if site.file.parent == ETC:
        yield _accounts()
    if site.queue_group:
        yield _group(site, named(owner.st_uid))
    for what, path in _sockets(site):
        yield _socket(what, path, owner)
    for home in sorted({pocket.signing.home for pocket in site.pockets.values()}):
        yield _keys_home(site, home, owner)
    yield _configuration(site, owner)
    yield from _expiring(site)
    yield _room(site)


def _found(
    what: str, wrong: str, advice: str, *, detail: str = "", state: str = MISSING
) -> Finding:
    """A finding: all is well unless something is wrong."""
    if not wrong:
        return Finding(what=what, state=OK, detail=detail)
    return Finding(what=what, state=state, detail=wrong, advice=advice)


def _modes(what: str, path: Path, forbidden: int, change: str) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    wrong = f"{path} has mode {mode:o}" if mode & forbidden else ""
    return _found(what, wrong, f"chmod {change} {path}", detail=str(path))


def _accounts() -> Finding:
    there = {entry.pw_name for entry in pwd.getpwall()}
    absent = [name for name in ACCOUNTS if name not in there]
    wrong = f"there is no account {', '.join(absent)}" if absent else ""
    return _found("accounts", wrong, ANEW, detail=", ".join(ACCOUNTS))


def _group(site: Site, owner: str) -> Finding:
    """Who takes requests up, and the doors, have to be in the group that may submit."""
    what, group = "queue's group", site.queue_group
    try:
        inside = members(group)
    except KeyError:
        return _found(what, f"there is no group {group}", f"addgroup --system {group}")
    outside = [name for name in (owner, *site.doors) if name not in inside and name != "root"]
    if outside:
        advice = "; ".join(f"adduser {name} {group}" for name in outside)
        return _found(what, f"{', '.join(outside)} not in {group}", f"{advice}; restart the daemon")
    new = site.queue / "new"
    if new.exists() and (new.group(), stat.S_IMODE(new.stat().st_mode)) != (group, 0o1770):
        both = f"{new} {site.queue / 'tmp'}"
        advice = f"chgrp {group} {both}; chmod 1770 {both}"
        return _found(what, f"{new} is not {group}'s with mode 1770", advice)
    return _found(what, "", "", detail=group)


def _sockets(site: Site) -> Iterator[tuple[str, Path]]:
    """Those at which only the daemon may ask."""
    for name, path in (("signer", site.signer), ("notifier", site.notifier)):
        if path:
            yield f"socket of the {name}", path
    for domain in site.domains.values():
        if domain.socket:
            yield f"socket of the worker of {domain.name}", domain.socket


def _socket(what: str, path: Path, owner: os.stat_result) -> Finding:
    """Open to the site's own account, by its group, and to nobody else."""
    try:
        status = path.stat()
    except OSError as error:
        # Whether somebody listens there is asked elsewhere.
        return _found(what, str(error), "start who listens there", state=WEAKER)
    if status.st_mode & 0o007:
        return _found(what, f"{path} is open to everybody", f"chmod 660 {path}")
    name = named(owner.st_uid)
    groups = os.getgrouplist(name, owner.st_gid)
    if owner.st_uid not in (0, status.st_uid) and status.st_gid not in groups:
        advice = f"chgrp {name} {path}; chmod 660 {path}"
        return _found(what, f"{path} is closed to {name}", advice)
    return _found(what, "", "", detail=str(path))


def _keys_home(site: Site, home: Path, owner: os.stat_result) -> Finding:
    what = f"keys in {home}"
    try:
        status = home.stat()
    except PermissionError:
        return _found(what, "", "", detail="another account's")
    except OSError as error:
        return _found(what, str(error), "see `signing` of the configuration")
    if site.signer and status.st_uid == owner.st_uid != 0:
        wrong = f"they are {named(owner.st_uid)}'s, whom a signer is to keep from them"
        advice = f"chown -R ib-sign: {home}; systemctl restart invirtibuilder-signer"
        return _found(what, wrong, advice)
    return _modes(what, home, 0o077, "go=")


def _configuration(site: Site, owner: os.stat_result) -> Finding:
    """Everybody reads it; on a site of several accounts the daemon's must not change it."""
    what, path = "configuration", site.file
    status = path.stat()
    if status.st_mode & 0o022:
        return _found(what, f"{path} can be written by others", f"chmod go-w {path}")
    if site.signer and status.st_uid == owner.st_uid != 0:
        wrong = f"{path} is {named(owner.st_uid)}'s, and tells others whom to trust"
        return _found(what, wrong, f"chown root:root {path}; chmod 644 {path}")
    if site.queue_group and not status.st_mode & 0o004:
        return _found(what, f"{path} is closed to submitters", f"chmod a+r {path}")
    return _found(what, "", "", detail=str(path))


def _expiring(site: Site) -> Iterator[Finding]:
    now = model.utcnow()
    for pocket in site.pockets.values():
        file = public_key(site, pocket)
        if not file.exists():
            continue
        what = f"public keys of {pocket.name}"
        try:
            ends = {key: end for key, end in expiries(file.read_bytes()).items() if end}
        except (OSError, Fault) as error:
            yield _found(what, str(error), f"restart the daemon, which writes {file}")
            continue
        late = [key for key, end in ends.items() if end - now < KEY_LEFT]
        over = any(ends[key] < now for key in late)
        wrong = ", ".join(f"{key} expires at {model.iso(ends[key])}" for key in late)
        home = pocket.signing.home
        advice = "; ".join(f"gpg --homedir {home} --quick-set-expire {key} 2y" for key in late)
        advice += "; restart the daemon, and give clients the new keys (`sources`)"
        state = MISSING if over else WEAKER
        yield _found(what, wrong, advice, detail="none expires soon", state=state)


def _room(site: Site) -> Finding:
    reserve = max(pocket.limits.reserve or 0 for pocket in site.pockets.values())
    free = shutil.disk_usage(site.directory).free
    text = f"{free >> 30} GiB free in {site.directory}; {reserve >> 30} GiB must stay free"
    advice = "invirtibuilder gc; or a shorter `retention`, or a larger disk"
    return _found("room for the site", text if free < reserve else "", advice, detail=text)
