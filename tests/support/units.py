"""The units of debian/ and of conf/, by the names that they are installed with."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.repository import TOP

FOLDER = TOP / "debian"
DROP_INS = FOLDER / "invirtibuilder-worker@trusted.service.d"
KINDS = ("service", "socket", "timer")


@dataclass(frozen=True)
class Unit:
    """A unit's settings; one that is given several times has all that was said, in order."""

    name: str
    path: Path
    settings: dict[str, tuple[str, ...]]

    def all(self, setting: str) -> list[str]:
        """The words of `Section.Setting`, after what was taken back by an empty one."""
        found: list[str] = []
        for value in self.settings.get(setting, ()):
            found = [*found, *value.split()] if value else []
        return found

    def one(self, setting: str) -> str:
        """What counts of a setting that is given once."""
        return self.settings.get(setting, ("",))[-1]


def installed_name(path: Path) -> str:
    """The name that dh_installsystemd gives to a file.

    >>> installed_name(Path("invirtibuilder@.invirtibuilder-worker.socket"))
    'invirtibuilder-worker@.socket'
    """
    package, *middle, kind = path.name.split(".")
    name = middle[0] if middle else package
    return f"{name}@.{kind}" if package.endswith("@") else f"{name}.{kind}"


@functools.cache
def units() -> dict[str, Unit]:
    """All of them by name."""
    paths = [path for kind in KINDS for path in FOLDER.glob(f"*.{kind}")]
    paths += [path for kind in KINDS for path in (TOP / "conf").rglob(f"*.{kind}")]
    made = [Unit(installed_name(path), path, _read(path.read_text())) for path in sorted(paths)]
    return {unit.name: unit for unit in made}


def worker(domain: str) -> Unit:
    """The worker's service of a domain, with its drop-in."""
    template = units()["invirtibuilder-worker@.service"]
    settings = dict(template.settings)
    if domain == "trusted":
        for name, values in _read((DROP_INS / "account.conf").read_text()).items():
            settings[name] = (*settings.get(name, ()), *values)
    settings = {n: tuple(v.replace("%i", domain) for v in vs) for n, vs in settings.items()}
    return Unit(f"invirtibuilder-worker@{domain}.service", template.path, settings)


def _read(text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    section = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and line[0] not in "#;":
            name, _, value = line.partition("=")
            key = f"{section}.{name.strip()}"
            found[key] = (*found.get(key, ()), value.strip())
    return found
