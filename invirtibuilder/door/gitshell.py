"""What sshd starts for the account that pushes: git, on the site's repositories, and nothing else.

    ForceCommand /usr/bin/python3 -I -m invirtibuilder.door.gitshell [SITE]

What the client asked for is in SSH_ORIGINAL_COMMAND. Its path has to be a package of the site in
the directory SITE, and the superproject can be fetched. git gets none of the environment that the
client, or sshd, has set, but which version of the protocol they speak.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from invirtibuilder import gitshared, model
from invirtibuilder.errors import Denied, Fault, Malformed, NotFound
from invirtibuilder.gitcmd import ENVIRONMENT
from invirtibuilder.run import environment

SITE = Path("/var/lib/invirtibuilder")
GIT = "/usr/bin/git"
ASKED = re.compile(r"git[ -](receive-pack|upload-pack) '(/?[A-Za-z0-9./+~_-]+)'")
IDLE = 600
"""Seconds after which a fetch whose client says nothing ends."""


def command(asked: str, site: Path) -> list[str]:
    """The git command for what a client asked for. Raises Malformed, Denied, NotFound."""
    found = ASKED.fullmatch(asked)
    if not found:
        raise Malformed(
            "only git push and git fetch are here" if asked else "there is no shell here",
            hint="git clone ssh://ib-git@HOST/packages/NAME.git",
            code="not-git",
        )
    verb, path = found.groups()
    repository = _repository(path, site)
    if verb == "receive-pack" and repository.parent == site:
        raise Denied("the superproject is written by the daemon alone")
    if verb == "receive-pack":
        gitshared.sweep(repository)
    idle = [f"--timeout={IDLE}", "--strict"] if verb == "upload-pack" else []
    return [GIT, *gitshared.git_options(repository), verb, *idle, str(repository)]


def _repository(path: str, site: Path) -> Path:
    """The repository that is meant: below the site's directory, with or without naming that."""
    name = path.removeprefix(f"{site}/").strip("/").removesuffix(".git")
    if name == "superproject":
        return site / "superproject.git"
    package = model.package_name(name.removeprefix("packages/"))
    repository = site / "packages" / f"{package}.git"
    if not (repository / "HEAD").exists():
        raise NotFound(
            f"no package {package} here",
            hint=f"`invirtibuilder package create {package}` on the site's machine makes it",
            code="no-such-package",
        )
    return repository


def clean(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of git."""
    protocol = given.get("GIT_PROTOCOL", "")
    spoken = {"GIT_PROTOCOL": protocol} if re.fullmatch(r"version=[0-2]", protocol) else {}
    return environment({**ENVIRONMENT, **spoken})


def main(argv: Sequence[str]) -> NoReturn:
    """Become git, or say why not."""
    site = Path(argv[0]) if argv else SITE
    try:
        words = command(os.environ.get("SSH_ORIGINAL_COMMAND", ""), site)
    except Fault as fault:
        for reason in fault.reasons:
            print(f"refused: {reason}", file=sys.stderr)
        sys.exit(int(fault.exit))
    # What is written is for the daemon to read, and nobody's to write but the group's.
    os.umask(0o022)
    os.chdir("/")
    os.execve(words[0], words, clean(os.environ))  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
