"""Export: from a git bundle to a source package, by our program in a sandbox with the tools."""

from __future__ import annotations

import re
from typing import Any

from invirtibuilder.errors import PackageFault, Reason
from invirtibuilder.order import ResultWriter
from invirtibuilder.phases.collect import collect
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox.contract import Bind

# debian/source formats 1.0, 3.0 (native), 3.0 (quilt): dpkg-source(1).
SOURCE_FILE = re.compile(r"[a-z0-9][a-zA-Z0-9.+~_-]*\.(dsc|diff\.gz|tar\.(gz|xz|bz2|lzma)(\.asc)?)")


class Unfaithful(PackageFault):
    """The commit cannot be exported, with all reasons."""

    def __init__(self, reasons: list[Reason]) -> None:
        super().__init__(
            "; ".join(r.message for r in reasons), code=reasons[0].code, hint=reasons[0].hint
        )
        self._reasons = reasons

    @property
    def reasons(self) -> list[Reason]:
        return self._reasons


def do(workshop: Workshop, writer: ResultWriter) -> dict[str, Any]:
    """Export the commit. The report is that of `inside/export.py`."""
    base = workshop.base()
    lowers = (base.tools, base.root)
    workshop.stage("export: unpack the bundle")
    programs = workshop.programs()
    tree = workshop.tree("export")
    workshop.receive(lowers, tree)
    workshop.stage("export: make the source package")
    room = workshop.sandbox(
        lowers, binds=[programs, Bind(source=tree, target="/export", writable=True)]
    )
    workshop.run(room, ["python3", "-I", "/inside/export.py", "/export"], what="the export")
    workshop.stage("export: collect")
    report = collect(workshop, lowers, programs, tree, "source", SOURCE_FILE, writer)
    if report.get("ok") is not True:
        raise Unfaithful(_reasons(report))
    workshop.environment["export"] = str(report.get("environment", ""))[:80]
    return report


def _reasons(report: dict[str, Any]) -> list[Reason]:
    found = report.get("reasons")
    if not isinstance(found, list) or not all(isinstance(r, dict) for r in found) or not found:
        return [Reason(code="bad-export", message="the export left no reason for its failure")]
    return [
        Reason(
            code=str(r.get("code", "export"))[:60],
            message=str(r.get("message", ""))[:8000],
            hint=str(r.get("hint", ""))[:2000],
        )
        for r in found[:50]
    ]
