"""All metrics by name. A new one is one module and one entry here."""

from __future__ import annotations

from collections.abc import Iterable

from eval.metrics import clip, control, dinov2, inception, likeness, lpips, tiny
from eval.metrics.metric import Metric

METRICS: dict[str, Metric] = {
    "psnr": likeness.PSNR,
    "ssim": likeness.SSIM,
    "lpips": lpips.LPIPS,
    "colour_error": likeness.COLOUR_ERROR,
    "fid": inception.FID,
    "fid_clean": inception.FID_CLEAN,
    "kid": inception.KID,
    "cmmd": clip.CMMD,
    "fd_dinov2": dinov2.FD_DINOV2,
    "fd_tiny": tiny.FD_TINY,
    "clip_score": clip.CLIP_SCORE,
    "control_f1": control.CONTROL_F1,
    "control_f1_2px": control.CONTROL_F1_2PX,
    "control_ssim": control.CONTROL_SSIM,
    "control_rmse": control.CONTROL_RMSE,
    "control_miou": control.CONTROL_MIOU,
}


def check_names(names: Iterable[str]) -> None:
    """ValueError for a name that is no metric; lists those that are."""
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metric {name!r} is not known: choose from {', '.join(METRICS)}")
