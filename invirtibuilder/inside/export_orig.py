"""Upstream tarballs: the store's, else pristine-tar's, else made from the upstream tag."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from invirtibuilder.inside.export_base import lines, refusal, run, say, shown
    from invirtibuilder.inside.export_git import (
        LATEST,
        NO_ATTRIBUTES,
        Blob,
        Repository,
        blobs,
        copy,
        set_times,
        write_tree,
    )
else:
    from export_base import lines, refusal, run, say, shown
    from export_git import (
        LATEST,
        NO_ATTRIBUTES,
        Blob,
        Repository,
        blobs,
        copy,
        set_times,
        write_tree,
    )

EXTENSIONS = {"gzip": "gz", "bzip2": "bz2", "xz": "xz"}
COMPRESSORS = {
    "gz": ["gzip", "-9", "-n"],
    "bz2": ["bzip2", "-9"],
    "xz": ["xz", "-6", "-T1"],
}


class Wanted(NamedTuple):
    """Whose tarballs are looked for, and what the order says about them."""

    source: str
    upstream: str  # version, without epoch and revision
    gzip_only: bool  # format 1.0
    compression: str  # "" for no preference
    components: list[str]
    stored: list[str]
    pristine_tar: bool
    upstream_tag: str  # "" or the tag's name


class Orig(NamedTuple):
    """A tarball or its signature in the build directory, and where it is from."""

    name: str
    component: str
    origin: str  # store, pristine-tar, upstream-tag


def names(wanted: Wanted) -> re.Pattern[str]:
    """What orig tarballs of this version may be called; a `.asc` is a signature's."""
    extension = "gz" if wanted.gzip_only else "gz|bz2|xz|lzma"
    return re.compile(
        re.escape(f"{wanted.source}_{wanted.upstream}.orig")
        + rf"(?:-(?P<component>[A-Za-z0-9-]+))?\.tar\.(?P<extension>{extension})(?P<asc>\.asc)?"
    )


def provide(repository: Repository, wanted: Wanted, store: Path, target: Path) -> list[Orig]:
    """Put the upstream tarballs and signatures into `target`. Raises Refusal.

    The store's are used as they are; pristine-tar adds components and signatures that the store
    does not have; only when neither has the main tarball is it made from the upstream tag.
    """
    origs = _from_store(wanted, store, target)
    if wanted.pristine_tar:
        origs += _from_pristine_tar(repository, wanted, origs, target)
    if any(orig.component == "" for orig in origs):
        return origs
    if wanted.upstream_tag:
        return origs + _from_tag(repository, wanted, target)
    raise refusal(
        "no-orig",
        f"no upstream tarball of {wanted.source} {wanted.upstream}: not in the store, not on the "
        "branch pristine-tar, and no upstream tag",
        f"push the branch pristine-tar, or the tag upstream/{wanted.upstream}",
    )


def _from_store(wanted: Wanted, store: Path, target: Path) -> list[Orig]:
    """One tarball of each component: a 1.0 package may have added another compression's."""
    found: dict[str, list[str]] = {}
    for name in wanted.stored:
        match = names(wanted).fullmatch(name)
        if not match:
            say(f"{shown(name)}: in the store, but not for this version or format")
        elif not match["asc"]:
            found.setdefault(match["component"] or "", []).append(name)
    origs = []
    for component, candidates in found.items():
        chosen = _preferred(candidates, wanted.compression)
        for name in (chosen, f"{chosen}.asc"):
            if name in wanted.stored:
                copy(store / name, target / name)
                say(f"{name}: from the store")
                origs.append(Orig(name, component, "store"))
    return origs


def _from_pristine_tar(
    repository: Repository, wanted: Wanted, have: list[Orig], target: Path
) -> list[Orig]:
    listing = repository.git("ls-tree", "-z", "--name-only", "refs/export/pristine-tar")
    committed = {record.decode("utf-8", "replace") for record in lines(listing.out)}
    found: dict[str, list[str]] = {}
    for name in sorted(committed):
        match = names(wanted).fullmatch(name[: -len(".delta")]) if name.endswith(".delta") else None
        if match and not match["asc"]:
            found.setdefault(match["component"] or "", []).append(match[0])
    chosen = {orig.component: orig.name for orig in have if not orig.name.endswith(".asc")}
    _make_main_tree(repository, list(found))
    origs = []
    for component, candidates in found.items():
        if component not in chosen:
            chosen[component] = _preferred(candidates, wanted.compression)
            _checkout(repository, chosen[component], target)
            origs.append(Orig(chosen[component], component, "pristine-tar"))
    for component, name in chosen.items():
        signature = f"{name}.asc"
        if signature in committed and not (target / signature).exists():
            content = repository.content("refs/export/pristine-tar", signature)
            (target / signature).write_bytes(content)
            origs.append(Orig(signature, component, "pristine-tar"))
    return origs


