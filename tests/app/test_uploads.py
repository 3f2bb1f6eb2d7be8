"""Files that a client names: only what was uploaded here is opened, and nothing large is decoded."""

import numpy as np
import pytest

from app.uploads import MAX_DEPTH, MAX_ITEMS, MAX_PIXELS, check_payload, read_upload, shrink, uploaded_file
from ldm.image import write_png


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def picture(folder):
    return write_png(folder / "abc" / "a.png", np.full((40, 60, 3), 7, np.uint8))


def file(path, **more):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **more}


def test_what_was_uploaded_is_read_under_its_owners_name(folder, picture):
    upload = read_upload(file(picture, orig_name="my sketch.png"), folder)
    assert (upload.name, upload.image.shape, upload.shrunk) == ("my sketch.png", (40, 60, 3), False)
    assert (upload.image == 7).all()


@pytest.mark.parametrize("nothing", [None, ""])
def test_nothing_is_no_picture_and_no_mistake(folder, nothing):
    assert read_upload(nothing, folder) is None


def test_a_link_out_of_the_folder_leads_nowhere(folder, tmp_path):
    outside = write_png(tmp_path / "secret.png", np.zeros((8, 8, 3), np.uint8))
    (folder / "link.png").symlink_to(outside)
    with pytest.raises(ValueError, match="link.png was not uploaded here"):
        uploaded_file(file(folder / "link.png"), folder)


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "", "\0", "https://example.org/a.png", 5, None]
)
def test_other_files_are_refused(folder, tmp_path, path):
    write_png(tmp_path / "secret.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="must be uploaded to this server first"):
        uploaded_file({"path": path}, folder)


def test_a_folder_beside_with_the_same_beginning_is_another_one(folder, tmp_path):
    beside = write_png(tmp_path / "uploads2" / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="was not uploaded"):
        uploaded_file(file(beside), folder)


def test_a_file_anywhere_in_the_data_is_checked(folder, picture):
    check_payload([{"images": [file(picture)]}, 3, "text"], folder)
    with pytest.raises(ValueError, match="passwd was not uploaded"):
        check_payload([1, {"a": [{"b": file("/etc/passwd")}]}], folder)


def test_endless_and_deep_data_is_refused(folder):
    deep = []
    for _ in range(MAX_DEPTH + 2):
        deep = [deep]
    for data in (deep, [0] * (MAX_ITEMS + 1), {str(k): k for k in range(MAX_ITEMS)}):
        with pytest.raises(ValueError, match="too many values"):
            check_payload(data, folder)


def test_a_large_picture_is_shrunk_to_four_megapixels(folder):
    path = write_png(folder / "large.png", np.full((3000, 2000, 3), 90, np.uint8))
    upload = read_upload(file(path), folder)
    height, width = upload.image.shape[:2]
    assert upload.shrunk
    assert 0.99 * MAX_PIXELS < height * width <= MAX_PIXELS
    assert height / width == pytest.approx(1.5, rel=0.01)
    assert (upload.image == 90).all()


@pytest.mark.parametrize("shape", [(20, 90, 3), (90, 20, 3), (70, 70, 4), (3, 3, 3)])
def test_shrinking_keeps_channels_and_never_leaves_too_many_pixels(shape):
    made = shrink(np.zeros(shape, np.uint8), 100)
    assert made.shape[0] * made.shape[1] <= 100
    assert made.shape[2] == shape[2]
