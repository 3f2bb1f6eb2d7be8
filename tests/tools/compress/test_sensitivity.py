"""What is asked of branch and U-Net together are calls that belong together."""

import torch

from quantize.timesteps import TimestepGroups
from tests.small_models import SD15, build
from tools.compress.calibration import BRANCH, UNET, follow_model
from tools.compress.sensitivity import record_calls


def test_calls_without_control_which_guidance_makes_are_passed_over():
    model, noise = build(SD15), torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 4, 8, 8, generator=noise), torch.randn(1, 7, 32, generator=noise)
    hint = torch.rand(1, 3, 64, 64, generator=noise)
    cond = {"c_crossattn": [text], "c_concat": [hint]}
    with torch.inference_mode(), record_calls(model) as calls, follow_model(model, TimestepGroups((500.0,))):
        for step in (800, 300):
            model.apply_model(x, torch.tensor([step]), cond)
            model.apply_model(x, torch.tensor([step]), {"c_crossattn": [-text], "c_concat": None})
    assert torch.equal(calls.hint, hint)
    assert len(calls.by_network[BRANCH]) == len(calls.by_network[UNET]) == 2
    for call in calls.by_network[UNET]:
        assert call.kwargs["control"] is not None
        assert torch.equal(call.kwargs["context"], text)
