"""The source package made anew, by a worker in a sandbox, and compared byte for byte.

Whether the source that was published is of the commit's tree, the export found out in a sandbox
when it made it, and its record says of which tree; the daemon never unpacks content. This here
has all of that done once more.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from invirtibuilder import files, model
from invirtibuilder.engine import Attempt
from invirtibuilder.errors import Blame, Fault, Malformed
from invirtibuilder.fsck.content import Record, State
from invirtibuilder.fsck.findings import Finding
from invirtibuilder.gbpconf import gbp_settings
from invirtibuilder.jobs import Job, Jobs
from invirtibuilder.order import read_order, read_result
from invirtibuilder.settings import Pocket
from invirtibuilder.spool import Request
from invirtibuilder.stages.context import Context, Wait
from invirtibuilder.stages.export import made
from invirtibuilder.stages.orders import stop_running, texts
from invirtibuilder.states import State as JobState

MAX_GBP = 256 << 10
MAX_FIELDS = 20


def check(
    context: Context, pocket: Pocket, state: State, go_on: Callable[[], None]
) -> Iterator[Finding]:
    """Each recorded source of the pocket, exported again."""
    for package, record in sorted(state.records.items()):
        go_on()
        found = _regenerated(context, pocket, package, record)
        if found:
            kind, message = found
            yield Finding(
                kind=kind, pocket=pocket.name, what=package, message=f"{package}: {message}"
            )


def _regenerated(
    context: Context, pocket: Pocket, package: str, record: Record
) -> tuple[str, str] | None:
    """Kind and message of what is wrong with a source, or None when it came out the same."""
    version = record["version"]
    try:
        with tempfile.TemporaryDirectory(prefix=".fsck.", dir=context.site.jobs) as name:
            folder = Path(name)
            jobs = Jobs(folder, context.clock)
            job = jobs.create(
                Request.new(
                    "submit",
                    [pocket.name, package, str(record["commit"])],
                    principal="unix/fsck",
                    via="fsck",
                )
            )
            job.move(JobState.RUNNING)
            job.write_fact("admit", admission(context, package, record))
            try:
                fact = made(replace(context, jobs=jobs), job)
            except Fault as fault:
                if fault.blame != Blame.PACKAGE:
                    raise
                return _refused(job, record, fault)
            finally:
                stop_running(job)
                context.places.leave(job)
            return _compared(job, record, fact)
    except (Fault, Wait, OSError, shutil.Error) as error:
        return "not-comparable", f"{version} was not exported again: {error}"


def _compared(job: Job, record: Record, fact: Mapping[str, Any]) -> tuple[str, str] | None:
    now = {f["name"]: f["sha256"] for f in fact["files"]}
    recorded = {f["name"]: f["sha256"] for f in record["files"]}
    wrong = [name for name, sha256 in sorted(now.items()) if recorded.get(name) != sha256]
    if not wrong:
        return None
    version = record["version"]
    if other := _elsewhere(record, fact["environment"], ("base", "export")):
        return "not-comparable", f"{version} was exported in another environment ({other})"
    text = files.read_capped(job.directory / "source" / fact["dsc"], limit=1 << 20)
    lines = len(text.splitlines())
    message = f"{version} made again differs: {', '.join(wrong)} (a .dsc of {lines} lines)"
    return "dsc-differs", message


def _elsewhere(record: Record, now: Mapping[str, str], parts: Iterable[str]) -> str:
    """In what the environment is not the recorded one; nothing when it is."""
    before = record["environment"]["export"]
    for part in parts:
        if before.get(part) != now.get(part):
            return f"{part} {str(before.get(part))[:12]}, now {str(now.get(part))[:12]}"
    return ""


def _refused(job: Job, record: Record, fault: Fault) -> tuple[str, str]:
    """What once was exported is refused now: only another base explains that."""
    version, now = record["version"], _environment(job)
    # An export that was refused early may not have come to look at its tools.
    if other := _elsewhere(record, now, ("base", *({"export"} & now.keys()))):
        return "not-comparable", f"{version} was not exported in another base ({other}): {fault}"
    return "dsc-differs", f"{version} cannot be made again: {fault}"


def _environment(job: Job) -> Mapping[str, str]:
    """In what the last attempt was made; nothing when it has not told."""
    for path in sorted((job.directory / "attempts").glob("export-*"), reverse=True):
        attempt = Attempt(path)
        with suppress(OSError, Malformed), tempfile.TemporaryDirectory(dir=job.directory) as name:
            with attempt.order.open("rb") as stream:
                order = read_order(stream)
            return texts(read_result(attempt.result, Path(name), order).environment, MAX_FIELDS)
    return {}


def admission(context: Context, package: str, record: Record) -> dict[str, Any]:
    """What admission found, as far as an export needs it, from the record and the commit."""
    repository = context.repository(package)
    commit = str(record["commit"])
    settings = gbp_settings(repository.blob(commit, "debian/gbp.conf", MAX_GBP))
    prefix = f"{package}_{model.upstream_version(str(record['version']))}.orig"
    return {
        **{name: record[name] for name in ("commit", "tree", "version", "changelog_entry")},
        **{name: record[name] for name in ("pristine_tar", "upstream_tag", "stamp")},
        "changelog_version": record["changelog_version"],
        "base": str(record["environment"]["export"].get("base", "")),
        "compression": settings.compression,
        "components": list(settings.components),
        "native": not any(str(f["name"]).startswith(prefix) for f in record["files"]),
        "pinned": None,
    }
