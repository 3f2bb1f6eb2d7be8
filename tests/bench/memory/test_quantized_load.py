"""bench.memory.quantized_load measures in fresh processes, and its verdicts follow from what they say."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.files import Files
from bench.memory import quantized_load
from bench.memory.quantized_load import FLOAT, PAGES, QuantizedLoadFlags, missed, plan_path, selection, table
from bench.results import Measurement, by_subject

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
    loaded = quantized_load.load(files, PLAN)
    assert loaded.keys() == {"seconds", "peak", "read"}
    assert loaded["seconds"] > 0


def test_bytes_are_known_before_a_file_is_made(files):
    quantized_load.make(files, PLAN)
    whole = plan_path(files, PLAN).stat().st_size
    tensors = load_file(plan_path(files, PLAN))
    branch = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("control_model."))
    flags = QuantizedLoadFlags(config=TINY, only=("int4_group", PLAN), sizes=True)
    rows = by_subject(quantized_load.measure(flags))
    assert {name: one.value for name, one in rows[PLAN].items()} == {"file": whole, "control": branch}
    assert table(rows, flags).splitlines()[-1] == f"| {PLAN} | {whole / 2**20:.1f} | {branch / 1e6:.1f} |"
    assert missed(rows) == []


def measured(files, seconds, peak=0.0):
    """What a bench that takes `seconds` for a load would have found, beside 10 for the float file."""
    size = plan_path(files, PLAN).stat().st_size
    values = {
        "file": size, "load peak / file": peak, "make peak": 1e9, "make largest": 1e8, "make seconds": 1.0,
        "control": 1e6,
    }  # fmt: skip
    rows = []
    for plan, taken in ((FLOAT, 10.0), (PLAN, seconds)):
        times = {f"{pages} {what}": taken for pages in PAGES for what in ("load", "read")}
        rows += [Measurement.of(plan, name, "", [value]) for name, value in (values | times).items()]
    return by_subject(rows)


def test_targets_that_are_missed_are_named(files):
    quantized_load.make(files, PLAN)
    assert missed(measured(files, 0.9, peak=1.2)) == []
    found = missed(measured(files, 1.1, peak=1.3))
    assert [line.partition(": ")[2].partition(" is ")[0] for line in found] == [
        "peak of loading over the file", "seconds of a cold load", "seconds of a warm load",
    ]  # fmt: skip
    lines = table(measured(files, 0.5), QuantizedLoadFlags()).splitlines()
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert lines[-1].count("| 20.00 x |") == 2


def test_rounds_take_turns_and_their_medians_count(files, monkeypatch):
    quantized_load.make(files, PLAN)
    seconds, order = iter((9.0, 9.0, 3.0, 1.0, 7.0, 5.0, 2.0, 4.0)), []

    def apart(function, _, plan):
        if function is quantized_load.make:
            return {"seconds": 1.0, "peak": 0.0, "largest": 0.0}
        order.append(plan)
        return {"seconds": next(seconds), "read": 0.0, "peak": 0.0}

    monkeypatch.setattr(quantized_load, "apart", apart)
    flags = QuantizedLoadFlags(config=files.config, folder=files.folder, only=(PLAN,), rounds=2)
    rows = by_subject(quantized_load.measure(flags))
    assert order == [FLOAT, FLOAT, PLAN, PLAN] * 2
    assert [row["cold load"].value for row in rows.values()] == [8.0, 2.5]
    assert [row["warm load"].value for row in rows.values()] == [7.0, 2.5]
