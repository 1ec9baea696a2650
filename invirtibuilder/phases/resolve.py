"""Resolve: APT, in the bare base, works out the build dependencies and downloads them.

No maintainer script and no line of the package runs here: only trusted code, which reaches only
the mirrors (through a proxy handed in) and one fixed publication of the pocket.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder.errors import PackageFault, RoomFault
from invirtibuilder.order import Room
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.contract import Bind, Proxy, Sandbox
from invirtibuilder.sandbox.sources import inside

APT = (
    "apt-get",
    "-q",
    "-oAPT::Install-Recommends=false",
    "-oAPT::Sandbox::User=root",
    "-oAPT::Update::Error-Mode=any",
    "-oAcquire::http::Proxy=http://127.0.0.1:3128",
    "-oAcquire::Retries=2",
    "-oAcquire::Languages=none",
    "-oDir::Cache::Archives=/debs",
    "-oDir::Etc::SourceList=/dev/null",
    "-oDir::Etc::SourceParts=/apt/sources",
    "-oDir::Etc::PreferencesParts=/apt/preferences",
    "-oDpkg::Use-Pty=false",
)

# Whatever their versions: the pocket's packages are the only ones that are copied from here.
PREFERENCES = b"""Package: *
Pin: origin ""
Pin-Priority: 1001
"""

OWN = """indices=$1; shift
sed -n 's/^Package: //p' "$indices"/*/binary-*/Packages | sort -u >/tmp/own
names=$(dpkg-query -W -f '${Package}\\n' | sort -u | comm -12 - /tmp/own)
[ -z "$names" ] || exec "$@" $names
"""
"""A constant program: have APT install those packages of the base that the pocket has as well."""

UNMET = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?::\S+)? \((?:>=|=) ([^)\s]+)\) but ")
CANDIDATE = re.compile(r"^(\S+):\n  Installed: .*\n  Candidate: (\S+)$", re.MULTILINE)


class Unresolvable(PackageFault):
    """The build dependencies have no solution."""

    code = "unresolvable"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The packages to install over the base: where they lie, and what they are."""

    tree: Path
    sha256: Mapping[str, str]  # file name -> SHA-256


def resolve(workshop: Workshop, base: Base, sources: Path, dsc: str) -> Resolved:
    """Download what the `.dsc` below `sources`/in needs beyond the base.

    Raises RoomFault when a mirror does not answer, Unresolvable when there is no solution.
    """
    room = workshop.order.room
    workshop.stage("resolve: update")
    content, proxy = _settings(room)
    settings = workshop.filled([base.root], "apt", content)
    debs = workshop.tree("debs")
    binds = [
        Bind(source=sources, target="/sources"),
        Bind(source=settings, target="/apt"),
        Bind(source=debs, target="/debs", writable=True),
    ]
    if room.pocket:
        binds.append(Bind(source=Path(room.pocket.directory), target="/pocket"))
    sandbox = workshop.sandbox(
        [base.root], upper=workshop.tree("resolve"), binds=binds, trusted=True, native=True
    )
    workshop.run(
        sandbox,
        [*APT, "update"],
        user="root",
        proxy=proxy,
        fault=RoomFault,
        what="apt-get update",
    )
    download = [*APT, "-y", "--download-only", "--allow-downgrades"]
    if room.pocket:
        workshop.stage("resolve: the pocket's packages for what the base has")
        indices = f"/pocket/{room.pocket.publication}/dists/{room.pocket.codename}"
        workshop.run(
            sandbox,
            ["/bin/sh", "-euc", OWN, "own", indices, *download, "install"],
            user="root",
            proxy=proxy,
            fault=RoomFault,
            what="finding the pocket's packages for what the base has",
        )
    workshop.stage("resolve: build dependencies")
    try:
        workshop.run(
            sandbox,
            [*download, "build-dep", f"./{dsc}"],
            user="root",
            cwd="/sources/in",
            env={"DEB_BUILD_PROFILES": " ".join(room.profiles)},
            proxy=proxy,
            fault=Unresolvable,
            what="finding the build dependencies",
        )
    except Unresolvable as fault:
        if hint := _suffix_hint(workshop, sandbox, str(fault)):
            raise Unresolvable(str(fault), hint=hint) from fault
        raise
    names = sorted(p.name for p in debs.iterdir() if p.name.endswith(".deb"))
    return Resolved(tree=debs, sha256={name: _sha256(debs / name) for name in names})


def _suffix_hint(workshop: Workshop, sandbox: Sandbox, message: str) -> str:
    """What to write when nothing but a pocket's `~` suffix makes a version too low, else "".

    APT names the version that there is only when the pocket is not pinned that high.
    """
    unmet = dict(UNMET.findall(message)[:20])
    if not unmet:
        return ""
    answer = workshop.scratch / "policy"
    with answer.open("w+b") as stream:
        argv = ["apt-cache", *APT[1:], "policy", *unmet]
        workshop.run(sandbox, argv, user="root", stdout=stream.fileno())
        stream.seek(0)
        text = stream.read(1 << 20).decode("utf-8", "replace")
    return "\n".join(
        f"only the pocket's suffix is in the way: `{name} (>= {unmet[name]}~)` accepts {there}"
        for name, there in CANDIDATE.findall(text)
        if there.startswith(f"{unmet.get(name)}~")
    )


def _settings(room: Room) -> tuple[dict[str, bytes], Proxy]:
    """APT's sources and preferences for inside, and what they may reach."""
    mirror, hosts = inside(room.sources)
    extra, more_hosts = inside(room.extra_sources)
    found = {
        "sources/mirror.sources": mirror.encode(),
        "sources/extra.sources": extra.encode(),
        "preferences/pocket.pref": b"",
    }
    if room.pocket:
        key = "\n".join(f" {line.strip() or '.'}" for line in room.pocket.key.splitlines())
        # copy: as file: would leave the packages where they are.
        found["sources/pocket.sources"] = (
            f"Types: deb\nURIs: copy:/pocket/{room.pocket.publication}\n"
            f"Suites: {room.pocket.codename}\nComponents: {' '.join(room.pocket.components)}\n"
            f"Signed-By:\n{key}\n"
        ).encode()
        found["preferences/pocket.pref"] = PREFERENCES
    return found, Proxy(allowed=hosts | more_hosts)


def _sha256(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
