"""No speed without the same answer."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlakern.bench import accuracy
from vlakern.bench.accuracy import Reference, check, error_of, reference
from vlakern.bench.contenders import Place, make, variant_of
from vlakern.bench.workload import Call, PresetSource, Workload
from vlakern.errors import InputError


def tiny() -> Workload:
    return Workload(PresetSource("tiny", 0), views=2, prompt_tokens=5)


def test_error_is_relative_to_the_way_from_noise() -> None:
    """Noise that stays where it is has an error of 1, the exact answer one of 0."""
    noise, exact = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    known = Reference(exact, exact, noise)
    assert error_of(noise, known) == pytest.approx(1.0)
    assert error_of(exact, known) == 0.0


def test_plain_bf16_passes_by_definition() -> None:
    """The eager baseline's error is what others are measured by."""
    work = tiny()
    known, variant = reference(work), variant_of("torch-eager")
    error = check(variant, make(variant, work, Place()), work, known)
    assert error == pytest.approx(error_of(known.plain, known))
    assert 1e-4 < error < 5e-2


class Wrong:
    """Answers with a sum of noise and something."""

    def __init__(self, added: float) -> None:
        self.added = added

    def prepare(self, work: Workload) -> None: ...
    def vision(self) -> None: ...
    def prefix(self, call: Call) -> None: ...

    def ode(self, call: Call) -> Tensor:
        return call.noise_NHA + self.added


@pytest.mark.parametrize("added", [0.0, float("nan")])
@pytest.mark.parametrize("name", ["torch-eager-bf16", "vlakern-fp32", "vlakern-int8"])
def test_a_wrong_variant_is_not_timed(name: str, added: float) -> None:
    """Whatever the dtype: one that stays at the noise, or is not finite, is refused."""
    work = tiny()
    with pytest.raises(InputError, match=f"{name} is wrong: .* no speed is measured"):
        check(variant_of(name), Wrong(added), work, reference(work))


def test_large_references_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second one is read; one of other noise is computed."""
    monkeypatch.setenv("VLAKERN_CACHE", str(tmp_path))
    monkeypatch.setattr(accuracy, "KEPT", 0)
    first = reference(tiny())
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    monkeypatch.setattr(accuracy, "TorchModel", None)
    again = reference(tiny())
    assert torch.equal(first.exact, again.exact)
    assert torch.equal(first.plain, again.plain)
    monkeypatch.undo()
