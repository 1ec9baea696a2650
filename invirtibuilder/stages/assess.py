"""What admission finds out: whether a commit fits a pocket's rules, with all reasons if not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from invirtibuilder import acl, debsource, model
from invirtibuilder.errors import Blame, Fault, Reason, Refused
from invirtibuilder.gbpconf import gbp_settings, upstream_tags
from invirtibuilder.gitrepo import Repository
from invirtibuilder.settings import Pocket, Site
from invirtibuilder.spool import local_principal
from invirtibuilder.superproject import Superproject

MAX_CHANGELOG = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What was found: the facts that all later stages start from."""

    commit: str
    tree: str
    version: str  # as it will be published
    changelog_version: str
    changelog_entry: str | None  # what a backtracking pocket puts on top
    urgency: str
    maintainer: str
    changes: tuple[str, ...]
    format: str
    native: bool
    pinned: str | None
    stamp: str
    pristine_tar: str | None
    upstream_tag: dict[str, str] | None
    compression: str
    components: tuple[str, ...]


def assess(
    site: Site,
    *,
    principal: str,
    pocket: str,
    package: str,
    committish: str,
    now: datetime,
    action: str = "submit",
) -> Admission:
    """Look at a submission without changing anything. Raises Refused with every reason.

    `action` is what the ACL has to allow.
    """
    reasons: list[Reason] = []
    rules = site.pockets.get(pocket)
    if rules is None:
        known = ", ".join(site.pockets)
        hint = f"one of {known}; a running daemon learns of a new one when it is restarted"
        reasons.append(Reason(code="no-pocket", message=f"no such pocket: {pocket}", hint=hint))
    else:
        # The site writes this package itself, and needs nobody's leave to submit it.
        own = rules.archive_keyring and package == rules.keyring
        if not (own and principal == local_principal(os.geteuid())):
            reasons += not_permitted(rules, principal, action)
    path = site.package_repository(package)
    if not path.is_dir():
        hint = f"`invirtibuilder package list`; `invirtibuilder package create {package}`"
        reasons.append(Reason(code="no-package", message=f"no such package: {package}", hint=hint))
        raise Refused(reasons)
    examiner = _Examiner(site, Repository(path), rules, package, now)
    admission = examiner.examine(committish)
    reasons += examiner.reasons
    if reasons or admission is None:
        raise Refused(reasons)
    return admission


def examined(site: Site, pocket: Pocket, package: str, committish: str, now: datetime) -> Admission:
    """As `assess`, of a pocket and package that exist, whoever asks. Raises Refused."""
    examiner = _Examiner(site, Repository(site.package_repository(package)), pocket, package, now)
    admission = examiner.examine(committish)
    if examiner.reasons or admission is None:
        raise Refused(examiner.reasons)
    return admission


def not_permitted(pocket: Pocket, principal: str, action: str) -> list[Reason]:
    """Why the pocket's ACL does not let the principal; nothing if it does."""
    ok, troubles = acl.allowed(principal, pocket.acl[action], pocket=pocket.name, action=action)
    if ok:
        return []
    message = f"{model.printable(principal)} may not {action} to {pocket.name}"
    hint = f"the administrator grants it: pockets: {pocket.name}: acl: {action}"
    return [Reason(code="not-permitted", message=message, hint=hint), *troubles]


