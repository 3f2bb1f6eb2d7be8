"""Training on a pruned model: what it must not mix up. The training itself is tested with the command."""

import pytest
import torch

from trainer.tiny import recover as recover_tiny
from trainer.tiny.recover import Recovery, recover
from trainer.tiny.stages import STAGES


@pytest.fixture
def calls(monkeypatch):
    """What reaches the training, in place of it."""
    seen = []
    monkeypatch.setattr(recover_tiny, "train", lambda *given: seen.append(given))
    return seen


class Model(torch.nn.Module):
    """As much of a ControlLDM as is touched before the training."""

    def __init__(self):
        super().__init__()
        self.model, self.control_model = torch.nn.Module(), torch.nn.Linear(4, 4)
        self.model.diffusion_model = torch.nn.Linear(4, 4)
        self.first_stage_model = torch.nn.Linear(4, 4)


def test_unet_and_branch_learn_and_zeros_do_not(calls, tmp_path):
    model = Model()
    model.control_model.weight.data[0] = 0
    recover(model, ["control_model"], "a", Recovery(tmp_path / "run", 7, device="cpu"))
    (stage, _, args, steps) = calls[0]
    parts = stage.trained(model)
    assert (steps, args.out) == (7, tmp_path / "run")
    assert stage.prepare is STAGES["base"].prepare
    assert {id(p) for p in parts.parameters()} == {id(p) for p in model.parameters() if p.requires_grad}
    assert not model.first_stage_model.weight.requires_grad
    model.control_model(torch.ones(1, 4)).sum().backward()
    assert (model.control_model.weight.grad[0] == 0).all()
    assert (model.control_model.weight.grad[1:] == 1).all()
    assert not model.model.diffusion_model.encoder_learns  # only as long as it trains


def test_checkpoints_of_other_weights_are_refused(calls, tmp_path):
    settings = Recovery(tmp_path, 1, device="cpu")
    recover(Model(), [], "a", settings)
    recover(Model(), [], "a", settings)
    with pytest.raises(ValueError, match="holds checkpoints of other weights: name another folder"):
        recover(Model(), [], "b", settings)
    assert len(calls) == 2
