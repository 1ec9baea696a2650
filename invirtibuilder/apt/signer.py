"""Signatures of Release files, by gpg with one key in a home of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.errors import MachineFault
from invirtibuilder.run import Done, ProcessFault, run

TIMEOUT = 60.0
"""Seconds for one gpg call."""


@dataclass(frozen=True, kw_only=True)
class Signer:
    """One signing key: its fingerprint or user id, and the GnuPG home that has it.

    gpg starts an agent in that home and leaves it running, which makes the next signature
    twice as fast; the key has no passphrase, so the agent holds no more than the file does.
    It ends with `close`, or by itself when its home is removed.
    """

    gnupghome: Path
    key: str

    def sign(self, release: bytes) -> tuple[bytes, bytes]:
        """InRelease and Release.gpg for a Release. Raises MachineFault."""
        return self._sign("--clearsign", release), self._sign("--detach-sign", release)

    def _sign(self, how: str, data: bytes) -> bytes:
        done = self._gpg("--armor", "--digest-algo", "SHA512", "--local-user", self.key, how, data)
        if not done.out.startswith(b"-----BEGIN PGP SIGN"):
            raise MachineFault(f"gpg made no signature with {self.key}", code="signing-failed")
        return done.out

    def public_key(self) -> bytes:
        """The public key, armoured. Raises MachineFault when there is none."""
        done = self._gpg("--armor", "--export-options", "export-minimal", "--export", self.key, b"")
        if not done.out:
            raise _missing(self.key, self.gnupghome)
        return done.out

    def close(self) -> None:
        """End this home's agent."""
        run(["gpgconf", "--homedir", self.gnupghome, "--kill", "gpg-agent"], timeout=TIMEOUT)

    def _gpg(self, *args: str | bytes) -> Done:
        try:
            return _gpg(self.gnupghome, *args)
        except ProcessFault as fault:
            raise _explained(fault, self.key, self.gnupghome) from fault


def create_key(gnupghome: Path, name: str, mail: str) -> str:
    """Make an Ed25519 signing key without passphrase or expiry; returns its fingerprint.

    The home is made when absent. Raises MachineFault, also when the home has a key of that user.
    """
    gnupghome.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        done = _gpg(
            gnupghome,
            *("--status-fd", "1", "--passphrase", "", "--pinentry-mode", "loopback"),
            *("--quick-generate-key", f"{name} <{mail}>", "ed25519", "sign", "never"),
        )
    except ProcessFault as fault:
        raise MachineFault(f"no signing key was made: {fault}", code="key-not-made") from fault
    found = re.search(r"^\[GNUPG:\] KEY_CREATED P ([0-9A-F]{40})", done.text, re.MULTILINE)
    if not found:
        raise MachineFault("gpg did not say which key it made", code="key-not-made")
    return found[1]


def _gpg(gnupghome: Path, *args: str | bytes) -> Done:
    """Run gpg; an argument of bytes is its standard input."""
    data = b"".join(a for a in args if isinstance(a, bytes))
    argv = [a for a in args if isinstance(a, str)]
    modes = [] if "--pinentry-mode" in argv else ["--pinentry-mode", "error"]
    return run(
        ["gpg", "--homedir", gnupghome, "--batch", "--no-tty", "--quiet", *modes, *argv],
        timeout=TIMEOUT,
        stdin=data,
    )


def _missing(key: str, gnupghome: Path) -> MachineFault:
    return MachineFault(
        f"the signing key {key} is not in {gnupghome}",
        hint="set the signing key in the configuration, or import its secret part there",
        code="key-missing",
    )


def _explained(fault: ProcessFault, key: str, gnupghome: Path) -> MachineFault:
    said = fault.done.err.lower()
    if b"no secret key" in said or b"not found" in said:
        return _missing(key, gnupghome)
    if b"pinentry" in said or b"passphrase" in said:
        return MachineFault(
            f"the signing key {key} is locked by a passphrase",
            hint="remove the passphrase, or preset it in gpg-agent",
            code="key-locked",
        )
    return MachineFault(f"cannot sign with {key}: {fault}", code="signing-failed")
