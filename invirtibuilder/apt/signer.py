"""Signatures of Release files, by gpg with one key in a home of its own."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from invirtibuilder.errors import MachineFault
from invirtibuilder.run import Done, Killed, ProcessFault, failed, run

TIMEOUT = 60.0
"""Seconds for one gpg call."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as its home knows it; `expires` is None for never."""

    fingerprint: str
    user: str
    made: datetime | None
    expires: datetime | None
    secret: bool


class Signer(Protocol):
    """The keys that sign a pocket's publications, here or with the signer's service."""

    @property
    def keys(self) -> tuple[str, ...]:
        """All that sign, by fingerprint, the key itself first."""
        ...

    def sign(self, release: bytes) -> tuple[bytes, bytes]:
        """InRelease and Release.gpg for a Release. Raises a Fault."""
        ...

    def check(self) -> None:
        """Make a signature that nobody gets. Raises what `sign` would."""
        ...

    def signed(self, inrelease: bytes) -> bool:
        """Whether these keys, each of them and no other, have signed an InRelease."""
        ...

    def public_key(self) -> bytes:
        """The public keys, armoured as one. Raises a Fault when one is missing."""
        ...

    def described(self) -> list[Key]:
        """What is known of each key, in their order; a missing one has no dates."""
        ...


@dataclass(frozen=True, kw_only=True)
class GpgSigner:
    """A signing key, by fingerprint or user id, and the GnuPG home that has it.

    The keys in `also` sign besides, so that clients that know one of them are content: while
    one key takes over from another. gpg starts an agent in that home and leaves it running,
    which makes the next signature twice as fast; the keys have no passphrase, so the agent
    holds no more than the files do. It ends with `close`, or when its home is removed.
    """

    gnupghome: Path
    key: str
    also: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All that sign, the key itself first."""
        return (self.key, *self.also)

    def sign(self, release: bytes) -> tuple[bytes, bytes]:
        """InRelease and Release.gpg for a Release. Raises MachineFault."""
        with ThreadPoolExecutor(max_workers=1) as beside:
            detached = beside.submit(self._sign, "--detach-sign", release)
            return self._sign("--clearsign", release), detached.result()

    def check(self) -> None:
        """Make a signature that nobody gets. Raises what `sign` would."""
        self._sign("--clearsign", b"check\n")

    def _sign(self, how: str, data: bytes) -> bytes:
        users = [word for key in self.keys for word in ("--local-user", key)]
        done = self._gpg("--armor", "--digest-algo", "SHA512", *users, how, data)
        if not done.out.startswith(b"-----BEGIN PGP SIGN"):
            raise MachineFault(f"gpg made no signature with {self.key}", code="signing-failed")
        return done.out

    def signed(self, inrelease: bytes) -> bool:
        """Whether these keys, each of them and no other, have signed an InRelease."""
        argv = ("gpg", "--homedir", self.gnupghome, "--batch", "--no-tty", "--status-fd", "1")
        done = run([*argv, "--verify"], stdin=inrelease, timeout=TIMEOUT, check=False)
        if done.code < 0:
            raise failed(done)
        # doc/DETAILS of GnuPG: the first field is the key's, the last its primary key's.
        words = [line.split() for line in done.text.splitlines()]
        valid = [{w[2], w[-1]} for w in words if w[:2] == ["[GNUPG:]", "VALIDSIG"]]
        others = [w for w in words if w[1:2] in (["ERRSIG"], ["BADSIG"], ["EXPSIG"])]
        wanted = set(self.keys)
        return not others and wanted <= set().union(*valid) and all(v & wanted for v in valid)

    def public_key(self) -> bytes:
        """The public keys, armoured as one. Raises MachineFault when one is missing."""
        export = ("--armor", "--export-options", "export-minimal", "--export")
        for key in self.keys:
            # gpg says nothing of one that is missing when there is another.
            if not self._gpg(*export, key).out:
                raise _missing(key, self.gnupghome)
        return self._gpg(*export, *self.keys).out

    def described(self) -> list[Key]:
        """What the home knows of each key, in their order; a missing one has no dates."""
        return [self._described(key) for key in self.keys]

    def _described(self, key: str) -> Key:
        listing = ("--with-colons", "--fixed-list-mode", "--list-keys", key)
        try:
            lines = self._gpg(*listing).text.splitlines()
            secret = bool(self._gpg("--with-colons", "--list-secret-keys", key).out)
        except MachineFault:
            return Key(fingerprint=key, user="", made=None, expires=None, secret=False)
        # doc/DETAILS of GnuPG: field 6 is the creation, 7 the expiry, 10 the user id.
        public = next(line.split(":") for line in lines if line.startswith("pub:"))
        user = next((line.split(":")[9] for line in lines if line.startswith("uid:")), "")
        return Key(
            fingerprint=key,
            user=user,
            made=_time(public[5]),
            expires=_time(public[6]),
            secret=secret,
        )

    def close(self) -> None:
        """End this home's agent."""
        run(["gpgconf", "--homedir", self.gnupghome, "--kill", "gpg-agent"], timeout=TIMEOUT)

    def _gpg(self, *args: str | bytes) -> Done:
        try:
            return _gpg(self.gnupghome, *args)
        except Killed:
            raise
        except ProcessFault as fault:
            raise _explained(fault, self.key, self.gnupghome) from fault


