"""What is paused: the whole queue or pockets, since when, by whom and why; over restarts, too.

While a pocket is paused nothing of its jobs starts: neither admission nor an order. What runs ends,
and is published.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from invirtibuilder import files, model
from invirtibuilder.entries import WHOLE
from invirtibuilder.errors import Malformed
from invirtibuilder.settings import Site


@dataclass(frozen=True, kw_only=True)
class Pause:
    """One pause; `scope` is a pocket, or `*` for all of them."""

    scope: str
    since: str
    by: str
    reason: str

    @property
    def text(self) -> str:
        """A sentence for a person, without its end.

        >>> Pause(scope="*", since="2026", by="unix/root", reason="a new disk").text
        'the queue is paused since 2026 by unix/root: a new disk'
        """
        what = "the queue" if self.scope == WHOLE else f"pocket {self.scope}"
        why = f": {model.printable(self.reason)}" if self.reason else ""
        return f"{what} is paused since {self.since} by {model.printable(self.by)}{why}"


def load(site: Site) -> dict[str, Pause]:
    """Every pause, by its scope. What cannot be read pauses all, and says so."""
    try:
        value = files.read_json(site.pauses)
        return {str(each["scope"]): Pause(**each) for each in value["paused"]}
    except FileNotFoundError:
        return {}
    except (OSError, Malformed, LookupError, TypeError) as error:
        reason = f"{site.pauses} cannot be read: {error}; `resume` and `pause` write it anew"
        return {WHOLE: Pause(scope=WHOLE, since="?", by="nobody", reason=reason)}


def of(pauses: dict[str, Pause], pocket: str) -> Pause | None:
    """What holds this pocket's jobs back, if anything does."""
    return pauses.get(WHOLE) or pauses.get(pocket)


def pause(site: Site, scope: str, *, by: str, reason: str, now: datetime) -> None:
    """Pause this from now on; who pauses it again replaces the reason."""
    new = Pause(scope=scope, since=model.iso(now), by=by, reason=reason)
    _save(site, {**load(site), scope: new})


def resume(site: Site, scope: str) -> bool:
    """End a pause; whether there was one. Others stay: a pocket's own is not the queue's."""
    pauses = load(site)
    if scope not in pauses:
        return False
    _save(site, {name: each for name, each in pauses.items() if name != scope})
    return True


def _save(site: Site, pauses: dict[str, Pause]) -> None:
    value = [asdict(pauses[name]) for name in sorted(pauses)]
    files.write_json(site.pauses, {"v": 1, "paused": value})
