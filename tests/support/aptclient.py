"""A real apt-get with directories of its own, and a static web server on loopback."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

from invirtibuilder.run import Done, run


@dataclass(frozen=True, kw_only=True)
class AptClient:
    """apt-get that knows nothing of the machine's sources, lists and keys."""

    folder: Path

    def configure(self, sources: str, preferences: str = "") -> None:
        """Make the directories and write the stanzas."""
        for name in ("etc/sources.list.d", "etc/preferences.d", "etc/trusted.gpg.d"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("state/lists/partial", "cache/archives/partial", "out"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        conf = "".join(f'{name} "{value}";\n' for name, value in self._options().items())
        (self.folder / "apt.conf").write_text(conf)
        (self.folder / "etc/sources.list.d/pocket.sources").write_text(sources)
        (self.folder / "etc/preferences.d/pocket").write_text(preferences)

    def apt(self, tool: str, *args: str, check: bool = True) -> Done:
        """Run apt-get or apt-cache; any failed download is an error."""
        return run(
            [tool, *args],
            # Read before the machine's own configuration, which it turns off.
            # APT leaves the keys of its sources in TMPDIR.
            env={"APT_CONFIG": str(self.folder / "apt.conf"), "TMPDIR": str(self.folder)},
            cwd=self.folder / "out",
            timeout=60,
            check=check,
        )

    def _options(self) -> dict[str, str]:
        return {
            "Dir::Etc": str(self.folder / "etc"),
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::State": str(self.folder / "state"),
            "Dir::State::status": str(self.folder / "status"),
            "Dir::Cache": str(self.folder / "cache"),
            "Dir::Log": str(self.folder / "state"),
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::Retries": "0",
            "Acquire::Languages": "none",
        }

    def update(self, *, check: bool = True) -> Done:
        """apt-get update."""
        return self.apt("apt-get", "update", check=check)

    def download(self, package: str) -> bytes:
        """The bytes of the package's candidate, as apt-get fetched and checked it."""
        for old in (self.folder / "out").iterdir():
            old.unlink()
        self.apt("apt-get", "download", package)
        (deb,) = (self.folder / "out").iterdir()
        return deb.read_bytes()

    def candidate(self, package: str) -> str:
        """The version that apt-get would install; empty when there is none."""
        for line in self.apt("apt-cache", "policy", package).text.splitlines():
            if line.strip().startswith("Candidate:"):
                return line.split()[1]
        return ""


@dataclass(kw_only=True)
class Server:
    """A running static web server: its address, and what it was asked for."""

    uri: str = ""
    requests: list[tuple[str, int]] = field(default_factory=list)
    before: Callable[[str], None] | None = None  # called with each path before it is answered


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a directory over HTTP on loopback."""
    server = Server()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if server.before:
                server.before(self.path)
            super().do_GET()

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            server.requests.append((self.path, int(code)))

        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        server.uri = f"http://127.0.0.1:{web.server_address[1]}/"
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            web.shutdown()
            thread.join()


def file_uri(path: Path) -> str:
    """The file: URI that APT takes."""
    return "file:" + quote(str(path))
