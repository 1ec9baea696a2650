"""What the service manager is told (sd_notify(3)): ready, what is being done, alive, stopping.

Nothing is told where there is none. It kills a service that asked for that and no longer says that
it is alive, and starts it again; so that is said only while every thread goes on.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

SEND = 5.0
"""Seconds that telling may take."""


class Watchdog:
    """Knows which threads have promised to show themselves, and speaks for the whole process."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, log: Callable[[str], None] | None = None
    ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._log = log or (lambda _text: None)
        self._guard = threading.Lock()
        self._due: dict[threading.Thread, float] = {}
        self._late: list[str] = []
        self._status = ""
        asked = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._interval = (
            int(asked) / 4e6 if self._address and ours and asked.isdecimal() else float("inf")
        )

    def nap(self, seconds: float) -> float:
        """As long as that, or for as long as a thread may be silent."""
        return min(seconds, self._interval)

    def ready(self, status: str) -> None:
        """The service does what it is for, from now on."""
        self._status = status
        self._tell("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """A line for whoever looks."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}")

    def stopping(self) -> None:
        """The service ends, on its own terms; nobody is waited for any more."""
        with self._guard:
            self._due.clear()
        self._tell("STOPPING=1")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs, this thread calls `beat` before each step and after each `nap`."""
        with self._guard:
            self._due[threading.current_thread()] = self._until(0)
        try:
            yield
        finally:
            with self._guard:
                self._due.pop(threading.current_thread(), None)

    def beat(self, within: float = 0.0) -> None:
        """This thread goes on, and its next step is over within so many seconds and a nap.

        Of a thread that is not watched it means nothing.
        """
        with self._guard:
            if threading.current_thread() in self._due:
                self._due[threading.current_thread()] = self._until(within)

    def _until(self, within: float) -> float:
        return time.monotonic() + within + 2 * self._interval

    def ping(self) -> None:
        """Say that the process is alive, unless a thread is not; who calls this is."""
        with self._guard:
            now = time.monotonic()
            late = sorted(thread.name for thread, due in self._due.items() if due < now)
        if late != self._late:
            self._late = late
            names = ", ".join(late)
            self._log(f"these threads do not go on: {names}" if late else "all threads go on")
        if not late and self._interval < float("inf"):
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SEND)
            sender.connect(address)
            sender.send("\n".join(lines).encode())
