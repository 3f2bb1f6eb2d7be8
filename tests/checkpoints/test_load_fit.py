"""What does not fit is said in one sentence that names both sides."""

import pytest

from checkpoints.load import check_fit

UNET, CONTROL = "model.diffusion_model.", "control_model."
WIDTH = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def family(prefix, width):
    return {prefix + WIDTH: (320, width), prefix + "out.bias": (4,)}


MODEL = family(UNET, 768) | family(CONTROL, 768) | {"betas": (10,)}
BASE, BRANCH = family(UNET, 768), family(CONTROL, 768)


def test_parts_that_fill_the_model_fit():
    check_fit(MODEL, {"betas"}, {"base.ckpt": BASE, "canny.pth": BRANCH})
    check_fit(MODEL, set(), {"full.pth": MODEL})


def test_an_sd2_control_on_an_sd1_base_names_both():
    sides = (
        r"canny21.pth: made for text of width 1024 \(SD 2.x\), but the model and base.ckpt for .* \(SD 1.x\)"
    )
    with pytest.raises(ValueError, match=sides):
        check_fit(MODEL, {"betas"}, {"base.ckpt": BASE, "canny21.pth": family(CONTROL, 1024)})


def test_sd1_weights_under_an_sd2_yaml_name_the_model():
    with pytest.raises(
        ValueError, match="canny.pth: made for .* 768 .* but the model for text of width 1024"
    ):
        check_fit(family(CONTROL, 1024), set(), {"canny.pth": BRANCH})


def test_a_checkpoint_of_something_else_is_named():
    names = {f"layer{index}.weight": (3,) for index in range(5)}
    with pytest.raises(
        ValueError, match="resnet.pth is no checkpoint .* none of its 5 names .*layer0.weight"
    ):
        check_fit(MODEL, {"betas"}, {"base.ckpt": BASE, "resnet.pth": names})


def test_missing_tensors_are_counted_by_part():
    message = (
        r"base.ckpt lacks 2 tensors of the model \(2 of the control branch; .*\); name a file for every part"
    )
    with pytest.raises(ValueError, match=message):
        check_fit(MODEL, {"betas"}, {"base.ckpt": BASE})


def test_a_buffer_that_the_model_lacks_memory_for_is_missing_too():
    with pytest.raises(ValueError, match=r"lacks 1 tensors .* \(1 of the schedule; betas\)"):
        check_fit(MODEL, set(), {"full.pth": BASE | BRANCH})


def test_unknown_tensors_are_counted_and_named_by_file():
    extra = BRANCH | {CONTROL + "extra.weight": (1,)}
    with pytest.raises(ValueError, match="odd.pth has 1 unknown to the model .control_model.extra.weight"):
        check_fit(MODEL, {"betas"}, {"base.ckpt": BASE, "odd.pth": extra})


def test_another_shape_names_both_shapes():
    wide = BASE | {UNET + "out.bias": (8,)}
    with pytest.raises(ValueError, match=r"1 tensors differ in shape, .*out.bias with \[8\] where .* \[4\]"):
        check_fit(MODEL, {"betas"}, {"inpaint.ckpt": wide | BRANCH})
