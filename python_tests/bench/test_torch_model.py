"""The PyTorch baseline against the network that defines the model."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.bench.torch_model import TorchModel, make_plan
from vlakern.bench.workload import PresetSource, Workload
from vlakern.models.vla import VLA


def network(work: Workload) -> VLA:
    model = VLA(work.config)
    model.load_state_dict({name: work.weights(name).float() for name in model.state_dict()})
    return model.eval()


def pixels(work: Workload) -> Tensor:
    return ops.image_prep(work.images, size=work.config.vision.image_size)


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize(
    "name", ["tiny", "metaworld-small", "tiny-pi0", "tiny-pi05", "tiny-smolvla"]
)
@torch.no_grad()
def test_velocity_is_the_networks(name: str, candidates: int) -> None:
    """Cached or not, with one candidate or several, for both kinds of mask and place of state."""
    work = Workload(PresetSource(name, 0), views=2, prompt_tokens=7, batch=2, candidates=candidates)
    call, evaluation = work.call(0), 1
    model = TorchModel(work.config, work.weights, torch.float32)
    plan = make_plan(work, torch.float32, "cpu")
    defining = network(work)
    prefix = defining.prefill(replace(call.batch, pixels_V3SS=pixels(work)))
    index = torch.arange(2).repeat_interleave(candidates)
    tau = torch.full((2 * candidates,), evaluation / work.config.steps)
    expected = defining.velocity(prefix, call.noise_NHA, tau, index)

    semantic, state = model.embed(call.batch, model.vision(pixels(work)))
    cache = model.cache(plan, 2, "cpu")
    model.fill(cache, model.prefix(semantic, state, plan))
    x_RCA = call.noise_NHA.view(2, -1, work.config.action_dim)
    cached = model.velocity(x_RCA, model.times[evaluation], cache, plan)
    whole = model.uncached(semantic, state, x_RCA, model.times[evaluation], plan)
    torch.testing.assert_close(cached.view(expected.shape), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.view(expected.shape), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_layers_that_are_not_kept_give_the_same() -> None:
    """A reference that builds each layer when it is needed has the same bits."""
    work = Workload(PresetSource("tiny", 0), views=1, prompt_tokens=7)
    plan = make_plan(work, torch.bfloat16, "cpu")
    made = []
    for keep in (True, False):
        model = TorchModel(work.config, work.weights, torch.bfloat16, keep=keep)
        semantic, state = model.embed(work.call(0).batch, model.vision(pixels(work)))
        made.append(model.prefix(semantic, state, plan))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    assert len(made[0]) == 2 * work.config.mot.layers
