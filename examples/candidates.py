"""Several answers to one look: how sure is the policy, and which answer is the most typical?

Run it: ``python examples/candidates.py``. The pictures are random here; on a robot they are the
cameras'. All candidates share one prefix, so they cost far less than as many calls.
"""

import numpy as np

import vlakern

CANDIDATES = 8

policy = vlakern.load("metaworld-small", dtype="bf16")
rng = np.random.default_rng(0)
side = policy.image_size
observation = vlakern.Observation(
    images={view: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for view in policy.views},
    state=np.array([0.0, 0.6, 0.2, 1.0], np.float32),
    instruction="push the puck to the goal",
)

policy.act_candidates(observation, CANDIDATES)  # the first call builds the engine
one = policy.act(observation, seed=0)
chunks = policy.act_candidates(observation, CANDIDATES, seeds=range(CANDIDATES))
actions = np.stack([chunk.actions for chunk in chunks])  # [candidates, chunk, actions]

spread = actions.std(axis=0)  # large where the policy hesitates
distance = np.abs(actions[:, None] - actions[None]).mean(axis=(2, 3))
typical = int(distance.sum(axis=1).argmin())  # closest to all others

for step in (0, policy.chunk - 1):
    print(f"step {step:2}: spread {np.array2string(spread[step], precision=3)}")
print(f"most typical: candidate {typical}")
print(
    f"one chunk {one.latency_ms['total']:.1f} ms, {CANDIDATES} together"
    f" {chunks[0].latency_ms['total']:.1f} ms"
)
