"""The published openpi-client works unchanged; it wants an older numpy, as robosuite does."""

import numpy as np
import pytest

from python_tests.serve.conftest import Start, message

action_chunk_broker = pytest.importorskip("openpi_client.action_chunk_broker")
websocket_client_policy = pytest.importorskip("openpi_client.websocket_client_policy")


def test_a_policy_is_asked_and_its_chunk_handed_out(start: Start) -> None:
    running = start()
    policy = websocket_client_policy.WebsocketClientPolicy(
        host="127.0.0.1", port=running.server.port
    )
    assert policy.get_server_metadata()["policy"] == "secret-name"
    reply = policy.infer(message())
    assert reply["actions"].tolist() == [[3.0, 180.0, 7.0]] * 4
    assert set(reply) == {"actions", "policy_timing", "server_timing"}
    broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=4)
    states = [
        broker.infer(message(**{"observation/state": np.array([i], np.float32)}))["actions"][0]
        for i in range(6)
    ]
    assert states == [0, 0, 0, 0, 4, 4]


def test_an_error_is_raised_by_the_client(start: Start) -> None:
    running = start()
    policy = websocket_client_policy.WebsocketClientPolicy(
        host="127.0.0.1", port=running.server.port
    )
    with pytest.raises(RuntimeError, match="Error in inference server"):
        policy.infer({"prompt": "pick"})
