"""The estimate of a run's memory counts what a real step holds."""

from dataclasses import replace

import pytest
import torch

from tests.small_models import build, settings
from trainer.live_memory import LiveMemory
from trainer.losses import Noise, control_loss
from trainer.memory import Estimate, Plan, advice, estimate

PLAN = Plan(batch=2, resolution=64, cached=True)
CONFIG = settings()


@pytest.fixture(scope="module")
def plain():
    return estimate(CONFIG, PLAN)


def test_live_memory_counts_storages_once_and_lets_them_go():
    old = torch.zeros(100)
    with LiveMemory([old]) as live:
        a = torch.ones(1000)
        views = a[:10], old.view(10, 10), a.T
        assert live.now == 4000
        b = a + 1
        assert live.now == 8000
        del a, views
        assert live.now == 4000
        b += 1
        assert (live.now, live.peak) == (4000, 8000)


def test_the_estimate_is_what_a_real_step_holds(plain):
    model = build().requires_grad_(False)
    model.control_model.requires_grad_(True)
    learning = list(model.control_model.parameters())
    with LiveMemory(model.parameters()) as live:
        x0, hint, text = torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 64, 64), torch.zeros(2, 77, 32)
        noise = Noise(torch.zeros(2, dtype=torch.long), torch.zeros_like(x0), torch.zeros_like(x0))
        loss = control_loss(model, x0, {"c_crossattn": [text], "c_concat": [hint]}, noise)
        loss.backward()
    sizes = sum(parameter.nbytes for parameter in learning)
    assert plain.gradients == sizes
    assert plain.states == 2 * sizes
    kept = (model.model, model.control_model)
    assert plain.weights == sum(one.nbytes for part in kept for one in part.parameters())
    # At this size the optimizer's own copy is more than what a step has beside its gradients.
    assert plain.gradients + plain.activations == max(live.peak, 2 * sizes)


def test_each_lever_lowers_the_peak(plain):
    large = replace(PLAN, batch=16)
    before = estimate(CONFIG, replace(large, cached=False))
    after = estimate(CONFIG, replace(large, checkpointing=True, optimizer="adamw8bit", precision="bf16"))
    assert after.activations < 0.7 * before.activations
    assert after.states < 0.3 * before.states == 0.3 * plain.states
    assert after.weights < 0.8 * plain.weights < before.weights


def test_advice_is_given_only_where_memory_is_short(monkeypatch):
    from trainer import memory as training_memory

    found, cpu = Estimate(10**9, 0, 0, 10**9), torch.device("cpu")
    for free, short in ((None, False), (3 * 10**9, False), (10**9, True)):
        monkeypatch.setattr(training_memory, "free_memory", lambda device, free=free: free)
        assert bool(advice(found, Plan(batch=1, checkpointing=True), cpu)) == short
    said = advice(found, Plan(batch=1, checkpointing=True), cpu)
    assert "needs about 2.0 GB" in said
    assert "--gradient-checkpointing" not in said
    assert "--cache-latents" in said
