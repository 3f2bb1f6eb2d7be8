"""Documents show what results/ says: in both languages, with origin, daggers and dashes."""

import json

import pytest

from bench.harness import Column, shown
from bench.results import ROOT, Measurement, ResultsFile
from bench.tables import command
from bench.tables.blocks import documents, filled
from bench.tables.command import main, measure, rendered, stale
from bench.tables.korean import KOREAN
from bench.tables.registry import SOURCES, TABLES
from bench.tables.table import ABSENT, DAGGER, STALE, Table
from common.hashing import sha256_of

YAML = "models/tiny.yaml"
ORIGIN = {
    "bench": "bench.any", "setting": {"size": 64}, "command": "python -m bench.any", "commit": "abcdef0",
    "date": "2026-01-31", "device": {"name": "some processor", "threads": 2}, "versions": {},
    "files": {YAML: sha256_of(ROOT / YAML)},
}  # fmt: skip
TABLE = Table("any.jsonl", (Column("s a step", "wall"), Column("followed", "followed", shown)), "model")


def keep(folder, *measurements, **origin):
    ResultsFile(folder / "any.jsonl", ORIGIN | origin).keep(measurements, add=False)


def test_every_document_shows_what_the_rows_say():
    for path in documents():
        assert filled(path, rendered) == path.read_text(encoding="utf-8"), f"make tables: {path.name} differs"


def test_rows_are_shown_with_intervals_dashes_and_their_origin(tmp_path):
    keep(
        tmp_path,
        Measurement.of("full", "wall", "s", [2.0]),
        Measurement("full", "followed", 0.9, "share", 10, 0.6, 0.98),
        Measurement.of("lite", "wall", "s", [1.0]),
    )
    assert TABLE.render("python -m bench.any", folder=tmp_path).splitlines() == [
        "| model | s a step | followed |",
        "|---|---|---|",
        "| full | 2.00 | 90.0% [60.0%, 98.0%] |",
        "| lite | 1.00 | – |",
        "",
        "`python -m bench.any`: some processor, 2 threads; 2026-01-31, abcdef0.",
    ]


def test_korean_differs_by_words_alone(tmp_path):
    keep(tmp_path, Measurement.of("full", "wall", "s", [2.0]))
    lines = TABLE.render("python -m bench.any", "ko", tmp_path).splitlines()
    assert lines[0] == f"| {KOREAN['model']} | {KOREAN['s a step']} | followed |"
    assert lines[2] == f"| {KOREAN['full']} | 2.00 | – |"


def test_rows_of_files_that_have_changed_bear_a_dagger(tmp_path):
    keep(tmp_path, Measurement.of("full", "wall", "s", [2.0]), files={YAML: "0" * 64})
    text = TABLE.render("python -m bench.any", folder=tmp_path)
    assert f"| full {DAGGER} |" in text
    assert text.endswith(STALE)
    assert STALE in KOREAN


def test_what_is_absent_names_its_command(tmp_path):
    assert TABLE.render("python -m bench.any", folder=tmp_path) == f"{ABSENT} `python -m bench.any`"


def test_another_setting_is_another_table_where_a_document_wants_all(tmp_path):
    keep(tmp_path, Measurement.of("full", "wall", "s", [2.0]))
    keep(tmp_path, Measurement.of("full", "wall", "s", [3.0]), setting={"size": 128})
    one = TABLE.render("", folder=tmp_path)
    both = Table(TABLE.file, TABLE.columns, "model", settings=True).render("", folder=tmp_path)
    assert (one.count("| full |"), both.count("| full |")) == (1, 2)
    assert "size 128" in both


@pytest.mark.parametrize(
    ("text", "words"),
    [("<!-- table: none -->\n<!-- end -->\n", "has no table 'none'"), ("<!-- table: a -->\n", "no line")],
)
def test_a_block_that_cannot_be_filled_names_its_document(tmp_path, text, words):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        filled(path, rendered)


def test_every_table_has_a_command_that_writes_its_file():
    assert {table.file for table in TABLES.values()} <= SOURCES.keys()
    for file, commands in SOURCES.items():
        assert all(one.startswith("python -m ") and f"results/{file}" in one for one in commands)


def test_stale_and_absent_rows_are_listed_and_measured_again(tmp_path, monkeypatch, capsys):
    ran = []
    keep(tmp_path, Measurement.of("full", "wall", "s", [2.0]), files={YAML: "0" * 64})
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "SOURCES", {"any.jsonl": ("python -m a",), "other.jsonl": ("python -m b",)})
    monkeypatch.setattr(command, "documents", list)
    assert dict(stale()) == {"any.jsonl": f"full: {YAML} changed", "other.jsonl": "absent"}
    monkeypatch.setattr(command, "measure", ran.append)
    assert main(["--again"]) == 0
    assert ran == ["python -m a", "python -m b"]
    assert "results/other.jsonl: absent" in capsys.readouterr().err
    assert main(["--only", "none.jsonl"]) == 2


def test_a_command_that_fails_or_is_stopped_ends_the_list():
    with pytest.raises(ChildProcessError, match="ended with code 3"):
        measure("python -c 'raise SystemExit(3)'")
    with pytest.raises(KeyboardInterrupt):
        measure("python -c 'raise SystemExit(130)'")


def test_the_committed_rows_are_json_that_others_can_read():
    def no_number(text):
        raise AssertionError(f"{text} is no JSON")

    for path in (ROOT / "results").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=no_number)
