"""Real accounts for one test: made, given subordinate ids, and removed again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from invirtibuilder.run import ProcessFault, run
from invirtibuilder.sandbox.ids import Ids


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Who runs what."""

    submitter: str
    stranger: str
    daemon: str
    worker: str
    queue_group: str  # submitters
    worker_group: str  # whoever may send orders to the worker


@contextmanager
def made_accounts(ids: Ids) -> Iterator[Accounts]:
    """Accounts of their own; the worker's has the same subordinate ids as the shared base."""
    mark = secrets.token_hex(2)
    names = {
        role: f"ivb{mark}{role[:3]}"
        for role in ("submitter", "stranger", "daemon", "worker", "queue", "orders")
    }
    try:
        run(["groupadd", "--system", names["queue"]])
        run(["groupadd", "--system", names["orders"]])
        for role, groups in {
            "submitter": names["queue"],
            "stranger": names["queue"],
            "daemon": f"{names['orders']},{names['queue']}",
            "worker": names["orders"],
        }.items():
            options = ["--system", "--no-create-home", "--user-group", "--groups", groups]
            run(["useradd", *options, "--shell", "/usr/sbin/nologin", names[role]])
        block = f"{ids.first_uid}-{ids.first_uid + ids.count - 1}"
        run(["usermod", "--add-subuids", block, "--add-subgids", block, names["worker"]])
        yield Accounts(
            submitter=names["submitter"],
            stranger=names["stranger"],
            daemon=names["daemon"],
            worker=names["worker"],
            queue_group=names["queue"],
            worker_group=names["orders"],
        )
    finally:
        for role in ("submitter", "stranger", "daemon", "worker"):
            with suppress(ProcessFault):
                run(["userdel", names[role]])
        for role in ("queue", "orders"):
            with suppress(ProcessFault):
                run(["groupdel", names[role]])
