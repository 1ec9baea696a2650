"""debian/gbp.conf, as far as it concerns the making of a source package; never its hooks."""

from __future__ import annotations

import ast
import configparser
import re
from dataclasses import dataclass
from typing import NoReturn

from invirtibuilder import model
from invirtibuilder.errors import PackageFault

MAX_SETTINGS = 256 << 10
# gbp.pkg.pkgpolicy.PkgPolicy.version_mangle_re
MANGLE = re.compile(r"%\(version%(?P<old>[^%])%(?P<new>(?:\\%|[^%])+)\)s")
# git-check-ref-format(1), and nothing that a shell or a terminal would take amiss.
REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+%@#=,~-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class GbpSettings:
    """What debian/gbp.conf says, of the keys that are known here; None or "" where it is silent."""

    pristine_tar: bool | None = None
    upstream_tag: str = ""
    debian_tag: str = ""
    upstream_branch: str = ""
    debian_branch: str = ""
    components: tuple[str, ...] = ()
    compression: str = ""
    compression_level: str = ""


def gbp_settings(data: bytes | None) -> GbpSettings:
    """The known keys of debian/gbp.conf: of [DEFAULT], then of [buildpackage].

    Nothing is interpolated, hooks and all other keys are skipped. Components are declared for
    `gbp import-orig` by some: they are read from there when [buildpackage] has none. Raises
    PackageFault (code `bad-gbp-conf`).

    >>> settings = gbp_settings(b"[DEFAULT]\\npristine-tar = True\\nprebuild = rm -rf /\\n"
    ...     b"component = ['doc', 'test']\\n[buildpackage]\\nupstream-tag = v%(version%~%.)s\\n")
    >>> settings.pristine_tar, settings.components, settings.upstream_tag
    (True, ('doc', 'test'), 'v%(version%~%.)s')
    """
    if not data:
        return GbpSettings()
    if len(data) > MAX_SETTINGS:
        _bad_settings(f"larger than {MAX_SETTINGS} bytes")
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(data.decode("utf-8"))
        values = dict(parser.defaults())
        # gbp takes the legacy names of a section first.
        for section in ("gbp-buildpackage", "git-buildpackage", "buildpackage"):
            values |= dict(parser.items(section)) if parser.has_section(section) else {}
        if not values.keys() & {"component", "components"} and parser.has_section("import-orig"):
            values["component"] = parser.get("import-orig", "component", fallback="")
    except (configparser.Error, UnicodeDecodeError) as error:
        _bad_settings(str(error))
    return _settings({key: str(value or "").strip() for key, value in values.items()})


def _settings(values: dict[str, str]) -> GbpSettings:
    pristine = values.get("pristine-tar", "").lower()
    if pristine not in ("", "true", "false", "1", "0", "on", "off", "yes", "no"):
        _bad_settings("pristine-tar is neither True nor False")
    components = _components(values.get("components") or values.get("component") or "")
    compression = {"gz": "gzip", "bz2": "bzip2"}.get(
        values.get("compression", ""), values.get("compression", "")
    )
    if compression not in ("", "auto", "gzip", "bzip2", "xz"):
        _bad_settings("compression is none of auto, gzip, bzip2, xz")
    level = values.get("compression-level", "")
    if not re.fullmatch(r"[0-9]?", level):
        _bad_settings("compression-level is not a digit")
    return GbpSettings(
        pristine_tar=None if not pristine else pristine in ("true", "1", "on", "yes"),
        upstream_tag=_tag_format(values, "upstream-tag"),
        debian_tag=_tag_format(values, "debian-tag"),
        upstream_branch=_branch(values, "upstream-branch"),
        debian_branch=_branch(values, "debian-branch"),
        components=components,
        compression="" if compression == "auto" else compression,
        compression_level=level,
    )


def _components(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    names: object = [text]
    if text.startswith("["):
        try:
            names = ast.literal_eval(text) if len(text) < 10000 else None
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            names = None
    # Dpkg::Source::Package: orig-COMPONENT is alphanumeric or hyphen.
    if not isinstance(names, list) or not all(
        isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,49}", name)
        for name in names
    ):
        _bad_settings("component is neither a name (a-z, 0-9, -) nor a list of such")
    return tuple(dict.fromkeys(str(name) for name in names))


def _tag_format(values: dict[str, str], key: str) -> str:
    text = values.get(key, "")
    if text and (len(text) > 200 or not text.isprintable()):
        _bad_settings(f"{key} is not a tag format")
    return text


def _branch(values: dict[str, str], key: str) -> str:
    text = values.get(key, "")
    if text and not _is_reference(text):
        _bad_settings(f"{key} is not a branch name")
    return text


def _bad_settings(why: str) -> NoReturn:
    raise PackageFault(
        f"debian/gbp.conf: {model.printable(why)[:300]}",
        code="bad-gbp-conf",
        hint="gbp.conf(5) has the keys",
    )


def upstream_tags(settings: GbpSettings, version: str) -> tuple[str, ...]:
    """Names of the upstream tag of this version, the likeliest first.

    What debian/gbp.conf says (with gbp's %(version)s, %(hversion)s and %(version%A%B)s), then
    DEP-14's and gbp's default. Formats that give no legal reference name are left out.

    >>> upstream_tags(GbpSettings(), "1:2.0~rc1-1")
    ('upstream/2.0_rc1',)
    >>> upstream_tags(GbpSettings(upstream_tag="v%(version%.%_)s"), "1.2.3-4")
    ('v1_2_3', 'upstream/1.2.3')
    """
    upstream = model.upstream_version(version)
    names = [f"upstream/{model.tag_version(upstream)}"]
    if settings.upstream_tag:
        names.insert(0, _from_format(settings.upstream_tag, upstream))
    return tuple(dict.fromkeys(name for name in names if _is_reference(name)))


def _from_format(template: str, version: str) -> str:
    match = MANGLE.search(template)
    if match:
        template = MANGLE.sub("%(version)s", template)
        version = version.replace(match["old"], match["new"].replace(r"\%", "%"))
    mangled = model.tag_version(version)
    parts = {"%(version)s": mangled, "%(hversion)s": mangled.replace(".", "-"), "%%": "%"}
    return re.sub(r"%\(h?version\)s|%%", lambda found: parts[found[0]], template)


def _is_reference(name: str) -> bool:
    return bool(REFERENCE.fullmatch(name)) and not (
        ".." in name
        or "//" in name
        or "@{" in name
        or "~" in name
        or name.endswith(("/", "."))
        or any(part.startswith(".") or part.endswith(".lock") for part in name.split("/"))
    )
