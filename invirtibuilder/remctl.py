"""A client of remctld: the remctl protocol, versions 2 and 3, over GSS-API with Kerberos.

The server proves who it is (mutual authentication), and everything after that is encrypted;
what does not fit the protocol ends the connection with a Fault.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import TracebackType
from typing import Self

import gssapi

from invirtibuilder import model
from invirtibuilder.errors import Denied, Fault, MachineFault, Malformed, NotFound, Unavailable

PORT = 4373
SERVICE = "host"
MAX_TOKEN = 1 << 20
"""Octets of a token: the protocol's own limit."""
CHUNK = (64 << 10) - 64
"""Octets of a command in one message; remctld's own clients keep a token below 64 KiB."""
MAX_COMMAND = 16 << 20
MAX_ERROR = 2000
ROUNDS = 8
CONNECT = 30.0
"""Seconds for the connection, and again for the authentication."""
SILENCE = 120.0
"""Seconds without a word from the server, unless the command may be silent."""


class TokenFlag(IntFlag):
    """The first octet of a token."""

    NOOP = 0x01
    CONTEXT = 0x02
    DATA = 0x04
    CONTEXT_NEXT = 0x10
    PROTOCOL = 0x40  # version 2 and later


class Kind(IntEnum):
    """The second octet of a message; the first is the protocol's version."""

    COMMAND = 1
    QUIT = 2
    OUTPUT = 3
    STATUS = 4
    ERROR = 5
    VERSION = 6
    NOOP = 7


@dataclass(frozen=True, kw_only=True)
class Output:
    """A piece of what the command wrote: to standard output (1) or standard error (2)."""

    stream: int
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Status:
    """The command has ended with this exit code."""

    code: int


@dataclass(frozen=True, kw_only=True)
class ServerError:
    """remctld did not run the command."""

    code: int
    message: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """The highest version that the server speaks; the answer to a message of a later one."""

    highest: int


@dataclass(frozen=True, kw_only=True)
class Noop:
    """The answer to a NOOP."""


Message = Output | Status | ServerError | Version | Noop


def _broken(what: str) -> Unavailable:
    return Unavailable(f"the server does not keep to the remctl protocol: {what}", code="remctl")


def parse(message: bytes) -> Message:
    """A message of the server. Raises Unavailable (code remctl) for anything else.

    >>> parse(b"\\x02\\x03\\x01\\x00\\x00\\x00\\x03abc")
    Output(stream=1, data=b'abc')
    >>> parse(b"\\x02\\x04\\x05")
    Status(code=5)
    """
    if len(message) < 2 or message[0] not in (2, 3):
        raise _broken(f"no message of version 2 or 3: {message[:8]!r}")
    kind, body = message[1], message[2:]
    try:
        if kind == Kind.OUTPUT:
            stream, length = struct.unpack("!BL", body[:5])
            if stream in (1, 2) and length == len(body) - 5:
                return Output(stream=stream, data=body[5:])
        elif kind == Kind.STATUS:
            return Status(code=struct.unpack("!B", body)[0])
        elif kind == Kind.ERROR:
            code, length = struct.unpack("!LL", body[:8])
            if length == len(body) - 8:
                text = body[8 : 8 + MAX_ERROR].decode("utf-8", "replace")
                return ServerError(code=code, message=model.printable(text))
        elif kind == Kind.VERSION:
            return Version(highest=struct.unpack("!B", body)[0])
        elif kind == Kind.NOOP and not body:
            return Noop()
    except struct.error as error:
        raise _broken(f"a message of type {kind} is cut short") from error
    raise _broken(f"a message of type {kind} with {len(body)} octets")


def command_messages(args: Sequence[bytes]) -> Iterator[bytes]:
    """A command as messages: one, or the first, middle and last part of a long one.

    Each asks the server to keep the connection open. Raises Malformed for more than MAX_COMMAND.

    >>> list(command_messages([b"ab", b""]))
    [b'\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x02\\x00\\x00\\x00\\x02ab\\x00\\x00\\x00\\x00']
    """
    data = struct.pack("!L", len(args))
    data += b"".join(struct.pack("!L", len(arg)) + arg for arg in args)
    if len(data) > MAX_COMMAND:
        raise Malformed(f"a command of more than {MAX_COMMAND} bytes", code="long-command")
    parts = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    for number, part in enumerate(parts):
        if len(parts) == 1:
            which = 0
        elif number == 0:
            which = 1
        else:
            which = 3 if number == len(parts) - 1 else 2
        yield struct.pack("!BBBB", 2, Kind.COMMAND, 1, which) + part


