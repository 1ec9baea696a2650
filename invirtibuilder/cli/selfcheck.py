"""self-check: what this machine can do for a site, and what it cannot."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from invirtibuilder import confine
from invirtibuilder.cli.command import Command, config_file, own_site, show
from invirtibuilder.cli.installation import installation
from invirtibuilder.errors import Exit, Fault
from invirtibuilder.run import CLEAN
from invirtibuilder.sandbox import kernel, kvm
from invirtibuilder.sandbox.check import MISSING, OK, WEAKER, Finding, findings, room
from invirtibuilder.sandbox.slots import slots
from invirtibuilder.sandbox.sources import inside
from invirtibuilder.settings import Domain, Pocket, Site
from invirtibuilder.stages.context import mirror_sources, signer

PROGRAMS = {each: each for each in ("git", "gpg", "gpg-agent", "gpgv", "reprepro")}
OWN = "the domain's `directory` must be one that this account can make and write"
SECONDS = 10.0
"""Seconds in which a mirror or a worker answers."""


class SelfCheck(Command):
    name = "self-check"
    description = "try out what this machine can do: sandboxes, limits, disk, keys, mirrors"

    def run(self, args: argparse.Namespace) -> int:
        named = args.config or os.environ.get("INVIRTIBUILDER_CONFIG")
        if named or config_file(args).exists():
            found = list(_of_site(own_site(args, writes=False)))
        else:
            found = [_clock(), *_of_worker(Path.home() / ".cache" / "invirtibuilder", range(0))]
        good = all(finding.state != MISSING for finding in found)
        show(
            args,
            {"ok": good, "findings": [asdict(finding) for finding in found]},
            "\n".join(_lines(found)),
        )
        return Exit.OK if good else Exit.MACHINE


def _lines(found: list[Finding]) -> Iterator[str]:
    for finding in found:
        detail = f": {finding.detail}" if finding.detail else ""
        yield f"{finding.state:8}{finding.what}{detail}"
        if finding.advice and finding.state != OK:
            yield f"{'':8}  {finding.advice}"


def _of_site(site: Site) -> Iterator[Finding]:
    yield _programs()
    yield _clock()
    yield _confinement()
    yield from _signing(site)
    yield from _mirrors(site)
    yield _daemon(site)
    if site.directory.is_dir():
        yield from installation(site)
    if site.notifier:
        yield _notifier(site.notifier)
    for pocket in site.pockets.values():
        if pocket.isolation != "chroot":
            yield _isolation(pocket)
    for domain in site.domains.values():
        if domain.socket:
            yield _listener(domain)
            continue
        for finding in (*_of_worker(domain.directory, domain.slots), _room(site, domain)):
            yield replace(finding, what=f"{finding.what} ({domain.name})")


def _of_worker(directory: Path, numbers: range) -> list[Finding]:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    except OSError as error:
        return [Finding(what="directory", state=MISSING, detail=str(error), advice=OWN)]
    return findings(directory, numbers)


def _programs() -> Finding:
    absent = [name for name in PROGRAMS if shutil.which(name, path=CLEAN["PATH"]) is None]
    if not absent:
        return Finding(what="programs", state=OK, detail=", ".join(PROGRAMS))
    return Finding(
        what="programs",
        state=MISSING,
        detail=", ".join(absent),
        advice=f"apt-get install {' '.join(PROGRAMS[name] for name in absent)}",
    )


def _clock() -> Finding:
    if kernel.clock_synchronised():
        return Finding(what="clock", state=OK, detail="synchronised")
    return Finding(
        what="clock",
        state=WEAKER,
        detail="the kernel does not know of any synchronisation",
        advice="run chrony or systemd-timesyncd (in a container, on its host): a signature of the"
        " future is no good to APT, nor a ticket to Kerberos",
    )


def _confinement() -> Finding:
    if version := confine.abi():
        return Finding(what="reprepro", state=OK, detail=f"confined, by Landlock {version} too")
    advice = "add `landlock` to the kernel's `lsm=`"
    return Finding(what="reprepro", state=WEAKER, detail=confine.WEAKER, advice=advice)


def _tried(what: str, detail: str, trial: Callable[[], object], advice: str) -> Finding:
    try:
        trial()
    except (Fault, OSError) as error:
        why = f"{detail}: {error}" if detail else str(error)
        return Finding(what=what, state=MISSING, detail=why, advice=advice)
    return Finding(what=what, state=OK, detail=detail)


def _signing(site: Site) -> Iterator[Finding]:
    """Each key makes a signature, here or where the signer has it."""
    whose = "the daemon's account" if site.signer is None else f"who listens at {site.signer}"
    for pocket in {p.signing: p for p in site.pockets.values()}.values():
        using = signer(site, pocket)
        yield _tried(
            "signing key",
            " ".join(using.keys),
            using.check,
            f"{whose} must be able to use it in {pocket.signing.home}",
        )


def _mirrors(site: Site) -> Iterator[Finding]:
    """What the workers' proxy will reach for each pocket, straight from here."""
    wanted: set[tuple[str, int, str]] = set()
    for pocket in site.pockets.values():
        try:
            wanted |= inside(mirror_sources(pocket))[1]
            wanted |= {h for e in pocket.extra_sources for h in inside(f"URIs: {e.uri}\n")[1]}
        except Fault as fault:
            what = f"mirror of {pocket.name}"
            yield Finding(what=what, state=MISSING, detail=str(fault), advice=fault.hint)
    for host, port, scheme in sorted(wanted):
        number = 443 if (scheme, port) == ("https", 80) else port
        yield _tried(
            f"mirror {host}:{number}",
            "",
            lambda a=(host, number): socket.create_connection(a, SECONDS).close(),  # type: ignore[misc]
            "builds fetch from it directly; `mirror` of the pocket may name another",
        )


