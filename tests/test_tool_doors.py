"""Scripts that are only another name of a command."""

import pytest

import tool_prune
import tool_quantize


@pytest.mark.parametrize("door", [tool_quantize, tool_prune])
def test_a_door_leads_to_its_command(door, capsys):
    with pytest.raises(SystemExit) as ended:
        door.main(["--help"])
    assert ended.value.code == 0
    assert door.__doc__.split("`")[1] in capsys.readouterr().out
