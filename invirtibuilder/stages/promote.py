"""Promote: packages of one pocket come to another, the very files, or built again where needed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from invirtibuilder import entries, model
from invirtibuilder.errors import Fault, PackageFault, Reason, Refused
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.spool import Request
from invirtibuilder.stages import transaction, uploads
from invirtibuilder.stages.assess import examined, not_permitted
from invirtibuilder.stages.changes import Change
from invirtibuilder.stages.context import Context, Wait
from invirtibuilder.stages.dependencies import left_behind, owners
from invirtibuilder.states import State

LOOK_AGAIN = timedelta(minutes=2)
"""A part that has ended says so; this is only in case that it could not."""
MAX_DESPITE = 2000
"""Characters of a trailer."""


def assess_promotion(
    context: Context,
    *,
    principal: str,
    origin: str,
    target: str,
    packages: Sequence[str],
    despite: bool = False,
) -> dict[str, Any]:
    """How each package would get from one pocket to the other, nothing changed.

    Raises Refused with every reason; a dependency that would no longer be met is none `despite`
    that.
    """
    pockets = context.site.pockets
    reasons = [
        Reason(
            code="no-pocket",
            message=f"no such pocket: {name}",
            hint=f"one of {', '.join(pockets)}",
        )
        for name in dict.fromkeys((origin, target))
        if name not in pockets
    ]
    if origin == target:
        message = f"from {origin} to {target} is nowhere"
        reasons.append(Reason(code="same-pocket", message=message, hint="name another pocket"))
    if target in pockets:
        reasons += not_permitted(pockets[target], principal, "promote")
    if not {origin, target} <= pockets.keys() or origin == target:
        raise Refused(reasons)
    found = []
    names = list(dict.fromkeys(packages))
    for name in names:
        try:
            found.append(_assessed(context, pockets[origin], pockets[target], name))
        except Refused as refused:
            reasons += refused.reasons
    reasons += _clashes(context, pockets[origin], pockets[target], names)
    broken = left_behind(context, pockets[origin], pockets[target], names)
    if broken and not despite:
        reasons += [
            Reason(code=r.code, message=r.message, hint=f"{r.hint}; or {entries.DESPITE}")
            for r in broken
        ]
    if reasons:
        raise Refused(reasons)
    overridden = [reason.message for reason in broken]
    return {"commit": "", "version": "", "packages": found, "despite": overridden}


def _assessed(context: Context, origin: Pocket, target: Pocket, package: str) -> dict[str, Any]:
    """One package: how it gets there, and what it is then. Raises Refused."""
    record = context.superproject.record(origin.branch, package)
    there = context.superproject.record(target.branch, package) or {}
    if record is None:
        message = f"{origin.name} has no {package}"
        hint = f"`pocket show {origin.name}`"
        raise Refused([Reason(code="not-in-pocket", message=message, hint=hint)])
    same = ("version", "commit", "files")
    if all(record[key] == there.get(key) for key in same):
        message = f"{target.name} has {package} {record['version']} already"
        raise Refused([Reason(code="already-there", message=message)])
    why = _why_again(record, origin, target)
    version = str(record["version"])
    if why or not target.allow_backtracking:
        try:
            version = examined(
                context.site, target, package, str(record["commit"]), context.clock()
            ).version
        except Refused as refused:
            raise Refused(
                [
                    Reason(code=r.code, message=f"{package}: {r.message}", hint=r.hint)
                    for r in refused.reasons
                ]
            ) from refused
    if not why:
        version = str(record["version"])
        uploads.kept_upload(context, origin, record)
    return {
        "package": package,
        "commit": record["commit"],
        "version": version,
        "from": record["version"],
        "pinned": there.get("commit"),
        "rebuild": why,
        "how": f"{record['version']} is rebuilt as {version}: {why}" if why else f"{version} moves",
    }


def _why_again(record: dict[str, Any], origin: Pocket, target: Pocket) -> str:
    """Why the very files cannot move; nothing when they can."""
    if record.get("changelog_entry"):
        return f"its version is {origin.name}'s own"
    theirs, ours = origin.environment, target.environment
    differ = [key for key in ours if theirs[key] != ours[key]]
    return f"the pockets differ in {', '.join(differ)}" if differ else ""


def _clashes(
    context: Context, origin: Pocket, target: Pocket, packages: Sequence[str]
) -> list[Reason]:
    """Binary packages that another source of the target has, and keeps."""
    if target.allow_takeover:
        return []
    coming = {
        binary: name
        for name in packages
        for binary in (context.superproject.record(origin.branch, name) or {}).get("binaries", ())
    }
    theirs = owners(context, target, coming)
    return [
        Reason(
            code="binary-owned",
            message=f"{name}: {target.name} has the binary package {binary} of {theirs[binary]}",
            hint="another name, or allow_takeover in the pocket's configuration",
        )
        for binary, name in coming.items()
        if theirs.get(binary, name) not in packages
    ]


def admit_promotion(context: Context, job: Job) -> dict[str, Any]:
    """Assess anew at take-up, and name the jobs that will rebuild what cannot move."""
    (origin, target, *packages), options = entries.split("promote", job.request.args)
    plan = assess_promotion(
        context,
        principal=job.request.principal,
        origin=origin,
        target=target,
        packages=packages,
        despite=entries.DESPITE in options,
    )
    for message in plan["despite"]:
        job.remark(f"in spite of it: {message}")
    for found in plan["packages"]:
        job.remark(f"{found['package']}: {found['how']}")
        found["job"] = entries.new_id(context.clock()) if found["rebuild"] else job.id
    return plan


def rebuild(context: Context, job: Job) -> dict[str, Any]:
    """Have what cannot move built, each by a job of its own; then all of it is published at once.

    Raises Wait until all have been built, and PackageFault when one cannot be.
    """
    request, parts = job.request, []
    for found in job.need("admit")["packages"]:
        if found["rebuild"]:
            asked = Request(
                id=found["job"],
                action="submit",
                args=(job.pocket, found["package"], found["commit"]),
                principal=request.principal,
                via=request.via,
                addr=request.addr,
                time=model.iso(context.clock()),
            )
            part = context.jobs.create(asked, part_of=job.id)
            context.tell(part)
            parts.append(part)
    over = [part for part in parts if part.status.final]
    if over:
        reasons = [str(r["message"]) for r in over[0].status.reasons]
        raise PackageFault(
            f"{over[0].package}: job {over[0].id} is {over[0].status.state}: {'; '.join(reasons)}",
            code="part-failed",
            hint="nothing was published",
        )
    building = [part for part in parts if part.fact("verify") is None]
    if building:
        listed = ", ".join(f"{part.package} ({part.id})" for part in building)
        raise Wait(f"is being built: {listed}", context.clock() + LOOK_AGAIN)
    return {"parts": [part.id for part in parts]}


def promote(context: Context, job: Job) -> dict[str, Any]:
    """Publish all of it in one publication."""
    pocket = context.pocket(job)
    found = transaction.publish(context, job, lambda: _changes(context, job, pocket))
    tell_parts(context, job)
    return found


def parts_of(context: Context, job: Job) -> list[Job]:
    """The jobs that are a part of this one, as far as they exist."""
    packages = (job.fact("admit") or {}).get("packages", [])
    names = [p["job"] for p in packages if p.get("rebuild")]
    return [
        Job(context.site.jobs / name, context.clock)
        for name in names
        if (context.site.jobs / name).is_dir()
    ]


def tell_parts(context: Context, job: Job) -> None:
    """Have the parts look at what has become of the whole."""
    for part in parts_of(context, job):
        part.nudge()
        context.tell(part)


def give_up(context: Context, job: Job) -> None:
    """Nothing will be published: end the parts, too."""
    for part in parts_of(context, job):
        if part.status.state not in (State.FAILED, State.REFUSED, State.CANCELLED):
            part.ask_cancel(f"job {job.id}, which it is a part of")
            context.tell(part)


def _changes(context: Context, job: Job, pocket: Pocket) -> list[Change]:
    origin = context.site.pockets.get(job.request.args[0])
    if origin is None:
        raise Fault(f"no such pocket: {job.request.args[0]}", code="no-pocket")
    admitted = job.need("admit")
    if not admitted["despite"]:
        # Something may have gone from the pocket since.
        names = [found["package"] for found in admitted["packages"]]
        if broken := left_behind(context, origin, pocket, names):
            raise Refused(broken)
    return [_change(context, job, origin, pocket, p) for p in admitted["packages"]]


def _change(
    context: Context, job: Job, origin: Pocket, pocket: Pocket, found: dict[str, Any]
) -> Change:
    """What becomes of one package. Raises Refused when a pocket is not as admission saw it."""
    package = found["package"]
    if context.superproject.pin(pocket.branch, package) != found["pinned"]:
        message = f"{package} in {pocket.name} was published anew in the meantime"
        raise Refused([Reason(code="overtaken", message=message, hint="promote again")])
    trailers = {"Promotion": job.id, "Promoted-From": origin.name}
    # What the pocket does not have any more, or lacks, is recorded with what made it so.
    if despite := job.need("admit").get("despite"):
        trailers["Despite-Dependencies"] = "; ".join(despite)[:MAX_DESPITE]
    if found["rebuild"]:
        part = Job(context.site.jobs / found["job"], context.clock)
        record = {**uploads.made_record(part, pocket), "promoted_from": origin.name}
        upload = uploads.made_upload(part)
    else:
        kept = context.superproject.record(origin.branch, package) or {}
        if (kept.get("version"), kept.get("commit")) != (found["version"], found["commit"]):
            message = f"{package} in {origin.name} was published anew in the meantime"
            raise Refused([Reason(code="overtaken", message=message, hint="promote again")])
        record = uploads.record_again(kept, job, pocket, promoted_from=origin.name)
        upload = uploads.kept_upload(context, origin, kept)
    return Change(
        package=package,
        job=found["job"],
        commit=found["commit"],
        record=record,
        upload=upload,
        subject=f"{package} {record['version']} from {origin.name} for {pocket.name}",
        trailers={**uploads.trailers(record), **trailers},
    )
