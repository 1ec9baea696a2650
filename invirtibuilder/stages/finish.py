"""What follows the commit point of a publication: tags, what clients see, the facts of its jobs.

The intent says all of it. Every step can be done again, which the next holder of the pocket's lock
does after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from invirtibuilder import files, model
from invirtibuilder.errors import Fault
from invirtibuilder.gitrepo import Repository
from invirtibuilder.jobs import Job
from invirtibuilder.settings import Pocket
from invirtibuilder.stages import changes
from invirtibuilder.stages.context import Archive, Context, Wait

INTENT = "intent.json"
FACT = "publish"
COMMITTED = "committed"
"""A fact of a job that stands in the superproject, but has not all that follows: no way back."""

AGAIN = timedelta(seconds=30)


def refs_of(repository: Repository) -> dict[str, str]:
    """All refs of a repository; none where it is gone."""
    return repository.refs("refs/") if repository.path.is_dir() else {}


def _make_refs(
    context: Context, intent: dict[str, Any], there: Mapping[str, Mapping[str, str]] | None
) -> None:
    """With all the refs that are there already, by package; None: look."""
    for change in _changes(intent):
        name, job = change["package"], change["job"]
        repository = context.repository(name)
        seen = refs_of(repository) if there is None else there[name]
        changes.make_refs(repository, change["refs"], seen, job)


def finished(
    context: Context,
    archive: Archive,
    pocket: Pocket,
    intent: dict[str, Any],
    there: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Have all come true that a committed publication means; safe to repeat.

    `there` are the refs of each package's repository, if they are known. Raises Wait when it cannot
    be done now: it is published, so nothing may fail it any more.
    """
    try:
        _finish(context, archive, intent, there)
    except (Fault, OSError) as error:
        for job in _jobs(context, intent):
            job.write_fact(COMMITTED, {"commit": intent["commit"]})
        why = f"publication {intent['publication']} of {pocket.name} cannot be finished: {error}"
        raise Wait(why, context.clock() + AGAIN) from error


def _finish(
    context: Context,
    archive: Archive,
    intent: dict[str, Any],
    there: Mapping[str, Mapping[str, str]] | None,
) -> None:
    """Every step can be repeated. Git's part and the archive's are done at the same time."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        making = beside.submit(_make_refs, context, intent, there)
        if archive.publications.current() != intent["publication"]:
            archive.publications.switch(intent["publication"])
        archive.reprepro.commit()
        making.result()
    # Before the intent goes: later there may be other records in their place.
    for job in _jobs(context, intent):
        _write_facts(context, job, intent)
    (archive.reprepro.private / INTENT).unlink(missing_ok=True)
    files.sync_directory(archive.reprepro.private)


def _changes(intent: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [change for job in intent["jobs"] for change in job["changes"]]


def _jobs(context: Context, intent: Mapping[str, Any]) -> list[Job]:
    """Every job that the intent names and that is still there, once."""
    names = [name for job in intent["jobs"] for name in (job["job"], *_parts(job))]
    paths = [context.site.jobs / name for name in dict.fromkeys(names)]
    return [Job(path, context.clock) for path in paths if path.is_dir()]


def _parts(job: Mapping[str, Any]) -> list[str]:
    return [str(change["job"]) for change in job["changes"]]


def _write_facts(context: Context, job: Job, intent: Mapping[str, Any]) -> None:
    """What was published for this job, be it its own or a part of another's."""
    mine = [
        change
        for each in intent["jobs"]
        for change in each["changes"]
        if job.id in (each["job"], change["job"]) and not change.get("loses")
    ]
    packages = []
    for change in mine:
        record = context.superproject.record_at(change["commit"], change["package"]) or {}
        packages.append(
            {
                "package": change["package"],
                "version": record.get("version"),
                "commit": record.get("commit"),
                "superproject_commit": change["commit"],
                "files": record.get("files", []),
            }
        )
    date = context.superproject.date(intent["commit"])
    value = {
        "publication": intent["publication"],
        "date": model.iso(date),
        "superproject_commit": mine[-1]["commit"],
        "files": [file for package in packages for file in package.pop("files")],
        "packages": packages,
    }
    job.write_fact(FACT, value)
