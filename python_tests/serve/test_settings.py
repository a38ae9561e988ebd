"""A server that others could reach, or that nobody could, does not start."""

from typing import Any

import pytest

from vlakern.errors import ConfigError
from vlakern.serve.settings import ServerConfig, loopback


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"host": "0.0.0.0"}, "needs a token"),
        ({"host": "192.168.1.5"}, "needs a token"),
        ({"token": "short"}, "at least 16"),
        ({"port": 70000}, "expected 0 to 65535"),
        ({"blind": 0.0}, "expected more than 0"),
        ({"most_connections": 0}, "at least 1"),
        ({"shared": ""}, "path of a socket"),
        ({"shared": "/x" * 80}, "path of a socket"),
    ],
)
def test_unsafe_settings_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ServerConfig(**config)


def test_by_default_only_this_machine_is_served_and_eight_at_most() -> None:
    config = ServerConfig()
    assert (loopback(config.host), config.most_connections, config.most_bytes) == (
        True,
        8,
        16 << 20,
    )


def test_names_of_this_machine() -> None:
    assert all(loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    others = ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")
    assert not any(loopback(host) for host in others)
