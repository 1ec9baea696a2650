"""Public keys, armoured: their ends, and several made one, by gpg in a home of no one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from invirtibuilder.errors import MachineFault
from invirtibuilder.run import ProcessFault, run

TIMEOUT = 60.0


def expiries(armoured: bytes) -> dict[str, datetime | None]:
    """When each of these public keys expires, by fingerprint; None: never. Raises MachineFault."""
    with tempfile.TemporaryDirectory(prefix="invirtibuilder-keys.") as home:
        listing = ("--with-colons", "--fixed-list-mode", "--show-keys")
        text = _gpg(Path(home), listing, armoured).decode("utf-8", "replace")
    found: dict[str, datetime | None] = {}
    until: datetime | None = None
    primary = False
    # doc/DETAILS of GnuPG: field 7 is the expiry; the first `fpr` after a `pub` is that key's.
    for fields in (line.split(":") for line in text.splitlines()):
        if fields[0] == "pub":
            until = datetime.fromtimestamp(int(fields[6]), UTC) if fields[6] else None
            primary = True
        elif fields[0] == "fpr" and primary:
            found[fields[9]] = until
            primary = False
    return found


def joined(armoured: bytes, *fingerprints: str) -> bytes:
    """The keys of all these blocks as one block, each once, as APT takes no second one.

    With fingerprints, only these of them. Raises MachineFault.
    """
    with tempfile.TemporaryDirectory(prefix="invirtibuilder-keys.") as home:
        _gpg(Path(home), ["--import"], armoured)
        export = ("--armor", "--export-options", "export-minimal", "--export", *fingerprints)
        return _gpg(Path(home), export)


def _gpg(home: Path, words: Sequence[str], armoured: bytes = b"") -> bytes:
    argv = ("gpg", "--homedir", home, "--batch", "--no-tty", "--no-autostart", "--quiet")
    try:
        return run([*argv, *words], stdin=armoured, timeout=TIMEOUT).out
    except ProcessFault as fault:
        raise MachineFault(f"the public keys cannot be read: {fault}", code="keys") from fault
