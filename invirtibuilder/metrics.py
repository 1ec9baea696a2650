"""A site's health as Prometheus metrics, in the text format of node-exporter's textfile collector.

Times are seconds since 1970 and sizes bytes. A value that is not known is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

from invirtibuilder.health import Health

PREFIX = "invirtibuilder_"
Labels = dict[str, str]
Samples = Iterable[tuple[Labels, float | None]]
Metric = tuple[str, str, Samples]
"""Name, what it is, and its samples."""


def text(health: Health) -> str:
    """The whole file."""
    gauges = (*_site(health), *_work(health), *_pockets(health))
    parts = [_family(name, "gauge", about, samples) for name, about, samples in gauges]
    return "".join([*parts, *_ended(health)])


def _family(name: str, kind: str, about: str, samples: Samples) -> str:
    """A metric with its samples; nothing without any."""
    lines = [_line(name, labels, value) for labels, value in samples if value is not None]
    return _head(name, kind, about) + "".join(lines) if lines else ""


def _head(name: str, kind: str, about: str) -> str:
    return f"# HELP {PREFIX}{name} {about}\n# TYPE {PREFIX}{name} {kind}\n"


def _line(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{PREFIX}{name}{f'{{{inner}}}' if inner else ''} {value:.17g}\n"


def _escaped(value: str) -> str:
    """A label's value.

    >>> _escaped('a"b\\n')
    'a\\\\"b\\\\n'
    """
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _seconds(time: object) -> float | None:
    return datetime.fromisoformat(str(time)).timestamp() if time else None


def _one(value: float | None) -> Samples:
    return [({}, value)]


def _site(health: Health) -> Iterator[Metric]:
    codes = Counter(trouble.code for trouble in health.troubles)
    disks = [({"path": disk.path}, disk) for disk in health.disks]
    hooks = [({"hook": hook.name}, hook) for hook in health.hooks]
    yield "info", "The daemon's version.", [({"version": health.version}, 1)]
    yield "up", "Whether the daemon answers.", _one(health.up)
    yield "start_time_seconds", "When the daemon started.", _one(_seconds(health.since))
    yield "look_time_seconds", "When all this was found out.", _one(_seconds(health.time))
    yield "healthy", "Whether `status --site` has no trouble.", _one(not codes)
    yield "troubles", "Troubles.", [({"code": code}, n) for code, n in sorted(codes.items())]
    yield "paused", "Pauses; * is all.", [({"scope": pause.scope}, 1) for pause in health.paused]
    yield "filesystem_free_bytes", "Room.", [(k, disk.free) for k, disk in disks]
    yield "filesystem_reserve_bytes", "Room to stay.", [(k, disk.reserve) for k, disk in disks]
    yield "hook_events_waiting", "Not accepted yet.", [(k, hook.waiting) for k, hook in hooks]
    yield "hook_events_failing", "Refused so far.", [(k, hook.failing) for k, hook in hooks]
    yield "acl_table_time_seconds", "The doors' ACLs.", _one(_seconds(health.acl_written))


def _work(health: Health) -> Iterator[Metric]:
    workers = [({"domain": worker.domain}, worker) for worker in health.workers]
    states = [({"state": state}, number) for state, number in health.states.items()]
    oldest = _seconds(health.oldest.get("since"))
    yield "unfinished_jobs", "Jobs that have not ended.", states
    yield "requests_waiting", "Requests that are not taken up.", _one(health.untaken)
    yield (
        "oldest_job_time_seconds",
        "Of those that wait, when it was asked for.",
        _one(oldest),
    )
    yield "worker_slots", "Orders at once.", [(k, worker.jobs) for k, worker in workers]
    yield "worker_busy", "Orders at work.", [(k, worker.busy) for k, worker in workers]
    yield "worker_up", "Whether it answers.", [(k, worker.answers) for k, worker in workers]
    services = [({"service": name}, answers) for name, answers in health.services.items()]
    yield "service_up", "Whether it answers.", services


def _pockets(health: Health) -> Iterator[Metric]:
    all_ = [({"pocket": pocket.name}, pocket) for pocket in health.pockets]
    keys = [
        ({**labels, "key": key}, _seconds(end))
        for labels, pocket in all_
        for key, end in pocket.keys.items()
    ]
    yield (
        "fsck_time_seconds",
        "The last fsck.",
        [(k, _seconds(p.fsck.get("time"))) for k, p in all_],
    )
    yield "fsck_differences", "What it found.", [(k, p.fsck.get("drift")) for k, p in all_]
    yield "gc_time_seconds", "The last gc.", [(k, _seconds(p.gc.get("time"))) for k, p in all_]
    yield "base_time_seconds", "The base's first use.", [(k, _seconds(p.base)) for k, p in all_]
    yield "acl_troubles", "Sources of ACLs that fail.", [(k, len(p.acl)) for k, p in all_]
    yield "key_expiry_time_seconds", "The end of a key that has one.", keys


def _ended(health: Health) -> Iterator[str]:
    """What only grows: it is of all jobs on disk, whichever daemon has done them."""
    counts = [
        ({"pocket": each.pocket, "action": each.action, "state": each.state}, each)
        for each in health.counts
    ]
    jobs = [(labels, float(each.jobs)) for labels, each in counts]
    yield _family("jobs_total", "counter", "Jobs that have ended.", jobs)
    if counts:
        yield _head("job_duration_seconds", "summary", "From the request to the end of its job.")
    for labels, each in counts:
        yield _line("job_duration_seconds_sum", labels, each.seconds)
        yield _line("job_duration_seconds_count", labels, each.jobs)
