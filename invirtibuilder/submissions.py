"""Submissions at their take-up: each becomes a job, or an alias of one that is the same.

Safe to repeat: a daemon that is killed at any instant leaves an entry that is taken up again, and
that finds the job, or the alias, that was made of it.
"""

from __future__ import annotations

from invirtibuilder import model, quotas
from invirtibuilder.aliases import Alias
from invirtibuilder.errors import Fault, Refused
from invirtibuilder.gitrepo import Repository
from invirtibuilder.jobs import Job
from invirtibuilder.spool import Request
from invirtibuilder.stages.assess import not_permitted
from invirtibuilder.stages.context import Context


def take_up(context: Context, request: Request) -> Job | None:
    """The job of a submission; None when it is an alias of another. Raises Refused."""
    jobs = context.jobs
    if jobs.aliases.get(request.id):
        return None
    pocket, package, committish = request.args
    commit = _commit(context, package, committish)
    same = None
    if commit and not (jobs.directory / request.id).exists():
        same = jobs.identical(pocket, package, commit)
    rules = context.site.pockets.get(pocket)
    if same and (rules is None or not_permitted(rules, request.principal, "submit")):
        same = None  # a job of its own, which admission refuses
    queued = same is None
    excess = quotas.excess(context, request.principal, pocket, but=request.id, queued=queued)
    if excess:
        raise Refused(excess)
    if same is None:
        return jobs.create(request, commit=commit)
    jobs.aliases.add(request, same.id, context.clock())
    same.remark(f"{request.principal} asks for the same, as {request.id}, via {request.via}")
    return None


def withdraw(context: Context, alias: Alias, job: Job) -> None:
    """A later submitter no longer wants what is another's job: that goes on."""
    if not alias.withdrawn and not job.status.final:
        context.jobs.aliases.withdraw(alias, context.clock())
        job.remark(f"{alias.request.principal} no longer asks for it, as {alias.request.id}")


def _commit(context: Context, package: str, committish: str) -> str:
    """The commit that is meant; nothing when there is none (admission says why)."""
    if model.COMMIT.fullmatch(committish.lower()):
        return committish.lower()
    path = context.site.package_repository(package)
    try:
        return Repository(path).resolve(committish) if path.is_dir() else ""
    except Fault:
        return ""
