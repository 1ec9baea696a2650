"""Real clients in a loop, while something is published before them."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from invirtibuilder.run import ProcessFault
from tests.support.aptclient import AptClient


@dataclass(kw_only=True)
class Crowd:
    """Clients, every other with wiped lists, that update and download until they have had enough.

    `enough` is asked between two runs; `failures` is what APT said when it failed. Of `within`
    publications, and no more, may all come during one run of a client: what is promised to one
    ends with a day, which may be short here.
    """

    clients: list[AptClient]
    enough: Callable[[int], bool]
    within: int = 1 << 30
    package: str = "foo"
    failures: list[str] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    number: int = 0
    began: dict[int, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def runs(self) -> int:
        """How many there were of all clients."""
        return sum(self.ended)

    def while_running(self, publish: Callable[[int], None]) -> None:
        """Run them all while `publish` is called with rising numbers, until all have ended."""
        self.ended = [0] * len(self.clients)
        threads = [threading.Thread(target=self._loop, args=(n,)) for n in range(len(self.clients))]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                if self._behind() < self.within:
                    self.number += 1
                    publish(self.number)
                else:
                    time.sleep(0.01)
        finally:
            self.enough = lambda _: True
            for thread in threads:
                thread.join()

    def _behind(self) -> int:
        """How many publications have come since the slowest of them began."""
        with self.lock:
            return self.number - min(self.began.values(), default=self.number)

    def _loop(self, index: int) -> None:
        apt = self.clients[index]
        while not self.enough(self.runs):
            with self.lock:
                self.began[index] = self.number
            if index % 2:
                shutil.rmtree(apt.folder / "state/lists")
                (apt.folder / "state/lists/partial").mkdir(parents=True)
            try:
                apt.update()
                apt.download(self.package)
            except ProcessFault as fault:
                with self.lock:
                    self.failures.append(f"client {index}: {fault}")
            with self.lock:
                self.ended[index] += 1
        with self.lock:
            del self.began[index]
