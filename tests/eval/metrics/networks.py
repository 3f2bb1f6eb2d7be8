"""Files of the networks that metrics look through, in their published form, with random weights."""

import hashlib
import io

import torch
from torch import nn

from eval.metrics.weights import Network


def published(path, **options):
    """The network that a file made here is, with its own checksum in place of the published one."""
    return Network((path.name,), hashlib.sha256(path.read_bytes()).hexdigest(), **options)


def inception_file(folder, monkeypatch):
    """Inception as pytorch-fid and torch-fidelity publish it: a bare dict of tensors."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with monkeypatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        net = FeatureExtractorInceptionV3("random", ["2048"], nothing)
        for module in net.modules():  # signals keep their strength through all layers
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    path = folder / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(net.state_dict(), path)
    return path


def alexnet_file(folder):
    """AlexNet as torchvision publishes it."""
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = torchvision.models.alexnet(weights=None).state_dict()
    state = {
        name: value for name, value in state.items() if name.startswith("features.")
    }  # small enough to write
    path = folder / "alexnet-owt-7be5be79.pth"
    torch.save(state, path)
    return path
