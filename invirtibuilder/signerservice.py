"""The signer: has the keys, and signs a Release of a configured pocket and nothing else.

It reads the same configuration as the daemon, again whenever that has changed. A Release is taken
apart and made again of what the configuration says; it is signed when that gives the same bytes,
and when its Date is newer than that of the last one that was signed for the pocket. That one is
written down in the keys' home, and may be signed again: a daemon that was killed may need it.
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import re
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from invirtibuilder import config, files, model, sockets
from invirtibuilder.apt import exported
from invirtibuilder.apt.publications import MAX_AHEAD
from invirtibuilder.apt.release import COMMIT, release_text
from invirtibuilder.apt.signerclient import MAX_RELEASE, key_json
from invirtibuilder.errors import Denied, Fault, MachineFault, Malformed, NotFound
from invirtibuilder.journal import WARNING, About, Log
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.stages.context import LABEL, gpg_signer

SECONDS = 10.0
"""For a whole message to arrive, or to be taken."""
AT_ONCE = 16
SLACK = 5.0
"""Seconds besides MAX_AHEAD that a Date may be ahead of this clock."""

_SHA256 = "SHA256:\n"
_FIELD = re.compile(r"([A-Z][A-Za-z-]*): (\S(?:.*\S)?)")
_PART = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
_INDEX = re.compile(rf" ([0-9a-f]{{64}}) (0|[1-9][0-9]{{0,14}}) ({_PART}(?:/{_PART})+)")
_COMMIT_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


class SignerService:
    """Serves a socket until told to stop; raises ConfigFault when it cannot begin."""

    def __init__(
        self, file: Path, log: Log, *, clock: Callable[[], datetime] = model.utcnow
    ) -> None:
        self._site = config.Current(file, log)
        self._log = log
        self._clock = clock
        self._stop = threading.Event()
        # One signature of a pocket at a time, so that the last one is the last one.
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def run(self, path: Path) -> None:
        """Listen at `path` until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        if os.geteuid() == 0:
            text = "running as root: the keys are safe from nobody who becomes root"
            self._log(text, priority=WARNING)
        with sockets.listening(path) as server:
            self._log(f"ready: {path}")
            sockets.serve(server, self._converse, self._stop, at_once=AT_ONCE)

    def _converse(self, connection: socket.socket) -> None:
        told, content = self._answer(connection)
        connection.settimeout(SECONDS)
        sockets.send(connection, told, content)

    def _answer(self, connection: socket.socket) -> tuple[dict[str, Any], bytes]:
        about: dict[str, str] = {}
        try:
            site, uid = self._site(), sockets.peer_uid(connection)
            if uid not in (0, site.directory.stat().st_uid):
                raise Denied(f"uid {uid} is neither the site's own account nor root")
            question, content = sockets.receive(connection, limit=MAX_RELEASE, seconds=SECONDS)
            pocket = site.pockets.get(str(question.get("pocket")))
            about["pocket"] = pocket.name if pocket else ""
            verb = VERBS.get(str(question.get("verb")))
            if pocket is None or verb is None:
                asked = model.printable(f"{question.get('verb')} {question.get('pocket')}")
                raise NotFound(f"the signer does not do this: {asked[:200]}")
            told, answer = verb(self, site, pocket, content)
        except MachineFault as fault:
            return self._refused(fault.code, str(fault), fault.hint, about), b""
        except (Fault, OSError) as error:
            message = f"the signer refuses: {error}"
            return self._refused("signer-refused", message, "", about), b""
        return {"ok": True, **told}, answer

    def _refused(self, code: str, message: str, hint: str, about: About) -> dict[str, Any]:
        message = model.printable(message)[:2000]
        self._log(f"nothing is signed: {message}", {**about, "code": code}, priority=WARNING)
        return {"ok": False, "code": code, "message": message, "hint": hint}

    def _sign(self, site: Site, pocket: Pocket, release: bytes) -> tuple[dict[str, Any], bytes]:
        date, commit = checked(site, pocket, release, self._clock())
        with self._locks[pocket.name]:
            digest = hashlib.sha256(release).hexdigest()
            last = _last(pocket)
            if last and last["sha256"] != digest and date <= datetime.fromisoformat(last["date"]):
                raise Malformed(f"its Date {model.iso(date)} is not after the last, {last['date']}")
            inrelease, detached = gpg_signer(pocket).sign(release)
            # Before anybody has the signature.
            path = _record(pocket)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            files.write_json(path, {"date": date.isoformat(), "sha256": digest}, mode=0o600)
        self._log(
            f"signed {pocket.name}: date {model.iso(date)}, sha256 {digest},"
            f" superproject commit {commit or 'none'}",
            {"pocket": pocket.name},
        )
        return {"inrelease": len(inrelease)}, inrelease + detached

    def _check(self, site: Site, pocket: Pocket, content: bytes) -> tuple[dict[str, Any], bytes]:
        gpg_signer(pocket).check()
        return {}, b""

    def _public_key(
        self, site: Site, pocket: Pocket, content: bytes
    ) -> tuple[dict[str, Any], bytes]:
        return {}, gpg_signer(pocket).public_key()

    def _describe(self, site: Site, pocket: Pocket, content: bytes) -> tuple[dict[str, Any], bytes]:
        return {"keys": [key_json(key) for key in gpg_signer(pocket).described()]}, b""


