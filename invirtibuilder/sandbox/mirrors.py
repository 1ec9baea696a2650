"""The mirrors as the launcher itself reads them: what they are at now, and single files.

Nothing of it is understood here: it is hashed, and whoever asks knows what the hash must be.
"""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from urllib.parse import urljoin

from invirtibuilder.errors import RoomFault
from invirtibuilder.sandbox import proxy

Allowed = frozenset[tuple[str, int, str]]
"""As in `contract.Proxy`."""

REDIRECTS = 5
RELEASE_LIMIT = 16 << 20
RELEASE_SECONDS = 20.0
"""For all of a Release file; a mirror that is slower is left to APT and its patience."""

FAILURES = (OSError, http.client.HTTPException, RoomFault)
"""What `opened`, and reading from it, may raise."""


@contextmanager
def opened(
    uri: str, allowed: Allowed, *, fresh: bool = False, timeout: float = proxy.TIMEOUT
) -> Iterator[http.client.HTTPResponse]:
    """The body of what a mirror answers; redirections are followed within what is allowed.

    With `fresh` no cache in between may answer for the mirror. Raises one of FAILURES.
    """
    headers = {"Cache-Control": "max-age=0"} if fresh else {}
    for _ in range(REDIRECTS):
        found = proxy.reached(uri, allowed)
        if found is None:
            raise RoomFault(f"{uri} is not of a configured mirror", code="mirror")
        connection, path = found
        connection.timeout = timeout
        with closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status == 200:
                yield response
                return
            if response.status not in (301, 302, 303, 307, 308):
                raise RoomFault(f"{uri}: {response.status} {response.reason}", code="mirror")
            uri = urljoin(uri, response.headers.get("Location", ""))
    raise RoomFault(f"{uri}: too many redirections", code="mirror")


def states(uris: Sequence[str], allowed: Allowed) -> frozenset[str] | None:
    """The SHA-256 of each of these files as it is served now; None when one cannot be had."""

    def state(uri: str) -> str | None:
        digest, left = hashlib.sha256(), RELEASE_LIMIT
        until = time.monotonic() + RELEASE_SECONDS
        try:
            with opened(uri, allowed, fresh=True, timeout=RELEASE_SECONDS) as body:
                while left > 0 and time.monotonic() < until:
                    if not (data := body.read(1 << 16)):
                        return digest.hexdigest()
                    digest.update(data)
                    left -= len(data)
        except FAILURES:
            pass
        return None

    with ThreadPoolExecutor(max_workers=8) as threads:
        found = frozenset(threads.map(state, uris))
    return None if None in found or not found else frozenset(str(f) for f in found)
