import pytest

from app.generate_flags import parse_flags
from app.generate_request import plan_jobs, provenance_of, request_of
from cldm.request import ControlInput, Request


def flags(*given):
    return parse_flags([str(one) for one in given], "")


def controls(*given):
    return request_of(flags("--prompt", "x", *given)).controls


def test_no_flags_are_the_request_as_it_comes():
    assert request_of(flags("--prompt", "x")) == Request("x")


def test_every_flag_of_a_request_arrives():
    given = {
        "negative_prompt": "no", "seed": 3, "steps": 4, "sampler": "euler", "eta": 0.5, "scale": 3.0,
        "resolution": 128, "num_samples": 2, "denoise": 0.5, "clip_skip": 2,
        "guidance_start": 0.1, "guidance_end": 0.6, "reuse_every": 2, "reuse_cut": "outer-1",
        "control_every": 4,
    }  # fmt: skip
    pairs = [part for name, value in given.items() for part in ("--" + name.replace("_", "-"), value)]
    asked = request_of(flags("--prompt", "x", *pairs, "--guess-mode"))
    assert asked == Request("x", guess_mode=True, **given)


def test_a_flag_given_once_is_for_all_controls():
    assert controls("--control", "canny", "--control", "tile", "--strength", 0.5) == (
        ControlInput("canny", 0.5),
        ControlInput("tile", 0.5),
    )


def test_two_pictures_are_two_controls_of_one_kind():
    assert controls("--image", "a", "--image", "b", "--control", "canny") == (ControlInput("canny"),) * 2


def test_flags_given_once_for_each_go_by_their_order():
    first, second = controls(
        "--control", "canny", "--control", "tile", "--start", 0, "--start", 0.5, "--end", 0.9
    )
    assert (first.start, first.end, second.start, second.end) == (0, 0.9, 0.5, 0.9)


def test_flags_that_do_not_match_in_number_are_named():
    with pytest.raises(ValueError, match="--control stands for 3 controls, --strength for 2"):
        controls(*["--control", "tile"] * 3, *["--strength", 1] * 2)


@pytest.mark.parametrize(("word", "value"), [("auto", None), ("yes", True), ("no", False)])
def test_polarity_is_asked_in_words(word, value):
    assert controls("--invert", word)[0].params == {"invert": value}


def test_detector_options_go_only_to_detectors_that_know_them():
    first, second = controls("--control", "canny", "--control", "scribble", "--low", 1, "--invert", "no")
    assert (first.params, second.params) == ({"low": 1}, {"invert": False})


def test_a_ready_made_map_takes_no_detector_options():
    assert not controls("--no-preprocess", "--control", "depth")[0].preprocess
    with pytest.raises(ValueError, match="--low says nothing to a ready-made map: it is an option of canny"):
        controls("--no-preprocess", "--control", "canny", "--low", 1)


def test_a_detector_is_named_with_any_of_its_parameters(tmp_path):
    (xdog,) = controls("--detector", "xdog", "--threshold", 9)
    assert (xdog.detector, xdog.params) == ("xdog", {"threshold": 9})
    (tile,) = controls("--control", "tile", "--param", "factor=4")
    assert (tile.detector, tile.params) == (None, {"factor": 4.0})
    (tmp_path / "pose.json").write_text('{"people": []}')
    given = "--control", "openpose", "--detector", "pose_json", "--param", f"points=@{tmp_path}/pose.json"
    assert controls(*given)[0].params == {"points": '{"people": []}'}


def test_detectors_are_given_once_for_all_or_once_for_each():
    both = controls("--control", "scribble", "--control", "scribble", "--detector", "xdog")
    assert [one.detector for one in both] == ["xdog", "xdog"]
    mixed = ("--detector", "drawing", "--detector", "xdog")
    assert [one.detector for one in controls(*mixed)] == ["drawing", "xdog"]


