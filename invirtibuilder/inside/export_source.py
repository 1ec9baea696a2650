"""dpkg-source there and back: the source package, and the proof that it is the commit's tree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from invirtibuilder.inside.export_base import Reason, Refusal, listed, refusal, run, say, shown
    from invirtibuilder.inside.export_git import Tree, file_digest, read_tree
else:
    from export_base import Reason, Refusal, listed, refusal, run, say, shown
    from export_git import Tree, file_digest, read_tree

TAR_HINT = (
    "dpkg-source leaves these out by itself; `tar-ignore=.git` in debian/source/options keeps them"
)
PATCH_HINT = "make a patch of it in debian/patches (gbp pq, dpkg-source --commit)"
WRITE_ONCE_HINT = (
    "an upstream tarball of this name is published already and is used as it is; if this one is "
    "to differ, take another upstream version, or add +ds to it"
)


class Dsc(NamedTuple):
    """What dpkg-source wrote into the .dsc."""

    name: str
    fields: dict[str, str]
    files: dict[str, tuple[int, str]]  # name: size, SHA-256


class Comparison(NamedTuple):
    """The extracted source against the commit's tree."""

    allowed: list[str]
    dropped: list[bytes]
    extra: list[bytes]
    changed: list[bytes]

    @property
    def faithful(self) -> bool:
        return not (self.dropped or self.extra or self.changed)


def build(directory: Path, tree: str, epoch: int, hint: str) -> Dsc:
    """Run `dpkg-source -b` on `directory/tree`; raises Refusal with dpkg-source's own words."""
    argv = ["dpkg-source", "--threads-max=1", "-b", tree]
    done = run(argv, cwd=directory, env={"SOURCE_DATE_EPOCH": str(epoch)}, merged=True)
    if done.code != 0:
        raise _dpkg_refusal(done.text, hint)
    found = [path for path in directory.glob("*.dsc") if path.is_file() and not path.is_symlink()]
    if len(found) != 1:
        raise refusal("dpkg-source", f"dpkg-source made {len(found)} .dsc files")
    return _read_dsc(found[0])


def _dpkg_refusal(text: str, hint: str) -> Refusal:
    modified = re.findall(r"^ (\S.*)$", text.partition("the modified files are:\n")[2], re.M)
    errors = re.findall(r"^(?:dpkg-source|tar|patch|\S+): error: (.*)$", text, re.M)
    if "unexpected upstream changes" in text:
        # dpkg-source prints them as PACKAGE-VERSION/PATH.
        paths = [path.partition("/")[2].encode() for path in modified]
        message = f"upstream files differ from the upstream tarball: {listed(paths)}"
        return refusal("upstream-changes", message, _hints(PATCH_HINT, hint))
    if "the patch has fuzz" in text:
        patches = re.findall(r"debian/patches/(\S+) subprocess returned", text)
        message = f"a patch does not apply: {', '.join(map(shown, patches[:5]))}"
        return refusal("patch-fails", message, _hints("quilt refresh, or gbp pq rebase", hint))
    if "cannot represent change" in text or "unrepresentable changes" in text:
        message = f"changes that this source format cannot carry: {_few(errors)}"
        return refusal("unrepresentable", message, _hints("use the format 3.0 (quilt)", hint))
    return refusal("dpkg-source", _few(errors) or shown(text[-600:]), hint)


def _hints(own: str, hint: str) -> str:
    return f"{own}; or: {hint}" if hint else own


def _few(messages: list[str]) -> str:
    return "; ".join(shown(message)[:300] for message in messages[:10])


def _read_dsc(path: Path) -> Dsc:
    fields: dict[str, str] = {}
    name = ""
    for line in path.read_text("utf-8", "replace").split("\n"):
        if line[:1] in (" ", "\t"):
            fields[name] = fields.get(name, "") + "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    files = {}
    for line in fields.get("checksums-sha256", "").split("\n"):
        words = line.split()
        if (
            len(words) == 3
            and re.fullmatch(r"[0-9]{1,15}", words[1])
            and re.fullmatch(r"[0-9a-f]{64}", words[0])
        ):
            files[words[2]] = (int(words[1]), words[0])
    return Dsc(path.name, fields, files)


