"""Images of more than 8 bits and photos with an orientation: as a person sees them, and never black without a word."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from utils.data.images import probe, read_rgb, size_of
from utils.run.errors import UserError

RAMP = np.linspace(0, 1, 1024).reshape(32, 32)


def grey(path):
    pixels = np.asarray(read_rgb(path)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    assert probe(path) == (pixels.shape[1], pixels.shape[0])
    return pixels[..., 0]


@pytest.mark.parametrize(
    "name, values",
    [
        ("x.png", (RAMP * 1023).astype(np.uint16)),
        ("x.png", (RAMP * 4095).astype(np.uint16)),
        ("x.png", (RAMP * 16383).astype(np.uint16)),
        ("x.png", (RAMP * 65535).astype(np.uint16)),
        ("x.png", (RAMP * 255).astype(np.uint16)),
        ("x.png", (RAMP > 0.5).astype(np.uint16)),
        ("x.tif", (RAMP * 4095).astype(np.uint16)),
        ("x.tif", (RAMP * 4095).astype(">u2")),
        ("x.tif", (RAMP * 255).astype(np.int32)),
        ("x.tif", (RAMP * 1e6).astype(np.int32)),
        ("x.tif", (RAMP * 4000 - 1000).astype(np.int32)),
        ("x.tif", RAMP.astype(np.float32)),
        ("x.tif", (RAMP * 1000).astype(np.float32)),
        ("x.tif", (RAMP * 1e-3).astype(np.float32)),
        ("x.tif", (RAMP * 2 - 1).astype(np.float32)),
        ("x.pfm", (RAMP * 7).astype(np.float32)),
        ("x.pgm", (RAMP * 65535).astype(np.uint16)),
        ("x.jp2", (RAMP * 65535).astype(np.uint16)),
    ],
)
def test_a_ramp_goes_from_black_to_white(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    found = grey(tmp_path / name).ravel()
    assert found[0] == 0 and found[-1] == 255 and (np.diff(found) >= 0).all()
    if len(np.unique(values)) > 2:
        assert np.abs(found - 255 * RAMP.ravel()).max() < 1.6


def test_16_bits_keep_their_8_highest_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (9, 5)).astype(np.uint16)
    values[0, 0] = 60_000
    for name in ("x.png", "x.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert (grey(tmp_path / name) == values // 256).all()


def test_12_bits_keep_their_8_highest_bits_whatever_their_largest_value_is(tmp_path):
    for most in (1100, 4095):
        values = np.random.default_rng(0).integers(0, most, (9, 5)).astype(np.uint16)
        values[0, 0] = most
        Image.fromarray(values).save(tmp_path / "x.png")
        assert (grey(tmp_path / "x.png") == values // 16).all()


def tiff(path, bits, pixels, width, photometric=1, sample_format=1):
    """An uncompressed TIFF of one row."""
    entries = [(256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    entries += [(277, 3, 1), (278, 3, 1), (279, 4, len(pixels)), (339, 3, sample_format)]
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value)
    pixels += bytes(len(pixels) % 2)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory + bytes(4))


def test_a_tiff_of_12_bits_a_sample(tmp_path):
    # Two values lie in three bytes: 0x0AB and 0x7FF. Its file says 12 bits, so that 0x7FF is half of white.
    tiff(tmp_path / "x.tif", 12, bytes([0x0A, 0xB7, 0xFF]), 2)
    assert grey(tmp_path / "x.tif").tolist() == [[0x0A, 0x7F]]


def test_a_tiff_whose_zero_is_white(tmp_path):
    tiff(tmp_path / "x.tif", 16, struct.pack("<2H", 0, 65535), 2, photometric=0)
    assert grey(tmp_path / "x.tif").tolist() == [[255, 0]]


def test_unsigned_32_bits(tmp_path):
    tiff(tmp_path / "x.tif", 32, struct.pack("<3I", 0, 2**31, 2**32 - 1), 3)
    assert grey(tmp_path / "x.tif").tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, bad):
    values = RAMP.astype(np.float32)
    values[3, 3] = bad
    Image.fromarray(values).save(tmp_path / "x.tif")
    for read in (read_rgb, probe):
        with pytest.raises(UserError, match="x.tif: .*not finite"):
            read(tmp_path / "x.tif")


@pytest.mark.parametrize("value, seen", [(0.0, 0), (0.5, 128), (1.0, 255), (-3.0, 0)])
def test_an_image_of_one_value(tmp_path, value, seen):
    Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / "x.tif")
    assert (grey(tmp_path / "x.tif") == seen).all()


def png16(path, values, kind, exif=b""):
    """A PNG of 16 bits a channel; `kind` 2: RGB, 4: grey and alpha, 6: RGBA."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    exif = chunk(b"eXIf", exif) if exif else b""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + exif + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind, channels", [(2, 3), (6, 4)])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_colours_of_more_than_8_bits(tmp_path, kind, channels, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (6, 4, channels))
    values[0, 0] = 2**bits - 1
    values[..., 3:] = 65535  # opaque
    png16(tmp_path / "x.png", values, kind)
    assert (np.asarray(read_rgb(tmp_path / "x.png")) == values[..., :3] >> (bits - 8)).all()


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_grey_with_alpha_of_more_than_8_bits(tmp_path, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (6, 4, 2))
    values[0, 0, 0] = 2**bits - 1
    values[..., 1] = 65535  # opaque: the alpha tells nothing of the greys' range
    png16(tmp_path / "x.png", values, 4)
    assert (grey(tmp_path / "x.png") == values[..., 0] >> (bits - 8)).all()
    assert probe(tmp_path / "x.png") == size_of(tmp_path / "x.png") == (4, 6)


