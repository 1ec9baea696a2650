"""Hooks of a real site: a real mail server, and an audit that holds builds back."""

from __future__ import annotations

import email
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from invirtibuilder.sandbox.base import Base
from tests.support import packages
from tests.support.mailserver import MailServer
from tests.support.sites import TOP, TestSite, made_site


class Mailbox:
    """Keeps what the mail server is given."""

    def __init__(self) -> None:
        self.mails: list[Message] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.original_content or b""
        self.mails.append(email.message_from_bytes(content))
        return "250 OK"

    def about(self, subject: str) -> Message:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            for mail in self.mails:
                if subject in str(mail["Subject"]):
                    return mail
            time.sleep(0.05)
        raise AssertionError([str(m["Subject"]) for m in self.mails])


class Audit(http.server.BaseHTTPRequestHandler):
    """The other side of the off-site audit: closed until it is opened."""

    opened = threading.Event()
    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.opened.is_set():
            type(self).seen.append(json.loads(body))
        self.send_response(200 if self.opened.is_set() else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@contextmanager
def audit_server() -> Iterator[str]:
    Audit.seen = []
    Audit.opened.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Audit)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/audit"
    server.shutdown()
    server.server_close()


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, str]]:
    box = Mailbox()
    controller = MailServer(box)
    controller.start()  # type: ignore[no-untyped-call]
    yield box, f"127.0.0.1:{controller.port}"
    controller.stop()


def test_mail_and_audit(
    base: Base, layers: Path, mailbox: tuple[Mailbox, str], tmp_path: Path
) -> None:
    box, server = mailbox
    with audit_server() as url, made_site(base, layers) as site:
        site.configure(
            hooks=[
                {
                    "program": str(TOP / "hooks.d/mail"),
                    "environment": {
                        "MAIL_TO": "archive@example.org",
                        "MAIL_FROM": "builder@example.org",
                        "SMTP_SERVER": server,
                    },
                },
                {
                    "program": str(TOP / "hooks.d/webhook"),
                    "events": ["submitted"],
                    "required": True,
                    "environment": {"WEBHOOK_URL": url},
                },
            ]
        )
        with site.daemon():
            _audit_first(site, tmp_path)
            _failure_is_mailed(site, box, tmp_path)


def _audit_first(site: TestSite, tmp_path: Path) -> None:
    repo = packages.native(tmp_path / "audited", "audited", "1.0")
    site.package("audited", repo.path)
    job = site.cli("submit", "dev", "audited", repo.commit).text
    until = time.monotonic() + 60
    while site.json("status", job)["state"] != "waiting":
        assert time.monotonic() < until
        time.sleep(0.1)
    assert "webhook" in site.cli("status", job).text
    assert "required hook" in site.cli("queue").text
    # Nothing of the package has run yet.
    assert not list((site.directory / "jobs" / job / "attempts").iterdir())
    Audit.opened.set()
    until = time.monotonic() + 300
    while (status := site.json("status", job))["state"] in ("waiting", "running"):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert status["state"] == "published"
    assert [seen["job"] for seen in Audit.seen] == [job]


def _failure_is_mailed(site: TestSite, box: Mailbox, tmp_path: Path) -> None:
    repo = packages.failing(tmp_path / "broken")
    site.package("broken", repo.path)
    _, job = site.submit("dev", "broken", repo.commit)
    mail = box.about("failed")
    assert job["job"] in str(mail["Message-Id"])
    payload = mail.get_payload(decode=True)
    assert isinstance(payload, bytes)
    text = payload.decode()
    assert "this build fails on purpose" in text
    assert "build-failed" in text
    published = box.about("audited")
    assert str(published["Message-Id"]) != str(mail["Message-Id"])
