import numpy as np
import torch

from annotator.networks.mlsd import draw, segments

CPU = torch.device("cpu")


class Seen(torch.nn.Module):
    """Sees one segment with its middle at row 10, column 20 of the half-size map, 8 pixels to each side."""

    def forward(self, batch):
        seen = torch.full((1, 9, batch.shape[2] // 2, batch.shape[3] // 2), -9.0)
        seen[0, 0, 10, 20] = 2
        seen[0, 1:5] = torch.tensor([-8.0, 0, 8, 0])[:, None, None]
        return seen


def test_a_segment_is_where_the_network_sees_it_in_pixels_of_the_picture():
    lines = segments(Seen(), np.zeros((64, 128, 3), np.uint8), CPU, 0.5, 1.0)
    assert lines.tolist() == [[24, 20, 56, 20]]
    canvas = draw(lines, (64, 128))
    assert (canvas[20, 24:57] == 255).all()
    assert np.count_nonzero(canvas) == 33


def test_what_is_unsure_or_short_is_left_out():
    picture = np.zeros((64, 128, 3), np.uint8)
    assert len(segments(Seen(), picture, CPU, 0.95, 1.0)) == 0
    assert len(segments(Seen(), picture, CPU, 0.5, 17.0)) == 0