def _make_main_tree(repository: Repository, components: list[str]) -> None:
    """Make the tree that gbp had pristine-tar commit the main tarball with when there are
    components: upstream's without their directories. No reference ever reaches it."""
    listing = repository.git("ls-tree", "-z", "refs/export/upstream-tag^{tree}")
    left = {component.encode() for component in components}
    kept = [line for line in lines(listing.out) if line.partition(b"\t")[2] not in left]
    if left != {b""} and kept:
        repository.git("mktree", "-z", stdin=b"".join(line + b"\0" for line in kept))


def _preferred(candidates: list[str], compression: str) -> str:
    order = [EXTENSIONS.get(compression, ""), "xz", "gz", "bz2", "lzma"]
    return min(candidates, key=lambda name: order.index(name.rpartition(".")[2]))


def _checkout(repository: Repository, name: str, target: Path) -> None:
    # pristine-tar looks for the branch by this name and unpacks `git archive` of a tree, which
    # heeds attributes. Whether they counted when the delta was made nobody knows: try both.
    repository.git("update-ref", "refs/heads/pristine-tar", "refs/export/pristine-tar")
    tree = repository.content("refs/export/pristine-tar", f"{name}.id").decode("utf-8", "replace")
    tree = tree.strip()
    if not repository.resolve(tree, "tree"):
        raise refusal(
            "pristine-tar",
            f"pristine-tar's tree for {name} is not part of the repository: {shown(tree)[:80]}",
            "push the upstream branch and the upstream tag of this version",
        )
    attributes = repository.path / ".git/info/attributes"
    attributes.parent.mkdir(exist_ok=True)
    for text in (NO_ATTRIBUTES, ""):
        attributes.write_text(text)
        argv = ["pristine-tar", "checkout", str(target / name)]
        done = run(argv, cwd=repository.path, merged=True)
        made = target / name
        if done.code == 0 and made.is_file() and not made.is_symlink():
            made.chmod(0o644)
            return
        made.unlink(missing_ok=True)
    raise refusal(
        "pristine-tar",
        f"pristine-tar cannot make {name} again: {shown(done.text[-500:])}",
        "commit it again with `pristine-tar commit`, from the tree of the upstream tag",
    )


def _from_tag(repository: Repository, wanted: Wanted, target: Path) -> list[Orig]:
    commit = repository.resolve("refs/export/upstream-tag", "commit")
    if not commit:
        raise refusal("bad-bundle", "the upstream tag does not lead to a commit")
    said = repository.git("show", "--no-patch", "--format=%ct", commit).text
    date = min(int(said), LATEST) if re.fullmatch(r"[0-9]{1,20}", said) else 0
    extension = "gz" if wanted.gzip_only else EXTENSIONS.get(wanted.compression, "xz")
    files = blobs(repository, commit)
    origs = []
    for component in ["", *wanted.components]:
        part = _part(files, component, wanted.components)
        if not part:
            raise refusal(
                "no-orig",
                f"the tag {shown(wanted.upstream_tag)} has no files for "
                + (f"the component {shown(component)}" if component else "the main tarball"),
                "see `component` in debian/gbp.conf",
            )
        dash = f"-{component}" if component else ""
        name = f"{wanted.source}_{wanted.upstream}.orig{dash}.tar.{extension}"
        _pack(repository, part, date, f"{wanted.source}-{wanted.upstream}", target / name)
        say(f"{name}: made from the tag {shown(wanted.upstream_tag)}")
        origs.append(Orig(name, component, "upstream-tag"))
    return origs


def _part(files: list[Blob], component: str, components: list[str]) -> list[Blob]:
    inside = component.encode() + b"/"
    if component:
        return [
            blob._replace(path=blob.path[len(inside) :])
            for blob in files
            if blob.path.startswith(inside)
        ]
    others = tuple(name.encode() + b"/" for name in components)
    return [blob for blob in files if not blob.path.startswith(others)]


def _pack(repository: Repository, files: list[Blob], date: int, top: str, path: Path) -> None:
    directory = path.with_name(path.name + ".tree")
    directory.mkdir()
    write_tree(repository, files, directory / top)
    set_times(directory, date)
    plain = path.with_suffix("")
    argv = ["tar", "--create", f"--file={plain}", "--sort=name", "--format=gnu", "--numeric-owner"]
    argv += ["--owner=root:0", "--group=root:0", "--mode=u=rwX,go=rX", f"--mtime=@{date}"]
    packed = run([*argv, "--", top], cwd=directory, merged=True)
    compressor = COMPRESSORS[path.suffix[1:]]
    if packed.code != 0 or run([*compressor, str(plain)], cwd=directory, merged=True).code != 0:
        raise refusal("no-orig", f"{path.name} cannot be made")
    shutil.rmtree(directory)
