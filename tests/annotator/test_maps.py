import cv2
import pytest

from annotator.detector import FOLDER
from annotator.hed import SOFT
from annotator.maps import DETECTORS, PHOTOGRAPHS, main


def test_without_weights_it_says_what_fetches_them(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--annotators", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("python tool_download_models.py get hed\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(SOFT.lacks("hed", FOLDER) is not None, reason="HED's weights are not here")
def test_it_draws_a_row_for_each_photograph(tmp_path):
    assert main(["--out", str(tmp_path)]) == 0
    for name in PHOTOGRAPHS:
        height, width = cv2.imread(str(tmp_path / f"hed_{name}.png")).shape[:2]
        assert height == 224
        assert width % (len(DETECTORS) + 1) == 0
