"""Install: the downloaded packages into a layer. Maintainer scripts run as the sandbox's root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from invirtibuilder.errors import RoomFault
from invirtibuilder.phases.resolve import Resolved
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox import layers
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.contract import Bind

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
    if not resolved.sha256:
        workshop.stage("install: nothing beyond the base")
        yield [base.root]
        return
    room = workshop.order.room
    # A machine keeps its layer as a disk, which is nothing to a sandbox and the other way round.
    over = base.digest if room.isolation == "chroot" else f"{room.isolation} {base.digest}"
    key = layers.key(over, resolved.sha256.values(), room.profiles)
    workshop.environment["layer"] = key
    store = workshop.directory / "layers"
    with layers.held(store, key) as layer:
        if layer is not None:
            workshop.stage(f"install: layer {key[:12]} is there")
            yield [layer, base.root]
            return
    workshop.stage(f"install: {len(resolved.sha256)} packages into layer {key[:12]}")
    with layers.made(store, key, workshop.ids) as tree:
        sandbox = workshop.sandbox(
            [base.root], upper=tree, binds=[Bind(source=resolved.tree, target="/debs")]
        )
        workshop.run(
            sandbox,
            ["/bin/sh", "-ec", INSTALL, "install", *(f"/debs/{n}" for n in resolved.sha256)],
            user="root",
            env={"DEBIAN_FRONTEND": "noninteractive"},
            fault=RoomFault,
            what="installing the build dependencies",
        )
    with layers.held(store, key) as layer:
        if layer is None:
            raise RoomFault("the layer is gone", code="no-layer")
        yield [layer, base.root]
