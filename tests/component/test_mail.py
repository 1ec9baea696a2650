"""hooks.d/mail against a real mail server on loopback, and through sendmail's interface."""

from __future__ import annotations

import email
import email.policy
import socket
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.hookscripts import JOB, call, certified, event
from tests.support.mailserver import MailServer

HOSTILE = [
    "x\nBcc: eve@evil.org",
    "x\r\n\r\nbody",
    "x\r.\rQUIT",
    "\u2028\u202eevil\x85\x0b\x0c\x1e",
    "\x1b]0;title\x07\x9b31m\x00",
    "é 漢字 \u00a0 =?utf-8?q?=0ABcc:_eve?=",
    "\udcff\ud800",
    "x" * 5000,
    "a b " * 500,
    '<b>@,;:\\"(',
]


class Keep:
    """What a mail server does with its mail here; `answers` are by recipient."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []
        self.answers: dict[str, str] = {}
        self.at_data = ""
        self.at_quit = "221 Bye"
        self.login: list[bytes] = []

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if refusal := self.answers.get(address):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if not self.at_data:
            self.mails.append(envelope)
        return self.at_data or "250 OK"

    async def handle_QUIT(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        return self.at_quit

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.login += [data.login, data.password]
        return AuthResult(success=True)


class Server:
    """A mail server in a thread."""

    def __init__(self, **options: Any) -> None:
        self.keep = Keep()
        self.controller = MailServer(self.keep, authenticator=self.keep.authenticate, **options)
        start: Callable[[], None] = self.controller.start
        start()

    @property
    def env(self) -> dict[str, str]:
        return {
            "SMTP_SERVER": f"127.0.0.1:{self.controller.port}",
            "MAIL_FROM": "builder@debs.example.org",
            "MAIL_TO": "team@example.org",
        }

    @property
    def mails(self) -> list[EmailMessage]:
        return [parsed(envelope.content) for envelope in self.keep.mails]


def parsed(content: object) -> EmailMessage:
    assert isinstance(content, bytes)
    mail = email.message_from_bytes(content.replace(b"\r\n", b"\n"), policy=email.policy.default)
    assert isinstance(mail, EmailMessage)
    assert not mail.defects
    return mail


def text_of(mail: EmailMessage) -> str:
    """The text; in base64 its line ends are CRLF (RFC 2045, 6.8)."""
    return str(mail.get_content()).replace("\r\n", "\n")


class Sendmail:
    """A program with sendmail's interface that keeps what it is given."""

    def __init__(self, root: Path) -> None:
        self.program = root / "sendmail"
        self.root = root
        self.behave("exit 0")

    def behave(self, end: str) -> None:
        self.program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" > {self.root}/argv\ncat > {self.root}/mail\n{end}\n'
        )
        self.program.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        return {
            "SENDMAIL": str(self.program),
            "MAIL_FROM": "builder@debs.example.org",
            "MAIL_TO": "team@example.org,root",
        }

    @property
    def content(self) -> bytes:
        return (self.root / "mail").read_bytes()


