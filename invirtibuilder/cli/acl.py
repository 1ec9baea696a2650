"""acl show|explain|compile|test."""

from __future__ import annotations

import argparse
import os
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from invirtibuilder import acl, acltable, model, yamlread
from invirtibuilder.cli.command import Command, own_site, say, show, table, the_pocket
from invirtibuilder.errors import ConfigFault, Denied, Exit, Malformed, Reason
from invirtibuilder.settings import ACTIONS, Site
from invirtibuilder.spool import local_principal
from invirtibuilder.yamlread import Value


class Acl(Command):
    name = "acl"
    description = "show, explain, compile or test who may do what"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        shown = verbs.add_parser("show", help="who may do what, and by which source")
        shown.add_argument("pocket", metavar="POCKET", nargs="?")
        explained = verbs.add_parser("explain", help="may this principal, and why (not)?")
        explained.add_argument("pocket", metavar="POCKET")
        explained.add_argument("action", metavar="ACTION", choices=ACTIONS)
        explained.add_argument("principal", metavar="PRINCIPAL")
        verbs.add_parser("compile", help="ask every source now, for the doors")
        tested = verbs.add_parser("test", help="compare with a file of expectations")
        tested.add_argument("file", metavar="FILE", type=Path)

    def run(self, args: argparse.Namespace) -> int:
        site = own_site(args, writes=args.verb == "compile")
        if args.verb == "show":
            return _show(args, site)
        if args.verb == "explain":
            return _explain(args, site)
        if args.verb == "compile":
            return _compile(args, site)
        return _test(args, site)


def _show(args: argparse.Namespace, site: Site) -> int:
    pockets = [the_pocket(site, args.pocket)] if args.pocket else list(site.pockets.values())
    grants: list[dict[str, Any]] = []
    troubles: list[dict[str, str]] = []
    for pocket in pockets:
        for action, entries in pocket.acl.items():
            found: dict[str, list[str]] = {}
            for entry in entries:
                answer = acl.ask(entry, pocket=pocket.name, action=action)
                for name, place in answer.names.items():
                    found.setdefault(name, []).append(place)
                troubles += [trouble.as_json() for trouble in answer.troubles]
            grants += [
                {"pocket": pocket.name, "action": action, "principal": name, "by": found[name]}
                for name in sorted(found)
            ]
    rows = [("POCKET", "ACTION", "PRINCIPAL", "BY")]
    rows += [(g["pocket"], g["action"], _shown(g["principal"]), ", ".join(g["by"])) for g in grants]
    _complain(troubles)
    text = table(rows) if grants else "nobody may do anything"
    show(args, {"grants": grants, "troubles": troubles}, text)
    return Exit.OK


def _explain(args: argparse.Namespace, site: Site) -> int:
    pocket = the_pocket(site, args.pocket)
    entries = pocket.acl[args.action]
    found = acl.explain(args.principal, entries, pocket=pocket.name, action=args.action)
    troubles = [trouble.as_json() for trouble in found.troubles]
    what = f"{_shown(args.principal)} may {{}}{args.action} in {pocket.name}"
    if found.allowed:
        lines = ["yes: " + what.format(""), *(f"  by {place}" for place in found.by)]
    else:
        lines = ["no: " + what.format("not "), *(f"  not in {place}" for place in found.looked)]
        if not found.looked:
            lines.append("  nobody may: its list is empty")
    _complain(troubles)
    value = {
        "allowed": found.allowed,
        "pocket": pocket.name,
        "action": args.action,
        "principal": args.principal,
        "by": found.by,
        "looked": found.looked,
        "troubles": troubles,
    }
    show(args, value, "\n".join(lines))
    return Exit.OK if found.allowed else Exit.DENIED


def _compile(args: argparse.Namespace, site: Site) -> int:
    owner = acltable.owner(site)
    if os.geteuid() != owner:
        raise Denied(
            f"only the site's own account, {local_principal(owner)}, writes what the doors read",
            hint="run it as that account, or wait for the daemon to do it",
        )
    made = acltable.write(site, model.utcnow())
    for text in made.troubles:
        say(f"warning: {text}")
    paths = [str(acltable.table_file(site)), str(acltable.submitters_file(site))]
    value = {
        "table": paths[0],
        "submitters": paths[1],
        "expires": _iso(made.expires),
        "troubles": made.troubles,
    }
    show(args, value, "\n".join(paths))
    return Exit.OK


def _test(args: argparse.Namespace, site: Site) -> int:
    @cache
    def answers(pocket: str, action: str) -> list[acl.Answer]:
        """Each source is asked once a run."""
        entries = site.pockets[pocket].acl[action]
        return [acl.ask(entry, pocket=pocket, action=action) for entry in entries]

    wanted = _expectations(args.file, site)
    failures = []
    for line, pocket, action, principal, allowed in wanted:
        found = acl.explained(principal, answers(pocket, action))
        what = f"{_shown(principal)} may {{}}{action} in {pocket}"
        if found.allowed and not allowed:
            message = what.format("") + f", but should not; by {', '.join(found.by)}"
        elif allowed and not found.allowed:
            message = what.format("not ") + ", but should"
        elif not allowed and any(a.failed for a in answers(pocket, action)):
            message = f"nobody knows whether {what.format('')}: a source cannot be read"
        else:
            continue
        why = [t.message for t in found.troubles]
        message = "; ".join([message, *why])
        failures.append({"file": str(args.file), "line": line, "message": message})
    for failure in failures:
        say(f"{failure['file']}:{failure['line']}: {failure['message']}")
    counts = f"{len(wanted)} expectations, {len(failures)} failures"
    value = {"ok": not failures, "expectations": len(wanted), "failures": failures}
    show(args, value, counts)
    return Exit.DATA if failures else Exit.OK


def _expectations(file: Path, site: Site) -> list[tuple[int, str, str, str, bool]]:
    """Line, pocket, action, principal, and whether that is allowed. Raises Malformed."""

    def one_of(value: Value, known: tuple[str, ...]) -> str:
        return value.choice(known[0], *known)

    try:
        root, problems = yamlread.read(file)
        found = []
        for value in root.items():
            keys = value.record(*KEYS, required=KEYS)
            # Not `principal`'s own check: what no principal may be called is to be tested, too.
            row = (
                one_of(keys["pocket"], tuple(site.pockets)),
                one_of(keys["action"], ACTIONS),
                keys["principal"].text(),
                keys["allowed"].boolean(False),
            )
            found.append((value.line, *row))
        if not found:
            root.problem("no expectations: a list of " + ", ".join(KEYS))
        problems.raise_any()
    except ConfigFault as fault:
        raise Malformed(str(fault), code="bad-expectations") from fault
    return found


KEYS = ("pocket", "action", "principal", "allowed")


def _shown(principal: str) -> str:
    return model.printable(principal) or "(no name)"


def _complain(troubles: list[dict[str, str]]) -> None:
    for trouble in troubles:
        say(f"warning: {Reason(**trouble)}")


def _iso(time: datetime | None) -> str | None:
    return model.iso(time) if time else None
