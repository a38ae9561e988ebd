"""A client waits no longer than it said, connects again, and hands actions out one by one."""

import subprocess
import sys
import time

import numpy as np
import pytest

from python_tests.serve.conftest import Echo, Start, message
from vlakern.errors import InputError
from vlakern.serve import ActionBroker, Client, ServerError


def test_the_client_needs_no_torch() -> None:
    code = "import vlakern.serve.client, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_server_that_does_not_answer_is_given_up(start: Start, echo: Echo) -> None:
    with Client(start().url, timeout=0.2) as client:
        echo.takes = 0.6
        with pytest.raises(ServerError, match=r"did not answer in 0\.2 s"):
            client.infer(message())
        echo.takes = 0.0
        time.sleep(0.6)
        assert client.infer(message())["actions"].shape == (4, 3)


def test_no_server_is_one_sentence() -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        Client("127.0.0.1:9", patience=0.3)


def test_the_broker_hands_out_one_action_at_a_time(start: Start, echo: Echo) -> None:
    with Client(start().url) as client:
        broker = ActionBroker(client, execute=3)
        states = [
            broker.next(message(**{"observation/state": np.array([i], np.float32)}))[0]
            for i in range(7)
        ]
        assert states == [0, 0, 0, 3, 3, 3, 6]
        broker.reset()
        assert broker.next(message(**{"observation/state": np.array([9], np.float32)}))[0] == 9


def test_the_broker_fetches_ahead_and_skips_what_is_past(start: Start, echo: Echo) -> None:
    """Asked at the step before the end, the new chunk begins at its second action."""
    with Client(start().url) as client:
        broker = ActionBroker(client, execute=3, ahead=1)
        states = [
            broker.next(message(**{"observation/state": np.array([i], np.float32)}))[0]
            for i in range(6)
        ]
        assert states == [0, 0, 0, 2, 2, 4]


def test_an_error_in_the_background_is_raised(start: Start, echo: Echo) -> None:
    with Client(start().url) as client:
        broker = ActionBroker(client, execute=2, ahead=1)
        broker.next(message())
        echo.fails = ValueError("broken")
        broker.next(message())
        with pytest.raises(ServerError, match="the policy failed"):
            broker.next(message())


def test_wrong_settings_are_refused(start: Start) -> None:
    with Client(start().url) as client:
        for execute, ahead in ((0, 0), (2, 2), (2, -1)):
            with pytest.raises(InputError, match="execute is"):
                ActionBroker(client, execute, ahead)
        with pytest.raises(InputError, match="cannot be sent"):
            client.infer({"x": object()})
