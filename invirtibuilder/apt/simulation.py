"""What APT would make of a repository that there is not yet: `apt-get -s` on its Packages file.

It knows nothing else: no machine's sources, lists, packages and preferences.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from invirtibuilder import model
from invirtibuilder.run import run

MAX_WORDS = 600
"""Characters of what APT says."""
_UNMET = "The following packages have unmet dependencies:"
_NOWHERE = ("sourcelist", "sourceparts", "main", "parts", "preferences", "preferencesparts")


@dataclass(frozen=True)
class Simulation:
    """A repository of these stanzas."""

    folder: Path

    def trouble(self, packages: Sequence[str]) -> str:
        """What hinders an empty system from installing all of these, in APT's words, or nothing."""
        index = str(self.folder / "Packages")
        options = ("-q", "-s", "-o", "APT::Install-Recommends=false", "--with-source", index)
        done = run(
            ["apt-get", *options, "install", "--", *packages],
            env={"APT_CONFIG": str(self.folder / "apt.conf")},
            check=False,
        )
        if done.code == 0:
            return ""
        said = done.text.partition(_UNMET)[2] or done.err.decode("utf-8", "replace")
        return model.printable(" ".join(said.split()))[:MAX_WORDS] or f"exit code {done.code}"


@contextmanager
def simulation(stanzas: Iterable[str], architectures: Sequence[str]) -> Iterator[Simulation]:
    """A repository that has these binary packages, each a stanza of an index."""
    with tempfile.TemporaryDirectory(prefix="ib-simulation-") as name:
        folder = Path(name)
        (folder / "lists/partial").mkdir(parents=True)
        (folder / "archives/partial").mkdir(parents=True)
        (folder / "status").touch()
        (folder / "Packages").write_text("\n\n".join(stanzas) + "\n")
        settings = {
            **{f"Dir::Etc::{key}": "/dev/null" for key in _NOWHERE},
            "Dir::State": name,
            "Dir::State::lists": f"{name}/lists",
            "Dir::State::status": f"{name}/status",
            "Dir::Cache": name,
            "Dir::Cache::archives": f"{name}/archives",
            "APT::Architecture": architectures[0],
        }
        lines = [f'{key} "{value}";\n' for key, value in settings.items()]
        listed = " ".join(f'"{architecture}";' for architecture in architectures)
        (folder / "apt.conf").write_text("".join(lines) + f"APT::Architectures {{ {listed} }};\n")
        yield Simulation(folder)
