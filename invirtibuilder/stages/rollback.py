"""Rollback: a pocket, or some of its packages, back to what they were; history goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from invirtibuilder import acl, model
from invirtibuilder.errors import Blame, Fault, Malformed, NotFound, Reason, Refused
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import history, transaction, uploads
from invirtibuilder.stages.changes import Change
from invirtibuilder.stages.context import Context


def assess_rollback(
    context: Context, *, principal: str, pocket: str, moment: str, packages: Sequence[str]
) -> dict[str, Any]:
    """What a rollback would do, nothing changed. Raises Refused with every reason."""
    rules = context.site.pockets.get(pocket)
    if rules is None:
        hint = f"one of {', '.join(context.site.pockets)}"
        message = f"no such pocket: {pocket}"
        raise Refused([Reason(code="no-pocket", message=message, hint=hint)])
    reasons = _not_permitted(rules, principal)
    try:
        commit = history.commit_at(context.site, rules, moment)
    except Fault as fault:
        if fault.blame == Blame.MACHINE:
            raise
        raise Refused([*reasons, *fault.reasons]) from fault
    steps = _steps(context, rules, commit, packages)
    known = {name for records in _records(context, rules, commit) for name in records}
    reasons += [
        Reason(
            code="not-in-pocket",
            message=f"{pocket} has no {name}, neither then nor now",
            hint=f"`pocket show {pocket}`",
        )
        for name in packages
        if name not in known
    ]
    for step in steps:
        if step["to"]:
            record = context.superproject.record_at(commit, step["package"]) or {}
            try:
                uploads.kept_upload(context, rules, record)
            except Refused as refused:
                reasons += refused.reasons
    if not steps and not reasons:
        message = f"{pocket} is as it was at {commit[:12]}" + (" in these" if packages else "")
        reasons = [Reason(code="nothing-to-do", message=message)]
    if reasons:
        raise Refused(reasons)
    return {
        "commit": commit,
        "version": "",
        "packages": [{**step, "how": _how(step)} for step in steps],
    }


def _not_permitted(pocket: Pocket, principal: str) -> list[Reason]:
    """A backtracking pocket goes back for whoever may submit; any, with the right to."""
    actions = ["rollback", *(["submit"] if pocket.allow_backtracking else [])]
    troubles: list[Reason] = []
    for action in actions:
        ok, found = acl.allowed(principal, pocket.acl[action], pocket=pocket.name, action=action)
        if ok:
            return []
        troubles += found
    message = f"{model.printable(principal)} may not roll {pocket.name} back"
    hint = f"the administrator grants it: pockets: {pocket.name}: acl: rollback"
    return [Reason(code="not-permitted", message=message, hint=hint), *troubles]


def _steps(
    context: Context, pocket: Pocket, commit: str, packages: Sequence[str]
) -> list[dict[str, Any]]:
    """Each package that differs, with the version that it has and the one that it had, None for
    none. The version may be one: it may have lost binary packages to another source."""
    superproject = context.superproject
    then, now = _records(context, pocket, commit)
    steps = []
    for name in dict.fromkeys(packages) or sorted({*then, *now}):
        if then.get(name) == now.get(name):
            continue
        old = superproject.record_at(commit, name) or {}
        new = superproject.record(pocket.branch, name) or {}
        if any(old.get(key) != new.get(key) for key in ("version", "taken")):
            versions = {"from": new.get("version"), "to": old.get("version")}
            steps.append({"package": name, **versions})
    return steps


def _records(
    context: Context, pocket: Pocket, commit: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The ids of the records of a commit, and of those that the pocket has now."""
    superproject = context.superproject
    tip = superproject.tip(pocket.branch) or commit
    return superproject.record_ids(commit), superproject.record_ids(tip)


def _how(step: dict[str, Any]) -> str:
    if step["to"] is None:
        return f"{step['from']} goes"
    if step["from"] is None:
        return f"{step['to']} comes back"
    if step["from"] == step["to"]:
        return f"{step['to']} has the same binary packages again"
    return f"{step['from']} becomes {step['to']}"


def asked_for(context: Context, pocket: Pocket) -> set[str]:
    """The commits that jobs which are not over take the pocket back to: gc leaves what these show.

    Also those of jobs that are not admitted yet, as that may be so at any moment.
    """
    found = set()
    for job in context.jobs.unfinished():
        if job.request.action == "rollback" and job.pocket == pocket.name:
            admitted = job.fact("admit") or {}
            with suppress(Malformed, NotFound):
                found.add(
                    str(admitted.get("commit") or "")
                    or history.commit_at(context.site, pocket, job.request.args[1])
                )
    return found


def coming_back(context: Context, pocket: Pocket) -> Iterator[dict[str, Any]]:
    """The records that the pocket does not have now, and that such jobs may publish again."""
    superproject = context.superproject
    tip = superproject.tip(pocket.branch)
    now = superproject.record_ids(tip) if tip else {}
    for commit in asked_for(context, pocket):
        for package, content in superproject.record_ids(commit).items():
            if now.get(package) != content:
                yield superproject.record_at(commit, package) or {}


def admit_rollback(context: Context, job: Job) -> dict[str, Any]:
    """Assess anew at take-up."""
    pocket, moment, *packages = job.request.args
    if rules := context.site.pockets.get(pocket):
        # Whatever gc removes without knowing of this job has gone when it gives the lock back.
        with transaction.settled(context, rules):
            pass
    plan = assess_rollback(
        context, principal=job.request.principal, pocket=pocket, moment=moment, packages=packages
    )
    job.note(commit=plan["commit"])
    for step in plan["packages"]:
        job.remark(f"{step['package']}: {step['how']}")
    return plan


def roll_back(context: Context, job: Job) -> dict[str, Any]:
    """Restore APT's content and the pins together, as a new publication."""
    pocket = context.pocket(job)

    def prepare() -> list[Change]:
        commit = str(job.need("admit")["commit"])
        steps = _steps(context, pocket, commit, job.request.args[2:])
        found = [_change(context, job, pocket, commit, step["package"]) for step in steps]
        if not found:
            message = f"{pocket.name} has come to be as it was at {commit[:12]} by itself"
            raise Refused([Reason(code="overtaken", message=message)])
        return found

    return transaction.publish(context, job, prepare)


def _change(context: Context, job: Job, pocket: Pocket, commit: str, package: str) -> Change:
    record = context.superproject.record_at(commit, package)
    asked = {"Principal": job.request.principal, "Rollback-To": commit}
    if record is None:
        return Change(
            package=package,
            job=job.id,
            commit=None,
            record={},
            upload=None,
            subject=f"{package} leaves {pocket.name}",
            trailers=asked,
        )
    again = uploads.record_again(record, job, pocket, rolled_back_to=commit)
    return Change(
        package=package,
        job=job.id,
        commit=str(record["commit"]),
        record=again,
        upload=uploads.kept_upload(context, pocket, record),
        subject=f"{package} back to {record['version']} in {pocket.name}",
        trailers={**uploads.trailers(again), **asked},
    )