class _Examiner:
    """Looks at one commit for one pocket and gathers reasons."""

    def __init__(
        self, site: Site, repository: Repository, pocket: Pocket | None, package: str, now: datetime
    ) -> None:
        self.site = site
        self.repository = repository
        self.pocket = pocket
        self.package = package
        self.now = now
        self.reasons: list[Reason] = []

    def examine(self, committish: str) -> Admission | None:
        try:
            commit = self.repository.resolve(committish)
            if not self.repository.reachable(commit):
                self._refuse(
                    "commit-unreachable",
                    f"no branch or tag has the commit {commit[:12]}",
                    "git push the branch that has it",
                )
        except Fault as fault:
            self._take(fault)
            return None
        entry = self._changelog(commit)
        format_ = self._format(commit)
        tarballs = self._upstream(commit, entry.version, format_) if entry and format_ else None
        if entry is None or format_ is None or self.pocket is None:
            return None
        if reason := debsource.version_fits_format(entry.version, format_):
            self.reasons.append(reason)
        native = format_ == "3.0 (native)" or (format_ == "1.0" and "-" not in entry.version)
        superproject = Superproject(self.site.superproject)
        pinned = superproject.pin(self.pocket.branch, self.package)
        record = superproject.record(self.pocket.branch, self.package) or {}
        stamp = self._stamp(record)
        version, added = entry.version, None
        if self.pocket.allow_backtracking:
            version, added = self._suffixed(self.pocket, entry, commit, stamp)
        else:
            self._forward(self.pocket, commit, entry, pinned, record)
        if self.reasons or tarballs is None:
            return None
        return Admission(
            commit=commit,
            tree=self.repository.tree(commit),
            version=version,
            changelog_version=entry.version,
            changelog_entry=added,
            urgency=entry.urgency,
            maintainer=entry.maintainer,
            changes=entry.changes,
            format=format_,
            native=native,
            pinned=pinned,
            stamp=model.stamp(stamp),
            **tarballs,
        )

    def _refuse(self, code: str, message: str, hint: str = "") -> None:
        self.reasons.append(Reason(code=code, message=message, hint=hint))

    def _take(self, fault: Fault) -> None:
        """Reasons about the commit; what is wrong with this machine refuses nobody."""
        if fault.blame == Blame.MACHINE:
            raise fault
        self.reasons += fault.reasons

    def _changelog(self, commit: str) -> debsource.Entry | None:
        try:
            data = self.repository.blob(commit, "debian/changelog", MAX_CHANGELOG)
            if data is None:
                hint = "is this the packaging branch?"
                self._refuse("no-changelog", f"{commit[:12]} has no debian/changelog", hint)
                return None
            entry = debsource.changelog_top(data)
        except Fault as fault:
            self._take(fault)
            return None
        if entry.source != self.package:
            self._refuse(
                "wrong-source",
                f"debian/changelog is of {entry.source}, not of {self.package}",
                "each package has a repository of its own name",
            )
        return entry

    def _format(self, commit: str) -> str | None:
        try:
            data = self.repository.blob(commit, "debian/source/format", 4096)
            return debsource.source_format(data)
        except Fault as fault:
            self._take(fault)
            return None

    def _upstream(self, commit: str, version: str, format_: str) -> dict[str, Any] | None:
        """Where the upstream tarball can come from; its objects will be kept."""
        found: dict[str, Any] = {
            "pristine_tar": None,
            "upstream_tag": None,
            "compression": "",
            "components": (),
        }
        if format_ == "3.0 (native)" or "-" not in version:
            return found
        try:
            settings = gbp_settings(self.repository.blob(commit, "debian/gbp.conf", 256 << 10))
        except Fault as fault:
            self._take(fault)
            return None
        found["compression"] = settings.compression
        found["components"] = settings.components
        if settings.pristine_tar is not False:
            found["pristine_tar"] = self.repository.peeled("refs/heads/pristine-tar")
        names = upstream_tags(settings, version)
        for name in names:
            ref = f"refs/tags/{name}"
            target, peeled = self.repository.ref(ref), self.repository.peeled(ref)
            if target and peeled:
                found["upstream_tag"] = {"name": name, "object": target, "commit": peeled}
                break
        orig = f"{self.package}_{model.upstream_version(version)}.orig.tar."
        stored = self.site.origs.is_dir() and any(self.site.origs.glob(f"{orig}*"))
        if not (found["pristine_tar"] or found["upstream_tag"] or stored):
            self._refuse(
                "no-upstream",
                f"nothing here gives {orig}*: no pristine-tar branch, no tag {' or '.join(names)}",
                "git push origin pristine-tar 'refs/tags/upstream/*'",
            )
            return None
        return found

    def _stamp(self, record: dict[str, Any]) -> datetime:
        """Now, or a second after the last one of this package: versions rise strictly."""
        now = self.now.astimezone(UTC).replace(microsecond=0)
        if last := record.get("stamp"):
            return max(now, model.stamped(str(last)) + timedelta(seconds=1))
        return now

    def _suffixed(
        self, pocket: Pocket, entry: debsource.Entry, commit: str, stamp: datetime
    ) -> tuple[str, str | None]:
        try:
            suffix = debsource.suffix(pocket.suffix, pocket=pocket.name, time=stamp, commit=commit)
            version = debsource.suffixed(entry.version, suffix)
            text = debsource.backtracking_entry(
                source=entry.source,
                version=version,
                distribution=pocket.codename,
                tagger_name=self.site.tagger_name,
                tagger_mail=self.site.tagger_mail,
                time=stamp,
                message=[f"Build of commit {commit} for {pocket.name}."],
            )
        except Fault as fault:
            self._take(fault)
            return entry.version, None
        return version, text

    def _forward(
        self,
        pocket: Pocket,
        commit: str,
        entry: debsource.Entry,
        pinned: str | None,
        record: dict[str, Any],
    ) -> None:
        """The rules of a pocket without backtracking."""
        if entry.distribution == "UNRELEASED":
            hint = "`dch -r`, commit, push"
            self._refuse("unreleased", "debian/changelog says UNRELEASED", hint)
        if pinned and not self.repository.is_ancestor(pinned, commit):
            self._refuse(
                "not-descendant",
                f"{commit[:12]} does not descend from {pinned[:12]}, which {pocket.name} has",
                "merge that commit; pockets with allow_backtracking take any commit",
            )
        published = str(record.get("version", ""))
        if published and debsource.compare(entry.version, published) <= 0:
            self._refuse(
                "version-not-higher",
                f"version {entry.version} is not higher than {published}, which is published",
                "add a changelog entry with a higher version",
            )
        if published and _twins(entry.version, published):
            self._refuse(
                "epoch-twin",
                f"{entry.version} and {published}, which is published, have the same file names",
                "file names carry no epoch: raise the version besides",
            )
        tag = pocket.tag(entry.version)
        tagged = self.repository.peeled(f"refs/tags/{tag}")
        if self.repository.ref(f"refs/tags/{tag}") and tagged != commit:
            where = tagged[:12] if tagged else "something that is no commit"
            self._refuse(
                "tag-elsewhere",
                f"the tag {tag} points to {where}, not to {commit[:12]}",
                "a version once tagged stays: use a higher one",
            )


def _twins(one: str, other: str) -> bool:
    return one != other and model.without_epoch(one) == model.without_epoch(other)