Verb = Callable[[SignerService, Site, Pocket, bytes], tuple[dict[str, Any], bytes]]
VERBS: dict[str, Verb] = {
    "sign": SignerService._sign,
    "check": SignerService._check,
    "public-key": SignerService._public_key,
    "describe": SignerService._describe,
}


def checked(site: Site, pocket: Pocket, release: bytes, now: datetime) -> tuple[datetime, str]:
    """Date and superproject commit of what may be signed as the pocket's Release now.

    Raises Malformed for anything that `release_text` would not write of what the configuration
    says, for names of indices that are not of the pocket, and for a Date of the future.
    """
    try:
        text = release.decode()
    except UnicodeDecodeError as error:
        raise Malformed("not a Release: it is no text") from error
    if not all(line.isprintable() for line in text.split("\n")):
        raise Malformed("not a Release: it has control characters")
    head, _, tail = text.partition(_SHA256)
    fields = {m[1]: m[2] for line in head.split("\n") if (m := _FIELD.fullmatch(line))}
    found = [_INDEX.fullmatch(line) for line in tail.split("\n")[:-1]]
    indices = {m[3]: (m[1], int(m[2])) for m in found if m}
    for name in indices:
        if not exported.published(name) or name.partition("/")[0] not in pocket.components[:1]:
            raise Malformed(f"not a Release of {pocket.name}: it has no index {name}")
    date, commit = _date(fields.get("Date", "")), fields.get(COMMIT, "")
    if commit and not _COMMIT_ID.fullmatch(commit):
        raise Malformed(f"not a commit: {commit}")
    ours = {
        "Origin": site.name,
        "Label": LABEL,
        "Suite": pocket.name,
        "Codename": pocket.codename,
        "Architectures": " ".join(pocket.architectures),
        "Components": " ".join(pocket.components[:1]),
        # Signed again, a publication has that of its own time.
        "Description": fields.get("Description", ""),
    }
    expected = release_text(ours, indices, date, pocket.valid_for, commit)
    if release != expected:
        raise Malformed(_difference(pocket, text, expected.decode()))
    if date > now + timedelta(seconds=MAX_AHEAD + SLACK):
        raise Malformed(f"its Date {model.iso(date)} is in the future: it is {model.iso(now)}")
    return date, commit


def _date(text: str) -> datetime:
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError) as error:
        raise Malformed(f"not a Release: its Date is {text!r}") from error
    if date.tzinfo is None:
        raise Malformed(f"not a Release: its Date {text!r} has no zone")
    return date


def _difference(pocket: Pocket, text: str, expected: str) -> str:
    """Where it begins that this is not the pocket's Release."""
    pairs = zip(text.split("\n"), expected.split("\n"), strict=False)
    for number, (found, wanted) in enumerate(pairs, 1):
        if found != wanted:
            return (
                f"not a Release of {pocket.name} as it is configured: its line {number} is"
                f" {found[:200]!r}, not {wanted[:200]!r}"
            )
    return f"not a Release of {pocket.name}: it ends elsewhere"


def _record(pocket: Pocket) -> Path:
    """Where the last one that was signed is written down."""
    return pocket.signing.home / "signed" / f"{pocket.name}.json"


def _last(pocket: Pocket) -> dict[str, str] | None:
    try:
        found: dict[str, str] = files.read_json(_record(pocket), limit=1 << 12)
    except FileNotFoundError:
        return None
    return found
