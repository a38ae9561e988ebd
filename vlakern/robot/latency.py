"""How long inference takes, as the loop needs to know it: recent, and without its beginning."""

import math
import threading
from collections import deque

from vlakern.errors import ConfigError

__all__ = ["Latency"]

# Of a period: what rounding leaves of a latency of whole periods is not one more.
SLACK = 1e-9


class Latency:
    """A percentile of the last latencies.

    The first ones, in which code is compiled and memory is found, are kept out; a latency leaves
    the window with time, however large it was. So the estimate follows a change, up or down, within
    one window. Any thread may add and read.

    Args:
        window: latencies that count.
        warm_up: how many at the beginning never count.
        share: of the percentile.

    Raises:
        ConfigError: a window below 1, a negative warm-up, or a share outside (0, 1].
    """

    def __init__(self, window: int = 50, warm_up: int = 1, share: float = 0.95) -> None:
        if window < 1 or warm_up < 0 or not 0 < share <= 1:
            raise ConfigError(
                f"latency: window = {window}, warm_up = {warm_up} and share = {share}; expected at"
                " least 1, at least 0, and above 0 to 1"
            )
        self._share, self._warm_up = share, warm_up
        self._lock = threading.Lock()
        self._recent: deque[float] = deque(maxlen=window)
        self._count = 0
        self._most = 0.0

    def add(self, seconds: float) -> None:
        """Counts one latency [s]; NaN and negative ones count as endless, never as fast."""
        seconds = seconds if seconds >= 0 else math.inf
        with self._lock:
            self._count += 1
            if self._count > self._warm_up:
                self._recent.append(seconds)
                self._most = max(self._most, seconds)

    def __len__(self) -> int:
        """Latencies so far, with those of the warm-up."""
        return self._count

    @property
    def p95(self) -> float:
        """The percentile [s] of the window, 0 while it is empty."""
        return self.quantile(self._share)

    def quantile(self, share: float) -> float:
        """The smallest latency of the window [s] that ``share`` of them do not pass."""
        with self._lock:
            ordered = sorted(self._recent)
        return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0

    def delay_steps(self, rate: float) -> int:
        """Actions at ``rate`` [Hz] that are executed while one inference runs."""
        if math.isinf(self.p95):
            raise ConfigError("the latency is endless: a clock went backwards; use a monotonic one")
        return math.ceil(self.p95 * rate - SLACK)

    def summary(self) -> dict[str, float]:
        """Percentiles of the window and the longest of all after the warm-up [s]."""
        found = {f"p{round(100 * q)}": self.quantile(q) for q in (0.5, 0.95, 0.99)}
        return {**found, "max": self._most}
