"""The upload to the model hub, against a stand-in on this machine."""

import numpy as np
import pytest

from ldm.image import write_png
from tests.hub_server import hub_on_this_machine
from trainer.export import push, write_card


@pytest.fixture
def hub(monkeypatch):
    with hub_on_this_machine(monkeypatch) as server:
        yield server


@pytest.fixture
def result(tmp_path):
    """What a run leaves behind."""
    out = tmp_path / "branch"
    pictures = [write_png(out / f"image_log/train/{n}.png", np.zeros((8, 8, 3), np.uint8)) for n in range(6)]
    (out / "checkpoint-5").mkdir()
    for name in ("control.safetensors", "config.json", "checkpoint-5/state.ckpt"):
        (out / name).write_bytes(name.encode())
    write_card(out, {"base": "v1-5.ckpt", "steps": 5}, pictures)
    return out


def test_card_weights_and_pictures_arrive_and_nothing_else_does(hub, result):
    assert push(result, None, "hf_secret") == f"{hub.address}/me/branch"
    assert set(hub.files) == {
        "README.md", "config.json", "control.safetensors", *(f"images/{n}.png" for n in range(2, 6)),
    }  # fmt: skip
    assert hub.files["control.safetensors"] == b"control.safetensors"
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}


def test_the_card_is_valid_and_shows_its_pictures(result):
    import yaml

    _, head, body = (result / "README.md").read_text().split("---\n", 2)
    assert "controlnet" in yaml.safe_load(head)["tags"]
    assert "| steps | 5 |" in body
    shown = [line for line in body.splitlines() if line.startswith("![")]
    assert shown == [f"![{n}](images/{n}.png)" for n in range(2, 6)]
    assert all((result / f"images/{n}.png").is_file() for n in range(2, 6))


@pytest.mark.parametrize("name", ["mine", "me/mine"])
def test_a_refusal_is_one_sentence_and_the_result_stays(hub, result, name):
    hub.refuses = True
    with pytest.raises(
        ConnectionError, match=r"^\S*mine was not uploaded, .*; the result stays in .*branch$"
    ):
        push(result, name, "wrong")
    assert (result / "control.safetensors").is_file()