def _isolation(pocket: Pocket) -> Finding:
    """What a pocket's machines lack; whether KVM brings one up, the first build tries."""
    what = f"isolation of {pocket.name}"
    if pocket.isolation == "qemubuilder":
        if shutil.which("qemubuilder", path=CLEAN["PATH"]) is None:
            advice = "apt-get install qemubuilder"
            return Finding(what=what, state=MISSING, detail="no qemubuilder", advice=advice)
        detail, advice = "qemubuilder promises less than ours", "each build's log says what"
        return Finding(what=what, state=WEAKER, detail=detail, advice=advice)
    if kvm.DEVICE.exists() and kvm.DEVICE.stat().st_mode & 0o006 == 0o006:
        return Finding(what=what, state=OK, detail=f"{kvm.DEVICE} is open to everybody")
    return Finding(
        what=what,
        state=WEAKER if pocket.emulation else MISSING,
        detail=f"{kvm.DEVICE} is not open to everybody: "
        + ("machines are emulated, and slow" if pocket.emulation else "no machine comes up"),
        advice=f"chmod 666 {kvm.DEVICE}, as udev's own rule does, where KVM works"
        + ("" if pocket.emulation else "; or `vm: {emulation: true}` in the pocket"),
    )


def _connected(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(SECONDS)
        connection.connect(str(path))


def _daemon(site: Site) -> Finding:
    if not site.socket.exists():
        return Finding(what="daemon", state=OK, detail="does not run")
    finding = _tried(
        "daemon", str(site.socket), lambda: _connected(site.socket), "start `invirtibuilder daemon`"
    )
    # A socket that nobody listens to is in no one's way; submissions are just not answered.
    return finding if finding.state == OK else replace(finding, state=WEAKER)


def _notifier(path: Path) -> Finding:
    advice = "start `invirtibuilder notifier --listen` as its account: events wait for it"
    return _tried("notifier", str(path), lambda: _connected(path), advice)


def _listener(domain: Domain) -> Finding:
    path = domain.socket or Path()
    return _tried(
        f"worker ({domain.name})",
        str(path),
        lambda: _connected(path),
        "start `invirtibuilder worker --listen` as its account; `worker --check` there tells more",
    )


def _room(site: Site, domain: Domain) -> Finding:
    limits = [
        limit
        for pocket in site.pockets.values()
        if pocket.domain == domain.name
        for limit in (pocket.limits, *pocket.package_limits.values())
    ]
    disk = max((limit.disk or 0 for limit in limits), default=0)
    try:
        at_once = len(slots(domain.directory, domain.slots))
        reserve = max((limit.reserve or 0 for limit in limits), default=0)
        return room(domain.directory, reserve=reserve, disk=disk * at_once)
    except (Fault, OSError) as error:
        return Finding(what="room on disk", state=MISSING, detail=str(error), advice=OWN)
