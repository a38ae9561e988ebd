"""Where a server listens, what it allows, and what it has counted."""

import ipaddress
import os
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from vlakern.errors import ConfigError
from vlakern.serve.codec import MOST_BYTES

__all__ = ["ServerConfig", "Statistics", "loopback"]

Count = Literal["requests", "refused", "failed", "late", "dropped"]
SHORTEST_TOKEN = 16  # characters
LONGEST_PATH = 100  # bytes; Unix sockets take 107


@dataclass(frozen=True)
class ServerConfig:
    """Where a server listens, and what it allows.

    Attributes:
        host, port: 0 takes a free port. Another host than this machine's own needs a token.
        token: clients send ``Authorization: Api-Key TOKEN``.
        shared: path of a socket for clients on this machine that hand their images over in shared
            memory; only processes of the same user may open it.
        most_bytes: of a message.
        most_connections: at a time, over both ways.
        most_opening: connections at a time whose handshake is not finished.
        open_timeout, idle_timeout, send_timeout: until a client is dropped that does not finish its
            handshake, sends nothing, or does not take its reply [s].
        close_timeout: for a client's goodbye [s].
        end_timeout: for requests in flight when the server ends [s].
        blind: metadata and timing are left out, and every reply is sent this long after its
            request, a late one at the next multiple [s]; None for an open server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    shared: str | None = None
    most_bytes: int = MOST_BYTES
    most_connections: int = 8
    most_opening: int = 64
    open_timeout: float = 5.0
    idle_timeout: float = 120.0
    send_timeout: float = 5.0
    close_timeout: float = 1.0
    end_timeout: float = 10.0
    blind: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port is {self.port}, expected 0 to 65535")
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise ConfigError(
                f"the token has {len(self.token)} characters, expected at least {SHORTEST_TOKEN};"
                " `python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"
            )
        if self.token is not None and (not self.token.isascii() or not self.token.isprintable()):
            raise ConfigError("the token has letters that no header holds; use plain ASCII letters")
        if not loopback(self.host) and self.token is None:
            raise ConfigError(
                f"host {self.host!r} can be reached from other machines, which needs a token; give"
                " one, or listen on 127.0.0.1"
            )
        if min(self.most_bytes, self.most_connections, self.most_opening) < 1:
            raise ConfigError("most_bytes, most_connections and most_opening have to be at least 1")
        if self.blind is not None and not 0.0 < self.blind <= 60.0:
            raise ConfigError(f"blind is {self.blind} s, expected more than 0 and at most 60")
        if self.shared is not None and not 0 < len(os.fsencode(self.shared)) <= LONGEST_PATH:
            raise ConfigError(
                f"shared is {self.shared!r}, expected the path of a socket in at most"
                f" {LONGEST_PATH} bytes"
            )


@dataclass
class Statistics:
    """What a server has counted; clients with a thread of their own count, too."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    late: int = 0  # replies of a blind server after their time
    dropped: int = 0
    largest_batch: int = 0
    open: set[Any] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count(self, name: Count) -> None:
        """One more of those."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def batched(self, rows: int) -> None:
        """A call of the policy had so many rows."""
        with self._lock:
            self.largest_batch = max(self.largest_batch, rows)


def loopback(host: str) -> bool:
    """Whether only this machine is reached under that name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
