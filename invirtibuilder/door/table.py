"""What the daemon compiled for the doors: pockets, who may do what in them, where things are."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

from invirtibuilder.errors import Denied, Unavailable
from invirtibuilder.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing, too, takes its time to import
    from typing import Any

VERSION = 1
MAX_BYTES = 16 << 20
ASK = "tell the site's administrator; the daemon writes it anew"


class Table:
    """SITE/run/door.json. A principal is who it says, exactly; nobody is matched by a pattern."""

    def __init__(self, value: dict[str, Any], now: datetime) -> None:
        self.site = str(value["site"])
        self.queue = str(value["queue"])
        self.jobs = str(value["jobs"])
        self.socket = str(value["socket"])
        self.queue_view = os.path.join(os.path.dirname(self.socket), "queue.json")
        self.packages: list[str] = sorted(value["packages"])
        self.pockets: dict[str, dict[str, Any]] = value["pockets"]
        self._administrators: list[str] = value["administrators"]
        self._now = now

    def rights(self, principal: str, pocket: str) -> list[str]:
        """The actions that the principal may do in the pocket; none in one that does not exist."""
        actions = self.pockets.get(pocket, {}).get("actions", {})
        return sorted(action for action, who in actions.items() if principal in who)

    def own(self, principal: str) -> list[str]:
        """The pockets in which the principal may do anything."""
        return sorted(name for name in self.pockets if self.rights(principal, name))

    def administers(self, principal: str) -> bool:
        """Whether the principal may do what is done to the whole site."""
        return principal in self._administrators

    def stale(self, pocket: str) -> str:
        """Since when what is known of the pocket's ACL no longer counts; nothing if it does."""
        expires = self.pockets.get(pocket, {}).get("expires")
        if expires is None or datetime.fromisoformat(expires).astimezone(UTC) > self._now:
            return ""
        return str(expires)

    def readable(self, principal: str, pocket: str) -> bool:
        """Whether jobs of the pocket are shown to the principal: to all who may do anything."""
        return bool(self.rights(principal, pocket)) and not self.stale(pocket)

    def require(self, principal: str, pocket: str, action: str = "") -> None:
        """Raise Denied unless the principal may (with no action: do anything) in the pocket.

        A pocket that does not exist answers in the same words. Raises Unavailable when the answer
        is too old to count.
        """
        own = self.own(principal)
        if pocket in self.pockets and own and (since := self.stale(pocket)):
            raise Unavailable(
                f"who may do what in {pocket} is not known: the answer is stale since {since}",
                hint=ASK,
                code="acl-stale",
            )
        rights = self.rights(principal, pocket)
        if not rights or (action and action not in rights):
            raise Denied(
                f"{printable(principal)} may not {action or 'look'} in {printable(pocket)[:80]}",
                hint=f"your pockets: {', '.join(own) or 'none'}",
                code="not-permitted",
            )


def load(path: str, now: datetime) -> Table:
    """Read the table. Raises Unavailable when it is not there or damaged."""
    try:
        # Not O_NOFOLLOW: /etc/invirtibuilder/door.json may be a link to the site's.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            value = json.loads(file.read(MAX_BYTES))
        if value["v"] != VERSION:
            raise ValueError(f"version {value['v']}")
        return Table(value, now)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Unavailable(
            f"the pockets are not known: {path}: {printable(str(error))[:200]}",
            hint="start the daemon, or run `invirtibuilder acl compile`",
            code="no-table",
        ) from error
