"""APT sources (deb822) as a sandbox sees them: its own http to the proxy, keys by file name.

The text is the site's own: one line a field, but for keys that are written out.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

KEYRINGS = "/usr/share/keyrings"
OWN_KEYS = "/etc/apt/keyrings"

_URIS = re.compile(r"^URIs:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_SUITES = re.compile(r"^Suites:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
# A key that is written out begins on the next line.
_SIGNED = re.compile(r"^Signed-By:[ \t]*([^\s].*)$", re.IGNORECASE | re.MULTILINE)


def inside(text: str) -> tuple[str, frozenset[tuple[str, int, str]]]:
    """The sources with plain http URIs, as the proxy wants them, and what it is to allow.

    >>> inside("Types: deb\\nURIs: https://mirror.example/debian\\nSuites: x\\n")
    ('Types: deb\\nURIs: http://mirror.example/debian\\nSuites: x\\n', \
frozenset({('mirror.example', 80, 'https')}))
    """
    allowed = set()

    def plain(uri: str) -> str:
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https"):
            return uri
        allowed.add((parts.hostname or "", parts.port or 80, parts.scheme))
        return urlunsplit(("http", parts.netloc, parts.path, parts.query, ""))

    made = _URIS.sub(lambda m: "URIs: " + " ".join(map(plain, m[1].split())), text)
    return made, frozenset(allowed)


def releases(text: str) -> tuple[str, ...]:
    """The URI of each InRelease file that APT asks for, in order, each once.

    >>> releases("Types: deb\\nURIs: http://a.example/debian/\\nSuites: x x-updates\\n")
    ('http://a.example/debian/dists/x/InRelease', 'http://a.example/debian/dists/x-updates/InRelease')
    """
    found: dict[str, None] = {}
    for stanza in re.split(r"\n[ \t]*\n", text):
        uris, suites = _URIS.search(stanza), _SUITES.search(stanza)
        for uri in uris[1].split() if uris and suites else ():
            for suite in suites[1].split() if suites else ():
                # A suite that is a path is all there is (sources.list(5)).
                place = suite if suite.endswith("/") else f"dists/{suite}/"
                found[f"{uri.rstrip('/')}/{place}InRelease"] = None
    return tuple(found)


def with_keys(text: str, names: frozenset[str], directory: str = OWN_KEYS) -> str:
    """The sources with each Signed-By file name made a path.

    Names of keys of our own are in `directory`, all others in /usr/share/keyrings; a path or a
    key written out stays.
    """

    def paths(match: re.Match[str]) -> str:
        return "Signed-By: " + " ".join(_path(v, names, directory) for v in match[1].split())

    return _SIGNED.sub(paths, text)


def _path(value: str, names: frozenset[str], directory: str) -> str:
    own = value.removeprefix(f"{OWN_KEYS}/")
    if own in names:
        return f"{directory}/{own}"
    return value if "/" in value else f"{KEYRINGS}/{value}"


def keyrings(text: str) -> tuple[str, ...]:
    """The paths that Signed-By names, in order, each once."""
    values = (value for match in _SIGNED.finditer(text) for value in match[1].split())
    return tuple(dict.fromkeys(value for value in values if value.startswith("/")))