@pytest.mark.parametrize("kind, channels", [(4, 1), (6, 3)])
@pytest.mark.parametrize("black", [0, 3000])  # nothing, and 12 bits of colour with 16 of alpha
def test_a_shape_in_an_alpha_of_16_bits(tmp_path, kind, channels, black):
    values = np.zeros((2, 2, channels + 1), int)
    values[0, 0], values[0, 1] = 65535 * (black == 0) or 4095, black
    values[..., -1] = [[65535, 65535], [65535, 0]]
    png16(tmp_path / "x.png", values, kind)
    found = grey(tmp_path / "x.png")
    assert found[1].tolist() == [0, 255] and found[0].tolist() == [255, black >> 4]
    values[..., :-1], values[..., -1] = 0, [[0, 65535], [65535, 0]]
    png16(tmp_path / "x.png", values, kind)
    assert grey(tmp_path / "x.png").tolist() == [[255, 0], [0, 255]]


def sgi16(path, values):
    """An SGI image of 16 bits a value, uncompressed; `values` (H, W, channels)."""
    height, width, channels = values.shape
    header = struct.pack(">HBBHHHHII", 474, 0, 2, 3 if channels > 1 else 2, width, height, channels, 0, 65535)
    path.write_bytes(header.ljust(512, b"\0") + values[::-1].transpose(2, 0, 1).astype(">u2").tobytes())


@pytest.mark.parametrize("channels", [1, 3])
def test_sgi_images_of_16_bits(tmp_path, channels):
    values = np.random.default_rng(0).integers(0, 2**16, (6, 4, channels))
    values[0, 0] = 65535
    sgi16(tmp_path / "full.sgi", values)
    assert (np.asarray(read_rgb(tmp_path / "full.sgi")) == values >> 8).all()
    sgi16(tmp_path / "dark.sgi", values >> 4)
    for read in (read_rgb, probe):
        with pytest.raises(UserError, match="dark.sgi: .*16 bits.*PNG"):
            read(tmp_path / "dark.sgi")


