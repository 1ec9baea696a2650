"""APT sources (deb822) as a sandbox sees them: its own http to the proxy, keys by file name."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

from debian.deb822 import Deb822

KEYRINGS = "/usr/share/keyrings"
OWN_KEYS = "/etc/apt/keyrings"


def stanzas(text: str) -> Iterator[Deb822]:
    """The stanzas of a .sources file, in order."""
    yield from Deb822.iter_paragraphs(text, use_apt_pkg=False)


def inside(text: str) -> tuple[str, frozenset[tuple[str, int, str]]]:
    """The sources with plain http URIs, as the proxy wants them, and what it is to allow.

    >>> inside("Types: deb\\nURIs: https://mirror.example/debian\\nSuites: x\\n")
    ('Types: deb\\nURIs: http://mirror.example/debian\\nSuites: x\\n', \
frozenset({('mirror.example', 80, 'https')}))
    """
    allowed = set()
    made = []
    for stanza in stanzas(text):
        uris = []
        for uri in stanza.get("URIs", "").split():
            parts = urlsplit(uri)
            if parts.scheme in ("http", "https"):
                allowed.add((parts.hostname or "", parts.port or 80, parts.scheme))
                uri = urlunsplit(("http", parts.netloc, parts.path, parts.query, ""))
            uris.append(uri)
        stanza["URIs"] = " ".join(uris)
        made.append(stanza.dump())
    return "\n".join(made), frozenset(allowed)


def with_keys(text: str, names: frozenset[str], directory: str = OWN_KEYS) -> str:
    """The sources with each Signed-By file name made a path.

    Names of keys of our own are in `directory`, all others in /usr/share/keyrings; a path or a
    key written out stays.
    """
    made = []
    for stanza in stanzas(text):
        signed = stanza.get("Signed-By", "")
        if signed and "BEGIN PGP" not in signed:
            stanza["Signed-By"] = " ".join(_path(v, names, directory) for v in signed.split())
        made.append(stanza.dump())
    return "\n".join(made)


def _path(value: str, names: frozenset[str], directory: str) -> str:
    own = value.removeprefix(f"{OWN_KEYS}/")
    if own in names:
        return f"{directory}/{own}"
    return value if "/" in value else f"{KEYRINGS}/{value}"


def keyrings(text: str) -> tuple[str, ...]:
    """The paths that Signed-By names, in order, each once."""
    found = {
        value: None
        for stanza in stanzas(text)
        if "BEGIN PGP" not in stanza.get("Signed-By", "")
        for value in stanza.get("Signed-By", "").split()
        if value.startswith("/")
    }
    return tuple(found)
