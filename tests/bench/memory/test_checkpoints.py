"""The memory bench of checkpoints sees a wrong tensor, and its smallest run is a row that holds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.memory.checkpoints import (
    ADD,
    CONVERSIONS,
    FORMS,
    LIMIT,
    LOAD_LIMIT,
    PLAIN,
    SOURCES,
    fingerprint,
    is_intact,
    main,
    missed,
    size_of,
)
from bench.results import Measurement, by_subject
from tests.small_files import write_small_model
from tool_add_control import parse_args as parse_addition
from tool_convert import parse_args as parse_conversion

ROOT = Path(__file__).parents[3]


def test_a_result_is_intact_only_with_every_bit(tmp_path):
    state = {"control_model.input_hint_block.0.weight": torch.randn(3), "betas": torch.rand(2)}
    save_file(state, tmp_path / "full.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.safetensors")
    assert is_intact(tmp_path / "half.safetensors", tmp_path / "full.safetensors")
    state["betas"][0] += 1e-7
    save_file(state, tmp_path / "other.safetensors")
    assert not is_intact(tmp_path / "other.safetensors", tmp_path / "full.safetensors")


def test_a_new_branch_is_intact_where_it_is_the_u_nets(tmp_path):
    weight, hint = "input_blocks.0.0.weight", "control_model.input_hint_block.0.weight"
    base = {f"model.diffusion_model.{weight}": torch.randn(3)}
    save_file(
        base | {f"control_model.{weight}": torch.randn(3), hint: torch.ones(1)},
        full := tmp_path / "f.safetensors",
    )
    begun = base | {
        f"control_model.{weight}": base[f"model.diffusion_model.{weight}"].clone(),
        hint: torch.zeros(1),
    }
    save_file(begun, tmp_path / "new.safetensors")
    assert is_intact(tmp_path / "new.safetensors", full, has_new_branch=True)
    assert not is_intact(tmp_path / "new.safetensors", full)
    begun[f"control_model.{weight}"][0] += 1e-6
    save_file(begun, tmp_path / "other.safetensors")
    assert not is_intact(tmp_path / "other.safetensors", full, has_new_branch=True)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_every_case_is_a_command_that_exists(name):
    source, result, *words = CONVERSIONS[name]
    assert source in (PLAIN, *SOURCES)
    if name.startswith(ADD):
        parse_addition([source, result, *words], "tool_add_control.py", "cldm_v15.yaml")
    else:
        parse_conversion([name.split()[0].rstrip(","), source, result, *words])


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/b", "c"):
        (tmp_path / name).write_bytes(b"1234")
    assert size_of(tmp_path) == 8
    assert size_of(tmp_path / "c") == 4


@pytest.mark.skipif("not __import__('pathlib').Path('/proc/self/status').exists()", reason="needs Linux")
@pytest.mark.parametrize("case", ["extract-control", f"{ADD}, of a ckpt"])
def test_a_row_has_the_peak_of_a_process_of_its_own(tmp_path, capsys, case):
    words = ["--config", str(ROOT / "models/tiny.yaml"), "--folder", str(tmp_path), "--only", case]
    assert main(words) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    assert (row[0], row[-1]) == (case, "True")
    assert 0.1 < float(row[3]) <= LIMIT
    assert not list(tmp_path.iterdir())


def test_an_unknown_case_lists_the_known_ones(capsys):
    assert main(["--only", "to-onnx"]) == 2
    assert "extract-control" in capsys.readouterr().err


def test_every_form_is_written_loaded_and_found_intact(tmp_path, capsys):
    config = write_small_model(tmp_path)
    main(["--config", str(config), "--folder", str(tmp_path), "--only", *FORMS])
    lines = capsys.readouterr().out.splitlines()[4:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == list(FORMS)
    assert {row[-1] for row in cells} == {"True"}


def test_another_weight_gives_another_fingerprint():
    weights = [torch.randn(5, 7), torch.randn(3)]
    other = [weights[0].clone(), weights[1]]
    other[0][0, 0] += 1e-3
    assert fingerprint(weights) == fingerprint(reversed(weights)) != fingerprint(other)


@pytest.mark.parametrize(
    ("over", "intact", "words"), [(1, 1, None), (1.2, 1, "weights is 1.200"), (1, 0, "other")]
)
def test_what_is_above_the_limit_or_not_intact_is_named(over, intact, words):
    values = {"ratio": over, "intact": intact}
    found = missed(by_subject(Measurement("load ckpt", name, value, "") for name, value in values.items()))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


@pytest.mark.slow
def test_loading_sd15_stays_below_the_limit(tmp_path, capsys):
    assert main(["--folder", str(tmp_path), "--only", "load safetensors"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert float(row[6]) <= LOAD_LIMIT
