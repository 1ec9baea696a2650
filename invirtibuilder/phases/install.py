"""Install: the downloaded packages into a layer. Maintainer scripts run as the sandbox's root."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from invirtibuilder import files
from invirtibuilder.errors import (
    DISK_FULL,
    Cancelled,
    Fault,
    MachineFault,
    PackageFault,
    RoomFault,
)
from invirtibuilder.phases import kept
from invirtibuilder.phases.kept import Package
from invirtibuilder.phases.resolve import Resolved
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox import layers, mirrors
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.contract import Bind
from invirtibuilder.sandbox.downloads import Downloads
from invirtibuilder.sandbox.sources import inside

TRIES = 3
AT_ONCE = 4
"""Packages that are downloaded at a time."""

OWN = "copy:/pocket/"
"""How `resolve` names the pocket's own repository to APT."""

INSTALL = """printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
exec apt-get -q -y -oAPT::Install-Recommends=false -oAPT::Sandbox::User=root \\
 -oDpkg::Use-Pty=false -oDpkg::Options::=--force-confold -oDpkg::Options::=--force-unsafe-io \\
 --allow-downgrades install "$@"
"""
"""A constant program: no service starts (invoke-rc.d(8)), then APT without any network."""


@contextmanager
def installed(workshop: Workshop, base: Base, resolved: Resolved) -> Iterator[list[Path]]:
    """The directories to build on, topmost first, held against removal while the block runs.

    A layer is named by what went into it, so the same set of packages is installed once.
    """
    if not resolved.packages:
        workshop.stage("install: nothing beyond the base")
        yield [base.root]
        return
    room = workshop.order.room
    # A machine keeps its layer as a disk, which is nothing to a sandbox and the other way round.
    over = base.digest if room.isolation == "chroot" else f"{room.isolation} {base.digest}"
    key = layers.key(over, (p.sha256 for p in resolved.packages), room.profiles)
    workshop.environment["layer"] = key
    store = workshop.directory / "layers"
    with layers.held(store, key) as layer:
        if layer is not None:
            workshop.stage(f"install: layer {key[:12]} is there")
            yield [layer, base.root]
            return
    debs = _debs(workshop, resolved)
    workshop.stage(f"install: {len(resolved.packages)} packages into layer {key[:12]}")
    with layers.made(store, key, workshop.ids, most=room.layers_size) as tree:
        sandbox = workshop.sandbox(
            [base.root], upper=tree, binds=[Bind(source=debs, target="/debs")]
        )
        names = (f"/debs/{p.name}" for p in resolved.packages)
        workshop.run(
            sandbox,
            ["/bin/sh", "-ec", INSTALL, "install", *names],
            user="root",
            env={"DEBIAN_FRONTEND": "noninteractive"},
            fault=RoomFault,
            what="installing the build dependencies",
        )
    with layers.held(store, key) as layer:
        if layer is None:
            raise RoomFault("the layer is gone", code="no-layer")
        yield [layer, base.root]


def _debs(workshop: Workshop, resolved: Resolved) -> Path:
    """A directory with the packages, each hashed just now; what is not kept is downloaded."""
    downloads = Downloads(
        directory=workshop.domain_directory / "downloads", size=workshop.order.room.cache_size
    )
    debs = workshop.scratch / "debs"
    debs.mkdir()
    debs.chmod(0o755)
    missing = [p for p in resolved.packages if not downloads.take(p.sha256, debs / p.name)]
    if missing:
        megabytes = sum(p.size for p in missing) / 1e6
        workshop.stage(f"install: download {len(missing)} packages, {megabytes:.1f} MB")
        try:
            _download(workshop, downloads, missing, debs)
        except Fault:
            # The next try asks APT.
            if resolved.kept:
                kept.forget(workshop.domain_directory / "resolutions", resolved.kept)
            raise
        downloads.collect()
    return debs


def _download(workshop: Workshop, downloads: Downloads, missing: list[Package], debs: Path) -> None:
    allowed = inside(f"{workshop.order.room.sources}\n{workshop.order.room.extra_sources}")[1]
    until = time.monotonic() + workshop.order.room.limits.seconds
    stop = threading.Event()

    def fetch(package: Package) -> None:
        for left in reversed(range(TRIES)):
            try:
                with _content(workshop, package.uri, allowed) as content:
                    downloads.add(package.sha256, package.size, _checking(content.read))
                if downloads.take(package.sha256, debs / package.name):
                    return
            except mirrors.FAILURES as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise MachineFault(f"{downloads.directory}: {error}", code=DISK_FULL) from error
                if not left:
                    hint = "is the mirror reachable, and whole?"
                    why = f"{package.name} cannot be downloaded: {error}"
                    raise RoomFault(why, hint=hint, code="download") from error
        raise RoomFault(f"{package.name} does not stay in the cache", code="download")

    def _checking(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
        def checked(size: int) -> bytes:
            if workshop.cancelled() or stop.is_set():
                raise Cancelled("the order was cancelled")
            if time.monotonic() > until:
                raise PackageFault("downloading exceeded the limit on time", code="limit-time")
            return read(size)

        return checked

    with ThreadPoolExecutor(max_workers=AT_ONCE) as threads:
        for done in [threads.submit(fetch, package) for package in missing]:
            try:
                done.result()
            except BaseException:
                stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _content(workshop: Workshop, uri: str, allowed: mirrors.Allowed) -> Iterator[IO[bytes]]:
    """What a URI of APT's names: a file of a mirror, or of the pocket's publication."""
    pocket = workshop.order.room.pocket
    if pocket and uri.startswith(OWN):
        path = files.contained(Path(pocket.directory), unquote(uri.removeprefix(OWN)))
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            yield file
    else:
        with mirrors.opened(uri, allowed) as body:
            yield body
