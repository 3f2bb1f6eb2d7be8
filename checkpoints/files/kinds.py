"""Which kind of weights file begins with some bytes, and names in it made fit to be printed.

A file may call its tensors anything.
"""

from __future__ import annotations

from collections.abc import Sequence

HEAD_BYTES = 64  # enough to recognise every kind below
ZIP_MAGIC = b"PK\x03\x04"  # four bytes: the length before a safetensors header may begin with PK
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's number, after two bytes of pickle header
GGUF_MAGIC = b"GGUF"
PICKLE_MAGIC = b"\x80"
LFS_MAGIC = b"version https://git-lfs"
SUFFIXES = (".safetensors", ".ckpt", ".pth")
SAFETENSORS_BRACE = 8  # the JSON header begins after its own length, eight bytes
SHOWN = 3  # names quoted in a message
LONGEST = 120  # characters shown of one name; those of Stable Diffusion have less than 100


def kind_of(head: bytes) -> str:
    """`zip` or `legacy` (both of torch.save), or `safetensors`, told by the first bytes of a file.

    Raises ValueError saying what else it is.
    """
    if head.startswith(ZIP_MAGIC):
        return "zip"
    if head[2:].startswith(LEGACY_MAGIC):
        return "legacy"
    is_text = b"\0" not in head[:SAFETENSORS_BRACE] and head.lstrip().startswith(b"<")
    if head[SAFETENSORS_BRACE:].startswith(b"{") and not is_text and not head.startswith(GGUF_MAGIC):
        return "safetensors"
    raise ValueError(_what_else(head))


def _what_else(head: bytes) -> str:
    if not head:
        return "empty (0 bytes): the download did not start; fetch it again"
    if not head.strip(b"\0"):
        return "nothing but zeros at its start: the download only reserved its place; fetch it again"
    if head.lstrip().startswith(b"<"):
        return "a web page, not weights: the link asked for a login or a licence; fetch it in a browser"
    if head.startswith(LFS_MAGIC):
        return "a Git LFS pointer, not the weights that it points to: run `git lfs pull`"
    if head.startswith(GGUF_MAGIC):
        return "a GGUF file, quantized for other programs: take the .safetensors file that it was made from"
    if head.startswith(PICKLE_MAGIC):
        return "a plain Python pickle, not a file of torch.save: refused, for reading it could run anything"
    return f"not a weights file (it starts with {head[:8]!r}): use .safetensors, .ckpt or .pth"


def printable(text: object, longest: int = LONGEST) -> str:
    """`text` on one line, without characters that steer a terminal, and not endless."""
    words = str(text)
    shown = "".join(letter if letter.isprintable() else "?" for letter in words[:longest])
    return shown + ("..." if len(words) > longest else "")


def quote(names: Sequence[str]) -> str:
    """The first few of `names`, for a message."""
    return ", ".join(map(printable, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
