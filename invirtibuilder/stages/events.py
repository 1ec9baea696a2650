"""What hooks are told of a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invirtibuilder import entries, model
from invirtibuilder.errors import Reason
from invirtibuilder.jobs import Job, bounded
from invirtibuilder.stages.context import Context
from invirtibuilder.states import State

TAIL = 16 << 10


def payload(
    context: Context,
    job: Job,
    *,
    state: str,
    reasons: Sequence[Reason] = (),
    blame: str = "",
    log_tail: str = "",
) -> dict[str, Any]:
    """The event's content, as hooks.d/README.rst describes it."""
    back = job.request.action == "rollback" and state == State.PUBLISHED
    admitted = job.fact("admit") or {}
    published = job.fact("publish") or {}
    return {
        "site": context.site.name,
        "time": model.iso(context.clock()),
        "state": state,
        "stage": job.status.stage,
        "pocket": job.pocket,
        "action": job.request.action,
        "package": " ".join(_packages(job, admitted)),
        "committish": job.committish,
        "principal": job.request.principal,
        "via": job.request.via,
        "addr": job.request.addr,
        "requested": job.request.time,
        "commit": admitted.get("commit", ""),
        "version": admitted.get("version", ""),
        "blame": blame,
        "why": [reason.as_json() for reason in bounded(reasons)],
        "note": entries.downgrade(job.pocket) if back else "",
        "log_tail": log_tail,
        "publication": published.get("publication"),
        "superproject_commit": published.get("superproject_commit", ""),
        "files": published.get("files", []),
    }


def _packages(job: Job, admitted: dict[str, Any]) -> list[str]:
    """The package; of a promotion or rollback, all of them."""
    if job.request.action == "submit":
        return [job.package]
    words, _ = entries.split(job.request.action, job.request.args)
    return [p["package"] for p in admitted.get("packages", ())] or words[2:]


def log_tail(job: Job) -> str:
    """The end of the last attempt's log."""
    logs = sorted((job.directory / "attempts").glob("*/log"), key=lambda p: p.stat().st_mtime)
    return _tail(logs[-1]) if logs else ""


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL))
        return file.read().decode("utf-8", "replace")
