"""Orders and results: a result that does not fit in every way does not count."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from invirtibuilder import order, tarsafe
from invirtibuilder.errors import Blame, Malformed, Reason
from invirtibuilder.order import File, Limits, Manifest, Order, PocketSource, ResultWriter, Room

POCKET = PocketSource(
    directory="/srv/archive/dev",
    publication="publications/00000007",
    codename="dev",
    components=("main",),
    key="-----BEGIN",
)
ROOM = Room(
    suite="bookworm",
    architecture="amd64",
    sources="Types: deb\n",
    extra_sources="x",
    pocket=POCKET,
    profiles=("nocheck",),
    options=("parallel=2",),
    limits=Limits(seconds=5, memory=1 << 30),
)
ORDER = Order(
    kind="build",
    job="20260102T030405.678901-abcd",
    attempt="20260102T030405.678901-abcd.build-1",
    room=ROOM,
    content={"dsc": "a.dsc", "components": ["x"]},
)
FILES = {"a_1.0_all.deb": b"deb" * 300, "a_1.0_amd64.buildinfo": b"info"}
REASONS = [{"code": "c", "message": "m\nn", "hint": "h"}]
MANIFEST = Manifest(
    kind="build",
    attempt=ORDER.attempt,
    ok=True,
    environment={"base": "0" * 64},
    report={"debs": {"a_1.0_all.deb": {"Package": "a"}}},
    reasons=tuple(Reason(**reason) for reason in REASONS),
    seconds=1.5,
)


def test_an_order_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "dsc").write_bytes(b"x" * 1000)
    path = tmp_path / "order.tar"
    for room in (ROOM, replace(ROOM, pocket=None)):
        wanted = replace(ORDER, room=room)
        order.write_order(path, wanted, {"a.dsc": tmp_path / "dsc", "orig/b": tmp_path / "dsc"})
        with path.open("rb") as stream:
            assert order.read_order(stream) == wanted
        with path.open("rb") as stream:
            names = [name for name, _, _ in tarsafe.members(stream, tarsafe.Limits())]
        assert names == ["order.json", "in/a.dsc", "in/orig/b"]


def raw(**members: bytes) -> io.BytesIO:
    stream = io.BytesIO()
    writer = tarsafe.Writer(stream)
    for name, content in members.items():
        writer.add_bytes(name, content)
    writer.close()
    stream.seek(0)
    return stream


ORDER_VALUE: dict[str, Any] = {"v": 1, **asdict(ORDER)}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"other": b"{}"},
        {"in/x": b"", "order.json": json.dumps(ORDER_VALUE).encode()},
        {"order.json": b"nonsense"},
        {"order.json": b"[" * 100_000},
        {"order.json": b"[]"},
        {"order.json": b"\xff"},
        {"order.json": b'{"v": 2}'},
        {"order.json": b'{"v": 1}'},
        {"order.json": json.dumps({**ORDER_VALUE, "kind": "exports"}).encode()},
        {"order.json": json.dumps({**ORDER_VALUE, "kind": ["build"]}).encode()},
        {"order.json": json.dumps({**ORDER_VALUE, "room": []}).encode()},
        {"order.json": json.dumps({**ORDER_VALUE, "room": {**asdict(ROOM), "x": 1}}).encode()},
        {"order.json": json.dumps({**ORDER_VALUE, "room": {**asdict(ROOM), "limits": 5}}).encode()},
        {"order.json": json.dumps({**ORDER_VALUE, "room": {**asdict(ROOM), "pocket": 5}}).encode()},
    ],
)
def test_what_is_no_order(members: dict[str, bytes]) -> None:
    with pytest.raises(Malformed):
        order.read_order(raw(**members))


def result(path: Path, manifest: Manifest = MANIFEST, files: dict[str, bytes] = FILES) -> None:
    with path.open("wb") as stream:
        writer = ResultWriter(stream)
        for name, content in files.items():
            writer.add(name, len(content), io.BytesIO(content))
        writer.finish(replace(manifest, files=tuple(writer.files)))


def read(tmp_path: Path, path: Path, wanted: Order = ORDER) -> Manifest:
    into = tmp_path / "into"
    if into.exists():
        for left in into.iterdir():
            left.unlink()
    into.mkdir(exist_ok=True)
    return order.read_result(path, into, wanted)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "result.tar"
    result(path)
    manifest = read(tmp_path, path)
    assert {f.name for f in manifest.files} == set(FILES)
    assert replace(manifest, files=()) == MANIFEST
    for name, content in FILES.items():
        assert (tmp_path / "into" / name).read_bytes() == content


def value(**changes: Any) -> bytes:
    files = [asdict(_file(n, c)) for n, c in FILES.items()]
    value = {"v": 1, **asdict(MANIFEST), "reasons": REASONS, "files": files, **changes}
    return json.dumps(value).encode()


def _file(name: str, content: bytes) -> File:
    return File(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())


OUT = {f"out/{name}": content for name, content in FILES.items()}
FIRST, SECOND = (asdict(_file(n, c)) for n, c in FILES.items())

BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "no manifest": (OUT, "no-manifest"),
    "nothing": ({}, "no-manifest"),
    "manifest not last": ({"manifest.json": value(), **OUT}, "malformed"),
    "other attempt": (
        {**OUT, "manifest.json": value(attempt=ORDER.job + ".build-2")},
        "foreign-result",
    ),
    "attempt is a list": ({**OUT, "manifest.json": value(attempt=[])}, "foreign-result"),
    "other kind": ({**OUT, "manifest.json": value(kind="export")}, "foreign-result"),
    "wrong hash": (
        {**OUT, "manifest.json": value(files=[{**FIRST, "sha256": "0" * 64}, SECOND])},
        "bad-hash",
    ),
    "wrong size": (
        {**OUT, "manifest.json": value(files=[{**FIRST, "size": 1}, SECOND])},
        "bad-hash",
    ),
    "missing file": (
        {"out/a_1.0_all.deb": FILES["a_1.0_all.deb"], "manifest.json": value()},
        "bad-hash",
    ),
    "surplus file": ({**OUT, "out/more.deb": b"", "manifest.json": value()}, "bad-hash"),
    "file named twice": (
        {**OUT, "manifest.json": value(files=[FIRST, SECOND, SECOND])},
        "bad-hash",
    ),
    "name is a list": (
        {**OUT, "manifest.json": value(files=[{**FIRST, "name": ["a"]}, SECOND])},
        "bad-hash",
    ),
    "field too many": ({**OUT, "manifest.json": value(files=[{**FIRST, "x": 1}])}, "malformed"),
    "files is a number": ({**OUT, "manifest.json": value(files=3)}, "malformed"),
    "elsewhere": ({"etc/passwd": b"", "manifest.json": value()}, "malformed"),
    "in a folder": ({"out/a/b": b"", "manifest.json": value()}, "bad-file-name"),
    "hidden": ({"out/.a": b"", "manifest.json": value()}, "bad-file-name"),
    "option": ({"out/-a": b"", "manifest.json": value()}, "bad-file-name"),
    "no name": ({"out": b"", "manifest.json": value()}, "bad-file-name"),
    "not JSON": ({**OUT, "manifest.json": b"{"}, "malformed"),
    "not text": ({**OUT, "manifest.json": b"\xff\xfe"}, "malformed"),
    "deep": ({**OUT, "manifest.json": b"[" * 200_000}, "malformed"),
    "a list": ({**OUT, "manifest.json": b"[]"}, "malformed"),
    "other format": ({**OUT, "manifest.json": value(v=2)}, "malformed"),
    "no blame": ({**OUT, "manifest.json": value(blame="nobody")}, "malformed"),
    "report is a number": ({**OUT, "manifest.json": value(report=3)}, "malformed"),
    "environment is a list": ({**OUT, "manifest.json": value(environment=[])}, "malformed"),
    "reasons is text": ({**OUT, "manifest.json": value(reasons="x")}, "malformed"),
    "reason without a code": ({**OUT, "manifest.json": value(reasons=[{}])}, "malformed"),
    "seconds": ({**OUT, "manifest.json": value(seconds="long")}, "malformed"),
    "too large": ({**OUT, "manifest.json": value(report={"x": "y" * (8 << 20)})}, "malformed"),
}


def inserted(text: bytes) -> dict[str, bytes]:
    """A result with this in the manifest's report."""
    return {**OUT, "manifest.json": value().replace(b'"report": {', b'"report": {' + text + b", ")}