def check_dsc(dsc: Dsc, directory: Path, expected: dict[str, str], origs: list[str]) -> None:
    """The .dsc says what the tree says, and names exactly what lies beside it: options in
    debian/source/options can overwrite any field. Raises Refusal."""
    reasons = [
        Reason(
            "dsc-field",
            f"{name} in the .dsc is {shown(dsc.fields.get(name.lower(), ''))[:200]}, not {value}",
            "see debian/source/options",
        )
        for name, value in expected.items()
        if dsc.fields.get(name.lower()) != value
    ]
    base = f"{expected['Source']}_{expected['Version'].rpartition(':')[2]}"
    own = re.compile(re.escape(base) + r"(?:\.debian)?\.(?:tar\.(?:gz|bz2|xz|lzma)|diff\.gz)")
    for name, (size, sha256) in dsc.files.items():
        path = directory / name
        if not (name in origs or own.fullmatch(name)):
            reasons.append(
                Reason("dsc-file", f"the .dsc names a strange file: {shown(name)[:200]}")
            )
        elif path.is_symlink() or not path.is_file():
            reasons.append(Reason("dsc-file", f"the .dsc names {shown(name)}, which is not there"))
        elif (path.stat().st_size, file_digest(path)) != (size, sha256):
            reasons.append(Reason("dsc-file", f"the .dsc's checksum of {shown(name)} is wrong"))
    missing = [name for name in origs if name not in dsc.files]
    if missing or dsc.name != f"{base}.dsc":
        message = f"{shown(dsc.name)} leaves out {', '.join(missing) or 'its version'}"
        reasons.append(Reason("dsc-file", message))
    if reasons:
        raise Refusal(reasons)


def compare(directory: Path, dsc: Dsc, tree: Tree, quilt: bool) -> Comparison:
    """Extract the source package and compare it with the commit's tree; for 3.0 (quilt) without
    the patches, and when that differs with them (a tree that has them applied)."""
    modes = [["--skip-patches"], []] if quilt else [[]]
    results = []
    for number, options in enumerate(modes):
        target = directory / f"extracted-{number}"
        done = run(
            ["dpkg-source", "--no-copy", *options, "-x", dsc.name, str(target)],
            cwd=directory,
            merged=True,
        )
        if done.code != 0:
            say("dpkg-source cannot unpack what it made")
            if number == 0:
                raise _dpkg_refusal(done.text.replace(f"{target}/", ""), "")
            break
        patched = quilt and not options
        results.append(_difference(tree, read_tree(target), patched))
        if results[-1].faithful:
            return results[-1]
    return results[0]


def _difference(tree: Tree, extracted: Tree, patched: bool) -> Comparison:
    result = Comparison([], [], [], [])
    if patched:
        result.allowed.append("debian/patches: applied in the commit's tree already")
    for path, node in sorted(tree.items()):
        found = extracted.get(path)
        if found is None:
            if any(part.startswith(b".git") for part in path.split(b"/")):
                result.allowed.append(f"{shown(path)}: left out by dpkg-source")
            else:
                result.dropped.append(path)
        elif path == b"debian/rules" and found == node._replace(executable=True) != node:
            result.allowed.append("debian/rules: made executable by dpkg-source")
        elif found != node:
            result.changed.append(path)
    for path in sorted(extracted.keys() - tree.keys()):
        if not (patched and path.startswith(b".pc/")):
            result.extra.append(path)
    return result


def unfaithful(found: Comparison, hint: str) -> Refusal:
    """The refusal that names the paths of each kind of difference."""
    reasons = []
    if found.dropped:
        message = f"in the commit, but not in the source package: {listed(found.dropped)}"
        reasons.append(Reason("unfaithful-dropped", message, _hints(TAR_HINT, hint)))
    if found.extra:
        message = f"not in the commit, but in the source package: {listed(found.extra)}"
        reasons.append(
            Reason(
                "unfaithful-restored",
                message,
                _hints("restore deleted upstream files; debian/rules clean can delete them", hint),
            )
        )
    if found.changed:
        message = f"different in the commit and in the source package: {listed(found.changed)}"
        reasons.append(Reason("unfaithful-changed", message, _hints(PATCH_HINT, hint)))
    return Refusal(reasons)
