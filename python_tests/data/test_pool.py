"""The pool of open files: one user at a time, bounded, never shared with a child."""

import copy
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlakern.data.pool import Pool, Recent
from vlakern.errors import DatasetError


class Opened:
    made = 0

    def __init__(self) -> None:
        Opened.made += 1
        self.users = 0


@pytest.fixture
def pool() -> Pool[Opened]:
    Opened.made = 0
    return Pool(2)


def use(pool: Pool[Opened], path: Path, *more: int) -> Opened:
    with pool.borrow(path, Opened, *more) as found:
        return found


def test_kept_and_bounded(tmp_path: Path, pool: Pool[Opened]):
    """The last ones used stay open; what differs in the extra key is another."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.touch()
    first = use(pool, paths[0])
    assert use(pool, paths[0]) is first
    assert use(pool, paths[0], 10) is not first
    assert len(pool) == 2
    use(pool, paths[1])
    assert use(pool, paths[0]) is not first
    assert len(pool) == 2


def test_replaced_file(tmp_path: Path, pool: Pool[Opened]):
    """A file that was written anew is opened anew; one that is gone is an error."""
    path = tmp_path / "a"
    path.write_text("one")
    first = use(pool, path)
    path.write_text("another")
    assert use(pool, path) is not first
    path.unlink()
    with pytest.raises(DatasetError, match=r"a cannot be read \(No such file"):
        use(pool, path)


def test_failed_block(tmp_path: Path, pool: Pool[Opened]):
    """What a block failed with is not used again."""
    (tmp_path / "a").touch()
    with pytest.raises(ZeroDivisionError), pool.borrow(tmp_path / "a", Opened):
        _ = 1 / 0
    assert len(pool) == 0


def test_one_user_at_a_time(tmp_path: Path, pool: Pool[Opened]):
    """Threads never hold the same object at once."""
    (tmp_path / "a").touch()

    def work(_: int) -> bool:
        with pool.borrow(tmp_path / "a", Opened) as found:
            found.users += 1
            os.sched_yield()
            alone = found.users == 1
            found.users -= 1
            return alone

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(500)))
    assert Opened.made <= 500
    assert len(pool) <= 2


def test_child_starts_empty(tmp_path: Path, pool: Pool[Opened]):
    """A forked child opens its own, also if another thread had the lock then."""
    (tmp_path / "a").touch()
    use(pool, tmp_path / "a")
    with pool._lock:
        child = multiprocessing.get_context("fork").Process(target=_child, args=(pool, tmp_path))
        child.start()
    child.join(30)
    alive = child.is_alive()
    child.kill()
    assert (alive, child.exitcode) == (False, 0)


def _child(pool: Pool[Opened], root: Path) -> None:
    assert len(pool) == 0
    use(pool, root / "a")
    assert Opened.made == 2


def test_recent_values():
    """The last ones used stay while they weigh little; a value that is too heavy stays alone."""
    made: list[str] = []
    recent: Recent[str, str] = Recent(6, len)

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key)

    for key in ("aa", "bb", "aa", "cc", "dd"):
        assert get(key) == key
    assert made == ["aa", "bb", "cc", "dd"]
    assert [get("aa"), get("bb")] == ["aa", "bb"]
    assert made == ["aa", "bb", "cc", "dd", "bb"]
    get("too heavy")
    assert len(recent) == 1
    assert len(copy.deepcopy(recent)) == 0


def test_a_value_that_cannot_be_made():
    """An error is not kept."""
    recent: Recent[int, float] = Recent(2)
    with pytest.raises(ZeroDivisionError):
        recent.get(0, lambda: 1 / 0)
    assert recent.get(0, lambda: 2.0) == 2.0
