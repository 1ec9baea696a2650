"""Admit: from a submission to a commit id, a version and kept refs; or all reasons why not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from invirtibuilder.gitrepo import JOBS
from invirtibuilder.jobs import Job
from invirtibuilder.stages.assess import assess
from invirtibuilder.stages.context import Context


def admit(context: Context, job: Job) -> dict[str, Any]:
    """Assess anew at take-up, and keep what the job needs, whatever is pushed from now on."""
    admission = assess(
        context.site,
        principal=job.request.principal,
        pocket=job.pocket,
        package=job.package,
        # As it was when it was taken up, whatever a branch says now.
        committish=job.status.commit or job.committish,
        now=context.clock(),
        # What is rebuilt for a promotion needs that one's right.
        action="promote" if job.part_of else "submit",
    )
    repository = context.repository(job.package)
    held = {"commit": admission.commit, "pristine-tar": admission.pristine_tar}
    if admission.upstream_tag:
        held["upstream-tag"] = admission.upstream_tag["object"]
    # A run that was cut off may have kept another state of a branch.
    repository.hold(f"{JOBS}{job.id}", {name: target for name, target in held.items() if target})
    job.note(version=admission.version, commit=admission.commit)
    return asdict(admission)
