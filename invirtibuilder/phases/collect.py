"""Collect: results leave as a tar stream made by our own program over hostile files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invirtibuilder import jsonsafe, tarsafe
from invirtibuilder.errors import Malformed, PackageFault
from invirtibuilder.order import ResultWriter
from invirtibuilder.phases.workshop import Workshop
from invirtibuilder.sandbox.contract import Bind

REPORT = "report.json"
MAX_REPORT = 8 << 20


def collect(
    workshop: Workshop,
    lowers: Sequence[Path],
    programs: Bind,
    tree: Path,
    what: str,
    wanted: re.Pattern[str],
    writer: ResultWriter,
) -> dict[str, Any]:
    """Copy wanted files out of a tree into the result; returns the program's report.

    A new sandbox without the job's own root runs our program, and its stream is read as hostile.
    `what` is the program's mode. Raises PackageFault when the tree holds no acceptable result.
    """
    cap = workshop.order.room.limits.result_size
    room = workshop.sandbox(
        lowers,
        binds=[programs, Bind(source=tree, target="/results")],
        trusted=True,
        output=cap + MAX_REPORT,
    )
    stream_file = workshop.scratch / "collected.tar"
    with stream_file.open("wb") as stream:
        workshop.run(
            room,
            ["python3", "-I", "/inside/collect.py", what, "/results", str(cap)],
            stdout=stream.fileno(),
            what="collecting the results",
        )
    report: dict[str, Any] = {}
    limits = tarsafe.Limits(member_size=cap, total=cap + MAX_REPORT)
    try:
        with stream_file.open("rb") as source:
            for name, size, content in tarsafe.members(source, limits):
                if name == REPORT and size <= MAX_REPORT:
                    report = jsonsafe.loads(content.read())
                elif wanted.fullmatch(name):
                    writer.add(name, size, content)
                else:
                    raise Malformed(f"unexpected result {name!r}")
    except Malformed as error:
        raise PackageFault(f"the results cannot be accepted: {error}", code="bad-result") from error
    finally:
        stream_file.unlink()
    if not isinstance(report, dict):
        raise PackageFault("the results cannot be accepted: no report", code="bad-result")
    return report
