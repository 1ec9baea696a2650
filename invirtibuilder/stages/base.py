"""Making a pocket's base anew, as an order to its worker. Not a stage of the line."""

from __future__ import annotations

from invirtibuilder import files
from invirtibuilder.jobs import Job
from invirtibuilder.stages.context import Context
from invirtibuilder.stages.orders import carry_out


def refresh_base(context: Context, job: Job) -> str:
    """Have it made; the base, in words."""
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
    job.write_fact("base", dict(manifest.report))
    return f"base {manifest.environment.get('base', '')[:12]}"
