"""PNG: what stands behind its pixels."""

from __future__ import annotations

import struct
from pathlib import Path

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_KEYWORDS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # of texts that may say an orientation


def is_described_behind(path: Path) -> bool:
    """Whether a chunk that may say the orientation of the PNG at `path` stands behind its pixels.

    Pillow reads such a chunk only once it has decoded the image.
    """
    behind = False
    with open(path, "rb") as file:
        file.seek(8)  # the signature
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            behind = behind or kind == b"IDAT"
            if behind and kind == b"eXIf":
                return True
            following = file.tell() + length + 4  # its checksum
            if behind and kind in _TEXTS and file.read(min(length, 80)).startswith(_KEYWORDS):
                return True
            file.seek(following)
    return False
