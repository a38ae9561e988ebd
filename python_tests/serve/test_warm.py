"""A policy has been called in every size before it is served, and its facts are announced."""

import numpy as np

import vlakern
from vlakern.serve.codec import decode, encode
from vlakern.serve.warm import describe, warm_up


def test_both_sizes_have_run() -> None:
    policy = vlakern.load("metaworld-small", device="cpu")
    assert warm_up(policy, 3) > 0.0
    engine = policy._engine
    assert engine is not None
    assert engine.limits.rows >= 3
    images = {v: np.zeros((96, 96, 3), np.uint8) for v in policy.views}
    policy.act_batch([vlakern.Observation(images, np.zeros(4, np.float32), "reach")] * 3)
    assert policy._engine is engine, "a served call builds nothing"


def test_the_facts_can_be_sent() -> None:
    policy = vlakern.load("metaworld-small", device="cpu")
    facts = decode(encode(describe(policy)))
    assert facts["views"] == list(policy.views)
    assert (facts["chunk"], facts["action_width"]) == (16, 4)
