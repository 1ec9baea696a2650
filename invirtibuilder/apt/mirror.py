"""Which APT sources a suite comes from on this machine: APT itself is asked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from invirtibuilder.errors import MachineFault
from invirtibuilder.run import run

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FORMAT = "$(REPO_URI)\t$(RELEASE)"
LISTS = "/var/lib/apt/lists"


def machine_sources(suite: str, components: Sequence[str]) -> str:
    """deb822 sources for a suite, with its updates and security where the machine has those.

    Raises MachineFault when APT knows no mirror (its lists are empty, or there is none).
    """
    known = _targets(_changed())
    wanted = [k for k in known if k[1] in (suite, f"{suite}-updates", f"{suite}-security")]
    if not wanted:
        # Another release than the machine's: the same mirror has it.
        main = next((uri for uri, release in known if "-" not in release), None)
        wanted = [(main, suite)] if main else []
    if not wanted:
        raise MachineFault(
            "this machine's APT knows no mirror",
            hint="run `apt-get update`, or set `mirror` in the pocket's configuration",
            code="no-mirror",
        )
    return "\n".join(stanza(uri, [release], components) for uri, release in wanted)


def _changed() -> tuple[float, ...]:
    """When APT's sources and lists changed last: asking APT takes half a second."""
    paths = (Path(p) for p in ("/etc/apt/sources.list", "/etc/apt/sources.list.d", LISTS))
    return tuple(p.stat().st_mtime for p in paths if p.exists())


@functools.lru_cache(maxsize=1)
def _targets(_changed: tuple[float, ...]) -> tuple[tuple[str, str], ...]:
    done = run(["apt-get", "indextargets", "--format", FORMAT, "Created-By: Packages"])
    targets = [line.split("\t") for line in done.text.splitlines()]
    return tuple(dict.fromkeys((t[0], t[1]) for t in targets if len(t) == 2))


def stanza(uri: str, suites: Sequence[str], components: Sequence[str], key: str = "") -> str:
    """One deb822 source, signed by the key (ASCII-armoured) or by Debian's keyring."""
    signed = KEYRING
    if key:
        signed = "\n" + "\n".join(f" {line.strip() or '.'}" for line in key.splitlines())
    return (
        f"Types: deb\nURIs: {uri}\nSuites: {' '.join(suites)}\n"
        f"Components: {' '.join(components)}\nSigned-By: {signed}\n"
    )
