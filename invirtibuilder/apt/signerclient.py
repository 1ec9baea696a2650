"""The signer's client: another account's process has the keys, and signs what it agrees to.

Each call is one connection with one message there and one back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from invirtibuilder import model, sockets
from invirtibuilder.apt.signer import Key, verified
from invirtibuilder.errors import Denied, MachineFault, Malformed, Unavailable

MAX_RELEASE = 1 << 20
"""Bytes of a Release; one of a pocket has some thousand."""
MAX_ANSWER = 4 << 20
SECONDS = 150.0
"""For an answer: gpg may take as long as its time-out, and others come first."""


@dataclass(frozen=True, kw_only=True)
class SocketSigner:
    """A pocket's keys, which the process at `path` has."""

    path: Path
    pocket: str
    keys: tuple[str, ...]

    def sign(self, release: bytes) -> tuple[bytes, bytes]:
        """InRelease and Release.gpg for a Release, which has to be one of the pocket.

        Raises Unavailable when there is no signer, or MachineFault with what it says.
        """
        told, content = self._ask("sign", release)
        size = told.get("inrelease")
        if not isinstance(size, int) or not 0 < size < len(content):
            raise self._nonsense()
        return content[:size], content[size:]

    def check(self) -> None:
        """Have it make a signature that nobody gets. Raises what `sign` would."""
        self._ask("check")

    def signed(self, inrelease: bytes) -> bool:
        """Whether these keys, each of them and no other, have signed an InRelease."""
        return set(verified(self.public_key(), inrelease)) == set(self.keys)

    def public_key(self) -> bytes:
        """The public keys, armoured as one. Raises as `sign` does, also when one is missing."""
        return self._ask("public-key")[1]

    def described(self) -> list[Key]:
        """What the signer knows of each key, in their order; a missing one has no dates."""
        told, _ = self._ask("describe")
        try:
            return [key_of(each) for each in told["keys"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._nonsense() from error

    def _ask(self, verb: str, content: bytes = b"") -> tuple[dict[str, Any], bytes]:
        question = {"verb": verb, "pocket": self.pocket}
        try:
            told, answer = sockets.ask(
                self.path, question, content, limit=MAX_ANSWER, seconds=SECONDS
            )
        except PermissionError as error:
            raise Denied(
                f"only the site's own account and root may ask the signer at {self.path}",
                hint="run it as one of them",
                code="not-the-site",
            ) from error
        except (OSError, Malformed) as error:
            raise Unavailable(
                f"the signer at {self.path} does not answer: {error}",
                hint="start `invirtibuilder signer --listen` as the signer's account",
                code="no-signer",
            ) from error
        if told.get("ok") is not True:
            raise self._fault(told)
        return told, answer

    def _fault(self, told: Mapping[str, Any]) -> MachineFault:
        words = {name: told.get(name) for name in ("message", "hint", "code")}
        if not all(isinstance(word, str) for word in words.values()):
            return self._nonsense()
        message = model.printable(str(words["message"]))
        return MachineFault(message, hint=str(words["hint"]), code=str(words["code"]))

    def _nonsense(self) -> MachineFault:
        return MachineFault(f"the signer at {self.path} does not make sense", code="no-signer")


def key_json(key: Key) -> dict[str, Any]:
    """A key as a message has it."""
    made, expires = (time and time.isoformat() for time in (key.made, key.expires))
    return {
        "fingerprint": key.fingerprint,
        "user": key.user,
        "made": made,
        "expires": expires,
        "secret": key.secret,
    }


def key_of(told: Mapping[str, Any]) -> Key:
    """The key that a message has. Raises KeyError, TypeError or ValueError."""
    made, expires = (told[k] and datetime.fromisoformat(told[k]) for k in ("made", "expires"))
    return Key(
        fingerprint=str(told["fingerprint"]),
        user=str(told["user"]),
        made=made,
        expires=expires,
        secret=told["secret"] is True,
    )
