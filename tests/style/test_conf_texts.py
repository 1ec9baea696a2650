"""invirtibuilder.yaml(5) has every key and no other; what it and the example call defaults are."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from invirtibuilder import config, settings
from invirtibuilder.errors import ConfigFault
from tests.style.test_conf import Keys, all_keys, furnish, nested
from tests.support import configtexts
from tests.support.configtexts import EXAMPLE, Place, Told

ALIKE: dict[Place, Place] = {
    ("pockets", "packages", "limits"): ("pockets", "limits"),
    ("site", "administrators"): ("pockets", "acl"),
    **{("pockets", "acl", action): ("pockets", "acl") for action in settings.ACTIONS},
}
"""Below what there are the same keys as below something else, and told there."""
SHOWN = yaml.safe_load(EXAMPLE.read_text())
LIMITS: dict[str, Any] = SHOWN["pockets"]["staging"]["limits"]
NOTHING = {
    *("none", "nothing", "nobody", "nobody may do anything", "not limited", "for ever"),
    "the suite's sources as the worker machine's own APT has them",
    "the suite's sources as the worker machine's own APT has them, updates and security included",
}
"""Defaults that no value stands for."""
COUNTED = "slots"
"""What of a domain comes from its place among the others."""


def plain(keys: Keys) -> Place:
    """Without chosen names and positions in lists."""
    return tuple(key for key in keys if key not in ("*", "[]"))


def told_at(keys: Keys) -> Place:
    """Where the page tells of a key."""
    place = plain(keys)
    for what, like in ALIKE.items():
        if len(place) > len(what) and place[: len(what)] == what:
            return (*like, *place[len(what) :])
    return place


def required(file: Path, place: Keys) -> set[Keys]:
    """What the reader misses in an empty mapping here, or in one above that has the same name."""
    file.write_text(json.dumps(nested(place, {})))
    with pytest.raises(ConfigFault) as caught:
        config.load(file)
    above, last = ("", "the file", *place)[-2:]
    name = {"*": "any-name", "[]": f"{above}[0]"}.get(last, last)
    missing = re.findall(rf": {re.escape(name)}: (\w+) is missing$", str(caught.value), re.M)
    return {(*place, key) for key in missing}


def test_the_page_has_every_key_and_no_other(tmp_path: Path) -> None:
    keys = all_keys(tmp_path / "c.yaml")
    page = configtexts.page()
    assert set(page) == {told_at(key) for key in keys}
    needed = {k for place in {key[:-1] for key in keys} for k in required(tmp_path / "c", place)}
    assert {p for p, told in page.items() if told.required} == {told_at(k) for k in needed & keys}
    above = {place[:length] for place in page for length in range(len(place))}
    silent = {p for p, told in page.items() if not (told.required or told.default)} - above
    assert silent == {("pockets", "qemubuilder", "config")} | {
        ("pockets", "acl", name) for name in (*settings.ACTIONS, "file", "command")
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a configuration finds what it names, and what the example names."""
    furnish(tmp_path)
    (tmp_path / "Send_It+.sh").touch()
    (tmp_path / "elsewhere/gnupg").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("text", [configtexts.page, configtexts.example])
def test_defaults(text: Callable[[], Mapping[Place, Told]], folder: Path) -> None:
    """One that is said changes nothing; one of nothing is empty where the example is not."""
    stated = {place: told.default for place, told in text().items() if told.default}
    assert len(stated) > 40
    where = {plain(keys): keys for keys in all_keys(folder / "c.yaml")}
    wrong: dict[Place, object] = {}
    for place, default in stated.items():
        empty = default in NOTHING
        value = sample(SHOWN, where[place]) if empty else meant(default, place, folder)
        try:
            sites = [loaded(folder, where[place], *values) for values in ((), (value,))]
        except ConfigFault as fault:
            wrong[place] = (default, str(fault))
            continue
        found = list(differences(*sites))
        if not (found and all(map(is_empty, found)) if empty and value else found == []):
            wrong[place] = (default, found)
    assert not wrong


