"""What diffusers makes of a quantized file: its own networks on torchao's tensors, our codes and scales."""

import json
from importlib.util import find_spec

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import tool_convert
from checkpoints.checkpoint import open_checkpoint
from checkpoints.diffusers.check import read_params
from cldm.model import create_model
from common.shell import USER_ERROR
from quantize.files.read import load_quantized
from quantize.files.write import Content, write_quantized
from quantize.selection import default_selection, make_plan
from tests.diffusers_reference import Reference, prediction
from tests.small_models import SD15, randomize, relative_error, settings
from tools.convert.quantized import (
    CODES,
    SCALE,
    TORCHAO_CONFIG,
    Coded,
    flattened,
    metadata_of,
    open_quantized,
)

ROUNDING = 1e-5  # of float sums: the same codes and scales, multiplied in another order
PEERS = ("torchao", "accelerate")  # diffusers loads torchao's tensors with the help of both
needs_torchao = pytest.mark.skipif(not all(map(find_spec, PEERS)), reason=f"{PEERS} are not installed")
CONFIGURATION = settings(SD15, image_size=8)


def quantized(folder, scheme="int8_weight"):
    """`model.yaml` and a file of `scheme` in `folder`; the path of the file."""
    OmegaConf.save(CONFIGURATION, folder / "model.yaml")
    model = randomize(create_model(CONFIGURATION))
    plan = make_plan(model, default_selection(scheme))
    return write_quantized(folder / "small.safetensors", model, model.state_dict().items(), Content(plan))


def ours(path):
    model = create_model(CONFIGURATION).eval()
    load_quantized(model, path, backend="reference")
    return model


def convert(path, *options):
    folder = path.parent / "folder"
    code = tool_convert.main(
        ["to-diffusers", str(path), str(folder), "--config", str(path.parent / "model.yaml"), *options]
    )
    return code, folder


def test_codes_and_scales_are_those_of_the_file(tmp_path):
    path = quantized(tmp_path)
    code, folder = convert(path)
    assert code == 0
    stored, written = load_file(path), load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    block = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    theirs = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert torch.equal(written[theirs + CODES], stored[f"{block}.qweight"])
    assert torch.equal(written[theirs + SCALE], stored[f"{block}.scale"][:, None])
    assert f"{theirs}.weight" not in written
    assert written["conv_in.weight"].dtype == torch.float32


def test_only_parts_that_hold_codes_say_so(tmp_path):
    _, folder = convert(quantized(tmp_path))
    says = {
        part: "quantization_config" in json.loads((folder / part / "config.json").read_text())
        for part in ("unet", "controlnet", "vae", "text_encoder")
    }
    assert says == {"unet": True, "controlnet": True, "vae": False, "text_encoder": False}


@pytest.mark.parametrize("scheme", ["int8_weight", "int8_dynamic", "int4_group", "fp8_weight"])
def test_what_has_no_counterpart_is_decoded_as_our_reference_decodes_it(scheme, tmp_path):
    path = quantized(tmp_path, scheme)
    source, model = open_quantized(open_checkpoint(path), tmp_path / "model.yaml"), ours(path)
    for name, layer in model.named_modules():
        if hasattr(layer, "qweight"):
            decoded = layer.spec.format.dequantize(layer.qweight, layer.scale, layer.spec.shape)
            assert torch.equal(source.state[f"{name}.weight"].read(), decoded)
    kept = [tensor for tensor in source.state.values() if isinstance(tensor, Coded)]
    assert bool(kept) == scheme.startswith("int8")


def test_float_models_are_flattened_into_themselves():
    state = {"unet": {"a.weight": torch.ones(2, 2)}}
    assert flattened(state) == state


@needs_torchao
@pytest.mark.parametrize("scheme", ["int8_weight", "int4_group"])
def test_diffusers_computes_what_our_weight_only_scheme_computes(scheme, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    path = quantized(tmp_path, scheme)
    _, folder = convert(path)
    options = {"torch_dtype": torch.float32}
    twins = Reference(
        diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **options),
        diffusers.ControlNetModel.from_pretrained(folder / "controlnet", **options),
        None,
    )
    model, noise = ours(path), torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=noise), torch.randn(2, 7, 32, generator=noise)
    hint, t = torch.rand(2, 3, 64, 64, generator=noise), torch.tensor([3, 700])
    with torch.no_grad():
        got = prediction(twins, x, t, text, hint)
        expected = model.apply_model(x, t, {"c_concat": [hint], "c_crossattn": [text]})
    to_q = twins.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    assert (type(to_q.weight.data).__name__ == "Int8Tensor") == (scheme == "int8_weight")
    assert relative_error(got, expected) < ROUNDING


@needs_torchao
def test_their_whole_pipeline_loads_the_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    _, folder = convert(quantized(tmp_path, "int8_dynamic"))
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    kinds = {type(weight.data).__name__ for weight in pipeline.controlnet.parameters()}
    assert kinds == {"Int8Tensor", "Tensor"}
    assert {weight.dtype for weight in pipeline.vae.parameters()} == {torch.float32}


@needs_torchao
def test_what_files_say_of_themselves_is_what_torchao_would_write():
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig

    weight = Int8Tensor(torch.zeros(4, 8, dtype=torch.int8), torch.ones(4, 1), [1, 8], torch.float32)
    tensors, said = flatten_tensor_state_dict({"b.bias": torch.zeros(4), "b.weight": weight})
    ours = metadata_of(tensors)
    assert tensors.keys() == {"b.bias", f"b{CODES}", f"b{SCALE}"}
    assert {name: json.loads(text) for name, text in ours.items()} == {
        name: json.loads(text) for name, text in said.items()
    }
    assert TORCHAO_CONFIG["quant_type"]["default"] == config_to_dict(Int8WeightOnlyConfig())


@pytest.mark.parametrize("option", [["--dtype", "fp16"], ["--use-ema"]])
def test_what_a_quantized_file_cannot_be_asked_for_is_said(option, tmp_path, capsys):
    code, folder = convert(quantized(tmp_path), *option)
    assert code == USER_ERROR
    assert "small.safetensors is quantized: leave out --use-ema and --dtype" in capsys.readouterr().err
    assert not folder.exists()


def test_a_file_that_fits_no_published_model_asks_for_its_yaml(tmp_path):
    with pytest.raises(ValueError, match="fits no published model: name its yaml by --config"):
        open_quantized(open_checkpoint(quantized(tmp_path)))


def test_the_settings_are_those_of_the_yaml(tmp_path):
    _, folder = convert(quantized(tmp_path))
    heads = json.loads((folder / "unet" / "config.json").read_text())["attention_head_dim"]
    assert heads == read_params(tmp_path / "model.yaml")["unet_config"]["params"]["num_heads"]
