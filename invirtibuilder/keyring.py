"""The POCKET-archive-keyring package: the site writes its source, commits it and submits it.

A client that has it follows a change of keys by `apt-get upgrade`: both keys sign for a while,
the package with both comes in, and then the old one may go.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from invirtibuilder.errors import Fault
from invirtibuilder.gitrepo import Repository
from invirtibuilder.jobs import Status
from invirtibuilder.journal import WARNING, Log
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.spool import Request, local_principal
from invirtibuilder.stages.context import Context, public_key
from invirtibuilder.superproject import Superproject
from invirtibuilder.watchdog import Watchdog

BRANCH = "refs/heads/main"
CHANGELOG = "debian/changelog"
KEYS = "keys.asc"
MAX_BYTES = 1 << 20
AGAIN = timedelta(minutes=30)
"""After which what could not be built is tried again."""
LOOKED_AT = 200
"""Jobs, the latest."""
ROUND = 300.0
"""Seconds for one pocket, at most."""
NO_PUSH = ("/bin/sh", "-c", "echo 'the site itself writes this repository' >&2; exit 1")

RULES = """#!/usr/bin/make -f
# Without debhelper: nothing has to be installed to build it.
root = debian/tmp
doc = $(root)/usr/share/doc/{name}
clean:
	rm -rf $(root) debian/files
build build-arch build-indep binary-arch:
binary binary-indep:
	install -d $(root)/DEBIAN $(root)/usr/share/keyrings $(doc)
	install -m 644 keys.asc $(root)/usr/share/keyrings/{name}.asc
	install -m 644 debian/copyright $(doc)/copyright
	gzip -9n <debian/changelog >$(doc)/changelog.gz
	chmod 644 $(doc)/changelog.gz
	dpkg-gencontrol -P$(root)
	dpkg-deb --root-owner-group --build $(root) ..
.PHONY: clean build build-arch build-indep binary binary-arch binary-indep
"""
CONTROL = """Source: {name}
Section: misc
Priority: optional
Maintainer: {maintainer}
Standards-Version: 4.6.2
Rules-Requires-Root: no

Package: {name}
Architecture: all
Multi-Arch: foreign
Description: keys of the APT repository {pocket} of {site}
 The OpenPGP keys that sign this repository, for Signed-By in its APT source.
"""
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: none
License: public-domain
 Keys are facts; nobody claims a right in them.
"""


def keep(
    context: Context,
    put: Callable[[Request], object],
    *,
    stop: threading.Event,
    watchdog: Watchdog,
    log: Log,
) -> None:
    """Have each pocket's keyring submitted when it has gone, or could not be built, until told to
    stop: a rollback may take it away, and a mirror may be away for a while."""
    due = time.monotonic() + AGAIN.total_seconds()
    while not stop.wait(watchdog.nap(max(0.0, due - time.monotonic()))):
        watchdog.beat()
        if due > time.monotonic():
            continue
        for pocket in context.site.pockets.values():
            watchdog.beat(ROUND)
            try:
                if pocket.archive_keyring and (request := refresh(context, pocket)):
                    put(request)
            except (Fault, OSError) as error:
                text = f"{pocket.keyring} is not refreshed: {error}"
                log(text, {"pocket": pocket.name}, priority=WARNING)
        watchdog.beat()
        due = time.monotonic() + AGAIN.total_seconds()


def missing(site: Site, pocket: Pocket) -> bool:
    """Whether the pocket lacks the package of its keys, as the site has written it last."""
    path = site.package_repository(pocket.keyring)
    head = Repository(path).ref(BRANCH) if path.is_dir() else None
    return (
        head is None or Superproject(site.superproject).pin(pocket.branch, pocket.keyring) != head
    )


def refresh(context: Context, pocket: Pocket) -> Request | None:
    """Bring the keyring's repository up to date; the submission to make, if one is needed.

    None when the pocket has these keys, or a job with them is under way, or has just failed. Safe
    to repeat.
    """
    name = pocket.keyring
    repository = Repository.create(
        context.site.package_repository(name),
        hook=NO_PUSH,
        max_size=context.site.max_push,
        description=f"Keys of {pocket.name}, written by the site itself",
    )
    keys = public_key(context.site, pocket).read_bytes()
    head = repository.ref(BRANCH)
    if head is None or repository.blob(head, KEYS, MAX_BYTES) != keys:
        head = _commit(context, pocket, repository, head, keys)
    if context.superproject.pin(pocket.branch, name) == head:
        return None
    words = [pocket.name, name, head]
    if (status := _last(context, words)) is not None:
        ended = datetime.fromisoformat(status.since)
        if not status.final or ended > context.clock() - AGAIN:
            return None
    principal = local_principal(os.geteuid())
    return Request.new("submit", words, principal=principal, via="local", now=context.clock())


def _last(context: Context, words: list[str]) -> Status | None:
    """What has become of the latest job with this submission."""
    for name in reversed(context.jobs.names()[-LOOKED_AT:]):
        with suppress(Fault, OSError, LookupError, TypeError, ValueError):  # one that is damaged
            job = context.jobs.get(name)
            if (job.request.action, job.request.args) == ("submit", tuple(words)):
                return job.status
    return None


def _commit(
    context: Context, pocket: Pocket, repository: Repository, head: str | None, keys: bytes
) -> str:
    """A commit with these keys on top of `head`; the branch is moved to it."""
    now = context.clock().astimezone(UTC).replace(microsecond=0)
    earlier = b"" if head is None else repository.blob(head, CHANGELOG, MAX_BYTES) or b""
    found = re.match(rb"\S+ \(([0-9]+)\) ", earlier)
    number = int(found[1]) + 1 if found else 1
    words = {
        "name": pocket.keyring,
        "pocket": pocket.name,
        "site": context.site.name,
        "maintainer": f"{context.site.tagger_name} <{context.site.tagger_mail}>",
    }
    entry = (
        f"{words['name']} ({number}) unstable; urgency=medium\n\n  * The keys are these now.\n\n"
        f" -- {words['maintainer']}  {format_datetime(now)}\n\n"
    )
    content = {
        KEYS: keys,
        CHANGELOG: entry.encode() + earlier,
        "debian/control": CONTROL.format(**words).encode(),
        "debian/copyright": COPYRIGHT.encode(),
        "debian/rules": RULES.replace("{name}", words["name"]).encode(),
        "debian/source/format": b"3.0 (native)\n",
    }
    made = repository.write_commit(
        content,
        executable=frozenset({"debian/rules"}),
        parent=head,
        message=f"{words['name']} {number}\n",
        name=context.site.tagger_name,
        mail=context.site.tagger_mail,
        date=now,
    )
    repository.set_ref(BRANCH, made, head)
    return made
