"""Hostile tars: whatever comes in, out come plain files or Malformed."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable

import pytest

from invirtibuilder import tarsafe
from invirtibuilder.errors import Malformed
from invirtibuilder.tarsafe import Limits

SMALL = Limits(members=10, member_size=10_000, total=30_000)


def read(data: bytes, limits: Limits = SMALL) -> dict[str, bytes]:
    """What is in a tar, each content of the size that was announced."""
    found = {}
    for name, size, content in tarsafe.members(io.BytesIO(data), limits):
        found[name] = content.read()
        assert len(found[name]) == size
    return found


def written(**contents: bytes) -> bytes:
    stream = io.BytesIO()
    writer = tarsafe.Writer(stream)
    for name, content in contents.items():
        writer.add_bytes(name, content)
    writer.close()
    return stream.getvalue()


def tar(*infos: tarfile.TarInfo, format_: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of these headers, each regular one with its size in `x`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as made:
        made.addfile(entry("first", b"1"), io.BytesIO(b"1"))
        for info in infos:
            made.addfile(info, io.BytesIO(b"x" * info.size) if info.isreg() else None)
    return stream.getvalue()


def entry(name: str, content: bytes = b"", **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def header(name: bytes, size: bytes = b"0" * 11 + b"\0", kind: bytes = b"0") -> bytes:
    """A GNU header with these raw fields and the right checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124:136] = size.ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar  \0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)


def test_what_is_written_is_read() -> None:
    name = "d" * 90 + "/" + "long" * 60
    contents = {"empty": b"", "in/a.b": b"x" * 513, name: b"y" * 512, "µ ~+%": b"z"}
    assert read(written(**contents)) == contents


def test_a_writer_refuses_what_a_reader_would() -> None:
    writer = tarsafe.Writer(io.BytesIO())
    for name in HOSTILE:
        with pytest.raises(Malformed):
            writer.add_bytes(name, b"")


def test_a_writer_refuses_less_content_than_announced() -> None:
    with pytest.raises(OSError, match="unexpected end of data"):
        tarsafe.Writer(io.BytesIO()).add("a", 5, io.BytesIO(b"1234"))


HOSTILE = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "../x",
    "a/../b",
    "a/./b",
    "a//b",
    "a/",
    "./a",
    "a\nb",
    "a\x1b[31m",
    "a\u202eb",
    "a\u2028b",
    "n" * 1025,
    "\udcff",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(Malformed):
        read(tar(entry(name)))


