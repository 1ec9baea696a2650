"""Bases: a minimal Debian tree for a pocket, and a layer of tools over it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from invirtibuilder import files
from invirtibuilder.errors import RoomFault
from invirtibuilder.files import locked, read_json, write_json
from invirtibuilder.model import iso, stamp, utcnow
from invirtibuilder.run import run
from invirtibuilder.sandbox import helper, sources
from invirtibuilder.sandbox.contract import BUILD_ID, Bind, Command, Limits, Proxy
from invirtibuilder.sandbox.ids import Ids, enter, finish, make_tree, remove_tree, tree_size
from invirtibuilder.sandbox.trees import copy_tree, digest_of
from invirtibuilder.sandbox.userns import UserNamespace

SECONDS = 1800.0
"""How long each step of making a base may take; a slow mirror is the usual cause."""

TOOLS = ("git", "pristine-tar", "python3", "dpkg-dev", "xz-utils", "bzip2", "gpg", "gpgv")
INCLUDE = ("build-essential", "fakeroot")
OWN_SOURCES = "/run/own.sources"
APT = (
    *("apt-get", "-y", "-q", "-oDir::Etc::SourceParts=/dev/null"),
    f"-oDir::Etc::SourceList={OWN_SOURCES}",
)
APT_LEAVES = "/var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives"
FORMAT = 1
"""Part of the key: raised when the same spec is to make another base."""


def _no_keys() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """What a base is made from.

    `sources` are deb822 stanzas; Signed-By names files of /usr/share/keyrings, or of `keys`
    (name to ASCII-armoured key).
    """

    suite: str
    architecture: str
    sources: str
    keys: Mapping[str, str] = field(default_factory=_no_keys)
    include: tuple[str, ...] = INCLUDE
    tools: tuple[str, ...] = TOOLS

    @property
    def key(self) -> str:
        """SHA-256 of all of it, in hexadecimal."""
        text = json.dumps({**asdict(self), "format": FORMAT}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base on disk.

    `root` is for builds. `tools` is an overlay layer over it, with what source export and
    inspection need: mount (tools, root). `digest` is the SHA-256 of root's content, times of
    modification left out. `made` is an ISO 8601 time, `size` in bytes on disk.
    """

    directory: Path
    root: Path
    tools: Path
    digest: str
    made: str
    size: int = 0

    @property
    def key(self) -> str:
        """Of the spec that it was made from."""
        return self.directory.parent.name


def make_base(
    spec: BaseSpec, directory: Path, ids: Ids, *, log: int, refresh: bool = False
) -> Base:
    """The base of this spec in `directory`, made unless it is there; with `refresh`, made anew.

    Two callers make it once. Older ones stay, for builds that use them. Raises RoomFault when
    it cannot be made, MachineFault.
    """
    directory.mkdir(parents=True, exist_ok=True)
    before = current(spec, directory)
    if before and not refresh:
        return before
    with locked(directory / f"{spec.key}.lock"):
        now = current(spec, directory)
        if now and (not refresh or now != before):
            return now
        return _make(spec, directory / spec.key, ids, log)


def current(spec: BaseSpec, directory: Path) -> Base | None:
    """The newest complete base of this spec, if there is one."""
    return _current(directory / spec.key)


def _current(place: Path) -> Base | None:
    name = files.link_target(place / "current")
    try:
        return _read(place / name) if name else None
    except FileNotFoundError:
        return None


def all_of(place: Path) -> list[Base]:
    """The complete bases of one spec, which are in `place`, the newest first."""
    found = []
    for path in place.glob("[!.]*/base.json"):
        # One may be on its way out.
        with suppress(FileNotFoundError):
            if not path.parent.is_symlink():
                found.append(_read(path.parent))
    return sorted(found, key=lambda base: base.made, reverse=True)


def older(place: Path) -> list[Base]:
    """Those that are not the current one."""
    kept = files.link_target(place / "current")
    return [base for base in all_of(place) if base.directory.name != kept]


def _read(place: Path) -> Base:
    record = read_json(place / "base.json")
    return Base(
        directory=place,
        root=place / "root",
        tools=place / "tools" / "upper",
        digest=str(record["digest"]),
        made=str(record["made"]),
        size=int(record.get("size", 0)),
    )