def test_a_detector_and_its_parameters_stay_until_another_is_asked_for():
    old = Request("old", controls=(ControlInput(detector="xdog", params={"threshold": 9}),))
    assert request_of(flags("--strength", 1), old).controls == old.controls
    changed = request_of(flags("--detector", "drawing"), old).controls[0]
    assert (changed.detector, changed.params) == ("drawing", {})
    other = request_of(flags("--control", "canny"), old).controls[0]
    assert (other.detector, other.params) == (None, {})
    ready = request_of(flags("--no-preprocess"), old).controls[0]
    assert (ready.detector, ready.params, ready.preprocess) == (None, {}, False)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--detector", "canny"), "scribble has no detector 'canny': choose from drawing, xdog"),
        (
            ("--detector", "xdog", "--no-preprocess"),
            "--detector xdog and --no-preprocess contradict each other",
        ),
        (("--param", "factor"), "--param factor: write it like NAME=VALUE"),
        (("--param", "=4"), "write it like NAME=VALUE"),
        (("--param", "factor=4"), "--param factor says nothing to drawing: it is an option of tile"),
        (("--param", "colour=4"), "--param colour says nothing to drawing: it is an option of no detector"),
        (("--control", "tile", "--param", "factor=many"), "factor='many': it takes 1 to 8"),
        (("--threshold", 9), "--threshold says nothing to drawing: it is an option of xdog"),
    ],
)
def test_a_detector_that_cannot_be_is_said(given, says):
    with pytest.raises(ValueError, match=says):
        controls(*given)


def test_a_text_that_is_not_there_is_said(tmp_path):
    given = "--control", "openpose", "--detector", "pose_json", "--param"
    with pytest.raises(FileNotFoundError):
        controls(*given, f"points=@{tmp_path}/nowhere.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary is not UTF-8 text: points is the joints as JSON"):
        controls(*given, f"points=@{tmp_path}/binary")


def test_weights_that_are_not_there_are_said_before_anything_is_loaded(tmp_path):
    given = flags("--prompt", "x", "--image", "a.png", "--control", "softedge", "--annotators", tmp_path)
    says = (
        r"hed needs hed_bsds500.safetensors in .*: python tool_download_models.py get hed; ready for softedge"
    )
    with pytest.raises(ValueError, match=says):
        plan_jobs(given)


def test_flags_over_an_old_request_change_only_what_they_say():
    old = Request("old", seed=9, controls=(ControlInput("canny", 0.5, params={"low": 5.0, "high": 9.0}),))
    asked = request_of(flags("--low", 6), old)
    assert asked.controls == (ControlInput("canny", 0.5, params={"low": 6.0, "high": 9.0}),)
    assert (asked.prompt, asked.seed) == ("old", 9)
    assert request_of(flags("--control", "scribble"), old).controls[0].params == {}


def test_an_old_request_of_two_controls_does_not_become_three():
    old = Request("old", controls=(ControlInput(), ControlInput("canny")))
    with pytest.raises(ValueError, match="--control stands for 3 controls, --from for 2"):
        request_of(flags(*["--control", "tile"] * 3), old)


def test_branches_are_called_by_their_files():
    given = flags("--prompt", "x", "--branch", "own", "--branch", "a/depth.pth", "--weights", "b/base.ckpt")
    assert [one.branch for one in request_of(given).controls] == [None, "depth"]
    provenance = provenance_of(given)
    assert (provenance.branches, provenance.weights) == (("a/depth.pth",), ("b/base.ckpt",))


def test_two_branches_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two branches are called 'x'"):
        provenance_of(flags("--branch", "a/x.pth", "--branch", "b/x.pth"))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["--weights", "v1-5-pruned.ckpt", "control_v11p_sd15_canny_fp16.safetensors"], ["canny"]),
        (["--branch", "control_hed-fp16.safetensors", "--no-preprocess"], ["softedge"]),
        (["--weights", "base.ckpt", "control_sd15_canny.pth", "--branch", "own", "--branch", "x.pth"],
         ["canny", "scribble"]),
        (["--weights", "control_sd15_canny.pth", "--control", "tile"], ["tile"]),
        (["--weights", "base.ckpt"], ["scribble"]),
    ],
)  # fmt: skip
def test_weights_tell_their_control_by_their_name_unless_it_is_given(given, names):
    assert [one.control for one in controls(*given)] == names


def test_loras_are_kept_with_their_weights():
    provenance = provenance_of(flags("--lora", "a.safetensors", "--lora", "sub/b.safetensors:0.5"))
    assert provenance.loras == ("a.safetensors:1.0", "sub/b.safetensors:0.5")
    assert provenance_of(flags()).loras == ()


def test_what_is_replayed_whole_cannot_leave_parts_out():
    given = flags("--prompt", "x", "--image", "a.png", "--cuda-graphs", "--reuse-every", 2)
    with pytest.raises(ValueError, match="--cuda-graphs replays whole steps, --reuse-every"):
        plan_jobs(given)
