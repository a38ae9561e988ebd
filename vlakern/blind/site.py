"""A study that is open: the robot's endpoint and the people's pages in one event loop."""

import asyncio
import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vlakern.blind.router import Router, Runnable, load_policy
from vlakern.blind.seal import Key, check_model, open_key
from vlakern.blind.study import PoolModel
from vlakern.blind.video import check_reader
from vlakern.errors import StudyError
from vlakern.serve.batcher import Batcher
from vlakern.serve.server import Server, ServerConfig
from vlakern.serve.wire import Keys

__all__ = ["Addresses", "SiteConfig", "check_models", "pool_views", "serve_study"]

ROWS = 4  # requests of one policy call


@dataclass(frozen=True)
class SiteConfig:
    """Where a study is served.

    Attributes:
        host: of both; another than this machine's own needs ``token`` for the robot.
        port, web_port: of the robot's endpoint and of the pages; 0 takes a free one.
        names: other host names under which the pages may be asked for.
        token: that the robot's client sends.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    web_port: int = 8080
    names: tuple[str, ...] = ()
    token: str | None = None


@dataclass(frozen=True)
class Addresses:
    """Where the two are."""

    robot: str
    pages: str


def check_models(key: Key) -> None:
    """Refuses a pool whose files are not those of the lock.

    Raises:
        StudyError: naming the model.
    """
    for model in key.study.models:
        check_model(key, model)


def pool_views(key: Key) -> tuple[str, ...]:
    """Cameras of all policies of the pool, read from their directories."""
    from vlakern.models.weights.families import open_policy

    found: dict[str, None] = {}
    for model in key.study.models:
        shipped = Path(str(resources.files("vlakern") / "policies" / model.policy))
        folder = Path(model.policy) if Path(model.policy).is_dir() else shipped
        found.update(dict.fromkeys(open_policy(folder).records.embodiment.views))
    return tuple(found)


async def serve_study(
    folder: Path,
    config: SiteConfig,
    ready: Callable[[Addresses], None],
    ending: asyncio.Event,
    load: Callable[[PoolModel], Runnable] = load_policy,
    views: tuple[str, ...] | None = None,
) -> None:
    """Serves until ``ending`` is set.

    Args:
        folder: of a locked study.
        ready: called when both listen and the first group is loaded.
        load, views: of the models; by default from their policy directories.

    Raises:
        StudyError: the study, a policy or a deadline is not what it was at the lock.
    """
    import uvicorn

    from vlakern.blind.web import Desk, make_app

    check_reader()
    key = open_key(folder)
    check_models(key)
    router = Router(key, load)
    batcher = Batcher(router, ROWS)
    server = Server(batcher, Keys(views or pool_views(key)), {}, _endpoint(key, config))
    desk = Desk(folder, router, lambda: server.statistics.late)
    try:
        await asyncio.to_thread(_make_ready, desk, router)
        hosts = ("127.0.0.1", "localhost", "::1", config.host, *config.names)
        pages = _pages(
            uvicorn.Config(
                make_app(desk, hosts),
                host=config.host,
                port=config.web_port,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
            )
        )
        async with server:
            serving = asyncio.create_task(pages.serve())
            while not pages.started and not serving.done():
                await asyncio.sleep(0.01)
            if serving.done():
                raise StudyError(f"port {config.web_port} of {config.host} cannot be used")
            port = pages.servers[0].sockets[0].getsockname()[1]
            ready(Addresses(f"ws://{config.host}:{server.port}", f"http://{config.host}:{port}"))
            await ending.wait()
            pages.should_exit = True
            await serving
    finally:
        batcher.close()
        desk.close()


def _make_ready(desk: Any, router: Router) -> None:
    """The next trial's group is loaded; before the first trial every group is, once.

    A model that is too slow has to be found before the study begins, not in its middle.
    """
    turn = desk.conduct.state.next
    if turn is None:
        return
    if not desk.conduct.state.started:
        for group in reversed(range(len(desk.plan.plan.group_sizes))):
            router.prepare(group)
    router.prepare(turn.trial.group)


def _pages(config: Any) -> Any:
    """uvicorn's server without its signal handlers: the caller's stay."""
    import uvicorn

    class Pages(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            yield

    return Pages(config)


def _endpoint(key: Key, config: SiteConfig) -> ServerConfig:
    return ServerConfig(
        host=config.host,
        port=config.port,
        token=config.token,
        blind=key.study.deadline_ms / 1e3,
        idle_timeout=3600.0,  # a break is no reason to drop the robot
    )
