"""The calls of a served page, as a program makes them: what they give, to one and to many at once."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gradio_client import Client, handle_file

import generate
from app.batch import load_pipeline
from app.inputs import TEST_IMAGES
from app.provenance import Provenance, load_request
from common.shell import DONE
from ldm.image import read_image, read_png_text

CIRCLE = TEST_IMAGES / "circle.png"
PROMPT = "cyan circle with brown background"


@pytest.fixture(scope="module")
def client(served):
    return Client(served.url, verbose=False)


def drawn(client, image=CIRCLE, **request):
    asked = {"prompt": PROMPT, "steps": 2, **request}
    return client.predict(request=asked, images=[handle_file(image)], api_name="/generate")


def by_shell(folder, image, *flags):
    """The picture that generate.py makes of these flags."""
    out = folder / "shell.png"
    assert generate.main(["--image", str(image), "--out", str(out), "--json", *map(str, flags)]) == DONE
    return read_image(out)


def test_the_models_are_there_by_name(client):
    assert list(client.predict(api_name="/models")) == ["tiny", "tiny-lite", "tiny-int8"]


def test_a_picture_has_the_pixels_and_the_request_of_generate_py(client, tmp_path, capsys):
    made = drawn(client, seed=4, num_samples=2)
    assert made["seeds"] == [4, 5]
    for path, seed in zip(made["images"], made["seeds"], strict=True):
        flags = ["--prompt", PROMPT, "--steps", 2, "--seed", seed]
        assert (read_image(path) == by_shell(tmp_path, CIRCLE, *flags)).all()
        request, source = load_request(path)
        assert (request.seed, request.num_samples, request.prompt) == (seed, 1, PROMPT)
        assert source.image == ("circle.png",)


def test_the_picture_of_a_call_can_be_made_again_from_its_file(client, tmp_path, capsys):
    path = drawn(client, controls=[{"control": "canny", "params": {"low": 50}}])["images"][0]
    again = by_shell(tmp_path, CIRCLE, "--from", path)
    assert (read_image(path) == again).all()


def test_the_map_comes_along(client):
    made = drawn(client)
    assert len(made["maps"]) == 1
    assert set(np.unique(read_image(made["maps"][0]))) <= {0, 255}


def test_a_drawing_may_be_a_data_url(client):
    from app.data_url import png_data_url

    url = png_data_url(read_image(CIRCLE))
    asked = {"prompt": PROMPT, "steps": 2}
    made = client.predict(request=asked, images=[url], api_name="/generate")
    assert (read_image(made["images"][0]) == read_image(drawn(client)["images"][0])).all()


def test_start_picture_and_mask_keep_what_is_not_painted(client, tmp_path):
    from ldm.image import write_png

    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 255
    start = np.full((128, 128, 3), (200, 60, 40), np.uint8)
    files = [write_png(tmp_path / f"{name}.png", one) for name, one in (("start", start), ("mask", mask))]
    made = client.predict(
        request={"prompt": PROMPT, "steps": 2, "denoise": 0.8}, images=[handle_file(CIRCLE)],
        init=handle_file(files[0]), mask=handle_file(files[1]), api_name="/generate",
    )  # fmt: skip
    image = read_image(made["images"][0])
    assert (image[:, :64] == start[:, :64]).all()
    assert (image[:, 64:] != start[:, 64:]).any()


def test_annotate_says_what_is_ready_and_what_makes_the_others_so(client):
    from annotator.registry import DETECTORS, ready

    found = client.predict(image=handle_file(CIRCLE), resolution=128, api_name="/annotate")
    made = {one["detector"] for one in found["maps"]}
    assert made | set(found["missing"]) == set(DETECTORS)
    assert made >= {"canny", "drawing", "xdog"}
    assert all(read_image(one["map"]).shape == (128, 128, 3) for one in found["maps"])
    assert {name: ready(name) for name in set(DETECTORS) - made if ready(name)}.items() <= found[
        "missing"
    ].items()


def test_annotate_takes_a_choice_of_detectors(client):
    found = client.predict(
        image=handle_file(CIRCLE), detectors=["canny"], resolution=64, api_name="/annotate"
    )
    assert [one["detector"] for one in found["maps"]] == ["canny"]
    assert not found["missing"]


def test_compare_costs_and_differs(client):
    names = ["tiny", "tiny-int8", "tiny-lite"]
    asked = {"prompt": PROMPT, "steps": 4}
    found = client.predict(request=asked, images=[handle_file(CIRCLE)], models=names, api_name="/compare")
    first, int8, lite = found["models"]
    assert [one["model"] for one in found["models"]] == names
    assert first["psnr"] is None is first["ssim"]
    assert int8["psnr"] > 35
    assert int8["file_bytes"] < lite["file_bytes"] < first["file_bytes"]
    assert int8["peak_bytes"] < lite["peak_bytes"] < first["peak_bytes"]
    assert all(one["seconds"] > 0 and one["peak_bytes"] > 0 for one in found["models"])
    assert json.loads(read_png_text(int8["image"])["source"])["quantized"].endswith("tiny-int8.safetensors")


def test_a_model_compared_with_itself_is_alike(client):
    from app.comparing import difference, likeness

    image = read_image(CIRCLE)[:, :, :3]
    assert likeness(image, image) == (float("inf"), 1.0)
    assert not difference(image, image).any()
    darker = np.maximum(image, 10) - 10
    assert difference(image, darker).max() == 40
    assert likeness(image, darker)[0] == pytest.approx(20 * np.log10(25.5), abs=1.5)


def test_twenty_at_once_get_each_the_pixels_of_its_own_request(tmp_path, capsys, served, monkeypatch):
    """Different seeds, prompts, pictures, samplers and strengths, all sent before the first is done."""
    pipeline = load_pipeline(Provenance())  # once: generate.py would load it for each
    monkeypatch.setattr("app.batch.load_pipeline", lambda provenance: pipeline)
    images = sorted(TEST_IMAGES.glob("*.png"))
    asked = [
        {
            "prompt": f"{('red', 'lime', 'navy', 'gold')[k % 4]} star with white background",
            "seed": k,
            "sampler": ("ddim", "euler", "unipc")[k % 3],
            "strength": 0.5 + k / 20,
            "image": images[k % len(images)],
        }
        for k in range(20)
    ]

    def call(one):
        rest = {name: one[name] for name in ("prompt", "seed", "sampler")}
        steered = {"controls": [{"strength": one["strength"], "detector": "drawing"}]}
        return drawn(Client(served.url, verbose=False), one["image"], **rest, **steered)["images"][0]

    with ThreadPoolExecutor(20) as pool:
        paths = list(pool.map(call, asked))
    for one, path in zip(asked, paths, strict=True):
        flags = [f"--{name}={one[name]}" for name in ("prompt", "seed", "sampler", "strength")]
        again = by_shell(tmp_path, one["image"], "--steps", 2, "--detector", "drawing", *flags)
        assert (read_image(path) == again).all(), one
