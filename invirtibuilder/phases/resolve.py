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
from typing import IO

from invirtibuilder.debchanges import parse_dsc
from invirtibuilder.errors import Fault, PackageFault, RoomFault
from invirtibuilder.order import PocketSource, Room
from invirtibuilder.phases import kept
from invirtibuilder.phases.kept import NAME, Package, Resolution
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox import lists
from invirtibuilder.sandbox.base import Base
from invirtibuilder.sandbox.contract import Bind, Proxy, Sandbox
from invirtibuilder.sandbox.lists import fresh
from invirtibuilder.sandbox.mirrors import states
from invirtibuilder.sandbox.sources import inside, releases

APT = (
    "apt-get",
    "-q",
    "-oAPT::Install-Recommends=false",
    "-oAPT::Sandbox::User=root",
    "-oAPT::Update::Error-Mode=any",
    "-oAcquire::http::Proxy=http://127.0.0.1:3128",
    "-oAcquire::Retries=2",
    "-oAcquire::Languages=none",
    "-oAcquire::ForceHash=SHA256",
    "-oDir::Cache=/kept/cache",
    "-oDir::State::Lists=/kept/lists",
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

UPDATE = """mkdir -p /kept/cache /kept/lists && exec "$@" update"""

OWN = """indices=$1; shift
sed -n 's/^Package: //p' "$indices"/*/binary-*/Packages | sort -u >/tmp/own
names=$(dpkg-query -W -f '${Package}\\n' | sort -u | comm -12 - /tmp/own)
[ -z "$names" ] || exec "$@" $names
"""
"""A constant program: have APT install those packages of the base that the pocket has as well."""

REACHED = """base=$(dpkg-query -W -f '${Package}\\n')
apt-cache -q "$@" $base | sed -n 's/^<*\\([a-z0-9][a-z0-9+.-]*\\).*/\\1/p' | sort -u
"""
"""A constant program: all that the packages of the base and further ones lead to.

Every alternative and every provider is followed, as nobody knows which ones APT weighed.
"""

DEPENDS = (
    *("depends", "--recurse", "--no-recommends", "--no-suggests", "--no-enhances"),
    *("--no-conflicts", "--no-breaks", "--no-replaces"),
)

UNMET = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?::\S+)? \((?:>=|=) ([^)\s]+)\) but ")
CANDIDATE = re.compile(r"^(\S+):\n  Installed: .*\n  Candidate: (\S+)$", re.MULTILINE)


URI = re.compile(
    r"'([^'\s]+)' ([a-z0-9][A-Za-z0-9.+~_%-]*\.deb) ([0-9]{1,12}) SHA256:([0-9a-f]{64})"
)
MAX_DSC = 4 << 20
MAX_ANSWER = 64 << 20


class Unresolvable(PackageFault):
    """The build dependencies have no solution."""

    code = "unresolvable"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The packages to install over the base, and the name by which that is kept, if it is."""

    packages: tuple[Package, ...]
    kept: str = ""


def resolve(workshop: Workshop, base: Base, dsc: str) -> Resolved:
    """What the order's `.dsc` needs beyond the base.

    APT is asked only when something has changed that its answer depends on. Raises RoomFault
    when a mirror does not answer, Unresolvable when there is no solution.
    """
    room = workshop.order.room
    relations = parse_dsc(workshop.member(f"in/{dsc}", MAX_DSC)).relations
    settings, proxy = _settings(room, relations)
    mirrors = "\n".join(settings[f"sources/{n}.sources"].decode() for n in ("mirror", "extra"))
    signed = states(releases(mirrors), proxy.allowed)
    request = settings["request.dsc"].decode()
    name = kept.key(base.digest, request, room, signed or ())
    store = workshop.domain_directory / "resolutions"
    if signed is not None and (found := kept.find(store, name)) and _holds(found, room):
        workshop.stage(f"resolve: nothing has changed: {len(found.packages)} packages, as before")
        return Resolved(packages=found.packages, kept=name)
    made, packages, names = _asked(workshop, base, settings, proxy, signed)
    if not made:
        return Resolved(packages=packages)
    own = kept.own_packages(room.pocket, names)
    kept.keep(store, name, Resolution(packages=packages, names=names, own=own, made=made))
    return Resolved(packages=packages, kept=name)


def _holds(found: Resolution, room: Room) -> bool:
    """Whether APT would say the same now."""
    return fresh(found.made) and kept.own_packages(room.pocket, found.names) == found.own


def _asked(
    workshop: Workshop,
    base: Base,
    settings: Mapping[str, bytes],
    proxy: Proxy,
    signed: frozenset[str] | None,
) -> tuple[float, tuple[Package, ...], frozenset[str]]:
    """APT's answer, what it can depend on, and since when it counts; 0 = it is not to be kept."""
    room = workshop.order.room
    store = workshop.directory / "lists"
    sources = f"{room.architecture}\n{room.sources}\n{room.extra_sources}"
    which = hashlib.sha256(sources.encode()).hexdigest()
    binds = [Bind(source=workshop.filled("apt", settings), target="/apt")]
    wanted = signed
    if room.pocket:
        binds.append(Bind(source=Path(room.pocket.directory), target="/pocket"))
        if wanted is not None:
            wanted |= {_own_release(room.pocket)}
    with lists.held(store, which, workshop.ids) as there:
        binds.append(Bind(source=there.tree, target="/kept", writable=True))
        sandbox = workshop.sandbox([base.root], binds=binds, trusted=True, native=True)

        def update() -> None:
            workshop.stage("resolve: update")
            workshop.run(
                sandbox,
                ["/bin/sh", "-euc", UPDATE, "update", *APT],
                user="root",
                proxy=proxy,
                fault=RoomFault,
                what="apt-get update",
            )

        there.update(wanted, update)
        packages, names = _answer(workshop, sandbox, settings["request.dsc"].decode())
        seen = there.releases == wanted
        made = there.made
    lists.collect(store, workshop.ids)
    return made if seen else 0.0, packages, names