KINDS = {
    "hard link": entry("l", type=tarfile.LNKTYPE, linkname="first"),
    "symbolic link": entry("l", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "character device": entry("d", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "block device": entry("d", type=tarfile.BLKTYPE, devmajor=8),
    "fifo": entry("f", type=tarfile.FIFOTYPE),
    "directory": entry("d", type=tarfile.DIRTYPE),
    "old directory": entry("d/", type=tarfile.AREGTYPE),
    "contiguous": entry("c", type=tarfile.CONTTYPE),
    "sparse": entry("s", b"1", type=tarfile.GNUTYPE_SPARSE),
    "long link": entry("l", b"1", type=tarfile.GNUTYPE_LONGLINK),
    "unknown": entry("u", type=b"Z"),
    "volume label": entry("v", type=b"V"),
    "multi-volume": entry("m", type=b"M"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused(kind: str) -> None:
    with pytest.raises(Malformed):
        read(tar(KINDS[kind]))


def test_pax_headers_are_refused() -> None:
    with pytest.raises(Malformed):
        read(tar(entry("ü" * 200), format_=tarfile.PAX_FORMAT))
    sparse = entry("s", b"1", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    with pytest.raises(Malformed):
        read(tar(sparse, format_=tarfile.PAX_FORMAT))
    stream = io.BytesIO()
    headers = {"comment": "everybody"}
    tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers).close()
    with pytest.raises(Malformed):
        read(stream.getvalue())


def test_a_pax_header_of_a_terabyte_is_not_read() -> None:
    for kind in (b"x", b"g", b"L", b"K"):
        with pytest.raises(Malformed):
            read(header(b"h", b"\x80" + bytes(5) + b"\x01" + bytes(5), kind) + END)


def test_a_name_comes_once() -> None:
    with pytest.raises(Malformed, match="twice"):
        read(tar(entry("first")))


def test_more_members_than_allowed() -> None:
    many = {f"m{i}": b"" for i in range(10)}
    assert len(read(written(**many))) == 10
    with pytest.raises(Malformed, match="more than 10 members"):
        read(written(**many, more=b""))


def test_more_bytes_than_allowed() -> None:
    assert read(written(a=b"x" * 10_000))
    for contents in ({"a": b"x" * 10_001}, dict.fromkeys("abcd", b"x" * 9_000)):
        with pytest.raises(Malformed, match="larger than allowed") as caught:
            read(written(**contents))
        assert caught.value.code == "too-large"


@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 12,
        b"\xff" + b"\0" * 11,
        b"\x80" + b"\xff" * 11,
        b"77777777777\0",
        b"-0000000001\0",
        b"00000000x00\0",
        b"\0" * 12,
    ],
)
@pytest.mark.parametrize("kind", [b"0", b"L", b"\0"])
def test_sizes_that_are_none(size: bytes, kind: bytes) -> None:
    data = header(b"a", size, kind) + b"x" * 512 + END
    if size == bytes(12) and kind != b"L":
        # An empty field is 0; then `x` is no header.
        data = header(b"a", size, kind) + END
        assert read(data) == {"a": b""}
        return
    with pytest.raises(Malformed):
        read(data)


def test_a_long_name_ends_somewhere() -> None:
    long = header(b"././@LongLink", b"00000000004\0", b"L") + b"abc\0".ljust(512, b"\0")
    with pytest.raises(Malformed):
        read(long * 5000 + header(b"a") + END)
    with pytest.raises(Malformed):
        read(long)
    assert read(long + header(b"a") + END) == {"abc": b""}


def test_a_tar_that_is_cut_off_is_refused_wherever_that_is() -> None:
    whole = written(a=b"x" * 700, b=b"y", **{"n" * 200: b"z"})
    end = whole.rstrip(b"\0")
    content = (len(end) + 511) // 512 * 512
    for length in range(0, content + 1, 64):
        with pytest.raises(Malformed):
            read(whole[:length])
    assert len(read(whole[: content + 512])) == 3


def test_what_follows_the_end_is_not_looked_at() -> None:
    assert read(written(a=b"1") + header(b"late") + b"garbage") == {"a": b"1"}
    with pytest.raises(Malformed):
        read(b"garbage" * 1000)
    with pytest.raises(Malformed):
        read(b"")
    assert read(END) == {}


def test_garbage_between_members_is_not_taken_for_the_end() -> None:
    data = header(b"a") + b"garbage!" * 64 + header(b"b") + END
    with pytest.raises(Malformed):
        read(data)


def flip(choice: random.Random, data: bytearray) -> None:
    data[choice.randrange(len(data))] = choice.randrange(256)


def cut(choice: random.Random, data: bytearray) -> None:
    del data[choice.randrange(len(data)) :]


def swap(choice: random.Random, data: bytearray) -> None:
    blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
    choice.shuffle(blocks)
    data[:] = b"".join(blocks)


def field(choice: random.Random, data: bytearray) -> None:
    """Another value in a header's field, with the checksum put right."""
    start = choice.randrange(len(data) // 512) * 512
    place = choice.choice((100, 124, 136, 156, 257, 265, 345, 483))
    data[start + place : start + place + 4] = choice.randbytes(4)
    block = bytearray(data[start : start + 512])
    block[148:156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(block)


@pytest.mark.parametrize("seed", range(20))
def test_only_malformed_comes_out_of_a_mutation(seed: int) -> None:
    choice = random.Random(seed)
    name = "d/" + "n" * 150
    plain = written(a=b"x" * 700, **{name: b"y" * 100}) + END
    mutations: list[Callable[[random.Random, bytearray], None]] = [flip, cut, swap, field, field]
    refused = 0
    for _ in range(150):
        data = bytearray(plain)
        for _ in range(choice.randrange(1, 4)):
            if len(data) >= 512:
                choice.choice(mutations)(choice, data)
        try:
            found = read(bytes(data))
        except Malformed:
            refused += 1
        else:
            for name in found:
                tarsafe.check_name(name)
    assert refused > 30
