"""The training command, as users run it: from files to files, and one sentence for every mistake."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import tutorial_train
from cldm.model import load_model, with_branch
from scenes.fill50k import Recipe, make_dataset
from tests.hub_server import hub_on_this_machine
from tests.small_files import SIDE, write_small_model
from trainer.flags import PRESETS, TINY, Preset, parse_args
from trainer.plan import make_plan

diffusers = pytest.importorskip("diffusers")

# Those of diffusers' train_controlnet.py that have a sense here; docs/training.md says which have none.
NAMES_OF_DIFFUSERS = """
    pretrained_model_name_or_path controlnet_model_name_or_path output_dir seed resolution train_batch_size
    num_train_epochs max_train_steps gradient_accumulation_steps gradient_checkpointing dataloader_num_workers
    checkpointing_steps checkpoints_total_limit resume_from_checkpoint learning_rate scale_lr lr_scheduler
    lr_warmup_steps lr_num_cycles lr_power use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay adam_epsilon
    max_grad_norm set_grads_to_none allow_tf32 mixed_precision enable_xformers_memory_efficient_attention
    train_data_dir image_column conditioning_image_column caption_column max_train_samples
    proportion_empty_prompts validation_prompt validation_image num_validation_images validation_steps
    logging_dir report_to tracker_project_name push_to_hub hub_token hub_model_id
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base model without a branch, its yaml, and pairs to train on."""
    folder = tmp_path_factory.mktemp("files")
    config = OmegaConf.load(write_small_model(folder))
    whole = load_file(folder / "small.safetensors")
    save_file(
        {k: v for k, v in whole.items() if not k.startswith("control_model.")}, folder / "base.safetensors"
    )
    config.weights = ["base.safetensors"]
    OmegaConf.save(config, folder / "small.yaml")
    make_dataset(folder / "data", 6, Recipe(size=SIDE))
    return folder


def flags(files, out, *more, steps=2):
    where = ("--config", files / "small.yaml", "--data", files / "data", "--output-dir", out)
    quick = ("--device", "cpu", "--batch-size", 2, "--image-log-steps", 0, "--report-to", "none")
    return [str(word) for word in (*where, *quick, "--max-train-steps", steps, *more)]


def train(files, out, *more, steps=2):
    return tutorial_train.main(flags(files, out, *more, steps=steps))


def test_a_run_leaves_a_branch_that_everybody_loads(files, tmp_path, capsys):
    assert train(files, tmp_path, "--image-log-steps", 1, "--sample-steps", 1, "--learning-rate", 1e-3) == 0
    said = capsys.readouterr()
    assert "training " in said.err
    assert [tmp_path / name for name in ("control.safetensors", "config.json")] == [
        tmp_path / line.rpartition("/")[2] for line in said.out.splitlines()[:2]
    ]
    assert (tmp_path / "image_log/train").is_dir()
    ours = load_model(files / "small.yaml", files / "base.safetensors", tmp_path / "control.safetensors")
    saved = load_model(files / "small.yaml", files / "base.safetensors", tmp_path / "checkpoint-2/state.ckpt")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name])
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path)
    source = torch.Generator().manual_seed(0)
    x, hint = torch.randn(1, 4, 8, 8, generator=source), torch.rand(1, 3, SIDE, SIDE, generator=source)
    text, t = torch.randn(1, 5, 32, generator=source), torch.tensor([500])
    with torch.no_grad():
        expected = ours.control_model(x, hint, t, text)
        down, middle = theirs(x, t, text, controlnet_cond=hint, return_dict=False)
    assert any(one.abs().max() > 0 for one in expected)
    for a, b in zip(expected, [*down, middle], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_lite_branch_is_trained_and_loads_again(files, tmp_path, capsys):
    assert train(files, tmp_path, "--branch", "lite", "--learning-rate", 1e-3, "--lr-warmup-steps", 0) == 0
    said = capsys.readouterr()
    assert "a new control branch begins\n" in said.err
    assert not (tmp_path / "config.json").exists()  # diffusers has no such branch
    lite = with_branch(files / "small.yaml", "lite")
    model = load_model(lite, files / "base.safetensors", tmp_path / "control.safetensors")
    assert all(conv.weight.any() for conv in model.control_model.zero_convs)
    assert train(files, tmp_path, "--resume-from", "latest") == 2  # of a full branch
    assert "belongs to another branch" in capsys.readouterr().err


def test_a_new_branch_begins_as_a_copy_and_adds_nothing(files):
    from trainer.model import load_for_training

    model, is_new = load_for_training(files / "small.yaml", [files / "base.safetensors"])
    assert is_new
    encoder, branch = model.model.diffusion_model.state_dict(), model.control_model.state_dict()
    shared = [name for name in branch if name in encoder]
    assert len(shared) > 50
    assert all(torch.equal(branch[name], encoder[name]) for name in shared)
    with torch.no_grad():
        residuals = model.control_model(
            torch.randn(1, 4, 8, 8), torch.rand(1, 3, SIDE, SIDE), torch.tensor([5]), torch.randn(1, 5, 32)
        )
    assert all((one == 0).all() for one in residuals)
    _, is_new = load_for_training(files / "small.yaml", [files / "small.safetensors"])
    assert not is_new


def test_the_result_is_uploaded_with_its_card_and_pictures(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "branch"
    pictures = ("--image-log-steps", 1, "--sample-steps", 1)
    with hub_on_this_machine(monkeypatch) as hub:
        assert train(files, out, *pictures, "--push-to-hub", "--hub-token", "hf_secret") == 0
        assert f"uploaded to {hub.address}/me/branch" in capsys.readouterr().err
        assert {"README.md", "config.json", "control.safetensors"} <= hub.files.keys()
        assert hub.files["control.safetensors"] == (out / "control.safetensors").read_bytes()
        assert any(name.startswith("images/") for name in hub.files)
        assert b"base.safetensors" in hub.files["README.md"]
        hub.refuses = True
        assert train(files, out, "--push-to-hub", "--hub-token", "wrong") == 2
    assert "was not uploaded" in capsys.readouterr().err
    assert (out / "control.safetensors").is_file()


def test_latest_goes_on_where_the_run_stopped(files, tmp_path):
    assert train(files, tmp_path / "a", "--checkpointing-steps", 1, steps=4) == 0
    assert train(files, tmp_path / "b", steps=2) == 0
    assert train(files, tmp_path / "b", "--resume-from", "latest", steps=4) == 0
    one, other = (load_file(tmp_path / name / "control.safetensors") for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(list((tmp_path / "a").glob("checkpoint-*"))) == 4


def test_a_resumed_run_takes_the_learning_rate_it_is_given(files, tmp_path):
    assert train(files, tmp_path, steps=1) == 0
    before = load_file(tmp_path / "control.safetensors")
    tiny = ("--learning-rate", 1e-30, "--resume-from", "latest")
    assert train(files, tmp_path, *tiny, steps=2) == 0
    after = load_file(tmp_path / "control.safetensors")
    assert all((before[name] - after[name]).abs().max() < 1e-20 for name in before)


def test_a_run_resumed_at_its_end_says_so(files, tmp_path, capsys):
    assert train(files, tmp_path, steps=2) == 0
    assert train(files, tmp_path, "--resume-from", "latest", steps=1) == 0
    said = capsys.readouterr().err
    assert (
        "checkpoint-2 has all 1 steps already, nothing is trained: --max-train-steps above 2 goes on" in said
    )


def test_cached_latents_change_nothing_but_memory(files, tmp_path):
    more = ("--proportion-empty-prompts", 0.3, "--output-format", "ckpt", "--ema-decay", 0.5)
    assert train(files, tmp_path / "a", *more) == 0
    cached = (*more, "--cache-latents", tmp_path / "cache")
    assert train(files, tmp_path / "b", *cached, "--image-log-steps", 1, "--sample-steps", 1) == 0
    one, other = (torch.load(tmp_path / name / "control.ckpt", weights_only=True) for name in "ab")
    one, other = one["state_dict"], other["state_dict"]
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
    shards = list((tmp_path / "cache").glob("shard-*"))
    assert len(shards) == 1
    written = shards[0].stat().st_mtime_ns
    assert train(files, tmp_path / "c", *cached) == 0
    assert shards[0].stat().st_mtime_ns == written


def wrong(files, tmp_path):
    """(name, flags, what is said) for every mistake."""
    sd21 = OmegaConf.load(files / "small.yaml")
    for part in ("unet_config", "control_stage_config"):
        sd21.model.params[part].params.context_dim = 48
    OmegaConf.save(sd21, tmp_path / "other.yaml")
    lines = (files / "data/prompt.json").read_text().splitlines()
    lost = json.loads(lines[0]) | {"target": "target/lost.png"}
    (files / "data/lost.json").write_text("\n".join([*lines, json.dumps(lost)]))
    (tmp_path / "file").write_text("")
    return {
        "missing base": (["--resume-path", "none.ckpt"], "no base model none.ckpt"),
        "wrong base": (
            ["--config", tmp_path / "other.yaml", "--resume-path", files / "base.safetensors"],
            "made for text of width 32",
        ),
        "no config": (["--config", "none.yaml"], "no model yaml none.yaml"),
        "no data": (["--data", "none"], "no training data none"),
        "row without file": (["--data", files / "data/lost.json"], r"row 7: there is no file .*lost\.png"),
        "resolution": (["--resolution", 100], "resolution=100: give a multiple of 64"),
        "preset": (["--preset", "4gb"], "invalid choice: '4gb'"),
        "no checkpoint": (["--resume-from", "latest"], "holds no checkpoint yet"),
        "read-only": (["--output-dir", tmp_path / "file/out"], "file/out"),
        "half on the CPU": (["--mixed-precision", "fp16"], "fp16 needs a GPU: take bf16 or no"),
        "batch": (["--batch-size", 0], "--batch-size: 0: give 1 or more"),
        "steps": (["--max-train-steps", 0], "--max-train-steps: 0: give 1 or more"),
        "8 bit": (["--use-8bit-adam"], "needs the package bitsandbytes"),
        "deepspeed": (["--preset", "8gb"], "needs the package deepspeed"),
        "strategy": (["--strategy", "magic"], "unknown --strategy 'magic': use ddp"),
        "wandb": (["--report-to", "wandb"], "needs the package wandb"),
        "validation": (["--validation-prompt", "a"], "go together: give both"),
        "cache": (["--cache-latents", tmp_path / "c", "--flip"], "leave out --random-crop and --flip"),
        "limit": (["--checkpoints-total-limit", 0], "keep at least 1"),
    }  # fmt: skip


NAMES = (
    "missing base", "wrong base", "no config", "no data", "row without file", "resolution", "preset",
    "no checkpoint", "read-only", "half on the CPU", "batch", "steps", "8 bit", "deepspeed", "strategy",
    "wandb", "validation", "cache", "limit",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_one_sentence_and_code_two(files, tmp_path, name, capsys):
    cases = wrong(files, tmp_path)
    assert tuple(cases) == NAMES
    more, said = cases[name]
    try:
        code = train(files, tmp_path / "out", *more)
    except SystemExit as ended:
        code = ended.code
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("a new")]
    assert code == 2
    assert len(err) == 1
    assert re.search(said, err[0])
    assert not list((tmp_path / "out").glob("checkpoint*"))


def test_memory_that_runs_out_is_told_with_what_to_lower(files, tmp_path, capsys, monkeypatch):
    from trainer.module import ControlTraining

    def full(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(ControlTraining, "training_step", full)
    assert train(files, tmp_path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("out of memory: try --preset 16gb, 12gb or 8gb, --cache-latents")


def test_a_checkpoint_of_another_branch_is_refused(files, tmp_path, capsys):
    assert train(files, tmp_path, steps=1) == 0
    capsys.readouterr()
    assert train(files, tmp_path, "--unlock-sd", "--resume-from", "latest") == 2
    assert "belongs to another branch" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pair_of_two_sizes_ends_the_run_with_its_row(files, tmp_path, workers, capsys):
    data = tmp_path / "data"
    make_dataset(data, 1, Recipe(size=SIDE))
    make_dataset(tmp_path / "large", 1, Recipe(size=SIDE * 2))
    (data / "source/0.png").write_bytes((tmp_path / "large/source/0.png").read_bytes())
    assert train(files, tmp_path / "out", "--data", data, "--dataloader-num-workers", workers) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"\S*prompt\.json row 1: 0\.png is 64x64 but its control image 0\.png 128x128", said)


def test_a_disk_without_room_for_a_checkpoint_is_told_before_the_run(files, tmp_path, capsys, monkeypatch):
    from trainer import checkpointing as checkpoint_folder

    usage = checkpoint_folder.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_folder.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    assert train(files, tmp_path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r".*the next checkpoint needs 16 MiB, but 1 MiB are free in .*: make room", said)


def test_a_loss_that_is_not_finite_is_told_with_what_to_do(files, tmp_path, capsys):
    assert train(files, tmp_path, "--learning-rate", 1e30, "--checkpointing-steps", 1, steps=9) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"is not finite; .*checkpoint-\d is kept: resume from it with a lower --learning-rate", said
    )


def test_data_is_validated_without_training(files, tmp_path, capsys):
    assert train(files, tmp_path, "--validate-data") == 0
    assert "6 pairs, all good at 64 pixels" in capsys.readouterr().out
    (files / "data/broken.json").write_text((files / "data/prompt.json").read_text().replace("/3", "/33"))
    assert train(files, tmp_path, "--validate-data", "--data", files / "data/broken.json") == 2
    assert "row 4" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_flag_stands_in_the_document(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"], "")
    names = set(re.findall(r"--(?!no-|help)[a-z0-9-]+", capsys.readouterr().out))
    table = (Path(tutorial_train.__file__).parent / "docs/training.md").read_text(encoding="utf-8")
    assert len(names) > 60
    assert not [name for name in names if f"`{name}`" not in table]


@pytest.mark.parametrize("name", NAMES_OF_DIFFUSERS.split())
def test_every_flag_of_diffusers_is_ours(name, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"], "")
    assert f"--{name.replace('_', '-')}" in capsys.readouterr().out


def test_what_is_given_beats_the_preset_and_that_the_defaults():
    plain = parse_args(["--config", "a.yaml"], "")
    assert (plain.length.batch, plain.rate.peak, plain.memory.gradient_checkpointing) == (4, 1e-5, None)
    tiny = parse_args([], "")
    assert (tiny.length.batch, tiny.rate.peak, tiny.length.max_train_steps) == tuple(
        TINY[k] for k in ("batch", "peak", "max_train_steps")
    )
    words = ["--config", "a.yaml", "--preset", "16gb", "--batch-size", "2", "--no-use-8bit-adam"]
    small = parse_args(words, "")
    assert (small.length.batch, small.length.accumulate) == (2, 4)
    assert not small.optimization.use_8bit_adam
    assert small.memory.gradient_checkpointing


def values(settings):
    """All fields of all groups; no two groups share a name, since they share a command line."""
    return {name: value for group in vars(settings).values() for name, value in vars(group).items()}


@pytest.mark.parametrize("name", get_args(Preset))
def test_a_preset_sets_flags_that_exist_and_keeps_four_pairs_a_step(name):
    words = ["--config", "models/cldm_v15.yaml", "--resume-path", "a.ckpt", "--preset", name]
    settings = parse_args(words, "")
    assert PRESETS[name].items() <= values(settings).items()
    plan = make_plan(settings)
    assert plan.pairs == 4
    assert plan.settings.transform.resolution == 512


def test_a_run_without_steps_goes_through_the_data():
    def plan(config, *more):
        return make_plan(parse_args(["--config", f"models/{config}", "--resume-path", "a", *more], ""))

    assert plan("cldm_v15.yaml", "--num-train-epochs", "3").for_rows(9).settings.rate.total == 9
    scaled = plan("cldm_v21_v.yaml", "--scale-lr")
    assert scaled.settings.rate.peak == pytest.approx(4e-5)
    assert scaled.settings.transform.resolution == 768


@pytest.mark.parametrize("words", [["--learning-rate", "0"], ["--snr-gamma", "-1"], ["--ema-decay", "1"]])
def test_impossible_numbers_are_refused_by_the_command_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(words, "")
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