def _answer(
    workshop: Workshop, sandbox: Sandbox, request: str
) -> tuple[tuple[Package, ...], frozenset[str]]:
    """The packages to install, and the names of all that APT can have weighed for it."""
    room = workshop.order.room
    wanted = [*APT, "-y", "--print-uris", "--allow-downgrades"]
    text = ""
    if room.pocket:
        workshop.stage("resolve: the pocket's packages for what the base has")
        indices = f"/pocket/{room.pocket.publication}/dists/{room.pocket.codename}"
        argv = ["/bin/sh", "-euc", OWN, "own", indices, *wanted, "install"]
        what = "finding the pocket's packages for what the base has"
        text += _output(workshop, sandbox, argv, RoomFault, what)
    workshop.stage("resolve: build dependencies")
    argv = [*wanted, "build-dep", "/apt/request.dsc"]
    try:
        text += _output(workshop, sandbox, argv, Unresolvable, "finding the build dependencies")
    except Unresolvable as fault:
        if hint := _suffix_hint(workshop, sandbox, str(fault)):
            raise Unresolvable(str(fault), hint=hint) from fault
        raise
    packages = _packages(text)
    names = {p.name.split("_", 1)[0] for p in packages} | set(NAME.findall(request.lower()))
    argv = ["/bin/sh", "-euc", REACHED, "reached", *APT[1:], *DEPENDS, *sorted(names)]
    reached = _output(workshop, sandbox, argv, RoomFault, "apt-cache depends")
    return packages, frozenset(names) | frozenset(reached.split())


def _output(
    workshop: Workshop, sandbox: Sandbox, argv: list[str], fault: type[Fault], what: str
) -> str:
    """The standard output of a command that needs no network; of a failed one it is told."""
    answer = workshop.scratch / "answer"
    with answer.open("w+b") as stream:
        env = {"DEB_BUILD_PROFILES": " ".join(workshop.order.room.profiles)}
        try:
            workshop.run(
                sandbox,
                argv,
                user="root",
                env=env,
                stdout=stream.fileno(),
                fault=fault,
                what=what,
            )
        except fault as error:
            told = _text(stream)
            os.write(workshop.log_fd, told.encode())
            first, _, rest = str(error).partition("\n")
            lines = [first, *told.splitlines()[-12:], rest]
            raise fault("\n".join(lines).rstrip(), hint=error.hint) from error
        return _text(stream)


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read(MAX_ANSWER).decode("utf-8", "replace")


def _packages(text: str) -> tuple[Package, ...]:
    """What `apt-get --print-uris` prints, sorted, each file once. Raises RoomFault."""
    found = {}
    # Not splitlines, which sees lines where APT sees none.
    for line in text.split("\n"):
        if line.startswith("'"):
            match = URI.fullmatch(line)
            if not match:
                raise RoomFault(f"APT names no file with a SHA-256: {line[:300]}", code="no-hash")
            uri, name, size, sha256 = match.groups()
            found[name] = Package(name=name, sha256=sha256, size=int(size), uri=uri)
    return tuple(found[name] for name in sorted(found))


def _suffix_hint(workshop: Workshop, sandbox: Sandbox, message: str) -> str:
    """What to write when nothing but a pocket's `~` suffix makes a version too low, else "".

    APT names the version that there is only when the pocket is not pinned that high.
    """
    unmet = dict(UNMET.findall(message)[:20])
    if not unmet:
        return ""
    argv = ["apt-cache", *APT[1:], "policy", *unmet]
    text = _output(workshop, sandbox, argv, RoomFault, "apt-cache policy")
    return "\n".join(
        f"only the pocket's suffix is in the way: `{name} (>= {unmet[name]}~)` accepts {there}"
        for name, there in CANDIDATE.findall(text)
        if there.startswith(f"{unmet.get(name)}~")
    )


def _settings(room: Room, relations: Mapping[str, str]) -> tuple[dict[str, bytes], Proxy]:
    """APT's sources, preferences and question for inside, and what they may reach.

    The question has just the fields of the .dsc that count, as the resolution is named by it.
    """
    mirror, hosts = inside(room.sources)
    extra, more_hosts = inside(room.extra_sources)
    request = "Format: 3.0 (native)\nSource: request\nVersion: 1\nArchitecture: any\n"
    request += "".join(f"{name}: {relations[name]}\n" for name in sorted(relations))
    found = {
        "request.dsc": request.encode(),
        "sources/mirror.sources": mirror.encode(),
        "sources/extra.sources": extra.encode(),
        "preferences/pocket.pref": b"",
    }
    if room.pocket:
        key = "\n".join(f" {line.strip() or '.'}" for line in room.pocket.key.splitlines())
        # The launcher reads what APT names by it.
        found["sources/pocket.sources"] = (
            f"Types: deb\nURIs: copy:/pocket/{room.pocket.publication}\n"
            f"Suites: {room.pocket.codename}\nComponents: {' '.join(room.pocket.components)}\n"
            f"Signed-By:\n{key}\n"
        ).encode()
        found["preferences/pocket.pref"] = PREFERENCES
    return found, Proxy(allowed=hosts | more_hosts)


def _own_release(pocket: PocketSource) -> str:
    """SHA-256 of what signs the pocket's publication."""
    path = Path(pocket.directory, pocket.publication, "dists", pocket.codename, "InRelease")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
