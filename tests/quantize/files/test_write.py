"""Files hold what was quantized, bit for bit, and load without a float weight; damaged ones say so."""

import copy
import json
import struct
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import common.atomic
import quantize.files.read
from quantize.calibration.ranges import watch
from quantize.files.read import load_quantized, read_content
from quantize.files.write import FORMAT_VERSION, Content, Schedule, hash_files, write_quantized
from quantize.model import bind, quantize_, quantized_layers
from quantize.schemes import SCHEMES
from quantize.selection import default_selection, make_plan
from quantize.timesteps import TimestepGroups
from tests.quantize.small_networks import follow, latents, network

TIMESTEPS = (10, 900)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def run(model):
    return torch.cat([model(latents(), timesteps=torch.tensor([t, t])) for t in TIMESTEPS])


def calibrated(scheme, model):
    """A plan for `model`, the ranges that it needs, and what a file says of it."""
    plan = make_plan(model, default_selection(scheme))
    watched = copy.deepcopy(model)
    groups = follow(watched)
    with watch(watched, plan, groups.count) as calibration:
        run(watched)
    return plan, calibration.all_ranges(plan), Content(plan, Schedule(groups, {"": "timesteps"}), {"a": "b"})


def written(folder, scheme="int8_static", model=None):
    """A file of the small network, the float network itself, and the content."""
    model = model or network()
    _, ranges, content = calibrated(scheme, model)
    path = write_quantized(folder / "q.safetensors", model, model.state_dict().items(), content, ranges)
    return path, model, content


def empty():
    with torch.device("meta"):
        return network()


@every_scheme
def test_a_file_loads_into_an_empty_model_as_if_quantized_in_memory(tmp_path, scheme):
    path, model, content = written(tmp_path, scheme)
    loaded = empty()
    assert load_quantized(loaded, path, backend="reference") == content == read_content(path)
    plan, ranges, _ = calibrated(scheme, model)
    quantize_(model, plan, ranges, backend="reference")
    follow(model)
    expected, got = model.state_dict(), loaded.state_dict()
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor.float(), got[name].float()), name
        assert tensor.dtype == got[name].dtype
    assert torch.equal(run(loaded), run(model))
    assert not any(tensor.is_meta for tensor in got.values())


@every_scheme
def test_the_file_has_the_bytes_of_its_codes(tmp_path, scheme):
    path, model, content = written(tmp_path, scheme, network(width=64))
    floats = sum(t.nbytes for n, t in model.state_dict().items() if n[:-7] not in content.plan.layers)
    weights = sum(model.get_submodule(name).weight.numel() for name in content.plan.layers)
    bits = {"int8": 8, "fp8": 8, "int4": 4}[SCHEMES[scheme].weights]
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        sizes = {name: file.get_tensor(name).nbytes for name in names}
    values = sum(size for name, size in sizes.items() if name.endswith(".qweight"))
    assert values == weights * bits // 8
    assert sum(sizes.values()) - floats - values < weights // 8  # scales and ranges


def test_the_same_model_gives_the_same_bytes(tmp_path):
    (tmp_path / "other").mkdir()
    assert written(tmp_path)[0].read_bytes() == written(tmp_path / "other")[0].read_bytes()


def test_the_library_reads_the_file_too(tmp_path):
    path, *_ = written(tmp_path)
    tensors = load_file(path)
    assert tensors["mix.qweight"].dtype == torch.int8
    assert torch.equal(tensors["mix.qweight"], quantize.files.read._read_tensors(path)["mix.qweight"])


@pytest.mark.parametrize("least", [0, 1 << 40])
def test_mapped_and_copied_tensors_are_the_same(tmp_path, monkeypatch, least):
    path, *_ = written(tmp_path)
    monkeypatch.setattr(quantize.files.read, "MAPPED_BYTES", max(least, 1))
    got = quantize.files.read._read_tensors(path)
    for name, tensor in load_file(path).items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("piece", [1, 10_000, 1 << 40])
