"""Making a pocket's base anew, as an order to its worker. Not a stage of the line."""

from __future__ import annotations

from invirtibuilder import files
from invirtibuilder.errors import Blame, Cancelled, Fault, Reason
from invirtibuilder.jobs import Job
from invirtibuilder.stages.context import Context, Wait
from invirtibuilder.stages.orders import carry_out
from invirtibuilder.states import State


def refresh_base(context: Context, job: Job) -> None:
    """Take a `base-refresh` to its final state."""
    if job.status.state in (State.QUEUED, State.WAITING):
        job.move(State.RUNNING)
    job.note(stage="base")
    try:
        if job.cancel_asked:
            raise Cancelled(f"cancelled by {job.cancel_asked}")
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
    except Wait as wait:
        job.move(State.WAITING, str(wait), wake=wait.wake)
        return
    except Fault as fault:
        reasons: list[Reason] = list(fault.reasons)
        state = State.CANCELLED if isinstance(fault, Cancelled) else State.FAILED
        job.move(state, str(fault), reasons=reasons, blame=fault.blame)
        return
    except OSError as error:
        reason = Reason(code="machine", message=str(error), hint="`retry` may help")
        job.move(State.FAILED, str(error), reasons=[reason], blame=Blame.MACHINE)
        return
    job.write_fact("base", dict(manifest.report))
    job.move(State.DONE, f"base {manifest.environment.get('base', '')[:12]}")
