"""pocket list|show|create."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from invirtibuilder import config, files, hosting, model
from invirtibuilder.accounts import NotYours
from invirtibuilder.apt.stanza import preferences
from invirtibuilder.cli.command import (
    Command,
    config_file,
    load_site,
    own_site,
    say,
    show,
    table,
    the_pocket,
)
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import Malformed, Unavailable
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.stages.context import LABEL, Context, archive
from invirtibuilder.superproject import Superproject

KEYS = {
    "domain": "trust_domain",
    "profiles": "build_profiles",
    "options": "build_options",
    "suffix": "version_suffix",
}
"""Rules whose key in the configuration has another name."""


class PocketCommand(Command):
    name = "pocket"
    description = "list, show or create pockets"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        verbs.add_parser("list", help="a line a pocket")
        shown = verbs.add_parser("show", help="a pocket's rules and what it has")
        shown.add_argument("pocket", metavar="POCKET")
        created = verbs.add_parser(
            "create",
            help="make a pocket's archive; a new pocket is added to the configuration",
        )
        created.add_argument("pocket", metavar="POCKET")
        created.add_argument("--suite", help="the Debian suite that it builds for")
        created.add_argument("--allow-backtracking", action="store_true", help="accept any commit")
        created.add_argument("--like", metavar="POCKET", help="take ACL and domain from this one")

    def run(self, args: argparse.Namespace) -> int:
        if args.verb == "create":
            self._create(args)
            return 0
        site = own_site(args, writes=False)
        if args.verb == "list":
            values = [_brief(site, pocket) for pocket in site.pockets.values()]
            rows: list[tuple[str, ...]] = [
                ("POCKET", "SUITE", "BACKTRACKING", "PACKAGES", "PUBLICATION", "DOMAIN")
            ]
            rows += [tuple(str(v) for v in value.values()) for value in values]
            show(args, values, table(rows))
        else:
            pocket = the_pocket(site, args.pocket)
            value = _whole(site, pocket)
            show(args, value, _text(value))
        return 0

    def _create(self, args: argparse.Namespace) -> None:
        name = model.pocket_name(args.pocket)
        site = load_site(args)
        if name not in site.pockets:
            like = the_pocket(site, args.like) if args.like else next(iter(site.pockets.values()))
            _configure(config_file(args).resolve(), name, _settings(args, site, like))
        # What follows is the site's account's, who need not be the one of the configuration.
        site = own_site(args)
        hosting.ensure_site(site)
        begin(make_context(site), site.pockets[name])
        show(args, _brief(site, site.pockets[name]), f"pocket {name} is ready")


def begin(context: Context, pocket: Pocket) -> None:
    """Make a pocket's archive with its first publication; without the signer the daemon does it."""
    try:
        hosting.ensure_pocket(context, pocket)
    except Unavailable as fault:
        say(f"{pocket.name} has no publication yet, the daemon's start makes one: {fault}")


def _configure(file: Path, name: str, settings: dict[str, str]) -> None:
    """Add a pocket to the configuration. Raises Denied for who may not change that."""
    text = hosting.add_pocket(file, name, settings)
    beside = file.with_name(f".{file.name}.new")
    status = file.stat()
    if not os.access(file.parent, os.W_OK, effective_ids=True):
        raise NotYours(file, status.st_uid)
    # Hooks' secrets may be in it.
    files.write_atomic(beside, text, mode=stat.S_IMODE(status.st_mode))
    try:
        os.chown(beside, status.st_uid, status.st_gid)
        # The whole new file is checked before it takes the old one's place.
        config.load(beside)
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    say(f"{file}: pocket {name} added; restart the daemon to make it known there")


def _fitting(site: Site, like: str, *, backtracking: bool) -> str:
    """The trust domain of a new pocket: `like`, unless pockets of the other kind are built there.

    Raises Malformed when there is none.
    """
    others = {p.domain for p in site.pockets.values() if p.allow_backtracking != backtracking}
    for name in (like, *site.domains):
        if name not in others:
            return name
    kind = "only pockets without" if backtracking else "pockets with"
    raise Malformed(
        f"every trust domain builds for {kind} allow_backtracking",
        hint="add one below `domains:` of the configuration, with a worker of its own",
        code="mixed-domain",
    )


