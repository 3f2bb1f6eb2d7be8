"""Weights of detectors with random values, written as the real ones are: the same forms, names and files.

The networks of controlnet_aux have their published shape; those of transformers are shrunken.
"""

import json

import torch

from annotator.class_colors import ADE20K, COCO, class_colors
from annotator.networks import depth, lineart, mlsd, normalbae, pidinet
from annotator.networks.libraries import auxiliary


def _outer(state):
    return {name.split(".", 1)[1]: one for name, one in state.items()}


def _save(make, path, form=dict):
    torch.manual_seed(0)
    torch.save(form(make().state_dict()), path)


def mlsd_file(folder):
    _save(mlsd.make, folder / "mlsd_large_512_fp32.pth")


def pidinet_file(folder):
    form = lambda state: {"state_dict": {f"module.{name}": one for name, one in state.items()}}  # noqa: E731
    _save(pidinet.make, folder / "table5_pidinet.pth", form)


def lineart_files(folder):
    for name in ("sk_model.pth", "sk_model2.pth"):
        _save(lineart.make, folder / name)


def anime_file(folder):
    _save(lineart.make_anime, folder / "netG.pth")


def normals_file(folder):
    _save(normalbae.make, folder / "scannet.pt", lambda state: {"model": state})


def zoe_file(folder):
    index = {"core.core.pretrained.model.blocks.0.attn.relative_position_index": torch.zeros(2, 2).long()}
    _save(depth.make_zoe, folder / "ZoeD_M12_N.pt", lambda state: {"model": state | index})


def openpose_files(folder):
    module = auxiliary("open_pose.model")
    _save(module.bodypose_model, folder / "body_pose_model.pth", _outer)
    _save(module.handpose_model, folder / "hand_pose_model.pth", _outer)
    _save(auxiliary("open_pose.face").FaceNet, folder / "facenet.pth")


def _save_folder(network, processor, folder):
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


def depth_folders(folder):
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTConfig,
        DPTForDepthEstimation,
        DPTImageProcessor,
    )

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_features=stages, reshape_hidden_states=False,
    )  # fmt: skip
    sizes = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, head_hidden_size=4, **sizes
    )
    processor = DPTImageProcessor(size={"height": 518, "width": 518}, ensure_multiple_of=14)
    _save_folder(DepthAnythingForDepthEstimation(config), processor, folder / "Depth-Anything-V2-Small-hf")
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=64,
        patch_size=16, backbone_out_indices=[0, 1, 2, 3], **sizes,
    )  # fmt: skip
    _save_folder(DPTForDepthEstimation(config), DPTImageProcessor(), folder / "dpt-large")


def segmentation_folders(folder):
    from transformers import (
        ConvNextConfig,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
        UperNetConfig,
        UperNetForSemanticSegmentation,
    )

    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8, num_labels=150,
    )  # fmt: skip
    place = folder / "segformer-b0-finetuned-ade-512-512"
    _save_folder(SegformerForSemanticSegmentation(config), SegformerImageProcessor(), place)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=stages)
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=8, auxiliary_in_channels=8, auxiliary_channels=8, num_labels=150
    )
    network = UperNetForSemanticSegmentation(config)
    _save_folder(network, SegformerImageProcessor(), folder / "upernet-convnext-small")


def oneformer_folders(folder):
    """Their preprocessor_config.json names a file of classes on the hub, as the published ones do."""
    from transformers import (
        CLIPTokenizer,
        OneFormerConfig,
        OneFormerForUniversalSegmentation,
        OneFormerImageProcessor,
        SwinConfig,
    )

    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    letters = sorted("abcdefghijklmnopqrstuvwxyz")
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    for name, dataset in (("oneformer_ade20k_swin_tiny", ADE20K), ("oneformer_coco_swin_large", COCO)):
        torch.manual_seed(0)
        config = OneFormerConfig(
            backbone_config=backbone, num_labels=len(class_colors(dataset)), hidden_dim=32, conv_dim=32,
            mask_dim=32, num_attention_heads=2, dim_feedforward=16, encoder_feedforward_dim=16,
            encoder_layers=1, decoder_layers=2, num_queries=10, text_encoder_width=32,
            text_encoder_num_layers=1, text_encoder_proj_layers=1, text_encoder_vocab_size=len(words),
            is_training=False,
        )  # fmt: skip
        _save_folder(OneFormerForUniversalSegmentation(config), OneFormerImageProcessor(), folder / name)
        tokenizer.save_pretrained(folder / name)
        settings = folder / name / "preprocessor_config.json"
        known = json.loads(settings.read_text())
        known |= {"class_info_file": f"{dataset}_panoptic.json", "repo_path": "shi-labs/oneformer_demo"}
        settings.write_text(json.dumps(known))


def people_folders(folder):
    from transformers import (
        RTDetrConfig,
        RTDetrForObjectDetection,
        RTDetrImageProcessor,
        RTDetrResNetConfig,
        VitPoseBackboneConfig,
        VitPoseConfig,
        VitPoseForPoseEstimation,
        VitPoseImageProcessor,
    )

    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8],
        feat_strides=[8, 16, 32], encoder_ffn_dim=16, encoder_attention_heads=2, d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=16, num_queries=20,
        id2label={0: "person", 1: "bicycle"}, label2id={"person": 0, "bicycle": 1},
    )  # fmt: skip
    _save_folder(
        RTDetrForObjectDetection(config),
        RTDetrImageProcessor(size={"height": 128, "width": 128}),
        folder / "rtdetr_r18vd",
    )
    backbone = VitPoseBackboneConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, out_features=["stage2"]
    )
    config = VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=True)
    network = VitPoseForPoseEstimation(config)
    _save_folder(network, VitPoseImageProcessor(), folder / "vitpose-base-simple")
