from pathlib import Path

from annotator.detector import FOLDER
from annotator.registry import DETECTORS
from app.listing import control_lines
from cldm.controls import CONTROLS


def lines_of(folder):
    """Control -> detector -> what is said of it."""
    found, control = {}, None
    for line in list(control_lines(folder))[1:]:
        name, _, rest = line.strip().partition(" ")
        if line.startswith("    "):
            found[control][name] = rest.strip()
        else:
            control = name
            found[control] = {}
    return found


def test_every_control_is_listed_with_its_detectors_in_their_order(tmp_path):
    found = lines_of(tmp_path)
    assert {name: tuple(detectors) for name, detectors in found.items()} == {
        name: control.detectors for name, control in CONTROLS.items()
    }


def test_what_is_not_ready_is_listed_with_its_command_and_what_is_with_its_parameters(tmp_path):
    for detectors in lines_of(tmp_path).values():
        for name, said in detectors.items():
            if DETECTORS[name].annotate:
                assert said.startswith("ready")
                assert all(f"{key}=" in said for key in DETECTORS[name].params)
            else:
                assert said.endswith(DETECTORS[name].command)


def test_weights_that_are_there_make_their_detectors_ready(tmp_path):
    (tmp_path / "ControlNetHED.pth").touch()
    assert lines_of(tmp_path)["softedge"]["hed"].startswith("ready")
    assert str(FOLDER) not in str(lines_of(tmp_path))


def test_the_documentation_has_the_list_as_it_is_printed(tmp_path, monkeypatch):
    monkeypatch.setattr("annotator.detector.FOLDER", tmp_path)
    text = (Path(__file__).parents[2] / "docs/controls.md").read_text(encoding="utf-8")
    bare = list(control_lines())
    (tmp_path / "hed_bsds500.safetensors").touch()
    after = dict.fromkeys(line for line in control_lines() if line not in bare)
    for lines in (bare, after):
        assert "```text\n{}\n```".format("\n".join(lines)) in text
