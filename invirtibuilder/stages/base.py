"""Making a pocket's base anew, as an order to its worker. Not a stage of the line."""

from __future__ import annotations

from invirtibuilder import files
from invirtibuilder.errors import Fault, Reason
from invirtibuilder.jobs import Job
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.orders import carry_out
from invirtibuilder.states import State


def refresh_base(context: Context, job: Job) -> None:
    """Take a `base-refresh` to its final state."""
    if job.status.state == State.QUEUED:
        job.move(State.RUNNING)
    job.note(stage="base")
    try:
        pocket = context.pocket(job)
        into = job.directory / "base"
        manifest = carry_out(
            context,
            job,
            pocket,
            kind="base",
            room=context.room(pocket, own_packages=False),
            content={},
            inputs={},
            into=into,
        )
        files.remove_tree(into)
    except Fault as fault:
        reasons: list[Reason] = list(fault.reasons)
        job.move(State.FAILED, str(fault), reasons=reasons, blame=fault.blame)
        return
    job.write_fact("base", dict(manifest.report))
    job.move(State.DONE, f"base {manifest.environment.get('base', '')[:12]}")
