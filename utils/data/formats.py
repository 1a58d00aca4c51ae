"""Which files belong to a data set of images, by their names. Without PyTorch, so that it loads at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator

from utils.run.errors import UserError

# What Pillow reads without help from other programs.
EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".bmp", ".dib", ".gif"),
    *(".webp", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".tga", ".pcx", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".qoi"),
    *(".dds", ".psd", ".xbm", ".xpm"),
)

# What photographers, scanners and scientists keep images in otherwise: not taken, but counted.
OTHER_IMAGES = frozenset(
    (
        ".heic .heif .hif .jxl .jxr .hdp .wdp .bpg .flif .svg .svgz .exr .hdr .dpx .cin .ktx .ktx2 .xcf .djvu .eps "
        ".emf .wmf .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .raf .orf .rw2 .pef .srw .x3f .raw .dcm .dicom .nii "
        ".fit .fits .fts .czi .lsm .nd2 .svs .ndpi .mrxs .vsi .pcd .im .msp .ico .icns .cur .dcx .blp .ftc "
        ".ftu .gbr .fli .flc .icb .vda .vst .pxr .palm .jls .jxs .jph .jng .mng"
    ).split()
)

# What other projects keep sets of images in.
TENSORS = (".pt", ".pth", ".npy", ".npz", ".safetensors")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".zip", ".7z", ".rar", ".gz", ".xz")

# What lies beside images and is none, so that it need not be opened to know.
_OTHER_FILES = frozenset(
    ".txt .json .jsonl .xml .csv .tsv .md .html .htm .yaml .yml .toml .ini .cfg .py .sh .log .db .sqlite .lock .md5 "
    ".sha256 .pkl .pickle .pt .pth .npy .npz .mat .h5 .hdf5 .safetensors .zip .tar .gz .xz .7z .rar .tfrecord "
    ".doc .docx .pdf .mp4 .avi .mov .mkv .wav .mp3 .part .partial .tmp".split()
)

# What file servers, file managers and other systems leave in folders.
_SYSTEM_NAMES = frozenset(
    (
        *("@eadir", "@tmp", "#recycle", "@recycle", "@recently-snapshot", "lost+found"),
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    )
)

# The first bytes of images: of names that tell nothing.
_SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
    *(b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51", b"8BPS", b"qoif", b"\xff\x0a", b"\x00\x00\x00\x0cJXL "),
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"mif1", b"msf1", b"hevc")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of a data set, wherever it lies."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def can_be_class(name: str) -> bool:
    """Whether a folder of this name can be made, and is a class of an ImageFolder then."""
    return bool(name) and "/" not in name and "\0" not in name and not is_hidden(name)


def is_image(name: str | Path) -> bool:
    """Whether a file of this name is taken as an image."""
    name = os.path.basename(name)
    return name.lower().endswith(EXTENSIONS) and not is_hidden(name)


def folders_in(root: str | Path) -> list[Path]:
    """The folders in `root` that are part of a data set, sorted: its classes, where it is an ImageFolder."""
    return sorted(path for path in Path(root).iterdir() if path.is_dir() and not is_hidden(path.name))


def walked(folder: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder of a data set from `folder` down, links followed, and the names of its files.

    Raises UserError for a link that leads back up, and for a folder's name that is not UTF-8.
    """
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for link in (os.path.join(place, name) for name in folders):
            require_unicode(link)
            around = os.path.realpath(link)
            if os.path.islink(link) and os.path.commonpath([around, os.path.realpath(place)]) == around:
                raise UserError(f"{link}: is a link that leads back to {around}, a folder around it; remove it")
        yield place, names


def could_be_image(path: str | Path) -> bool:
    """Whether a file that `is_image` does not take may be one all the same, by its ending or else its first bytes."""
    name = os.path.basename(path)
    ending = os.path.splitext(name)[1].lower()
    if is_hidden(name) or is_image(name) or ending in _OTHER_FILES:
        return False
    return ending in OTHER_IMAGES or _looks_like_image(path)


def _looks_like_image(path: str | Path) -> bool:
    if not os.path.isfile(path):  # to open a pipe waits for who writes to it
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return False
    return (
        head.startswith(_SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)
    )


def require_unicode(path: str | Path) -> None:
    """Raises UserError for a name that is not UTF-8: tables, manifests and pages could not name it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UserError(
            f"{shown}: its name is not UTF-8; rename it (convmv -f latin1 -t utf8 does so for whole folders)"
        ) from None
