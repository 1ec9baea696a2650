"""key list|new: the keys that sign a pocket's publications."""

from __future__ import annotations

import argparse
import os
from datetime import datetime
from pathlib import Path

from invirtibuilder import model
from invirtibuilder.accounts import become_owner
from invirtibuilder.apt.signer import create_key
from invirtibuilder.cli.command import Command, load_site, show, table, the_pocket
from invirtibuilder.settings import Signing, Site
from invirtibuilder.stages.context import gpg_signer, signer


class KeyCommand(Command):
    name = "key"
    description = "list the keys that sign, or make one that takes over"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        verbs.add_parser("list", help="a line for each key of each pocket")
        new = verbs.add_parser("new", help="make a key in a pocket's GnuPG home, and say what next")
        new.add_argument("pocket", metavar="POCKET")

    def run(self, args: argparse.Namespace) -> int:
        site = load_site(args)
        if args.verb == "list":
            if os.geteuid() == 0:
                # gpg would leave an agent of root's there.
                become_owner(site.signing.home)
            values = _listed(site)
            rows: list[tuple[str, ...]] = [
                ("POCKET", "SIGNS", "FINGERPRINT", "MADE", "EXPIRES", "SECRET")
            ]
            rows += [
                (
                    *(str(v[k]) for k in ("pocket", "signs", "fingerprint")),
                    str(v["made"] or "missing"),
                    str(v["expires"] or "never"),
                    "yes" if v["secret"] else "MISSING",
                )
                for v in values
            ]
            show(args, values, table(rows))
        else:
            self._new(args, site)
        return 0

    def _new(self, args: argparse.Namespace, site: Site) -> None:
        pocket = the_pocket(site, args.pocket)
        become_owner(pocket.signing.home)
        # A home has one key of a user only: `gpg --local-user` could not tell them apart.
        stamp = model.stamp(model.utcnow())
        mail = f"archive+{stamp.lower()}@{site.name}.invalid"
        key = create_key(pocket.signing.home, f"{site.name} archive {stamp[:8]}", mail)
        text = f"{key}\nPut it below `also:` of `signing:`, restart the daemon, and both keys sign."
        text += "\nWhen every client has the new stanza of `sources`, make it `key:`."
        show(args, {"fingerprint": key, "home": str(pocket.signing.home)}, text)


def _listed(site: Site) -> list[dict[str, object]]:
    known: dict[Signing, list[dict[str, object]]] = {}
    for pocket in site.pockets.values():
        keys = pocket.signing
        if keys not in known:
            using = gpg_signer(pocket) if _owned(keys.home) else signer(site, pocket)
            known[keys] = [
                {
                    "signs": "also" if number else "first",
                    "fingerprint": key.fingerprint,
                    "user": key.user,
                    "made": _day(key.made),
                    "expires": _day(key.expires),
                    "secret": key.secret,
                }
                for number, key in enumerate(using.described())
            ]
    return [{"pocket": p.name, **v} for p in site.pockets.values() for v in known[p.signing]]


def _owned(home: Path) -> bool:
    """Whether the keys are this account's; others ask the signer."""
    try:
        return home.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _day(time: datetime | None) -> str:
    return time.date().isoformat() if time else ""