def test_colours_that_alpha_was_multiplied_into(tmp_path):
    """Pillow divides the higher bytes by the alpha, and the lower bytes cannot be got back from that."""
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 4, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 16)]
    entries += [(277, 3, 1, 4), (278, 3, 1, 1), (279, 4, 1, 8), (338, 3, 1, 1)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    for colour, readable in ((50000, True), (4000, False)):
        pixels = struct.pack("<4H", 16, 16, 16, 16) + struct.pack("<4H", colour, colour, colour, 65535)
        content = struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels + directory + bytes(4)
        (tmp_path / "x.tif").write_bytes(content)
        if readable:
            assert (grey(tmp_path / "x.tif") == colour >> 8).all()
        else:
            with pytest.raises(UserError, match="x.tif: .*16 bits"):
                read_rgb(tmp_path / "x.tif")


def test_a_black_image_stays_black(tmp_path):
    png16(tmp_path / "x.png", np.zeros((4, 4, 3), int), 2)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "y.png")
    png16(tmp_path / "z.png", np.zeros((4, 4, 2), int), 4)
    for name in ("x.png", "y.png", "z.png"):
        assert np.asarray(read_rgb(tmp_path / name)).max() == 0


def test_deep_colours_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.zeros((2, 4, 3), int)
    values[:, :2] = 4095  # the left half, which a quarter turn clockwise puts on top
    png16(tmp_path / "x.png", values, 2, exif.tobytes()[6:])
    found = np.asarray(read_rgb(tmp_path / "x.png"))
    assert found.shape == (4, 2, 3) and (found[:2] == 255).all() and (found[2:] == 0).all()


SEEN = np.arange(6).reshape(2, 3) * 50  # as a person sees it; EXIF 2.3, tag 0x0112, says how it is stored
STORED = {
    1: SEEN,
    2: SEEN[:, ::-1],
    3: SEEN[::-1, ::-1],
    4: SEEN[::-1],
    5: SEEN.T,  # row 0 is the left side, column 0 the top
    6: np.rot90(SEEN, 1),  # row 0 is the right side, column 0 the top
    7: SEEN[::-1, ::-1].T,
    8: np.rot90(SEEN, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.webp", "x.avif"])
def test_a_photo_is_turned_as_its_tag_says(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.repeat(STORED[orientation], 16, 0).repeat(16, 1).astype(np.uint8)
    Image.fromarray(stored).convert("RGB").save(tmp_path / name, exif=exif, quality=95)
    image = read_rgb(tmp_path / name)
    assert image.size == size_of(tmp_path / name) == probe(tmp_path / name) == (48, 32)
    assert np.abs(np.asarray(image)[8::16, 8::16, 0].astype(int) - SEEN).max() < 12


XMP = b"XML:com.adobe.xmp" + bytes(5) + b'<rdf:Description tiff:Orientation="6"/>'
TIFF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # one tag: orientation 6
PROFILE = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n32\n" + (b"Exif\0\0" + TIFF).hex().encode())


@pytest.mark.parametrize(
    "name, data, turned",
    [
        (b"eXIf", TIFF, True),
        (b"iTXt", XMP, True),
        (b"zTXt", PROFILE, True),
        (b"tEXt", b"Software\0eXIf", False),
    ],
    ids=["exif", "xmp", "profile", "text"],
)
def test_a_tag_behind_the_pixels_of_a_png_counts_too(tmp_path, name, data, turned):
    Image.new("RGB", (5, 3)).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    (tmp_path / "x.png").write_bytes(content[:-12] + chunk + content[-12:])  # before IEND
    expected = (3, 5) if turned else (5, 3)
    assert read_rgb(tmp_path / "x.png").size == size_of(tmp_path / "x.png") == probe(tmp_path / "x.png") == expected


def test_a_tag_that_says_nothing_known_changes_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.new("RGB", (3, 2)).save(tmp_path / "x.jpg", exif=exif)
    assert read_rgb(tmp_path / "x.jpg").size == size_of(tmp_path / "x.jpg") == probe(tmp_path / "x.jpg") == (3, 2)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_an_uncompressed_tiff_that_is_turned(tmp_path, mode):
    """Pillow maps such a file into memory, as it is stored."""
    seen = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
    stored = Image.fromarray(np.rot90(seen)).convert(mode)  # tag 6: turned to the right it is as seen
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "x.tif", exif=exif)
    found, expected = read_rgb(tmp_path / "x.tif"), Image.fromarray(seen).convert(mode).convert("RGB")
    assert size_of(tmp_path / "x.tif") == probe(tmp_path / "x.tif") == found.size == (20, 12)
    assert (np.asarray(found) == np.asarray(expected)).all()
