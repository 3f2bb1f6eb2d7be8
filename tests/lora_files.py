"""LoRA files as each tool names them, for the modules of diffusers' networks, and what they must come to."""

import torch
from safetensors.torch import save_file
from torch import nn

RANK = 3


def random_lora(module, rank=RANK, mid=False, seed=0):
    """{role: tensor} for a Linear or Conv2d of any library; mid: with a third matrix around the kernel."""
    noise = torch.Generator().manual_seed(seed)
    out, inner, *kernel = module.weight.shape
    if mid:
        shapes = {"down": (rank, inner, 1, 1), "mid": (rank, rank, *kernel), "up": (out, rank, 1, 1)}
    else:
        shapes = {"down": (rank, inner, *kernel), "up": (out, rank, *(1 for _ in kernel))}
    return {role: 0.1 * torch.randn(shape, generator=noise) for role, shape in shapes.items()}


def difference(roles, shape, alpha=None):
    """What the matrices add to a weight of this shape, one number after the other, in float64."""
    down, up = roles["down"].double(), roles["up"].double()
    scale = 1 if alpha is None else alpha / len(down)
    if "mid" in roles:
        picture = torch.eye(down.shape[1], dtype=torch.float64)[:, :, None, None]  # each input channel alone
        padded = nn.functional.pad(nn.functional.conv2d(picture, down), (2, 2, 2, 2))
        made = nn.functional.conv2d(nn.functional.conv2d(padded, roles["mid"].double()), up)
        return scale * made.flip(-1, -2).transpose(0, 1).reshape(shape)
    made = torch.zeros(up.shape[0], *down.shape[1:], dtype=torch.float64)
    for place in range(len(down)):
        made += torch.tensordot(up.flatten(1)[:, place], down[place], dims=0)
    return scale * made.reshape(shape)


def targets(network):
    """The Linear and Conv2d modules of a network, by name."""
    return {name: one for name, one in network.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)}


def kohya(part, name, roles, alpha):
    """{"unet": .., "text": ..} -> underscores, and alpha as a tensor."""
    start = {"unet": "lora_unet_", "text": "lora_te_"}[part] + name.replace(".", "_")
    named = {f"{start}.lora_{role}.weight": tensor for role, tensor in roles.items()}
    return named if alpha is None else named | {f"{start}.alpha": torch.tensor(alpha)}


def dotted(prefixes, down, up):
    """A naming with dots: what is before the module's name, and what is behind it for each half."""

    def name_all(part, name, roles, _alpha):
        start = prefixes[part] + name
        return {f"{start}{down}": roles["down"], f"{start}{up}": roles["up"]}

    return name_all


def first_of_diffusers(part, name, roles, _alpha):
    """As `save_attn_procs` wrote attention, and nothing else."""
    attention, matrix = name.removesuffix(".0").rsplit(".", 1)
    start = f"{attention}.processor.{matrix}_lora"
    return {f"{start}.down.weight": roles["down"], f"{start}.up.weight": roles["up"]}


BOTH = {"unet": "unet.", "text": "text_encoder."}
NAMINGS = {
    "kohya": kohya,
    "peft in diffusers": dotted(BOTH, ".lora_A.weight", ".lora_B.weight"),
    "diffusers": dotted(BOTH, ".lora.down.weight", ".lora.up.weight"),
    "linear layers": dotted(BOTH, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "one part alone": dotted({"unet": "", "text": "text_encoder."}, ".lora_A.weight", ".lora_B.weight"),
}


def write_lora(path, state, metadata=None):
    """Save and return the path."""
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path, metadata)
    return path
