import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.fill50k import DRAWINGS, Settings, generate, held_out_scenes, main, quality, robustness, score
from scenes.colours import COLOURS
from scenes.shape_scenes import is_held_out, render

SIZE = 64
FEW = Settings(batch=4, size=SIZE)


class Painter:
    """Stands in for the pipeline: paints the known scenes, in the wrong place if it gets no control map.

    Its autoencoder loses nothing.
    """

    model = SimpleNamespace(
        first_stage_model=torch.nn.Linear(1, 1),
        encode_first_stage=lambda pixels: SimpleNamespace(mode=lambda: pixels),
        get_first_stage_encoding=lambda latent: latent,
        decode_first_stage=lambda latent: latent,
    )

    def __init__(self, scenes):
        self.scenes = {scene.prompt: scene for scene in scenes}
        self.calls = []

    def generate(self, prompts, hints, *, seed, steps, sampler, **options):
        self.calls.append(SimpleNamespace(prompts=prompts, hints=hints, seed=seed, options=options))
        pictures = [render(self.scenes[prompt], SIZE)[1] for prompt in prompts]
        return pictures if hints is not None else [np.roll(p, SIZE // 2, axis=1) for p in pictures]


@pytest.fixture
def painter():
    return Painter(held_out_scenes(9))


def test_test_scenes_are_held_out_every_third_is_hand_drawn_and_a_larger_set_begins_with_the_smaller():
    scenes = held_out_scenes(30)
    assert all(is_held_out(scene.fill, scene.shape, scene.background) for scene in scenes)
    assert [scene.wobble > 0 for scene in scenes] == [i % 3 == 0 for i in range(30)]
    assert held_out_scenes(10) == scenes[:10]
    assert held_out_scenes(10, seed=1) != scenes[:10]


def test_a_perfect_painter_passes_and_without_control_the_same_scenes_are_not_followed(painter):
    report = quality(painter, 9, FEW)
    assert report["controlled"]["followed_share"] == 1
    assert report["controlled"]["coloured_share"] == 1
    assert report["hand_drawn_followed_share"] == 1
    assert report["uncontrolled"]["followed_share"] < 0.5
    assert report["autoencoder"]["followed_share"] == 1
    assert report["autoencoder"]["median_psnr"] > 60  # the truth, but for rounding
    assert [entry["prompt"] for entry in report["pictures"]] == [s.prompt for s in held_out_scenes(9)]


def test_both_runs_use_the_same_noise_and_each_batch_its_own(painter):
    quality(painter, 9, FEW)
    controlled, free = painter.calls[:3], painter.calls[3:]
    assert [call.seed for call in controlled] == [call.seed for call in free] == [0, 1, 2]
    assert [call.prompts for call in controlled] == [call.prompts for call in free]
    assert all(call.hints is None for call in free)


def test_hints_are_the_sources_between_zero_and_one(painter):
    scenes = held_out_scenes(2)
    sources = [render(scene, SIZE)[0] for scene in scenes]
    generate(painter, scenes, sources, FEW)
    hints = painter.calls[0].hints
    assert hints.shape == (2, 3, SIZE, SIZE)
    np.testing.assert_allclose(hints.numpy(), np.stack(sources).transpose(0, 3, 1, 2) / np.float32(255))


def test_the_pipeline_keeps_its_own_guidance_unless_one_is_asked_for(painter):
    scenes = held_out_scenes(1)
    generate(painter, scenes, None, FEW)
    generate(painter, scenes, None, Settings(scale=3.0, size=SIZE))
    assert [call.options for call in painter.calls] == [{}, {"scale": 3.0}]


def test_score_judges_pictures_of_any_size_however_they_were_made():
    scenes = held_out_scenes(3)
    for size in (48, 96):
        assert score([render(scene, size)[1] for scene in scenes], scenes).followed.all()


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_way_of_drawing_keeps_prompt_and_shape_inside_the_picture(name):
    change, _ = DRAWINGS[name]
    for scene in held_out_scenes(12):
        changed = change(scene)
        assert changed.prompt == scene.prompt
        _, target, _ = render(changed, 128)
        border = np.concatenate([target[0], target[-1], target[:, 0], target[:, -1]])
        assert (border == COLOURS[scene.background]).all()


def test_robustness_has_a_row_for_each_drawing_and_reads_black_on_white_as_white_on_black(painter):
    rows = robustness(painter, 2, FEW)
    assert list(rows) == list(DRAWINGS)
    hints = {name: call.hints for name, call in zip(DRAWINGS, painter.calls, strict=True)}
    for hint in hints.values():
        assert set(np.unique(hint.numpy())) == {0, 1}
        assert hint.mean() < 0.5  # few white lines on much black


def test_the_command_prints_writes_and_fails_only_when_asked_to_check(painter, tmp_path, monkeypatch, capsys):
    pipeline = SimpleNamespace(from_files=lambda config, *weights, device: painter)
    monkeypatch.setitem(sys.modules, "cldm.pipeline", SimpleNamespace(Pipeline=pipeline))
    command = ["--count", "3", "--size", str(SIZE), "--json", str(tmp_path / "report.json")]
    assert main([*command, "--check"]) == 0
    assert "outline followed" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "report.json").read_text())["quality"]["pictures"]) == 3

    painter.scenes = {prompt: held_out_scenes(4)[3] for prompt in painter.scenes}
    assert main(command) == 0
    assert main([*command, "--check"]) == 1
    assert "not good enough: outline followed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "both must be 1 or more"),
        (["--batch", "0"], "both must be 1 or more"),
        (["--json", "no/such/folder/report.json"], "create it first"),
    ],
)
def test_bad_input_ends_in_one_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_ctrl_c_ends_in_one_sentence(monkeypatch, capsys):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    pipeline = SimpleNamespace(from_files=interrupt)
    monkeypatch.setitem(sys.modules, "cldm.pipeline", SimpleNamespace(Pipeline=pipeline))
    assert main(["--count", "1"]) == 130
    assert "stopped" in capsys.readouterr().err
