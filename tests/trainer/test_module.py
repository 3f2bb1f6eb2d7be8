"""A training run: who learns, and that it can stop and go on anywhere without changing a bit."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from common.shell import Stopped
from tests.small_models import build
from tests.small_runs import SETTINGS, At, Run, small_data
from tests.stored_tensors import stored_tensors
from trainer.checkpointing import STATE
from trainer.settings import LearningRate, Optimization, TrainingSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("fill50k"), 6, flip=True, empty_prompts=0.2)


def tensors(tree, path=""):
    """All tensors and numbers of nested containers, by their path."""
    if isinstance(tree, torch.Tensor | int | float):
        return {path: torch.as_tensor(tree)}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree if isinstance(tree, list) else ())
    return {name: one for key, inner in items for name, one in tensors(inner, f"{path}/{key}").items()}


def assert_equal_to_the_bit(one, other, parts=("state_dict", "optimizer_states", "lr_schedulers", "average")):
    for part in parts:
        first, second = tensors(one[part]), tensors(other[part])
        assert first.keys() == second.keys()
        assert len(first) > 0
        assert not [name for name in first if not torch.equal(first[name], second[name])]


def test_ten_steps_equal_five_and_five_more_to_the_bit(data, tmp_path):
    whole = Run(data, tmp_path / "whole", max_steps=10).go().state()
    Run(data, tmp_path / "halves", max_steps=5).go()
    halves = Run(data, tmp_path / "halves", max_steps=10).go("latest").state()
    assert whole["global_step"] == halves["global_step"] == 10
    assert whole["draws_done"] == halves["draws_done"] == 20
    assert_equal_to_the_bit(whole, halves)


def test_accumulated_batches_give_the_weights_of_one_large_batch_across_a_resume(data, tmp_path):
    plain = TrainingSettings(LearningRate(1e-2), optimization=Optimization(max_grad_norm=0.0))
    large = Run(data, tmp_path / "large", plain, batch=4, max_steps=4).go().state()
    Run(data, tmp_path / "small", plain, batch=4, max_steps=2).go()
    small = Run(data, tmp_path / "small", plain, batch=2, accumulate_grad_batches=2, max_steps=4)
    small = small.go("latest").state()
    assert small["draws_done"] == large["draws_done"] == 16
    for name, value in large["state_dict"].items():
        torch.testing.assert_close(small["state_dict"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("locked", [True, False])
def test_only_what_should_learn_does_and_is_stored(data, tmp_path, locked):
    from trainer.module import ControlTraining

    run = Run(data, tmp_path, max_steps=2)
    run.module.model.sd_locked = locked
    run.module = ControlTraining(run.module.model, SETTINGS, run.module.loader)
    before = {name: value.clone() for name, value in run.module.model.state_dict().items()}
    run.go()
    after = run.module.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    unlocked = ("model.diffusion_model.out.", "model.diffusion_model.output_blocks.")
    parts = ("control_model.", *(() if locked else unlocked))
    assert all(name.startswith(parts) for name in changed)
    assert all(any(name.startswith(part) for name in changed) for part in parts)
    stored = stored_tensors(run.folder.find("latest") / STATE)
    assert changed <= stored.keys()
    assert all(name.startswith(parts) for name in stored)


def test_a_published_loader_trains_too(data, tmp_path):
    from trainer.module import ControlTraining

    run = Run(data, tmp_path, max_steps=2)
    module = ControlTraining(build())
    assert module.settings.rate.peak == module.model.learning_rate == 1e-5
    run.trainer.fit(module, DataLoader(data, batch_size=2, shuffle=True))
    assert run.trainer.global_step == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_the_state_is_saved(data, tmp_path, number, capsys):
    before = signal.getsignal(number)
    send = At(3, lambda module: os.kill(os.getpid(), number))
    stopped = Run(data, tmp_path, max_steps=10, callbacks=[send]).go()
    assert "the state is saved first" in capsys.readouterr().err
    assert [path.name for path in stopped.folder.all()] == ["checkpoint-4"]
    assert stopped.module.stop.asked == number
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_the_run_at_once(data, tmp_path):
    def send(module):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = Run(data, tmp_path, max_steps=10, every=2, callbacks=[At(3, send)])
    with pytest.raises(Stopped, match="stopped at once"):
        run.go()
    assert [path.name for path in run.folder.all()] == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("zero", "offload"), [({"stage": 2}, False), ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, True)]
)
def test_deepspeed_gets_the_optimizer_of_the_host_only_where_it_offloads(zero, offload, monkeypatch):
    from trainer import module as training

    asked = []
    real = training.make_optimizer
    monkeypatch.setattr(training, "make_optimizer", lambda *one, offload: asked.append(offload) or real(*one))
    module = training.ControlTraining(build())
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(config={"zero_optimization": zero}))
    module.configure_optimizers()
    assert asked == [offload]


def poison(module):
    next(iter(module.model.first_stage_model.parameters())).data.fill_(torch.nan)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_spoils_anything(data, tmp_path):
    run = Run(data, tmp_path, max_steps=10, every=2, callbacks=[At(3, poison)])
    with pytest.raises(FloatingPointError, match="at step 3 is not finite"):
        run.go()
    assert [path.name for path in run.folder.all()] == ["checkpoint-2"]
    assert all(torch.isfinite(value).all() for value in run.module.learning().values())
