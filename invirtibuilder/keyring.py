"""The POCKET-archive-keyring package: the site writes its source, commits it and submits it.

A client that has it follows a change of keys by `apt-get upgrade`: both keys sign for a while,
the package with both comes in, and then the old one may go.
"""

from __future__ import annotations

import os
import re
from datetime import UTC
from email.utils import format_datetime

from invirtibuilder.gitrepo import Repository
from invirtibuilder.settings import Pocket
from invirtibuilder.spool import Request, local_principal
from invirtibuilder.stages.context import Context, public_key

BRANCH = "refs/heads/main"
CHANGELOG = "debian/changelog"
KEYS = "keys.asc"
MAX_BYTES = 1 << 20
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


def refresh(context: Context, pocket: Pocket) -> Request | None:
    """Bring the keyring's repository up to date; the submission to make, if one is needed.

    None when the pocket has these keys, or a job with them is under way. Safe to repeat.
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
    for job in context.jobs.unfinished():
        if (job.request.action, job.request.args) == ("submit", (pocket.name, name, head)):
            return None
    words = [pocket.name, name, head]
    principal = local_principal(os.geteuid())
    return Request.new("submit", words, principal=principal, via="local", now=context.clock())


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
