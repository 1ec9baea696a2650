"""Whether packages that move to another pocket leave a dependency behind, there or here.

A pocket has one version of a package, so each dependency is met there, or is not; that is said by
name. What a solver has to tell, such as Breaks and Conflicts, `apt-get -s` does on the repository
that would be. A dependency that neither pocket meets is the mirror's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from invirtibuilder import debsource
from invirtibuilder.apt.packages import (
    Alternative,
    BinaryPackage,
    known_versions,
    read_packages,
    sources_of,
)
from invirtibuilder.apt.simulation import simulation
from invirtibuilder.errors import Reason
from invirtibuilder.settings import Pocket
from invirtibuilder.stages.context import Context

Need = tuple[Alternative, ...]


class _World:
    """What a set of binary packages provides."""

    def __init__(self, packages: Iterable[BinaryPackage]) -> None:
        self.packages = list(packages)
        self.names = {package.name for package in self.packages}
        self._versions: dict[str, list[tuple[str, str]]] = {}
        for package in self.packages:
            for name, version in ((package.name, package.version), *package.provides):
                self._versions.setdefault(name, []).append((version, package.source))

    def meets(self, need: Need) -> str:
        """The source of a package that meets the need; nothing when there is none."""
        for name, relation, wanted in need:
            for version, source in self._versions.get(name, ()):
                if _fits(version, relation, wanted):
                    return source
        return ""


def _fits(version: str, relation: str, wanted: str) -> bool:
    """Debian Policy 7.1; an unversioned Provides meets no versioned relation (7.5).

    >>> _fits("1.0", ">=", "1.0~rc1"), _fits("1.0", "<<", "1.0"), _fits("", "=", "1.0")
    (True, False, False)
    """
    if not relation:
        return True
    if not version:
        return False
    order = debsource.compare(version, wanted)
    met = {
        "<<": order < 0,
        "<=": order <= 0,
        "=": order == 0,
        ">=": order >= 0,
        ">>": order > 0,
        "<": order <= 0,
        ">": order >= 0,
    }
    return met[relation]


def left_behind(
    context: Context, origin: Pocket, target: Pocket, packages: Collection[str]
) -> list[Reason]:
    """What would break in `target` if just these came over from `origin`."""
    there, here = _World(_binaries(context, origin)), _World(_binaries(context, target))
    moved = [p for p in there.packages if p.source in packages]
    names = {p.name for p in moved}
    stay = [p for p in here.packages if p.source not in packages and p.name not in names]
    after = _World([*stay, *moved])
    broken = []
    for package in moved:
        for need in package.needs:
            if not after.meets(need) and (source := there.meets(need)):
                broken.append((package, need, source, f"promote {source} as well"))
    for package in stay:
        for need in package.needs:
            if not after.meets(need) and (source := here.meets(need)):
                hint = f"a version of {package.source} that goes with it has to come, too"
                broken.append((package, need, source, hint))
    elsewhere = _mirror([need for _, need, _, _ in broken], target)
    found = [
        Reason(
            code="dependency-broken",
            message=f"{package.name} {package.version} needs {_text(need)}, which {target.name}"
            f" would not have: it is of {source}",
            hint=hint,
        )
        for package, need, source, hint in broken
        if not elsewhere.meets(need)
    ]
    return found or _told_by_apt(
        moved, _World([*after.packages, *elsewhere.packages]), there, target
    )


def _told_by_apt(
    moved: Sequence[BinaryPackage], after: _World, there: _World, target: Pocket
) -> list[Reason]:
    """What APT could not install of `after`, and can where the packages come from.

    What stays is asked about beside what came if one speaks of the other. That two packages
    exclude each other there as well is as it is meant.
    """
    came = {package.name for package in moved}
    beside = {p.name for p in after.packages if p.name not in came and _related(p, moved)}
    groups = [came, came | (beside & there.names)]
    with (
        simulation(_stanzas(after), target.architectures) as then,
        simulation(_stanzas(there), target.architectures) as now,
    ):
        if not any(then.trouble(sorted(group)) for group in groups if group):
            return []
        asked = [[name] for name in sorted(came)]
        asked += [[name, other] for name in sorted(came) for other in sorted(beside & there.names)]
        found = {
            words: names
            for names in asked
            if (words := then.trouble(names)) and not now.trouble(names)
        }
    return [
        Reason(
            code="dependency-broken",
            message=f"{' beside '.join(names)} could not be installed from {target.name}: {words}",
            hint="promote what goes with it as well",
        )
        for words, names in found.items()
    ]


def _related(package: BinaryPackage, moved: Sequence[BinaryPackage]) -> bool:
    """Whether it needs one of these or its virtual packages, or one of the two is a rival."""
    names = {n for each in moved for n in (each.name, *(name for name, _ in each.provides))}
    needed = {name for need in package.needs for name, _, _ in need}
    own = {package.name, *(name for name, _ in package.provides)}
    return bool(names & (needed | package.rivals)) or any(own & each.rivals for each in moved)


def _stanzas(world: _World) -> Iterator[str]:
    """An index of these packages, and of something that meets each need that is the mirror's."""
    for package in world.packages:
        head = f"Package: {package.name}\nVersion: {package.version}\nArchitecture: all"
        yield package.stanza or head
    needs = dict.fromkeys(need for package in world.packages for need in package.needs)
    for need in needs:
        if not world.meets(need):
            name, relation, wanted = need[0]
            after = {"<<": "~", ">>": "+"}.get(relation, "")
            yield f"Package: {name}\nVersion: {wanted or '0'}{after}\nArchitecture: all"


def owners(context: Context, pocket: Pocket, names: Collection[str]) -> dict[str, str]:
    """Which sources of the pocket have binary packages of these names, as clients see it."""
    found: dict[str, str] = {}
    # Those for the installer, too.
    for path in (*_indices(context, pocket), *_indices(context, pocket, "*/debian-installer")):
        found |= sources_of(path, names)
    return found


def _binaries(context: Context, pocket: Pocket) -> list[BinaryPackage]:
    found: dict[tuple[str, str], BinaryPackage] = {}
    for path in _indices(context, pocket):
        found |= {(p.name, p.version): p for p in read_packages(path)}
    return list(found.values())


def _indices(context: Context, pocket: Pocket, folder: str = "*") -> list[Path]:
    publications = context.archive(pocket).publications
    current = publications.current()
    if current is None:
        return []
    dists = publications.path(current) / "dists" / pocket.codename
    found = (dists.glob(f"{folder}/binary-{name}/Packages") for name in pocket.architectures)
    return sorted(path for paths in found for path in paths)


def _mirror(needs: Sequence[Need], pocket: Pocket) -> _World:
    """What this machine's APT knows of the names in question in the pocket's suite."""
    names = sorted({name for need in needs for name, _, _ in need})
    return _World(
        BinaryPackage(name=name, version=version, source="the mirror", provides=(), needs=())
        for name, version in known_versions(names, pocket.suite)
    )


def _text(need: Need) -> str:
    """As in debian/control.

    >>> _text((("libc6", ">=", "2.36"), ("libc6-udeb", "", "")))
    'libc6 (>= 2.36) | libc6-udeb'
    """
    return " | ".join(f"{n} ({r} {v})" if r else n for n, r, v in need)
