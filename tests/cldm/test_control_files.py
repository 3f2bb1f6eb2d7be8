"""The names of control files, as people have them on disk, tell what they steer by."""

import pytest

from checkpoints.names.controls import file_stem
from cldm.controls import CONTROLS, branch_names, control_of_file

STEMS = [
    (control.stem, name) for name, control in CONTROLS.items() if control.stem and name != "scribble_xdog"
]
OLD = [(one.stem_10, name) for name, one in CONTROLS.items() if one.stem_10 and name != "scribble_xdog"]
FORMS = [
    "{}.pth",
    "{}_fp16.safetensors",
    "{}.fp16.safetensors",
    "models/{}",
    "{}/diffusion_pytorch_model.bin",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("stem", "control"), STEMS + OLD)
def test_every_published_name_is_known_in_every_form(stem, control, form):
    assert control_of_file(form.format(stem)) == control


@pytest.mark.parametrize(
    ("name", "control"),
    [
        ("control_canny-fp16.safetensors", "canny"),
        ("control_hed-fp16.safetensors", "softedge"),
        ("diff_control_sd15_depth_fp16.safetensors", "depth"),
        ("lllyasviel/sd-controlnet-seg", "seg"),
        ("sd-controlnet-normal/diffusion_pytorch_model.fp16.safetensors", "normalbae"),
        ("controlnet-sd21-openpose-diffusers/controlnet/diffusion_pytorch_model.bin", "openpose"),
        ("control_v11p_sd21_lineart.safetensors", "lineart"),
        ("v1-5-pruned.ckpt", None),
        ("control_v1p_sd15_brightness.safetensors", None),
        ("tiny_control.safetensors", None),
        ("controlnet.pth", None),
        ("canny.safetensors", None),
        ("t2iadapter_sketch_sd15v2.pth", None),
    ],
)
def test_names_of_other_programs_are_known_and_no_others(name, control):
    assert control_of_file(name) == control


def test_a_file_that_is_called_as_all_are_goes_by_its_folder():
    assert file_stem("a/control_x/diffusion_pytorch_model.fp16.safetensors") == "control_x"
    assert file_stem("a/my.model.ckpt") == "my.model"
    assert file_stem("a/sd-v1.1") == "sd-v1.1"


def test_two_files_never_share_the_name_of_a_branch():
    assert branch_names(["a/x.pth", "b/y.pth", "a/x.pth"]) == {"x": "a/x.pth", "y": "b/y.pth"}
    with pytest.raises(ValueError, match="two branches are called 'x': rename one"):
        branch_names(["a/x.pth", "b/x.safetensors"])
