"""tool_add_control.py for Stable Diffusion 2.1 at 512 pixels: the same with the yaml of that family.

    python tool_add_control_sd21.py v2-1_512-ema-pruned.ckpt control_sd21_ini.ckpt

The 768-pixel base has the same tensors: for it add --config models/cldm_v21_v.yaml.
"""

import tool_add_control


def main(argv: list[str] | None = None) -> int:
    """As `tool_add_control.main`."""
    return tool_add_control.main(argv, "tool_add_control_sd21.py", "cldm_v21.yaml")


if __name__ == "__main__":
    raise SystemExit(main())