def _make(spec: BaseSpec, directory: Path, ids: Ids, log: int) -> Base:
    def fill(new: Path) -> tuple[str, str]:
        make_tree(ids, new / "root")
        _bootstrap(spec, new / "root", ids, log)
        _furnish(spec, new / "root", ids)
        digest = digest_of(new / "root", ids, log)
        make_tree(ids, new / "tools")
        _install_tools(spec, new, ids, log)
        return digest, iso(utcnow())

    return _placed(directory, asdict(spec), ids, fill)


def copy_base(
    base: Base,
    of: Ids,
    directory: Path,
    ids: Ids,
    *,
    log: int,
    as_current: bool = True,
) -> Base:
    """The same base, as these ids have it, among the bases in `directory`; `of` owns the first.

    Raises RoomFault when the copy is not the same, MachineFault.
    """

    def fill(new: Path) -> tuple[str, str]:
        for name, source in (("root", base.root), ("tools", base.tools.parent)):
            make_tree(ids, new / name)
            copy_tree(source, of, new / name, ids, log)
        if digest_of(new / "root", ids, log) != base.digest:
            raise RoomFault(f"the copy of {base.directory} is not the same", code="base")
        return base.digest, base.made

    directory.mkdir(parents=True, exist_ok=True)
    spec = read_json(base.directory / "base.json").get("spec")
    with locked(directory / f"{base.key}.lock"):
        return _placed(directory / base.key, spec, ids, fill, as_current=as_current)


def _placed(
    directory: Path,
    spec: object,
    ids: Ids,
    fill: Callable[[Path], tuple[str, str]],
    *,
    as_current: bool = True,
) -> Base:
    """Have a base filled in beside, and make it the current one; `fill` gives digest and time."""
    directory.mkdir(exist_ok=True)
    for half_made in directory.glob(".new-*"):
        _remove(ids, half_made)
    new = directory / f".new-{secrets.token_hex(4)}"
    new.mkdir()
    try:
        digest, made = fill(new)
        size = sum(tree_size(ids, new / tree) for tree in ("root", "tools"))
        value = {"digest": digest, "made": made, "size": size, "spec": spec}
        write_json(new / "base.json", value)
        # Its trees are not ours to open: the whole file system is synced (syncfs(2)).
        run(["sync", "--file-system", new])
        name = f"{stamp(datetime.fromisoformat(made))}-{digest[:16]}"
        if (directory / name).exists():  # of a copy that was killed before it became current
            _remove(ids, new)
        else:
            new.rename(directory / name)
    except BaseException:
        _remove(ids, new)
        raise
    if not as_current:
        return _read(directory / name)
    link = directory / ".new-current"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.rename(directory / "current")
    base = _current(directory)
    if base is None:
        raise RoomFault(f"{directory / name} is gone")
    return base


def remove_bases(
    place: Path, ids: Ids, *, current_too: bool = False, keep: Collection[Path] = ()
) -> None:
    """Remove a spec's bases but its current one and those to `keep`; nobody may be using them.

    With `current_too` none is current any more.
    """
    if current_too:
        (place / "current").unlink(missing_ok=True)
    kept = files.link_target(place / "current")
    for base in place.iterdir():
        if base.is_dir() and not base.is_symlink() and base.name != kept and base not in keep:
            # Half removed it must not stand where the same base may be placed again.
            gone = place / f".new-{secrets.token_hex(4)}"
            base.rename(gone)
            _remove(ids, gone)
    if current_too and not keep:
        files.remove_tree(place)


def _remove(ids: Ids, half_made: Path) -> None:
    if half_made.is_symlink():
        half_made.unlink()
        return
    for tree in ("root", "tools"):
        remove_tree(ids, half_made / tree)
    files.remove_tree(half_made)


def _bootstrap(spec: BaseSpec, root: Path, ids: Ids, log: int) -> None:
    text = sources.with_keys(spec.sources, frozenset(spec.keys), f"{helper.PLACE}/keys")
    keys = {f"keys/{name}": key for name, key in spec.keys.items()}
    argv = [
        "/usr/bin/mmdebstrap",
        *("--mode=unshare", "--variant=buildd", "--format=directory"),
        f"--architectures={spec.architecture}",
        f"--include={','.join(spec.include)}",
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "3"',
        '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=force-unsafe-io",
        *(spec.suite, f"{helper.PLACE}/root", f"{helper.PLACE}/base.sources"),
    ]
    entered = helper.start(
        ids,
        argv,
        directories={"root": root},
        files={**keys, "base.sources": text},
        output=log,
        errors=log,
        # A date of its own would make the same packages give another digest (passwd(1)).
        env={"TMPDIR": helper.PLACE, "SOURCE_DATE_EPOCH": "1577836800"},
    )
    code = finish(entered, seconds=SECONDS)
    if code != 0:
        raise RoomFault(
            f"mmdebstrap made no base of {spec.suite}: it exits with {code}",
            hint="its output is in the log: is the mirror reachable, and has it this suite?",
            code="base",
        )


