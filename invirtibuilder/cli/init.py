"""init: a new site, of this machine or in a directory, with a configuration to start from."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

from invirtibuilder import config, files, hosting
from invirtibuilder.accounts import become_owner
from invirtibuilder.apt.signer import create_key
from invirtibuilder.cli import installed
from invirtibuilder.cli.command import DEFAULT_CONFIG, Command, me, say, show
from invirtibuilder.cli.pocket import begin
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import MachineFault

TEMPLATE = """# A site of invirtibuilder, made by `invirtibuilder init`.
# invirtibuilder.yaml(5) and conf/invirtibuilder.yaml explain every key.
site:
  name: {name}{keys}
  tagger:
    name: {name} archive
    mail: archive@{name}.invalid
  signing:{home}
    key: {key}

hooks: []

# A trust domain has its own worker, bases and layers; what dev builds never meets prod.
domains:{domains}

pockets:
  dev:
    description: any commit, for trying things out
    suite: {suite}
    architectures: [{architecture}]
    allow_backtracking: true
    trust_domain: untrusted
    acl:
      submit: [{principal}]
      cancel: [{principal}]
  staging:
    description: what is to be released
    suite: {suite}
    architectures: [{architecture}]
    trust_domain: trusted
    acl:
      submit: [{principal}]
      cancel: [{principal}]
  prod:
    description: what is in use
    suite: {suite}
    architectures: [{architecture}]
    trust_domain: trusted
    acl:
      submit: [{principal}]
      cancel: [{principal}]
"""


class Init(Command):
    name = "init"
    description = "make a site: its configuration, signing key and three pockets"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "directory",
            metavar="DIR",
            type=Path,
            nargs="?",
            help="of one account, in this directory (default: the one of this machine, of the"
            " accounts that the Debian package has made; for root)",
        )
        parser.add_argument("--name", default="example", help="the site's name (%(default)s)")
        parser.add_argument("--suite", help="the Debian suite (default: this machine's)")

    def run(self, args: argparse.Namespace) -> int:
        own = args.directory
        file = own.absolute() / "invirtibuilder.yaml" if own else DEFAULT_CONFIG
        if own:
            become_owner(own)
        if not file.exists():
            text = of_directory(args, file.parent) if own else _of_machine(args)
            files.write_atomic(file, text)
        elif os.geteuid() == file.stat().st_uid:
            say(f"{file} is there already and stays as it is")
        site = config.load(file)
        if not own and os.geteuid() == 0 != site.directory.stat().st_uid:
            installed.go_on_as(site.directory)
            return 0
        # What follows is for the site's account.
        become_owner(site.directory)
        hosting.ensure_site(site)
        context = make_context(site)
        for pocket in site.pockets.values():
            begin(context, pocket)
        show(args, {"config": str(file), "pockets": list(site.pockets)}, str(file))
        return 0


def of_directory(args: argparse.Namespace, directory: Path) -> str:
    """The configuration of a site in a directory, whose owner does everything."""
    directory.mkdir(parents=True, exist_ok=True)
    key = _key(directory / "gnupg", args.name)
    return _text(args, key=key, keys="", home="", domains="\n  untrusted: {}\n  trusted: {}")


def _of_machine(args: argparse.Namespace) -> str:
    """The configuration of the installed site, whose accounts are separate."""
    key = installed.prepare(args.name)
    home = f"\n    home: {installed.key_home()}"
    return _text(args, key=key, keys=installed.KEYS, home=home, domains=installed.DOMAINS)


def _text(args: argparse.Namespace, *, key: str, keys: str, home: str, domains: str) -> str:
    return TEMPLATE.format(
        name=args.name,
        keys=keys,
        home=home,
        key=key,
        domains=domains,
        suite=args.suite or _suite(),
        architecture=_architecture(),
        principal=me(),
    )


def _key(home: Path, name: str) -> str:
    """The fingerprint of the site's key; one of an earlier, interrupted run is made anew."""
    files.remove_tree(home)
    return create_key(home, f"{name} archive", f"archive@{name}.invalid")


def _suite() -> str:
    value = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if not value:
        raise MachineFault("this machine's suite is not known", hint="give --suite")
    return value


def _architecture() -> str:
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    return names.get(platform.machine(), platform.machine())
