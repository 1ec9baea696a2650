"""What a client puts below /etc/apt to use a pocket."""

from __future__ import annotations

from collections.abc import Sequence

from invirtibuilder.errors import Malformed
from invirtibuilder.model import printable

PRIORITY = 990
"""Above the mirror (500, or 990 for a default release), below a forced downgrade (1001)."""

DOWNGRADE = 1001
"""apt_preferences(5): over 1000 a lower version replaces an installed one."""


def sources(
    uri: str,
    codename: str,
    components: Sequence[str],
    key_armoured: bytes | str,
    *,
    architectures: Sequence[str] | None = None,
    check_valid_until: bool = True,
) -> str:
    """A deb822 .sources stanza with the key in it (APT 2.3.10 and later, so Debian 12).

    A path instead of a key is named as it is.

    `check_valid_until` is turned off for a fixed, old publication. Raises Malformed for a value
    that would break the stanza.

    >>> print(sources("http://apt.example.org/dev", "dev", ["main"], "A\\n\\nB"), end="")
    Types: deb deb-src
    URIs: http://apt.example.org/dev
    Suites: dev
    Components: main
    Signed-By:
     A
     .
     B
    """
    key = key_armoured.decode() if isinstance(key_armoured, bytes) else key_armoured
    lines = [
        "Types: deb deb-src",
        f"URIs: {_word(uri)}",
        f"Suites: {_word(codename)}",
        "Components: " + " ".join(_word(c) for c in components),
    ]
    if architectures is not None:
        lines.append("Architectures: " + " ".join(_word(a) for a in architectures))
    if not check_valid_until:
        lines.append("Check-Valid-Until: no")
    if key.startswith("/"):
        lines.append(f"Signed-By: {_word(key)}")
    else:
        lines.append("Signed-By:")
        lines += [f" {line.strip() or '.'}" for line in key.strip().splitlines()]
    return "\n".join(lines) + "\n"


def preferences(origin: str, *, label: str, codename: str, priority: int = PRIORITY) -> str:
    r"""An apt_preferences(5) stanza that puts a pocket's packages above the mirror's.

    Raises Malformed for a value that would break the stanza.

    >>> print(preferences("Example", label="Example dev", codename="dev"), end="")
    Package: *
    Pin: release o=Example,l=Example dev,n=dev
    Pin-Priority: 990
    """
    for value in (origin, label, codename):
        if not value.strip() or not value.isprintable() or "," in value:
            raise Malformed(f"cannot be pinned: {printable(value)!r}")
    pin = f"release o={origin},l={label},n={codename}"
    return f"Package: *\nPin: {pin}\nPin-Priority: {priority}\n"


def _word(value: str) -> str:
    if not value or not value.isprintable() or " " in value:
        raise Malformed(f"not one word: {printable(value)!r}")
    return value
