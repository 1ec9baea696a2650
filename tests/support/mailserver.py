"""A mail server on loopback."""

from __future__ import annotations

import socket
from collections.abc import Coroutine
from typing import Any

from aiosmtpd.controller import Controller


class MailServer(Controller):
    """Has a port of its own from the start on, so that nobody takes it meanwhile."""

    def __init__(self, handler: object, **options: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        super().__init__(handler, hostname=host, port=port, ready_timeout=60, **options)

    def _create_server(self) -> Coroutine[Any, Any, Any]:
        return self.loop.create_server(
            self._factory_invoker, sock=self._listener, ssl=self.ssl_context
        )
