"""Build: dpkg-buildpackage as an unprivileged user with fakeroot, on the exported source."""

from __future__ import annotations

import os
import re
from typing import Any

from invirtibuilder import model
from invirtibuilder.errors import PackageFault
from invirtibuilder.order import ResultWriter
from invirtibuilder.phases import qemubuilder
from invirtibuilder.phases.collect import collect
from invirtibuilder.phases.install import installed
from invirtibuilder.phases.resolve import resolve
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox.contract import Bind

ARTIFACT = re.compile(r"[a-z0-9][A-Za-z0-9.+~_%-]*\.(deb|udeb|buildinfo)")


def do(workshop: Workshop, writer: ResultWriter) -> dict[str, Any]:
    """Build the source package of the order. The report has the control fields of each `.deb`."""
    if workshop.order.room.isolation == "qemubuilder":
        return _accepted(qemubuilder.build(workshop, writer, ARTIFACT), writer)
    content = workshop.order.content
    dsc = model.matching(model.FILE_NAME, content.get("dsc"), "file-name")
    source = model.package_name(content.get("package"))
    directory = f"{source}-{model.upstream_version(model.version(content.get('version')))}"
    base = workshop.base()
    workshop.stage("build: unpack the order")
    tree = workshop.tree("build")
    workshop.receive([base.root], tree)
    resolved = resolve(workshop, base, dsc)
    with installed(workshop, base, resolved) as lowers:
        workshop.stage("build: unpack the source")
        sandbox = workshop.sandbox(
            lowers,
            upper=workshop.tree("root"),
            binds=[Bind(source=tree, target="/build", writable=True)],
        )
        unpack = ["dpkg-source", "-x", f"in/{dsc}", directory]
        workshop.run(sandbox, unpack, cwd="/build", what="dpkg-source -x")
        workshop.stage("build: dpkg-buildpackage")
        room = workshop.order.room
        options = [*room.options]
        if not any(option.startswith("parallel=") for option in options):
            options.append(f"parallel={os.cpu_count() or 1}")
        workshop.run(
            sandbox,
            ["dpkg-buildpackage", "-b", "-us", "-uc", "-rfakeroot"],
            cwd=f"/build/{directory}",
            env={
                "DEB_BUILD_OPTIONS": " ".join(options),
                "DEB_BUILD_PROFILES": " ".join(room.profiles),
            },
            fault=Broken,
        )
    workshop.stage("build: collect")
    tools = (base.tools, base.root)
    programs = workshop.programs()
    report = collect(workshop, tools, programs, tree, "binary", ARTIFACT, writer)
    return _accepted(
        {**report, "dependencies": {p.name: p.sha256 for p in resolved.packages}}, writer
    )


def _accepted(report: dict[str, Any], writer: ResultWriter) -> dict[str, Any]:
    if problems := report.get("problems"):
        raise PackageFault(f"unacceptable artifacts: {problems}"[:2000], code="bad-artifacts")
    if not any(f.name.endswith("deb") for f in writer.files):
        raise PackageFault("the build made no binary package", code="no-artifacts")
    return report


class Broken(PackageFault):
    """dpkg-buildpackage failed."""

    code = "build-failed"
