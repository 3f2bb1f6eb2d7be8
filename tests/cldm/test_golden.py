"""Models built from our yaml have every key and shape of the published files, in the published order."""

from pathlib import Path

import pytest

from ldm.config import create_meta_model

ROOT = Path(__file__).parents[2]


def golden(name):
    """Names and shapes of a list file, one `name<TAB>1280x320` a line; a scalar's shape is empty."""
    for line in (ROOT / "tests" / "golden" / name).read_text().splitlines():
        key, _, shape = line.partition("\t")
        yield key, tuple(int(size) for size in shape.split("x") if size)


@pytest.mark.parametrize(
    ("config", "list_file"),
    [
        ("cldm_v15.yaml", "golden_keys_v15.tsv"),
        ("cldm_v21.yaml", "golden_keys_v21.tsv"),
        ("cldm_v21_v.yaml", "golden_keys_v21.tsv"),
    ],
)
def test_keys_shapes_and_order_are_the_published_ones(config, list_file):
    model = create_meta_model(ROOT / "models" / config)
    built = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    assert built == list(golden(list_file))


def test_constants_have_memory_on_a_meta_model():
    model = create_meta_model(ROOT / "models" / "cldm_v15.yaml")
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert all(parameter.is_meta for parameter in model.parameters())