def lasted(text: bytes) -> dict[str, bytes]:
    """A result that took this long."""
    return {**OUT, "manifest.json": value().replace(b'"seconds": 1.5', b'"seconds": ' + text)}


BROKEN |= {
    "deep report": (inserted(b'"x": ' + b"[" * 800 + b"]" * 800), "malformed"),
    "deep objects": (inserted(b'"x": ' + b'{"x": ' * 40 + b"1" + b"}" * 40), "malformed"),
    "NaN": (inserted(b'"x": NaN'), "malformed"),
    "infinity": (inserted(b'"x": [-Infinity]'), "malformed"),
    "too large a fraction": (lasted(b"1e999"), "malformed"),
    "too large a number": (lasted(b"1" + b"0" * 400), "malformed"),
    "digits without end": (lasted(b"1" + b"0" * 9999), "malformed"),
    "a word for seconds": (lasted(b'"nan"'), "malformed"),
    "a name twice": (inserted(b'"x": 1, "x": 2'), "malformed"),
    "half a character": (inserted(b'"x": "\\ud800"'), "malformed"),
    "half a character in a name": (inserted(b'"\\udfff": 1'), "malformed"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_result_that_does_not_count(tmp_path: Path, what: str) -> None:
    members, code = BROKEN[what]
    path = tmp_path / "result.tar"
    path.write_bytes(raw(**members).getvalue())
    with pytest.raises(Malformed) as caught:
        read(tmp_path, path)
    assert caught.value.code == code


def test_a_result_larger_than_the_room_allows(tmp_path: Path) -> None:
    path = tmp_path / "result.tar"
    result(path)
    small = replace(ORDER, room=replace(ROOM, limits=Limits(result_size=500)))
    with pytest.raises(Malformed) as caught:
        read(tmp_path, path, small)
    assert caught.value.code == "too-large"


def test_a_result_cut_off_at_any_block_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "result.tar"
    result(path)
    whole = path.read_bytes()
    end = (len(whole.rstrip(b"\0")) + 511) // 512 * 512
    for length in [*range(0, end + 1, 512), *range(1, end, 511)]:
        path.write_bytes(whole[:length])
        with pytest.raises(Malformed):
            read(tmp_path, path)
    path.write_bytes(whole[: end + 1024])
    assert read(tmp_path, path).ok


def test_a_size_is_what_was_counted(tmp_path: Path) -> None:
    path = tmp_path / "result.tar"
    files = [{**FIRST, "size": float(FIRST["size"])}, SECOND]
    path.write_bytes(raw(**OUT, **{"manifest.json": value(files=files)}).getvalue())
    assert [type(file.size) for file in read(tmp_path, path).files] == [int, int]


def test_ok_is_true_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.tar"
    for word in ("yes", 1, [1], None):
        path.write_bytes(raw(**OUT, **{"manifest.json": value(ok=word)}).getvalue())
        assert not read(tmp_path, path).ok


def test_reasons_are_harmless_and_few(tmp_path: Path) -> None:
    path = tmp_path / "result.tar"
    hostile = {"code": "\x1b[31mred\n", "message": "a\nb\x07\u202e" + "m" * 20_000, "hint": ""}
    path.write_bytes(raw(**OUT, **{"manifest.json": value(reasons=[hostile] * 60)}).getvalue())
    reasons = read(tmp_path, path).reasons
    assert len(reasons) == 50
    assert reasons[0].code == "\\x1b[31mred\\n"
    assert reasons[0].message.startswith("a\nb\\x07\\u202e")
    assert len(reasons[0].message) < 9_000


def test_a_file_that_is_there_already_is_not_followed(tmp_path: Path) -> None:
    path, into = tmp_path / "result.tar", tmp_path / "into"
    result(path)
    into.mkdir()
    (into / "a_1.0_all.deb").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        order.read_result(path, into, ORDER)
    assert not (tmp_path / "elsewhere").exists()


def test_a_failed_order_keeps_its_blame(tmp_path: Path) -> None:
    path = tmp_path / "result.tar"
    result(path, replace(MANIFEST, ok=False, blame=Blame.ROOM), {})
    manifest = read(tmp_path, path)
    assert (manifest.ok, manifest.blame, manifest.files) == (False, Blame.ROOM, ())