@pytest.mark.parametrize("text", [configtexts.page, configtexts.example])
def test_where_paths_start(text: Callable[[], Mapping[Place, Told]], folder: Path) -> None:
    for parent in (folder, folder / "elsewhere"):
        (parent / "relative").touch()
    found = set()
    for keys in all_keys(folder / "c.yaml"):
        with suppress(ConfigFault):
            if f"{folder}/elsewhere/relative" in repr(loaded(folder, keys, "relative")):
                found.add(plain(keys))
    assert ("domains", "directory") in found
    assert {place for place, told in text().items() if "from DIRECTORY" in told.text} == found


def loaded(folder: Path, keys: Keys, *value: object) -> settings.Site:
    """A site with all mappings and what has to be in them; at one place this, or nothing."""
    more = {"uri": "file:/x", "suites": ["x"], "components": ["x"], "key": "Send_It+.sh"}
    whole: dict[str, Any] = {
        "site": {
            "name": "test",
            "directory": f"{folder}/elsewhere",
            "tagger": {"name": "Test", "mail": "test@example.org"},
            "signing": {"key": "0" * 40},
            "administrators": [{"file": "Send_It+.sh"}],
        },
        "hooks": [{"program": "Send_It+.sh"}],
        "domains": {"any-name": {}, "other": {}},
        "pockets": {
            "any-name": {
                "suite": "x",
                "limits": dict(LIMITS),
                "packages": {"any-name": {"limits": {}}},
                "signing": {"key": "1" * 40},
                "extra_sources": [more],
                "acl": {action: [{"file": "Send_It+.sh"}] for action in settings.ACTIONS},
                **{mapping: {} for mapping in ("vm", "qemubuilder", "retention")},
            }
        },
    }
    holder: Any = whole
    for key in keys[:-1]:
        holder = holder[{"*": "any-name", "[]": 0}.get(key, key)]
    holder.pop(keys[-1], None)
    for each in value:
        holder[keys[-1]] = each
    (folder / "c.yaml").write_text(json.dumps(whole))
    return config.load(folder / "c.yaml")


def meant(text: str, place: Place, folder: Path) -> object:
    """The value that a default stands for."""
    key = place[-1]
    words: dict[str, object] = {
        **dict.fromkeys(("this file's directory", "the file's directory"), str(folder)),
        **dict.fromkeys(("the first of domains", "the first of them"), "any-name"),
        "all": settings.EVENTS,
        "one called default": {"default": {}},
        "the site's": {"key": "0" * 40} if key == "signing" else f"{folder}/elsewhere/gnupg",
        "the pocket's": LIMITS if key == "limits" else LIMITS.get(key),
        "the program's file name without its suffix, in lower case": "send_it-",
    }
    text = text.replace("`", "").replace("DIRECTORY", f"{folder}/elsewhere")
    return words[text] if text in words else yaml.safe_load(text.replace("NAME", "any-name"))


def sample(value: Any, keys: Keys) -> Any:
    """What the example has at a place, None if nothing."""
    if not keys or value is None:
        return value
    if keys[0] in ("*", "[]"):
        within = value if isinstance(value, list) else value.values()
        return next((f for v in within if (f := sample(v, keys[1:])) is not None), None)
    return sample(value.get(keys[0]), keys[1:])


def differences(one: object, other: object) -> Iterator[object]:
    """What the first has where the other has something else."""
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        names = [each.name for each in dataclasses.fields(one) if each.name != COUNTED]
        for name in names:
            yield from differences(getattr(one, name), getattr(other, name))
    elif isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        for pair in zip(one, other, strict=True):
            yield from differences(*pair)
    elif isinstance(one, Mapping) and isinstance(other, Mapping) and set(one) == set(other):
        for key in one:
            yield from differences(one[key], other[key])
    elif one != other:
        yield one


def is_empty(value: object) -> bool:
    """Whether there is nothing: 0 is something."""
    return value is None or value in ("", (), {})
