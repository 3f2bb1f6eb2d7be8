"""What an image says about how it was made, and whether that is what is asked."""

import numpy as np
import pytest

from app.provenance import Provenance, find_place, load_request, satisfies
from cldm.request import ControlInput, Request
from ldm.image import write_png

BLACK = np.zeros((8, 8, 3), np.uint8)
# As earlier versions wrote them: the fields that came later are not there.
OLD_REQUEST = """{"clip_skip": null, "controls": [{"branch": null, "control": "canny", "end": 1.0,
 "params": {"low": 50.0}, "preprocess": true, "scales": null, "start": 0.0, "strength": 0.5}],
 "denoise": 1.0, "eta": 0.0, "guess_mode": false, "negative_prompt": "", "num_samples": 1,
 "prompt": "red star", "resolution": 128, "sampler": "ddim", "scale": 1.75, "seed": 3, "steps": 10}"""
OLD_SOURCE = """{"config": null, "device": "auto", "digests": {"a.png": "4569"}, "dtype": "auto",
 "image": ["a.png"], "init": null, "mask": null, "quantized": null, "save_memory": false, "weights": []}"""


def test_images_of_earlier_versions_still_tell(tmp_path):
    write_png(tmp_path / "a.png", BLACK, {"request": OLD_REQUEST, "seed": "3", "source": OLD_SOURCE})
    request, provenance = load_request(tmp_path / "a.png")
    control = ControlInput("canny", 0.5, params={"low": 50.0})
    assert request == Request("red star", "", (control,), 3, 10, scale=1.75, resolution=128)
    assert provenance == Provenance(image=("a.png",), digests={"a.png": "4569"})


def test_a_default_is_answered_by_any_value_and_nothing_else_is():
    made = Request("x", scale=2.0, resolution=64)
    assert satisfies(made, Request("x"))
    assert satisfies(made, Request("x", scale=2.0))
    for other in ({"scale": 3.0}, {"seed": 1}, {"controls": (ControlInput(strength=0.5),)}, {"eta": 1.0}):
        assert not satisfies(made, Request("x", **other))


def test_a_text_of_another_version_is_said(tmp_path):
    for request, source in (
        ("{}", "{}"),
        (Request("x").to_json(), '{"magic": 1}'),
        (Request("x").to_json(), "3"),
    ):
        write_png(tmp_path / "a.png", BLACK, {"request": request, "source": source})
        with pytest.raises(ValueError, match="carries a request of another version"):
            load_request(tmp_path / "a.png")
    assert find_place(tmp_path, "a", Request("x"), None) == (tmp_path / "a_2.png", None)
