"""Networks of the shapes and names that selection, calibration and storage meet."""

import torch
from torch import nn

from quantize.timesteps import TimestepGroups, follow_timesteps


class Unet(nn.Module):
    """A timestep, two convolutions, a Linear layer; louder at late timesteps."""

    def __init__(self, width=32):
        super().__init__()
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, width))
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, width, 3, padding=1))])
        self.middle = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.mix = nn.Linear(width, width, bias=False)
        self.out = nn.Sequential(nn.Conv2d(width, 4, 1))
        self.register_buffer("betas", torch.linspace(0.1, 0.2, 5))

    def forward(self, x, timesteps):
        h = self.input_blocks[0](x) + self.time_embed(torch.ones(self.width))[:, None, None]
        h = h + self.middle(h)
        h = self.mix(h.movedim(1, -1) * (1 + timesteps[0] / 100)).movedim(-1, 1)
        return self.out(h)


def network(seed=0, width=32):
    """A `Unet` with random weights, in evaluation mode without gradients."""
    torch.manual_seed(seed)
    return Unet(width).eval().requires_grad_(False)


def latents(seed=0, count=2):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def follow(module, groups=None):
    """Hooks on `module`, which takes `timesteps`; two groups cut at 500 when none are given."""
    groups = groups or TimestepGroups((500.0,))
    follow_timesteps(module, groups, "timesteps")
    return groups
