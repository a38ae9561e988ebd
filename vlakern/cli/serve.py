"""``vlakern serve``: a policy behind openpi's websocket protocol."""

import asyncio
import logging
import os
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import vlakern
from vlakern.cli._common import check_json, write_report
from vlakern.errors import ConfigError

__all__ = ["Args", "run"]

MOST_TOKEN = 4096  # bytes of the file
PATIENCE = 10.0  # for a call of the policy at the end [s]


@dataclass
class Args:
    """Serve a policy over openpi's websocket protocol; openpi's clients work unchanged.

    Binds this machine's own address. SIGINT and SIGTERM answer open requests and end the server.
    """

    policy: str = "metaworld-small"
    """Name of a policy that ships with vlakern, or a policy directory."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs --token-file."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    shared: Path | None = None
    """Socket to listen on as well, for clients on this machine that share memory (Linux)."""
    token_file: Path | None = None
    """File with the token that clients send as `Authorization: Api-Key TOKEN`."""
    device: str = "auto"
    """Device of the policy: auto, cpu, cuda, cuda:1."""
    dtype: str = "auto"
    """Number format of the policy: auto, fp32, bf16, int8 (CPU), fp8 (GPU)."""
    backend: Literal["auto", "torch"] = "auto"
    """`torch` runs the network's own modules, for clients whose prefixes have the form `exact`."""
    batch: int = 8
    """Most requests that wait together and go through the policy in one call."""
    connections: int = 8
    """Most clients at a time."""
    keys: list[str] = field(default_factory=list)
    """VIEW=KEY where clients call a camera otherwise than `observation/VIEW` or `images/VIEW`."""
    state_keys: list[str] = field(default_factory=list)
    """Keys whose numbers, joined, are the state; `observation/state` or `state` by default."""
    blind_ms: float | None = None
    """Send nothing that tells policies apart, and every reply this long after its request [ms]."""
    json: Path | None = None
    """File for address and policy as JSON, written when the server listens."""


def run(args: Args) -> int:
    """Serves until a signal, then returns 0."""
    from vlakern.serve._heap import keep_memory
    from vlakern.serve.batcher import Batcher
    from vlakern.serve.prefix import PrefixRule
    from vlakern.serve.server import ServerConfig
    from vlakern.serve.warm import describe, prefix_forms, warm_up
    from vlakern.serve.wire import parse_keys

    check_json(args.json)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    config = ServerConfig(
        host=args.host,
        port=args.port,
        token=_token(args.token_file),
        shared=None if args.shared is None else str(args.shared),
        most_connections=args.connections,
        blind=None if args.blind_ms is None else args.blind_ms / 1e3,
    )
    if args.batch < 1:
        raise ConfigError(f"batch is {args.batch}, expected at least 1")
    keep_memory()
    policy = vlakern.load(args.policy, args.device, args.dtype, backend=args.backend)
    keys = parse_keys(policy.views, args.keys, args.state_keys, policy.robot.state_width)
    slowest = warm_up(policy, args.batch)
    rule = PrefixRule(prefix_forms(policy, args.batch), policy.robot.action_width)
    keys = replace(keys, prefix=rule)
    batcher = Batcher(policy, args.batch)
    try:
        asyncio.run(_serve(args, batcher, keys, describe(policy), config, slowest))
    finally:
        ended = batcher.close(PATIENCE)
    if not ended:
        print(f"the policy has not answered for {PATIENCE:g} s and is left behind", file=sys.stderr)
    return 0 if ended else 1


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            print(f"warning: other users may read the token in {path}", file=sys.stderr)
        token = file.read(MOST_TOKEN + 1).strip()
    if len(token) > MOST_TOKEN or not token.isascii():
        raise ConfigError(
            f"{path} holds no token; it needs one line of at most {MOST_TOKEN} ASCII letters"
        )
    return token.decode()


async def _serve(
    args: Args, batcher: Any, keys: Any, metadata: dict[str, Any], config: Any, slowest: float
) -> None:
    from vlakern.serve.server import Server

    ending = asyncio.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(one, ending.set)
    async with Server(batcher, keys, metadata, config) as server:
        host = f"[{config.host}]" if ":" in config.host else config.host
        where = f"ws://{host}:{server.port}"
        print(f"{args.policy} at {where}; a call takes {slowest:.0f} ms at most so far", flush=True)
        if config.shared is not None:
            print(f"{args.policy} at shm://{config.shared} for this user's processes", flush=True)
        if config.host not in ("127.0.0.1", "::1", "localhost"):
            print("warning: nothing is encrypted; use a tunnel or a proxy with TLS", flush=True)
        if args.json is not None:
            write_report(
                args.json, args, {"url": where, "shared": config.shared, "policy": metadata}
            )
        await ending.wait()
    counted = server.statistics
    print(
        f"{counted.requests} requests, {counted.refused} refused, {counted.failed} failed,"
        f" largest batch {counted.largest_batch}"
    )