def test_few_mappings_hold_the_same_numbers(tmp_path, monkeypatch, piece):
    path, *_ = written(tmp_path)
    expected, made, real = load_file(path), [], quantize.files.read.mmap.mmap
    large = sum(tensor.nbytes >= 512 for tensor in expected.values())
    monkeypatch.setattr(quantize.files.read.mmap, "mmap", lambda *a, **k: made.append(a) or real(*a, **k))
    monkeypatch.setattr(quantize.files.read, "MAPPED_BYTES", 512)
    monkeypatch.setattr(quantize.files.read, "PIECE_BYTES", piece)
    got = quantize.files.read._read_tensors(path)
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
        assert got[name].untyped_storage().nbytes() == tensor.nbytes, name  # what is saved, moved and counted
    pieces = len(made) - 1  # beside the whole file
    assert pieces == {1: large, 1 << 40: 1}.get(piece, pieces)
    assert 1 <= pieces <= large


def test_tensors_are_let_go_as_they_are_written(tmp_path):
    model, alive = network(), []

    def one_by_one():
        for name, tensor in model.state_dict().items():
            assert sum(ref() is not None for ref in alive) == 0, name
            copy = tensor.clone()
            alive.append(weakref.ref(copy))
            yield name, copy
            del copy

    content = Content(make_plan(model, default_selection("int8_weight")))
    write_quantized(tmp_path / "q.safetensors", empty(), one_by_one(), content)
    assert len(alive) == len(model.state_dict())


def test_a_schedule_read_from_a_file_is_followed(tmp_path):
    path, *_ = written(tmp_path)
    loaded, deaf = empty(), empty()
    load_quantized(loaded, path, backend="reference")
    load_quantized(deaf, path, backend="reference")
    deaf._forward_pre_hooks.clear()
    deaf._forward_hooks.clear()
    assert not torch.equal(run(loaded), run(deaf))
    float_run = run(network())
    assert (run(loaded) - float_run).norm() < (run(deaf) - float_run).norm()


def test_float_tensors_take_the_dtype_and_codes_do_not(tmp_path):
    path, *_ = written(tmp_path)
    loaded = empty()
    load_quantized(loaded, path, dtype=torch.bfloat16)
    assert loaded.time_embed[0].weight.dtype == loaded.middle[2].bias.dtype == torch.bfloat16
    assert loaded.middle[2].scale.dtype == loaded.betas.dtype == torch.float32


def test_a_table_loads_in_the_dtype_of_the_layers_behind_it(tmp_path):
    model = nn.Sequential(nn.Embedding(64, 64), nn.LayerNorm(64), nn.Linear(64, 64)).requires_grad_(False)
    content = Content(make_plan(model, default_selection("int8_weight")))
    path = write_quantized(tmp_path / "q.safetensors", model, model.state_dict().items(), content)
    with torch.device("meta"):
        loaded = nn.Sequential(nn.Embedding(64, 64), nn.LayerNorm(64), nn.Linear(64, 64))
    load_quantized(loaded, path, dtype=torch.bfloat16)
    out, ids = loaded(torch.tensor([5, 6])), torch.tensor([5, 6])
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), model(ids), atol=0.05)


def test_a_path_with_another_suffix_is_refused(tmp_path):
    model = network()
    content = Content(make_plan(model, default_selection("int8_weight")))
    with pytest.raises(ValueError, match=r"name it q\.safetensors"):
        write_quantized(tmp_path / "q.ckpt", model, model.state_dict().items(), content)


