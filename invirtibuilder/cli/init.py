"""init: a new site in a directory, with a configuration to start from."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from invirtibuilder import config, files, hosting
from invirtibuilder.apt.signer import create_key
from invirtibuilder.cli.command import Command, me, say, show
from invirtibuilder.daemon import make_context
from invirtibuilder.errors import MachineFault

TEMPLATE = """# A site of invirtibuilder, made by `invirtibuilder init`.
# invirtibuilder.yaml(5) and conf/invirtibuilder.yaml explain every key.
site:
  name: {name}
  tagger:
    name: {name} archive
    mail: archive@{name}.invalid
  signing:
    key: {key}

hooks: []

# A trust domain has its own worker, bases and layers; what dev builds never meets prod.
domains:
  untrusted: {{}}
  trusted: {{}}

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
    description = "make a site in DIR: its configuration, signing key and three pockets"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("directory", metavar="DIR", type=Path)
        parser.add_argument("--name", default="example", help="the site's name (%(default)s)")
        parser.add_argument("--suite", help="the Debian suite (default: this machine's)")

    def run(self, args: argparse.Namespace) -> int:
        directory = args.directory.absolute()
        file = directory / "invirtibuilder.yaml"
        if file.exists():
            say(f"{file} is there already and stays as it is")
        else:
            directory.mkdir(parents=True, exist_ok=True)
            key = _key(directory / "gnupg", args.name)
            text = TEMPLATE.format(
                name=args.name,
                key=key,
                suite=args.suite or _suite(),
                architecture=_architecture(),
                principal=me(),
            )
            files.write_atomic(file, text)
        site = config.load(file)
        hosting.ensure_site(site)
        context = make_context(site)
        for pocket in site.pockets.values():
            hosting.ensure_pocket(context, pocket)
        show(args, {"config": str(file), "pockets": list(site.pockets)}, str(file))
        return 0


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
