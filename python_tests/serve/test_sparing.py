"""Whatever clients do, the log grows by so many lines in a time, and says what it left out."""

import logging

import pytest

from vlakern.serve import _sparing
from vlakern.serve._sparing import Sparing


def test_so_many_lines_of_a_level_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(_sparing.time, "monotonic", lambda: now[0])
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    log = logging.Logger("spared")
    log.addHandler(handler)
    log.addFilter(Sparing(3, 10.0))
    for i in range(1000):
        log.warning("mistake %d", i)
    log.error("the policy failed: %s", "100 %")
    assert seen == ["mistake 0", "mistake 1", "mistake 2", "the policy failed: 100 %"]
    now[0] += 9.9
    log.warning("mistake")
    assert len(seen) == 4
    now[0] += 0.2
    log.warning("mistake of %d %%", 7)
    log.warning("mistake")
    assert seen[4:] == ["mistake of 7 % (998 lines before it were left out)", "mistake"]