class Connection:
    """An authenticated, encrypted connection to remctld, for any number of commands in turn.

    `service` is the server's principal: the first part of it (`host` is host/HOST, as the
    Kerberos library makes it of HOST), or, with a slash, all of it. Raises Denied (no ticket, or
    an expired one), Unavailable (nobody answers, no such service, another server than the named
    one, a server that breaks the protocol) and MachineFault (the clocks differ).
    """

    def __init__(self, host: str, port: int = PORT, service: str = SERVICE) -> None:
        self._where = f"{model.printable(host)} port {port}"
        with _kerberos(host, service):
            context = _context(host, service)
        self._context = context
        try:
            self._socket = socket.create_connection((host, port), CONNECT)
        except (OSError, OverflowError, UnicodeError) as error:
            raise Unavailable(
                f"{self._where}: {getattr(error, 'strerror', None) or error}",
                hint="is remctld running there? --port names another port",
                code="no-connection",
            ) from error
        self._open = True
        with self._closing_on_error():
            self._prepare()
            with _kerberos(host, service):
                self._authenticate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def command(
        self,
        args: Sequence[bytes],
        take: Callable[[int, bytes], None],
        *,
        silence: float | None = SILENCE,
    ) -> int:
        """Run a command to its end; `take` gets each piece of output with its stream, 1 or 2.

        Returns the command's exit code. `silence` is how many seconds the server may say nothing
        (None: as long as it likes). Raises Denied and NotFound for what remctld refuses, with the
        connection still usable, and Unavailable when the connection breaks.
        """
        with self._closing_on_error():
            for part in command_messages(args):
                self._put(part)
            while True:
                message = self._get(silence)
                if isinstance(message, Output):
                    take(message.stream, message.data)
                elif isinstance(message, Status):
                    return message.code
                elif isinstance(message, ServerError):
                    break
                else:
                    raise _unexpected(message)
        raise _refusal(message)

    def noop(self) -> bool:
        """Say something, so that nobody between forgets the connection.

        False: the server speaks version 2 only, which has no such message.
        """
        with self._closing_on_error():
            self._put(struct.pack("!BB", 3, Kind.NOOP))
            answer = self._get(SILENCE)
            if not isinstance(answer, Noop | Version):
                raise _unexpected(answer)
        return isinstance(answer, Noop)

    def close(self) -> None:
        """Take leave of the server; no error when it has gone already."""
        if self._open:
            with contextlib.suppress(Fault):
                self._put(struct.pack("!BB", 2, Kind.QUIT))
            self._open = False
            self._socket.close()

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """After a failure nobody knows what the next octet means."""
        if not self._open:
            raise Unavailable(f"{self._where}: the connection is closed", code="closed")
        try:
            yield
        except BaseException:
            self._open = False
            self._socket.close()
            raise

    def _prepare(self) -> None:
        """A server that has vanished is noticed in two minutes, also while it may be silent."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):  # not everywhere
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def _authenticate(self) -> None:
        deadline = time.monotonic() + CONNECT
        first = TokenFlag.NOOP | TokenFlag.CONTEXT_NEXT | TokenFlag.PROTOCOL
        ours = TokenFlag.CONTEXT | TokenFlag.PROTOCOL
        self._send(first, b"")
        token: bytes | None = None
        for _ in range(ROUNDS):
            answer = self._context.step(token)
            if answer:
                self._send(ours, answer)
            if self._context.complete:
                break
            flags, token = self._receive(deadline - time.monotonic())
            if flags == TokenFlag.CONTEXT:
                raise Unavailable("the server speaks version 1 of remctl only", code="old-server")
            if flags != ours:
                raise _broken(f"a token with flags {flags:#04x} during authentication")
        if not self._context.complete:
            raise _broken(f"no authentication after {ROUNDS} rounds")
        missing = [flag.name for flag in _needed() if flag not in self._context.actual_flags]
        if missing:
            raise Unavailable(
                f"the server offers no {', '.join(missing).replace('_', ' ')}", code="not-mutual"
            )

    def _put(self, message: bytes) -> None:
        try:
            wrapped = self._context.wrap(message, True)
        except gssapi.exceptions.GSSError as error:
            raise Unavailable(f"cannot encrypt: {_text(error)}", code="gss") from error
        if not wrapped.encrypted:
            raise Unavailable("Kerberos would not encrypt", code="not-encrypted")
        self._send(TokenFlag.DATA | TokenFlag.PROTOCOL, wrapped.message)

    def _get(self, silence: float | None) -> Message:
        flags, token = self._receive(silence)
        if flags != TokenFlag.DATA | TokenFlag.PROTOCOL:
            raise _broken(f"a token with flags {flags:#04x} instead of data")
        try:
            found = self._context.unwrap(token)
        except gssapi.exceptions.GSSError as error:
            raise _broken(f"a token that is not the named server's: {_text(error)}") from error
        if not found.encrypted:
            raise _broken("a message that is not encrypted")
        return parse(found.message)

    def _send(self, flags: int, data: bytes) -> None:
        with self._network():
            self._socket.settimeout(SILENCE)
            self._socket.sendall(struct.pack("!BL", flags, len(data)) + data)

    def _receive(self, seconds: float | None) -> tuple[int, bytes]:
        """A token within some seconds; None: whenever it begins, then within SILENCE."""
        until = None if seconds is None else time.monotonic() + seconds
        header = self._read(1, until)
        if until is None:
            until = time.monotonic() + SILENCE
        flags, length = struct.unpack("!BL", header + self._read(4, until))
        if length > MAX_TOKEN:
            raise _broken(f"a token of {length} octets")
        return flags, self._read(length, until)

    def _read(self, count: int, until: float | None) -> bytes:
        data = bytearray()
        with self._network():
            while len(data) < count:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                piece = self._socket.recv(count - len(data))
                if not piece:
                    raise ConnectionResetError
                data += piece
        return bytes(data)

    @contextlib.contextmanager
    def _network(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise Unavailable(f"{self._where}: no answer in time", code="time-out") from error
        except OSError as error:
            raise Unavailable(
                f"{self._where}: the server closed the connection",
                hint="" if self._context.complete else "its log says why; it may lack the key",
                code="connection-lost",
            ) from error


def _needed() -> list[gssapi.RequirementFlag]:
    flag = gssapi.RequirementFlag
    return [flag.mutual_authentication, flag.confidentiality, flag.integrity]


def _context(host: str, service: str) -> gssapi.SecurityContext:
    """An initiator's context with the ticket of whoever runs this."""
    flag = gssapi.RequirementFlag
    if "/" in service:
        name = gssapi.Name(service, gssapi.NameType.kerberos_principal)
    else:
        name = gssapi.Name(f"{service}@{host}", gssapi.NameType.hostbased_service)
    mechanism = gssapi.MechType.kerberos
    credentials = gssapi.Credentials(usage="initiate", mechs=[mechanism])
    if not credentials.lifetime:
        raise Denied(f"the ticket of {credentials.name} has expired", hint="kinit", code="expired")
    context = gssapi.SecurityContext(
        name=name,
        creds=credentials,
        mech=mechanism,
        usage="initiate",
        flags=[*_needed(), flag.replay_detection, flag.out_of_sequence_detection],
    )
    # Else an error comes at some later call, with a token to send in between.
    context.__DEFER_STEP_ERRORS__ = False
    return context


