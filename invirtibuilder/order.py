"""Orders and results: what a worker gets, and what it gives back.

An order is a tar: `order.json`, then the content below `in/`. A result is a tar: files, then
`manifest.json` as the last member. A result without a complete manifest is no result.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from invirtibuilder import jsonsafe, model, tarsafe
from invirtibuilder.errors import Blame, Malformed, Reason

FORMAT = 1
KIND = re.compile("export|build|base")
MAX_JSON = 8 << 20
CACHE_SIZE = 2 << 30
LAYERS_SIZE = 8 << 30
BASES_SIZE = 10 << 30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a phase, or a result, may use at most; None = not limited.

    `reserve` is what must stay free on the worker's file system, whoever uses it.
    """

    seconds: float = 3600
    idle_seconds: float | None = None
    cpu_seconds: int | None = None
    memory: int | None = None
    processes: int | None = 5000
    file_size: int | None = 8 << 30
    disk: int | None = 32 << 30
    reserve: int | None = 1 << 30
    log_size: int | None = 1 << 30
    result_size: int = 8 << 30


@dataclass(frozen=True, kw_only=True)
class PocketSource:
    """One fixed publication of the pocket's own repository, for build dependencies."""

    directory: str  # the pocket's archive on this machine
    publication: str  # below that directory
    codename: str
    components: tuple[str, ...]
    key: str  # ASCII-armoured


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the environment of an order must be."""

    suite: str
    architecture: str
    sources: str  # deb822 text of the mirror's APT sources
    extra_sources: str = ""  # further ones, keys inside, for build dependencies only
    pocket: PocketSource | None = None
    isolation: str = "chroot"
    emulation: bool = False  # whether a machine may do without KVM
    qemubuilder: str = ""  # that isolation's configuration file, on the worker's machine
    profiles: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    cache_size: int = CACHE_SIZE  # bytes of downloads that the worker keeps
    layers_size: int = LAYERS_SIZE  # bytes of layers that each of its slots keeps
    base: str = ""  # the digest of the base to take, where the worker still has it
    keep: tuple[str, ...] | None = None  # digests of older bases that are needed; None: unknown
    bases_size: int = BASES_SIZE  # bytes of older bases in each of its slots that are no trouble


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker is to do. `content` belongs to the kind."""

    kind: str
    job: str
    attempt: str
    room: Room
    content: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a result."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a worker says it did. Only its hashes are proof; the rest is checked by the daemon."""

    kind: str
    attempt: str
    ok: bool
    files: tuple[File, ...] = ()
    blame: Blame = Blame.PACKAGE
    reasons: tuple[Reason, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def write_order(path: Path, order: Order, files: Mapping[str, Path]) -> None:
    """Write an order with its content (name below `in/` -> file) and sync it."""
    # What was pushed may never be published: it is for nobody but the worker, who is handed it.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as stream:
        writer = tarsafe.Writer(stream)
        writer.add_bytes("order.json", _json({"v": FORMAT, **asdict(order)}))
        for name, source in files.items():
            with source.open("rb") as content:
                writer.add(f"in/{name}", os.fstat(content.fileno()).st_size, content)
        writer.close()
        stream.flush()
        os.fsync(stream.fileno())


def read_order(stream: IO[bytes]) -> Order:
    """Read the order from the first member of its tar. Raises Malformed."""
    for name, size, content in tarsafe.members(stream, tarsafe.Limits()):
        if name != "order.json" or size > MAX_JSON:
            break
        value = _parse(content.read())
        try:
            room: dict[str, Any] = dict(value["room"])
            pocket = room.pop("pocket")
            limits = room.pop("limits")
            return Order(
                kind=model.matching(KIND, value["kind"], "order"),
                job=value["job"],
                attempt=value["attempt"],
                content=value["content"],
                room=Room(
                    **{
                        **room,
                        "profiles": tuple(room["profiles"]),
                        "options": tuple(room["options"]),
                        "keep": None if room["keep"] is None else tuple(room["keep"]),
                    },
                    limits=Limits(**limits),
                    pocket=_pocket_source(pocket) if pocket else None,
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise Malformed(f"order.json: {error!r}") from error
    raise Malformed("an order starts with order.json")


def _pocket_source(value: dict[str, Any]) -> PocketSource:
    return PocketSource(**{**value, "components": tuple(value["components"])})


class ResultWriter:
    """Writes a result; nothing counts before `finish`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._writer = tarsafe.Writer(stream)
        self.files: list[File] = []

    def add(self, name: str, size: int, content: IO[bytes]) -> None:
        """Append one file below `out/`, hashing it on its way."""
        reader = _Hashing(content)
        self._writer.add(f"out/{name}", size, reader)  # type: ignore[arg-type]
        self.files.append(File(name=name, size=size, sha256=reader.digest.hexdigest()))

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest and the end of the tar."""
        reasons = [reason.as_json() for reason in manifest.reasons]
        value = {"v": FORMAT, **asdict(replace(manifest, reasons=())), "reasons": reasons}
        self._writer.add_bytes("manifest.json", _json(value))
        self._writer.close()
        self._stream.flush()


class _Hashing:
    """A reader that hashes what it passes on."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data


def read_result(path: Path, into: Path, order: Order) -> Manifest:
    """Copy a result's files into the directory `into`, hashing the copy, and return its manifest.

    Everything must fit: the attempt, the kind, plain file names, each file's size and SHA-256 as
    the manifest says, nothing besides. Raises Malformed.
    """
    limits = tarsafe.Limits(
        member_size=order.room.limits.result_size,
        total=order.room.limits.result_size + MAX_JSON,
    )
    copied: dict[str, File] = {}
    manifest: Manifest | None = None
    with path.open("rb") as stream:
        for member, size, content in tarsafe.members(stream, limits):
            if manifest is not None:
                raise Malformed("result: something after the manifest")
            if member == "manifest.json":
                if size > MAX_JSON:
                    raise Malformed("result: the manifest is too large")
                manifest = _manifest(_parse(content.read()))
                continue
            folder, _, name = member.partition("/")
            if folder != "out":
                raise Malformed(f"result: unexpected {member!r}")
            model.matching(model.FILE_NAME, name, "file-name")
            copied[name] = _copy(content, into / name, name)
    if manifest is None:
        raise Malformed("result: no manifest", code="no-manifest")
    if manifest.attempt != order.attempt or manifest.kind != order.kind:
        raise Malformed("result: of another attempt", code="foreign-result")
    if list(manifest.files) != list(copied.values()):
        raise Malformed("result: the files do not match the manifest", code="bad-hash")
    # What was counted here: 900.0 equals 900, and is not written alike.
    return replace(manifest, files=tuple(copied.values()))


def _copy(content: IO[bytes], target: Path, name: str) -> File:
    reader = _Hashing(content)
    size = 0
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "wb") as out:
        while data := reader.read(1 << 20):
            size += len(data)
            out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return File(name=name, size=size, sha256=reader.digest.hexdigest())


def _manifest(value: Mapping[str, Any]) -> Manifest:
    try:
        return Manifest(
            kind=value["kind"],
            attempt=value["attempt"],
            ok=value["ok"] is True,
            files=tuple(File(**f) for f in value["files"]),
            blame=Blame(value["blame"]),
            reasons=_reasons(value["reasons"]),
            environment={str(k): str(v) for k, v in value["environment"].items()},
            report=dict(value["report"]),
            seconds=_seconds(value["seconds"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"manifest: {error!r}") from error


def _seconds(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError("seconds")
    return max(0.0, float(value))


def _reasons(values: Sequence[Mapping[str, Any]]) -> tuple[Reason, ...]:
    def text(value: object, cap: int) -> str:
        lines = str(value)[:cap].split("\n")
        return "\n".join(model.printable(line) for line in lines)

    return tuple(
        Reason(
            code=model.printable(str(v["code"]))[:60],
            message=text(v["message"], 8000),
            hint=text(v["hint"], 2000),
        )
        for v in list(values)[:50]
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _parse(data: bytes) -> dict[str, Any]:
    value = jsonsafe.loads(data)
    if not isinstance(value, dict) or value.get("v") != FORMAT:
        raise Malformed(f"not of format {FORMAT}")
    return value
