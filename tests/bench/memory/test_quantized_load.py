"""bench.memory.quantized_load measures in fresh processes, and its verdicts follow from what they say."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.memory import quantized_load, quantized_sizes
from bench.memory.quantized_load import bytes_of, plan_path, selection, table, verdicts
from bench.step.files import Files
from ldm.config import create_meta_model

TINY = Path(__file__).parents[3] / "models" / "tiny.yaml"
PLAN = "int8_dynamic+compact+decoder"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    files = Files(TINY, tmp_path_factory.mktemp("load"))
    files.make_weights()
    return files


def test_a_plan_names_its_file_and_its_switches(files):
    assert plan_path(files, PLAN).name == "tiny-int8_dynamic-compact-decoder.safetensors"
    assert plan_path(files, "int8_dynamic") == files.quantized("int8_dynamic", 0)
    assert selection(PLAN) == {"compact": True, "decoder": True}
    assert selection("int4_group") == {}


def test_making_and_loading_report_what_they_took(files):
    made = quantized_load.make(files, PLAN)
    sizes = [tensor.nbytes for tensor in load_file(files.weights).values()]
    assert made["largest"] == max(sizes)
    assert plan_path(files, PLAN).stat().st_size < sum(sizes) / 3
    assert bytes_of(plan_path(files, PLAN), "control_model.") < bytes_of(plan_path(files, PLAN))
    loaded = quantized_load.load(files, PLAN)
    assert loaded["all"] >= loaded["peak"] >= 0
    assert loaded["seconds"] > 0


def test_bytes_are_known_before_a_file_is_made(files):
    quantized_load.make(files, PLAN)
    path, model = plan_path(files, PLAN), create_meta_model(TINY)
    found = quantized_sizes.sizes(model, "int8_dynamic", ("compact", "decoder"))
    assert found == (path.stat().st_size, bytes_of(path, "control_model."))
    lines = quantized_sizes.table(model, ["int8_dynamic", "int4_group"]).splitlines()
    assert {line.count("|") for line in lines} == {6}
    assert f"{found[0] / 2**20:.1f} | {found[1] / 1e6:.1f}" in lines[-1]


def row(path, plan, seconds, peak=0.0):
    times = {"seconds": seconds, "peak": peak, "read": 0.1}
    made = {"seconds": 1.0, "peak": 1e9, "largest": 1e8}
    return {"plan": plan, "path": path, "make": plan and made, "cold": times, "warm": times}


def test_verdicts_say_which_targets_are_missed(files):
    quantized_load.make(files, PLAN)
    path = plan_path(files, PLAN)
    base = row(files.weights, None, 10.0)
    good = verdicts([base, row(path, PLAN, 0.9, peak=1.2 * path.stat().st_size)])
    assert [line.split(":")[0] for line in good] == ["kept"] * 6
    bad = verdicts([base, row(path, PLAN, 1.1, peak=1.3 * path.stat().st_size)])
    assert [line.split(":")[0] for line in bad] == ["kept", "kept", "MISSED", "MISSED", "MISSED", "kept"]
    lines = table([base, row(path, PLAN, 0.5)]).splitlines()
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert lines[-1].count("| 20.0 x |") == 2


def test_rounds_take_turns_and_their_medians_count(files, monkeypatch):
    quantized_load.make(files, PLAN)
    seconds, order = iter((9.0, 9.0, 3.0, 1.0, 7.0, 5.0, 2.0, 4.0)), []

    def apart(files, task, plan):
        order.append((task, plan))
        return {"seconds": 1.0, "peak": 0.0, "largest": 0.0} if task == "make" else {"seconds": next(seconds)}

    monkeypatch.setattr(quantized_load, "apart", apart)
    rows = quantized_load.run(files, [PLAN], 2)
    assert [plan for task, plan in order if task == "load"] == [None, None, PLAN, PLAN] * 2
    assert [row["cold"]["seconds"] for row in rows] == [8.0, 2.5]
    assert [row["warm"]["seconds"] for row in rows] == [7.0, 2.5]


def test_a_task_answers_in_json_on_its_last_line(files, capsys):
    quantized_load.make(files, PLAN)
    options = ["--config", str(TINY), "--folder", str(files.folder), "--task", "load", PLAN]
    assert quantized_load.main(options) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]).keys() == {"seconds", "peak", "read", "all"}
