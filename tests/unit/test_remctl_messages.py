"""Messages of the remctl protocol, as octets."""

from __future__ import annotations

import struct

import pytest

from invirtibuilder import remctl
from invirtibuilder.errors import Malformed, Unavailable
from invirtibuilder.remctl import CHUNK, MAX_COMMAND, command_messages, parse


def joined(messages: list[bytes]) -> list[bytes]:
    """What a server makes of a command's messages."""
    data = b"".join(message[4:] for message in messages)
    count, data = struct.unpack("!L", data[:4])[0], data[4:]
    args = []
    for _ in range(count):
        length = struct.unpack("!L", data[:4])[0]
        args.append(data[4 : 4 + length])
        data = data[4 + length :]
    assert data == b""
    return args


@pytest.mark.parametrize("size", [0, 1, CHUNK - 13, CHUNK - 12, CHUNK, 3 * CHUNK, 1 << 20])
def test_a_command_of_any_length(size: int) -> None:
    args = [b"build", b"\0\n \xff", b"", b"x" * size]
    messages = list(command_messages(args))
    assert joined(messages) == args
    assert all(len(message) <= CHUNK + 4 for message in messages)
    assert {message[:3] for message in messages} == {b"\x02\x01\x01"}
    which = [message[3] for message in messages]
    assert which == ([0] if len(which) == 1 else [1, *[2] * (len(which) - 2), 3])


def test_a_command_that_is_too_long() -> None:
    with pytest.raises(Malformed):
        list(command_messages([b"x" * MAX_COMMAND]))


def test_messages() -> None:
    assert parse(b"\2\3\2" + struct.pack("!L", 0)) == remctl.Output(stream=2, data=b"")
    assert parse(b"\2\4\xff") == remctl.Status(code=255)
    assert parse(b"\2\6\3") == remctl.Version(highest=3)
    assert parse(b"\3\7") == remctl.Noop()
    error = parse(b"\2\5" + struct.pack("!LL", 6, 5) + b"a\x1b[\nb")
    assert error == remctl.ServerError(code=6, message="a\\x1b[\\nb")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\2",
        b"\1\4\0",
        b"\4\4\0",
        b"\2\1\1\0",
        b"\2\2",
        b"\2\4",
        b"\2\4\0\0",
        b"\2\3\1\0\0",
        b"\2\3\1\0\0\0\2a",
        b"\2\3\1\0\0\0\0a",
        b"\2\3\3\0\0\0\1a",
        b"\2\3\1\xff\xff\xff\xffa",
        b"\2\5\0\0\0\6",
        b"\2\5\0\0\0\6\0\0\0\2a",
        b"\2\6",
        b"\3\7x",
        b"\2\x63\0",
    ],
)
def test_what_is_no_message(message: bytes) -> None:
    with pytest.raises(Unavailable) as caught:
        parse(message)
    assert caught.value.code == "remctl"
