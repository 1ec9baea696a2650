"""conf/invirtibuilder.yaml has every key that there is, none that there is not, and loads."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from invirtibuilder import config
from invirtibuilder.errors import ConfigFault
from tests.support.configtexts import EXAMPLE

UNKNOWN = "no-such-key"
Keys = tuple[str, ...]
"""Where a key is; `*` stands for a name that the site chooses, `[]` for a list's member."""


def nested(keys: Keys, value: Any) -> Any:
    for key in reversed(keys):
        value = [value] if key == "[]" else {"any-name" if key == "*" else key: value}
    return value


def known(file: Path, keys: Keys) -> list[str]:
    """The keys that the reader knows at this place, from what it says to an unknown one."""
    file.write_text(json.dumps(nested(keys, {UNKNOWN: 1})))
    try:
        config.load(file)
    except ConfigFault as fault:
        found = re.search(f"unknown key '{UNKNOWN}'; known here: (.*)", str(fault))
        return found[1].split(", ") if found else []
    return []


def all_keys(file: Path, place: Keys = ()) -> set[Keys]:
    """Every key below a place."""
    found: set[Keys] = set()
    for key in known(file, place):
        found.add((*place, key))
        for shape in ((), ("[]",), ("*",)):
            found |= all_keys(file, (*place, key, *shape))
    return found


def written(value: Any, known_keys: set[Keys], place: Keys = ()) -> set[Keys]:
    """Every key of a loaded file, chosen names as `*`."""
    found: set[Keys] = set()
    if isinstance(value, dict):
        for key, inner in value.items():
            below = (*place, key)
            if any(k[: len(place) + 1] == (*place, "*") for k in known_keys):
                below = (*place, "*")
            elif place != ("hooks", "[]", "environment"):
                found.add(below)
            found |= written(inner, known_keys, below)
    elif isinstance(value, list):
        for inner in value:
            found |= written(inner, known_keys, (*place, "[]"))
    return found


def furnish(folder: Path) -> None:
    """Make the files that the example names."""
    with pytest.raises(ConfigFault) as caught:
        config.load(EXAMPLE)
    for line in str(caught.value).splitlines():
        path = Path(line.split(": ")[-1].removesuffix(" does not exist"))
        there = folder / path.relative_to(EXAMPLE.parent)
        there.parent.mkdir(exist_ok=True)
        there.touch()


def test_the_reader_tells_its_keys(tmp_path: Path) -> None:
    keys = all_keys(tmp_path / "c.yaml")
    assert {("site",), ("pockets", "*", "limits", "time"), ("hooks", "[]", "program")} <= keys
    assert ("pockets", "*", "acl", "submit", "[]", "file") in keys
    assert len(keys) > 50


def test_every_key_is_there_and_no_other(tmp_path: Path) -> None:
    keys = all_keys(tmp_path / "c.yaml")
    shown = written(yaml.safe_load(EXAMPLE.read_text()), keys)
    # Entries of other actions look the same as those of `submit`.
    keys = {k for k in keys if k[-1] not in ("file", "command") or "submit" in k}
    assert shown == keys


def test_every_key_is_explained() -> None:
    """Above each key of the first pocket, and above the others, is a comment."""
    text = EXAMPLE.read_text()
    lines = text[: text.index("\n  dev:")].splitlines()
    bare = [
        line
        for above, line in itertools.pairwise(lines)
        if re.match(r" *(- )?[a-z_]+:", line) and "#" not in above + line
    ]
    # Names that the site chooses, and one of two that have a comment together.
    names = [line.strip().split(":")[0] for line in bare]
    assert names == ["name", "mail", "trusted", "untrusted", "staging"]


def test_it_loads_but_for_files_of_the_site(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault) as caught:
        config.load(EXAMPLE)
    findings = str(caught.value).splitlines()
    assert findings
    assert all(f.endswith("does not exist") for f in findings), findings
    shutil.copy(EXAMPLE, tmp_path)
    furnish(tmp_path)
    site = config.load(tmp_path / EXAMPLE.name)
    assert list(site.pockets) == ["staging", "dev"]
    assert site.pockets["staging"].limits.memory == 4 << 30
    assert site.pockets["dev"].acl["submit"][1].principal == "unix/bob"
    assert site.hooks[0].required