def _time(field: str) -> datetime | None:
    return datetime.fromtimestamp(int(field), UTC) if field else None


def create_key(gnupghome: Path, name: str, mail: str, *, before: Sequence[str] = ()) -> str:
    """Make an Ed25519 signing key without passphrase or expiry; returns its fingerprint.

    The home is made when absent. `before` are words before the command, for root, who has it done
    as another account. Raises MachineFault, also when the home has a key of that user.
    """
    gnupghome.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        done = _gpg(
            gnupghome,
            *("--status-fd", "1", "--passphrase", "", "--pinentry-mode", "loopback"),
            *("--quick-generate-key", f"{name} <{mail}>", "ed25519", "sign", "never"),
            before=before,
        )
    except ProcessFault as fault:
        raise MachineFault(f"no signing key was made: {fault}", code="key-not-made") from fault
    found = re.search(r"^\[GNUPG:\] KEY_CREATED P ([0-9A-F]{40})", done.text, re.MULTILINE)
    if not found:
        raise MachineFault("gpg did not say which key it made", code="key-not-made")
    return found[1]


def _gpg(gnupghome: Path, *args: str | bytes, before: Sequence[str] = ()) -> Done:
    """Run gpg; an argument of bytes is its standard input."""
    data = b"".join(a for a in args if isinstance(a, bytes))
    argv = [a for a in args if isinstance(a, str)]
    modes = [] if "--pinentry-mode" in argv else ["--pinentry-mode", "error"]
    return run(
        [*before, "gpg", "--homedir", gnupghome, "--batch", "--no-tty", "--quiet", *modes, *argv],
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
        skipped = re.search(rb'skipped "([^"]+)"', fault.done.err)
        return _missing(skipped[1].decode("utf-8", "replace") if skipped else key, gnupghome)
    if b"pinentry" in said or b"passphrase" in said:
        return MachineFault(
            f"the signing key {key} is locked by a passphrase",
            hint="remove the passphrase, or preset it in gpg-agent",
            code="key-locked",
        )
    return MachineFault(f"cannot sign with {key}: {fault}", code="signing-failed")


def verified(key: bytes, signed: bytes, content: bytes | None = None) -> list[str]:
    """Whose signatures these are: fingerprints of primary keys that are in `key` (armoured).

    `signed` is an InRelease, or a Release.gpg of `content`. Nobody's when one of them is bad; a
    key that `key` does not have is given by its id of 16 digits. Raises MachineFault when gpg
    cannot be run.
    """
    with tempfile.TemporaryDirectory(prefix="invirtibuilder-verify.") as name:
        folder = Path(name)
        (folder / "signed").write_bytes(signed)
        more = []
        if content is not None:
            (folder / "content").write_bytes(content)
            more = [f"{name}/content"]
        try:
            binary = run(["gpg", "--homedir", name, "--batch", "--dearmor"], stdin=key, check=False)
            if binary.code > 0:
                return []
            (folder / "keyring").write_bytes(binary.out)
            argv = ["gpgv", "--status-fd", "1", "--homedir", name, "--keyring", f"{name}/keyring"]
            done = run([*argv, f"{name}/signed", *more], check=False, timeout=TIMEOUT)
            if min(binary.code, done.code) < 0:
                raise failed(done if done.code < 0 else binary)
        except Killed:
            raise
        except ProcessFault as fault:
            raise MachineFault(f"signatures cannot be verified: {fault}", code="gpgv") from fault
    # doc/DETAILS of GnuPG; the last field of VALIDSIG is the primary key.
    said = [line.split() for line in done.text.splitlines() if line.startswith("[GNUPG:] ")]
    words = {line[1] for line in said}
    if "BADSIG" in words or (done.code != 0 and "NO_PUBKEY" not in words):
        return []
    return [line[-1] for line in said if line[1] in ("VALIDSIG", "NO_PUBKEY")]
