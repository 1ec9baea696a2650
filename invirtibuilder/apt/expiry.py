"""Until when public keys are good, by gpg in a home of no one."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime

from invirtibuilder.errors import MachineFault
from invirtibuilder.run import ProcessFault, run

TIMEOUT = 60.0


def expiries(armoured: bytes) -> dict[str, datetime | None]:
    """When each of these public keys expires, by fingerprint; None: never. Raises MachineFault."""
    with tempfile.TemporaryDirectory(prefix="invirtibuilder-keys.") as home:
        argv = ["gpg", "--homedir", home, "--batch", "--no-tty", "--no-autostart", "--quiet"]
        listing = ["--with-colons", "--fixed-list-mode", "--show-keys"]
        try:
            done = run([*argv, *listing], stdin=armoured, timeout=TIMEOUT)
        except ProcessFault as fault:
            raise MachineFault(f"the public keys cannot be read: {fault}", code="keys") from fault
    found: dict[str, datetime | None] = {}
    until: datetime | None = None
    primary = False
    # doc/DETAILS of GnuPG: field 7 is the expiry; the first `fpr` after a `pub` is that key's.
    for fields in (line.split(":") for line in done.text.splitlines()):
        if fields[0] == "pub":
            until = datetime.fromtimestamp(int(fields[6]), UTC) if fields[6] else None
            primary = True
        elif fields[0] == "fpr" and primary:
            found[fields[9]] = until
            primary = False
    return found