def _text(error: gssapi.exceptions.GSSError) -> str:
    """What Kerberos has to say, else what GSS-API has."""
    said = error.get_all_statuses(error.min_code, False) if error.min_code else []
    said = said or error.get_all_statuses(error.maj_code, True)
    return model.printable("; ".join(said))[:MAX_ERROR]


@contextlib.contextmanager
def _kerberos(host: str, service: str) -> Iterator[None]:
    """What GSS-API raises while a context is made, as a Fault that says what to do."""
    kinds = gssapi.exceptions
    try:
        yield
    except kinds.GSSError as error:
        # Of libkrb5's table, where it begins at -1765328384 (krb5.h).
        number = (error.min_code + 1765328384) & 0xFFFFFFFF
        text = _text(error)
        if number == 32 or isinstance(error, kinds.ExpiredCredentialsError):
            raise Denied("the ticket has expired", hint="kinit", code="expired") from error
        if isinstance(error, kinds.MissingCredentialsError):
            raise Denied(f"no Kerberos ticket: {text}", hint="kinit", code="no-ticket") from error
        if number in (33, 37):  # not valid yet: from a clock that was ahead of ours
            raise MachineFault(
                f"the clocks here and at {model.printable(host)} differ: {text}",
                hint="set this machine's clock, then kinit",
                code="clock-skew",
            ) from error
        if number == 7:
            raise Unavailable(
                f"Kerberos knows no such server: {text}",
                hint="the host's full name, or --service NAME/HOST",
                code="no-service",
            ) from error
        raise Unavailable(
            f"{model.printable(f'{host} ({service})')}: not authenticated: {text}", code="gss"
        ) from error


def _unexpected(message: Message) -> Fault:
    if isinstance(message, Version):
        return Unavailable(f"the server speaks version {message.highest} only", code="version")
    return _broken(f"an unexpected {type(message).__name__}")


def _refusal(error: ServerError) -> Fault:
    """ERROR_UNKNOWN_COMMAND, ERROR_ACCESS, ERROR_NO_HELP and the rest."""
    if error.code == 6:
        return Denied(f"remctld: {error.message}", code="access-denied")
    if error.code in (5, 10):
        return NotFound(f"remctld: {error.message}", code="unknown-command")
    return Unavailable(f"remctld: {error.message} ({error.code})", code="remctld")