def _settings(args: argparse.Namespace, site: Site, like: Pocket) -> dict[str, str]:
    """A new pocket's keys as YAML on one line each (JSON is YAML)."""
    acl = {
        action: [
            entry.principal or {k: str(v) for k in ("file", "command") if (v := getattr(entry, k))}
            for entry in entries
        ]
        for action, entries in like.acl.items()
        if entries
    }
    settings = {
        "suite": args.suite or like.suite,
        "allow_backtracking": "true" if args.allow_backtracking else "false",
        "trust_domain": _fitting(site, like.domain, backtracking=args.allow_backtracking),
    }
    return {**settings, "acl": json.dumps(acl)} if acl else settings


def _brief(site: Site, pocket: Pocket) -> dict[str, Any]:
    superproject = Superproject(site.superproject)
    there = site.superproject.is_dir()
    return {
        "name": pocket.name,
        "suite": pocket.suite,
        "allow_backtracking": pocket.allow_backtracking,
        "packages": len(superproject.pins(pocket.branch)) if there else 0,
        "publication": archive(site, pocket).publications.current(),
        "trust_domain": pocket.domain,
    }


def _whole(site: Site, pocket: Pocket) -> dict[str, Any]:
    rules = dataclasses.asdict(pocket)
    rules["acl"] = {
        action: [str(e.principal or e.file or e.command) for e in entries]
        for action, entries in pocket.acl.items()
    }
    rules["signing"] = [pocket.signing.key, *pocket.signing.also]
    rules["extra_sources"] = [{**e, "key": str(e["key"])} for e in rules["extra_sources"]]
    records = {}
    if site.superproject.is_dir():
        records = Superproject(site.superproject).records(pocket.branch)
    return {
        **_brief(site, pocket),
        "rules": rules,
        "preferences": preferences(site.name, label=LABEL, codename=pocket.codename),
        "content": [
            {"package": n, "version": r["version"], "commit": r["commit"], "job": r["job"]}
            for n, r in sorted(records.items())
        ],
    }


def _words(rules: Mapping[str, Any]) -> dict[str, str]:
    """A pocket's rules by the configuration's own keys, as somebody would write them there."""
    found = {}
    for key, rule in rules.items():
        if key == "limits":
            found[key] = ", ".join(_limits(rule))
        elif key == "package_limits":
            for package, limits in rule.items():
                own = [part for part in _limits(limits) if part not in _limits(rules["limits"])]
                found[f"limits of {package}"] = ", ".join(own)
        elif key == "retention":
            found[key] = f"publications {rule['publications']}, time {_duration(rule['seconds'])}"
        elif key == "valid_for" and rule:
            found[key] = _duration(rule)
        elif key == "acl":
            found |= {f"may {action}": ", ".join(entries) for action, entries in rule.items()}
        elif key == "extra_sources":
            found[key] = ", ".join(
                " ".join((e["uri"], *e["suites"], *e["components"])) for e in rule
            )
        elif isinstance(rule, bool):
            found[key] = "yes" if rule else "no"
        elif isinstance(rule, list | tuple):
            found[KEYS.get(key, key)] = ", ".join(rule)
        elif rule is not None:
            found[KEYS.get(key, key)] = str(rule)
    del found["name"]
    return found


def _limits(rule: Mapping[str, Any]) -> list[str]:
    values: dict[str, tuple[Any, Callable[[Any], str]]] = {
        "time": (rule["seconds"], _duration),
        "idle": (rule["idle_seconds"], _duration),
        "cpu_time": (rule["cpu_seconds"], _duration),
        "memory": (rule["memory"], _size),
        "processes": (rule["processes"], str),
        "disk": (rule["disk"], _size),
        "file_size": (rule["file_size"], _size),
        "log": (rule["log_size"], _size),
        "result": (rule["result_size"], _size),
    }
    return [f"{key} {written(value)}" for key, (value, written) in values.items() if value]


def _duration(seconds: float) -> str:
    """In the largest unit of the configuration that has no remainder.

    >>> _duration(7200), _duration(90), _duration(0.5)
    ('2h', '90s', '0.5s')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"


def _size(size: int) -> str:
    """In the largest unit of the configuration that has no remainder.

    >>> _size(8 << 30), _size(100 << 20), _size(1000)
    ('8G', '100M', '1000')
    """
    for unit, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return str(size)


def _text(value: dict[str, Any]) -> str:
    lines = [f"pocket {value['name']}: publication {value['publication']}"]
    lines += [f"  {key}: {rule}" for key, rule in _words(value["rules"]).items() if rule]
    rows = [("PACKAGE", "VERSION", "COMMIT")]
    rows += [(c["package"], c["version"], c["commit"][:12]) for c in value["content"]]
    return "\n".join([*lines, table(rows) if value["content"] else "no packages yet"])