@pytest.mark.parametrize("cut", [4, 60, 3000, -1])
def test_a_truncated_file_is_refused(tmp_path, cut):
    path, *_ = written(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_quantized(empty(), path)


def rewrite(path, change):
    """Change what a file says of its quantization."""
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["quantize"])
    change(said)
    save_file(load_file(path), path, {"quantize": json.dumps(said)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: said.update(version=FORMAT_VERSION + 1), f"has format {FORMAT_VERSION + 1}.*update it"),
        (lambda said: said.pop("plan"), "says nonsense"),
        (lambda said: said.update(schedule=[3]), "says nonsense"),
        (lambda said: said["plan"].update(fingerprint="0"), "is for another model"),
        (lambda said: said["plan"]["layers"].update(mix="int3"), "unknown scheme 'int3'"),
        (lambda said: said["plan"]["layers"].pop("mix"), r"lacks mix\.weight"),
        (lambda said: said["plan"]["layers"].update(mix="int4_group"), "has, and the model not"),
        (lambda said: said["schedule"]["modules"].update(nobody="t"), "follows the timesteps of nobody"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(tmp_path, change, words):
    path, *_ = written(tmp_path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=words):
        load_quantized(empty(), path)


def test_a_file_for_another_model_is_refused(tmp_path):
    path, *_ = written(tmp_path)
    with pytest.raises(ValueError, match="is for another model"):
        load_quantized(network(width=64), path)


def test_float_weights_are_not_taken_for_quantized_ones(tmp_path):
    save_file(network().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="is not quantized"):
        load_quantized(empty(), tmp_path / "w.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*q\.safetensors"):
        read_content(tmp_path / "q.safetensors")


def changed(**tensors):
    return {**network().state_dict(), **tensors}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"mix.weight": torch.ones(2, 2)}, r"mix: .* \[2, 2\], the layer \[32, 32\]"),
        (changed(**{"time_embed.0.bias": torch.ones(3)}), r"has shape \[3\], the model \[32\]"),
        (changed(extra=torch.ones(1)), "extra is no tensor of the model"),
        ({}, "tensors of the model were not given, such as betas"),
        (changed(**{"mix.weight": torch.full((32, 32), torch.nan)}), "mix: a weight has 1024 values.*NaN"),
    ],
)
def test_tensors_that_do_not_fit_leave_no_file(tmp_path, state, words):
    model = network()
    content = Content(make_plan(model, default_selection("int8_weight")))
    with pytest.raises(ValueError, match=words):
        write_quantized(tmp_path / "q.safetensors", model, state.items(), content)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(common.atomic.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"q\.safetensors needs .* MiB, but 0 MiB are free"):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ranges_are_asked_for_where_the_scheme_needs_them(tmp_path):
    model = network()
    content = Content(make_plan(model, default_selection("int8_static")))
    with pytest.raises(ValueError, match="needs input ranges: calibrate first"):
        write_quantized(tmp_path / "q.safetensors", model, model.state_dict().items(), content)


@pytest.mark.parametrize("scheme", [name for name, one in SCHEMES.items() if one.weights == "fp8"])
def test_fp8_without_a_gpu_is_refused_unless_the_reference_is_named(tmp_path, scheme):
    path, *_ = written(tmp_path, scheme)
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        load_quantized(empty(), path)
    load_quantized(model := empty(), path, backend="reference")
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        bind(model)


@every_scheme
def test_a_quantized_network_keeps_its_signal(scheme):
    model = network()
    before = run(model)
    plan, ranges, _ = calibrated(scheme, model)
    quantize_(model, plan, ranges, backend="reference")
    follow(model)
    assert {name for name, _ in quantized_layers(model)} == set(plan.layers)
    error = 10 * torch.log10(before.square().sum() / (run(model) - before).square().sum())
    # Two layers in a row, each with its own noise, beside a float path
    assert error > SCHEMES[scheme].expected_sqnr_db - 6


def test_sources_are_told_by_their_numbers(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "unet.bin").write_bytes(b"1")
    (tmp_path / "w.pth").write_bytes(b"1")
    found = hash_files([tmp_path / "folder", tmp_path / "w.pth"])
    assert found.keys() == {"unet.bin", "w.pth"}
    assert len(set(found.values())) == 1


def test_the_header_lies_where_the_format_says(tmp_path):
    path, *_ = written(tmp_path)
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert length % 8 == 0
    assert ends[0][0] == 0
    assert all(one[1] == other[0] for one, other in zip(ends, ends[1:], strict=False))
    assert 8 + length + ends[-1][1] == len(raw)


def test_groups_of_a_schedule_survive(tmp_path):
    schedule = Schedule(TimestepGroups((1.5, 7.0)), {"unet": "timesteps"})
    plan = make_plan(network(), default_selection("int8_weight"))
    content = Content(plan, schedule, {"w.pth": "00"})
    assert Content.from_json(content.to_json(), "f") == content