def _furnish(spec: BaseSpec, root: Path, ids: Ids) -> None:
    """Write what mmdebstrap leaves as the machine's, and the user for builds."""
    build = f"build:x:{BUILD_ID}:{BUILD_ID}:build:/nonexistent:/bin/sh\n"
    keep = {
        "etc/passwd": build,
        "etc/group": f"build:x:{BUILD_ID}:\n",
        "etc/shadow": "build:*:18262:0:99999:7:::\n",
    }
    text = sources.with_keys(spec.sources, frozenset(spec.keys))
    write = {
        "etc/resolv.conf": b"",
        "etc/hostname": b"build\n",
        "etc/hosts": b"127.0.0.1 localhost build\n::1 localhost\n",
        "etc/apt/sources.list": b"",
        "etc/apt/sources.list.d/base.sources": text.encode(),
        **{f"etc/apt/keyrings/{name}": key.encode() for name, key in spec.keys.items()},
    }
    for keyring in sources.keyrings(text):
        path = Path(keyring)
        if path.is_file():
            write[keyring.lstrip("/")] = path.read_bytes()
    opened: list[int] = []

    def body(_: socket.socket) -> int:
        # The tree is Debian's own; yet no link in it may lead to the machine's files.
        os.fchdir(opened[0])
        os.chroot(".")
        for old in Path("/etc/apt/sources.list.d").iterdir():
            old.unlink()
        for name, content in write.items():
            path = Path("/", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)
        for name, line in keep.items():
            with Path("/", name).open("a") as file:
                file.write(line)
        Path("/var/lib/apt/lists/partial").mkdir(parents=True, exist_ok=True)
        return 0

    def open_root() -> None:
        opened.append(os.open(root, os.O_RDONLY | os.O_DIRECTORY))

    finish(enter(ids, 0, body, as_caller=open_root), seconds=60)


def _install_tools(spec: BaseSpec, new: Path, ids: Ids, log: int) -> None:
    with_apt(
        spec,
        new,
        ids,
        lowers=(new / "root",),
        scratch=new / "tools",
        steps=(
            (*APT, "update"),
            (*APT, "install", "--no-install-recommends", *spec.tools),
            ("sh", "-c", f"rm -rf {APT_LEAVES}"),
            ("mkdir", "-p", "/var/lib/apt/lists/partial", "/var/cache/apt/archives/partial"),
        ),
        what="the tools of the base cannot be installed",
        log=log,
    )


def with_apt(
    spec: BaseSpec,
    place: Path,
    ids: Ids,
    *,
    lowers: Sequence[Path],
    scratch: Path,
    steps: Sequence[Sequence[str]],
    what: str,
    log: int,
    binds: Sequence[Bind] = (),
) -> None:
    """Run commands as root of a sandbox in which APT reaches what the base was made from.

    `place` is a directory of ours for the sources' list. Raises RoomFault for the first command
    that fails; `what` says what that means.
    """
    text, allowed = sources.inside(sources.with_keys(spec.sources, frozenset(spec.keys)))
    own = place / "own.sources"
    own.write_text(text)
    room = UserNamespace(
        ids=ids,
        lowers=tuple(lowers),
        scratch=scratch,
        binds=(Bind(source=own, target=OWN_SOURCES), *binds),
        limits=Limits(seconds=SECONDS),
    )
    for argv in steps:
        command = Command(
            argv=tuple(argv),
            user="root",
            env={"DEBIAN_FRONTEND": "noninteractive"},
            stdout=log,
            stderr=log,
            proxy=Proxy(allowed=allowed),
        )
        outcome = room.run(command)
        if outcome.code != 0:
            raise RoomFault(
                f"{what}: {argv[0]} ends with {outcome.code}"
                + (f" ({outcome.limit})" if outcome.limit else ""),
                hint="its output is in the log",
                code="base",
            )
    own.unlink()