@pytest.fixture
def sendmail(tmp_path: Path) -> Sendmail:
    return Sendmail(tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.controller.stop()


def test_a_failure_says_who_what_when_why_and_shows_the_log(server: Server) -> None:
    told = event(
        "failed",
        stage="build",
        blame="package",
        why=[
            {"code": "build", "message": "dpkg-buildpackage failed", "hint": "see the log"},
            {"code": "tests", "message": "two tests failed"},
        ],
        urls={"log": "https://debs.example.org/log/1"},
        log_tail="make[1]: all\r\nFrom here\n.\n\x1b[31merror\x1b[0m\n\tfoo.c\r\n",
    )
    done = call("mail", told, server.env)
    assert (done.code, done.err) == (0, b"")
    (mail,) = server.mails
    assert mail["Subject"] == "[dev] hello 1.0-1: failed"
    assert mail["From"] == "builder@debs.example.org"
    assert mail["To"] == "team@example.org"
    assert mail["Date"] == "Fri, 02 Jan 2026 03:04:05 +0000"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail.get_content_type() == "text/plain"
    assert text_of(mail) == (
        "hello 1.0-1 in dev: failed\n"
        "\n"
        "Commit:     0123456789abcdef0123456789abcdef01234567\n"
        "Principal:  alice@EXAMPLE.ORG\n"
        "Time:       2026-01-02T03:04:05.678Z\n"
        f"Job:        {JOB}\n"
        "Stage:      build\n"
        "Blame:      package\n"
        "\n"
        "Why:\n"
        "- dpkg-buildpackage failed [build]\n"
        "  hint: see the log\n"
        "- two tests failed [tests]\n"
        "\n"
        "Log: https://debs.example.org/log/1\n"
        "\n"
        "The end of the log:\n"
        "  make[1]: all\n"
        "  From here\n"
        "  .\n"
        "  \\x1b[31merror\\x1b[0m\n"
        "          foo.c\n"
    )


@pytest.mark.parametrize("state", ["refused", "cancelled"])
def test_the_subject_tells_how_it_failed(server: Server, state: str) -> None:
    call("mail", event("failed", state=state), server.env)
    assert server.mails[0]["Subject"] == f"[dev] hello 1.0-1: {state}"


def test_a_commit_that_was_not_found_is_named_as_the_submitter_did(server: Server) -> None:
    told = event("failed", state="refused", commit="", version="", committish="no-such-tag")
    call("mail", told, server.env)
    (mail,) = server.mails
    assert mail["Subject"] == "[dev] hello: refused"
    assert "Committish: no-such-tag\n" in text_of(mail)


def test_a_server_that_fails_after_it_took_the_mail_has_taken_it(server: Server) -> None:
    server.keep.at_quit = "421 going down"
    assert call("mail", event(), server.env).code == 0
    assert len(server.mails) == 1


def test_the_mails_of_a_job_are_a_thread_and_a_retry_is_the_same_mail(server: Server) -> None:
    for name in ("submitted", "started", "published", "published"):
        assert call("mail", event(name), server.env).code == 0
    submitted, started, published, again = server.mails
    root = f"<{JOB}.submitted@debs.example.org>"
    assert submitted["Message-Id"] == root
    assert submitted["References"] is submitted["In-Reply-To"] is None
    assert published["Message-Id"] == f"<{JOB}.published@debs.example.org>"
    for mail in (started, published):
        assert mail["References"] == mail["In-Reply-To"] == root
    assert again.as_bytes() == published.as_bytes()


def test_what_a_rollback_means_for_clients_is_said(server: Server) -> None:
    note = "APT replaces what clients have installed only with these preferences. " * 3
    assert call("mail", event("published", action="rollback", note=note), server.env).code == 0
    (mail,) = server.mails
    assert f"\nNote:       {note}\n" in text_of(mail)


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("way", ["smtp", "sendmail"])
def test_a_hostile_value_stays_where_it_belongs(
    server: Server, sendmail: Sendmail, hostile: str, way: str
) -> None:
    names = (
        "pocket",
        "package",
        "version",
        "commit",
        "principal",
        "state",
        "time",
        "stage",
        "site",
        "note",
    )
    told = event("failed", **dict.fromkeys(names, hostile), blame={"x": hostile})
    told["why"] = [{"code": hostile, "message": hostile, "hint": hostile}, hostile, None, [hostile]]
    told["log_tail"] = f"{hostile}\n.\n..\nFrom {hostile}\n"
    told["urls"] = {hostile: hostile}
    done = call("mail", told, server.env if way == "smtp" else sendmail.env)
    assert (done.code, done.err) == (0, b"")
    if way == "smtp":
        (envelope,) = server.keep.mails
        assert envelope.rcpt_tos == ["team@example.org"]
        content = envelope.content
    else:
        content = sendmail.content
    assert isinstance(content, bytes)
    assert content.isascii()
    assert max(len(line) for line in content.splitlines()) < 998
    mail = parsed(content)
    assert set(mail.keys()) == {
        *("From", "To", "Subject", "Date", "Message-Id", "In-Reply-To", "References"),
        *("Auto-Submitted", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"),
    }
    assert str(mail["Subject"]).isprintable()
    text = text_of(mail)
    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.startswith(("From ", ".", "Bcc", "body")) for line in text.split("\n"))
    assert "\n  .\n  ..\n  From " in text


@pytest.mark.parametrize("told", [{"id": "x"}, {"id": "\r\nX: 1:\r\n", "why": "text", "urls": []}])
def test_missing_fields_are_no_error(server: Server, told: dict[str, Any]) -> None:
    done = call("mail", told, server.env)
    assert (done.code, done.err) == (0, b"")
    assert "X" not in server.mails[0]
    assert str(server.mails[0]["Subject"]).startswith("[?] ?: ")


def test_a_long_log_is_cut_to_its_end(server: Server) -> None:
    lines = [f"line {n} " + "x" * 3000 for n in range(500)]
    call("mail", event("failed", log_tail="\n".join(lines)), server.env)
    text = text_of(server.mails[0])
    assert "line 499 xxx" in text
    assert "line 100 " not in text
    assert len(text) < 64 << 10


@pytest.mark.parametrize(
    ("principal", "to"),
    [
        ("alice@EXAMPLE.ORG", ["alice@mail.example.org"]),
        ("alice@OTHER.ORG", []),
        ("alice/admin@EXAMPLE.ORG", []),
        ("host/debs.example.org@EXAMPLE.ORG", []),
        ("unix/alice", []),
        ("alice", []),
        ("@EXAMPLE.ORG", []),
        ("-oQ/tmp@EXAMPLE.ORG", []),
        ("a b@EXAMPLE.ORG", []),
        ("a,eve@evil.org@EXAMPLE.ORG", []),
        ("a\nb@EXAMPLE.ORG", []),
        ("alice\n@EXAMPLE.ORG", []),
        ("|/bin/sh@EXAMPLE.ORG", []),
        ("é@EXAMPLE.ORG", []),
    ],
)
def test_only_a_plain_principal_gets_mail(server: Server, principal: str, to: list[str]) -> None:
    env = server.env | {
        "MAIL_TO": "submitter",
        "MAIL_DOMAIN": "mail.example.org",
        "MAIL_REALM": "EXAMPLE.ORG",
    }
    done = call("mail", event(principal=principal), env)
    assert done.code == 0
    assert [mail.rcpt_tos for mail in server.keep.mails] == ([to] if to else [])
    assert (b"nobody to be told" in done.err) is not bool(to)


def test_several_recipients_get_one_mail_and_nobody_two(server: Server) -> None:
    env = server.env | {"MAIL_TO": "a@x.org, submitter,b@x.org,,a@x.org", "MAIL_DOMAIN": "x.org"}
    assert call("mail", event(principal="b@ANY"), env).code == 0
    (mail,) = server.keep.mails
    assert mail.rcpt_tos == ["a@x.org", "b@x.org"]
    assert mail.mail_from == "builder@debs.example.org"
    assert server.mails[0]["To"] == "a@x.org, b@x.org"


@pytest.mark.parametrize(
    ("answer", "code"), [("451 4.7.1 Greylisted, try later", 75), ("550 5.1.1 No such user", 69)]
)
def test_a_refused_recipient(server: Server, answer: str, code: int) -> None:
    server.keep.answers["team@example.org"] = answer
    done = call("mail", event(), server.env)
    assert done.code == code
    assert done.err.decode() == f"mail: {answer}\n"
    assert server.mails == []
    server.keep.answers.clear()
    assert call("mail", event(), server.env).code == 0
    assert len(server.mails) == 1


@pytest.mark.parametrize(("answer", "code"), [("452 Disk full", 75), ("554 Looks like spam", 69)])
def test_a_mail_refused_after_its_data(server: Server, answer: str, code: int) -> None:
    server.keep.at_data = answer
    done = call("mail", event(), server.env)
    assert (done.code, done.err.decode()) == (code, f"mail: {answer}\n")


def test_one_temporary_refusal_among_several_means_nobody_gets_it_twice(server: Server) -> None:
    server.keep.answers["b@x.org"] = "451 Later"
    env = server.env | {"MAIL_TO": "a@x.org,b@x.org,c@x.org"}
    assert call("mail", event(), env).code == 75
    assert server.mails == []
    server.keep.answers.clear()
    assert call("mail", event(), env).code == 0
    assert [mail.rcpt_tos for mail in server.keep.mails] == [["a@x.org", "b@x.org", "c@x.org"]]


def test_one_address_that_is_gone_does_not_keep_the_mail_from_the_others(server: Server) -> None:
    server.keep.answers["gone@x.org"] = "550 No such \x7fuser"
    done = call("mail", event(), server.env | {"MAIL_TO": "gone@x.org,here@x.org"})
    assert done.code == 0
    assert done.err == b"mail: gone@x.org: 550 No such \\x7fuser\n"
    assert [mail.rcpt_tos for mail in server.keep.mails] == [["here@x.org"]]


def test_a_server_that_does_not_answer_is_tried_again() -> None:
    env = {"MAIL_FROM": "a@x.org", "MAIL_TO": "b@x.org"}
    # Bound, so that it is nobody else's, and not listened on.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{bound.getsockname()[1]}"
        done = call("mail", event(), env | {"SMTP_SERVER": server})
    assert done.code == 75
    assert b"refused" in done.err


def test_starttls_is_checked_before_a_word_is_said(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    cert, context = certified(tmp_path)
    server = Server(tls_context=context, require_starttls=True)
    try:
        env = server.env | {"SMTP_USER": "builder", "SMTP_PASSWORD_FILE": str(password)}
        assert call("mail", event(), env).code == 78, "no password without encryption"
        env["SMTP_STARTTLS"] = "yes"
        done = call("mail", event(), env)
        assert done.code == 75
        assert b"certificate verify failed" in done.err
        assert server.keep.login == []
        env["SMTP_CA_FILE"] = str(cert)
        assert call("mail", event(), env).code == 0
        assert server.keep.login == [b"builder", b"correct horse"]
        assert len(server.mails) == 1
    finally:
        server.controller.stop()


def test_starttls_that_the_server_does_not_have_is_not_done_without(server: Server) -> None:
    assert call("mail", event(), server.env | {"SMTP_STARTTLS": "yes"}).code == 75
    assert server.mails == []


def test_sendmail_gets_recipients_as_arguments_and_lines_of_unix(sendmail: Sendmail) -> None:
    done = call("mail", event("failed", log_tail="é\n" + "x" * 300), sendmail.env)
    assert (done.code, done.err) == (0, b"")
    arguments = (sendmail.root / "argv").read_text().splitlines()
    assert arguments == [
        *("-i", "-f", "builder@debs.example.org", "--", "team@example.org", "root"),
    ]
    assert b"\r" not in sendmail.content
    mail = parsed(sendmail.content)
    assert mail["Subject"] == "[dev] hello 1.0-1: failed"
    assert "\n  é\n  xxx" in text_of(mail)


@pytest.mark.parametrize(
    ("end", "code"), [("exit 75", 75), ("exit 67", 69), ("kill -9 $$", 69), ("exit 1", 69)]
)
def test_what_sendmail_says_is_passed_on(sendmail: Sendmail, end: str, code: int) -> None:
    sendmail.behave(f"echo 'queue: \033[1mno' >&2; {end}")
    done = call("mail", event(), sendmail.env)
    assert done.code == code
    assert b"queue: \\x1b[1mno" in done.err


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, b"MAIL_TO"),
        ({"MAIL_TO": "a@x.org"}, b"MAIL_FROM"),
        ({"MAIL_FROM": "a@x.org"}, b"MAIL_TO"),
        ({"MAIL_FROM": "a@x.org", "MAIL_TO": "-oX@x.org"}, b"-oX"),
        ({"MAIL_FROM": "a@x.org", "MAIL_TO": "A <a@x.org>"}, b"A <a@x.org>"),
        ({"MAIL_FROM": "a@x.org", "MAIL_TO": "a@x.org\nBcc: b@x.org"}, b"Bcc"),
        ({"MAIL_FROM": "a@x.org", "MAIL_TO": "submitter"}, b"MAIL_DOMAIN"),
        ({"MAIL_FROM": "a@x.org", "MAIL_TO": "b@x.org", "SENDMAIL": "/nonexistent"}, b"SENDMAIL"),
        (
            {"MAIL_FROM": "a@x.org", "MAIL_TO": "b@x.org", "SMTP_SERVER": "host:smtp"},
            b"SMTP_SERVER",
        ),
        (
            {"MAIL_FROM": "a@x.org", "MAIL_TO": "b@x.org", "SMTP_PASSWORD_FILE": "/nonexistent"},
            b"SMTP_PASSWORD_FILE",
        ),
    ],
)
def test_wrong_settings_are_named(env: dict[str, str], named: bytes) -> None:
    done = call("mail", event(), env)
    assert done.code == 78
    assert named in done.err


@pytest.mark.parametrize("told", [b"", b"[]", b"{}", b"\xff"])
def test_what_is_no_event(sendmail: Sendmail, told: bytes) -> None:
    assert call("mail", told, sendmail.env).code == 65
