"""YAML read into typed values: each finding is kept with its file and line, none is fatal alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from invirtibuilder.errors import ConfigFault, Fault
from invirtibuilder.files import read_capped

T = TypeVar("T")
MAX_BYTES = 1 << 20


class Problems:
    """All that is wrong with one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: list[tuple[int, str]] = []

    def add(self, line: int, message: str) -> None:
        if (line, message) not in self.found:
            self.found.append((line, message))

    def raise_any(self) -> None:
        """Raise ConfigFault with all findings in order of their lines, if there are any."""
        if self.found:
            lines = [f"{self.file}:{line}: {message}" for line, message in sorted(self.found)]
            raise ConfigFault("\n".join(lines), hint="conf/invirtibuilder.yaml explains every key")


N = TypeVar("N", int, float)


def positive(number: N) -> N:
    """The number, when it is more than 0. Raises ValueError."""
    if number <= 0:
        raise ValueError("must be more than 0")
    return number


class Value:
    """A YAML node and where it stands. Every reader reports a problem and gives a stand-in."""

    def __init__(self, problems: Problems, node: yaml.Node | None, key: str, line: int) -> None:
        self.problems = problems
        self.node = node
        self.key = key
        self.line = line

    def problem(self, message: str) -> None:
        self.problems.add(self.line, f"{self.key}: {message}")

    @property
    def absent(self) -> bool:
        return self.node is None or self.node.tag == "tag:yaml.org,2002:null"

    def _scalar(self, tags: set[str], what: str, default: T, make: Callable[[str], T]) -> T:
        if self.absent:
            return default
        node = self.node
        if not isinstance(node, yaml.ScalarNode) or node.tag.rpartition(":")[2] not in tags:
            shown = f", not {node.value!r}" if isinstance(node, yaml.ScalarNode) else ""
            self.problem(f"must be {what}{shown}")
            return default
        try:
            return make(node.value)
        except (ValueError, Fault) as error:
            self.problem(str(error))
            return default

    def text(self, default: str = "", check: Callable[[str], str] = str) -> str:
        """A string; YAML's own numbers, dates and booleans want quotes."""
        return self._scalar({"str", "int", "float"}, "text", default, check)

    def boolean(self, default: bool) -> bool:
        return self._scalar(
            {"bool"}, "true or false", default, lambda v: v.lower() in ("true", "yes", "on")
        )

    def number(self, default: float | None, low: float = 0) -> float | None:
        def make(value: str) -> float | None:
            number = float(value)
            if number < low:
                raise ValueError(f"must be at least {low:g}")
            return number

        return self._scalar({"int", "float"}, "a number", default, make)

    def size(self, default: int | None) -> int | None:
        """Bytes, or a number with K, M, G or T (powers of 1024)."""

        def make(value: str) -> int | None:
            found = re.fullmatch(r"([0-9]+)\s*([KMGT]?)(?:i?B)?", value)
            if not found:
                raise ValueError(f"must be a size such as 512M or 4G, not {value!r}")
            return positive(int(found[1]) << (10 * " KMGT".index(found[2] or " ")))

        return self._scalar({"int", "str"}, "a size", default, make)

    def duration(self, default: float | None) -> float | None:
        """Seconds, or a number with s, m, h or d."""

        def make(value: str) -> float | None:
            found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)", value)
            if not found:
                raise ValueError(f"must be a duration such as 30s, 10m or 2h, not {value!r}")
            unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
            return positive(float(found[1]) * unit)

        return self._scalar({"int", "float", "str"}, "a duration", default, make)

    def choice(self, default: str, *allowed: str) -> str:
        def make(value: str) -> str:
            if value not in allowed:
                raise ValueError(f"must be one of {', '.join(allowed)}, not {value!r}")
            return value

        return self._scalar({"str"}, "text", default, make)

    def items(self) -> list[Value]:
        """The members of a list; one scalar counts as a list of one."""
        if self.absent:
            return []
        if isinstance(self.node, yaml.SequenceNode):
            return [
                Value(self.problems, n, f"{self.key}[{i}]", n.start_mark.line + 1)
                for i, n in enumerate(self.node.value)
            ]
        if isinstance(self.node, yaml.ScalarNode):
            return [self]
        self.problem("must be a list")
        return []

    def texts(
        self, default: tuple[str, ...] = (), check: Callable[[str], str] = str
    ) -> tuple[str, ...]:
        return default if self.absent else tuple(v.text("", check) for v in self.items())

    def members(self) -> dict[str, Value]:
        """The members of a mapping; keys given twice are a problem."""
        if self.absent:
            return {}
        if not isinstance(self.node, yaml.MappingNode):
            self.problem("must be a mapping")
            return {}
        found: dict[str, Value] = {}
        for key_node, node in self.node.value:
            line = key_node.start_mark.line + 1
            key = str(key_node.value)
            if key in found:
                self.problems.add(line, f"{key} is given twice")
            found[key] = Value(self.problems, node, key, line)
        return found

    def record(self, *keys: str, required: tuple[str, ...] = ()) -> Mapping[str, Value]:
        """The members of a mapping with known keys; unknown and missing ones are problems."""
        found = self.members()
        for key, value in found.items():
            if key not in keys:
                self.problems.add(
                    value.line, f"unknown key {key!r}; known here: {', '.join(sorted(keys))}"
                )
        for key in required:
            if key not in found or found[key].absent:
                self.problem(f"{key} is missing")
        return {k: found.get(k, Value(self.problems, None, k, self.line)) for k in keys}


def read(file: Path) -> tuple[Value, Problems]:
    """Parse a YAML file (no anchors' expansion, at most 1 MiB). Raises ConfigFault."""
    try:
        text = read_capped(file, limit=MAX_BYTES).decode()
    except FileNotFoundError as error:
        raise ConfigFault(
            f"{file}: no such file", hint="`invirtibuilder init DIR` makes one; --config names one"
        ) from error
    except (OSError, UnicodeDecodeError, Fault) as error:
        raise ConfigFault(f"{file}: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigFault(f"{file}:{line}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigFault(f"{file}: {error}") from error
    problems = Problems(file)
    value: Any = node
    return Value(problems, value, "the file", 1), problems
