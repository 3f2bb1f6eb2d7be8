"""Networks of libraries, built here and filled with weights of ours: neither asks the hub nor says a word.

The loaders of controlnet_aux and of the published scripts fetch what they need, unpickle whatever comes and
leave the device to chance; only their network classes are used. A network is built without memory and takes
the tensors that were read as its own.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

import torch
from torch import nn

from annotator.weights import WrongWeights, fill, read_weights
from common.shell import quote

_IMPORTING = RLock()


def build(
    make: Callable[[], nn.Module], path: Path, device: torch.device, *, inner: bool = False
) -> nn.Module:
    """The network that `make` gives with the tensors of the file at `path`, on `device`, ready to run.

    inner: the file names layers without the part of the network they are in. WrongWeights where names or
    shapes differ.
    """
    with torch.device("meta"):
        network = make()
    weights = read_weights(path)
    if inner:
        places = {name.split(".", 1)[1]: name for name in network.state_dict()}
        weights = {places.get(name, name): tensor for name, tensor in weights.items()}
    return fill(network, weights, path).to(device)


def auxiliary(name: str) -> ModuleType:
    """The module `name` of controlnet_aux, and nothing around it.

    Importing the package as a whole brings all of its detectors, their warnings, and changes in the registry
    of timm; so its packages are entered without running them, and are forgotten afterwards.
    """
    parts = ["controlnet_aux", *name.split(".")]
    places = [".".join(parts[:length]) for length in range(1, len(parts))]
    with _IMPORTING, quiet():
        absent = [place for place in places if place not in sys.modules]
        hollow = {place: _hollow(place) for place in absent}
        sys.modules.update(hollow)
        try:
            return import_module(".".join(parts))
        finally:
            for place in absent:
                sys.modules.pop(place, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what a library prints or warns about reaches the user."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield


def pretrained(loader: Any, folder: Path, device: torch.device, **config: Any) -> nn.Module:
    """The network of a folder that transformers saved, in 32 bits on `device`, ready to run.

    loader: an Auto class or a model's. config: overrides entries of the folder's. The hub is not asked.
    WrongWeights where the folder is incomplete or is another model's.
    """
    try:
        with _silent_transformers():
            network, report = loader.from_pretrained(
                folder, local_files_only=True, weights_only=True, dtype=torch.float32,
                output_loading_info=True, **config,
            )  # fmt: skip
    except Exception as error:  # transformers raises some dozen kinds for what can be wrong with a folder
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WrongWeights(f"{folder} is no folder of this network's weights: {said}") from error
    if lost := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise WrongWeights(
            f"{folder} is not this network's: it lacks, or has in another shape, {quote(lost)}"
        )
    return network.to(device).eval().requires_grad_(False)


def processor(loader: Any, folder: Path, **config: Any) -> Any:
    """What prepares pictures or words for the network of `folder`; WrongWeights where it lacks that."""
    try:
        with _silent_transformers():
            return loader.from_pretrained(folder, local_files_only=True, **config)
    except Exception as error:  # as in `pretrained`
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WrongWeights(f"{folder} lacks files beside its weights: {said}") from error


@contextmanager
def _silent_transformers() -> Iterator[None]:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _hollow(place: str) -> ModuleType:
    """A package that can be entered without running it."""
    package, *inner = place.split(".")
    module = ModuleType(place)
    module.__path__ = [str(Path(top, *inner)) for top in find_spec(package).submodule_search_locations]
    return module
