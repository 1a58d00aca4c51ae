"""Single images: read as a person sees them, refused where they cannot be read, written whole."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import gray, noise, tree
from utils.data.image_folder import ImageFolder
from utils.data.images import probe, read_rgb, resize_for_test, save_image, size_of
from utils.data.sizes import common_size
from utils.run.errors import UserError

LADDER = np.array([[0, 1], [128, 255]], np.uint8)


def pixel(path, x, y):
    image = read_rgb(path)
    assert image.mode == "RGB"
    return image.getpixel((x, y))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("bits", [8, 16])
def test_grayscale(tmp_path, suffix, bits):
    path = tmp_path / f"g.{suffix}"
    # 257 times a value of 8 bits is the same brightness in 16.
    Image.fromarray(LADDER if bits == 8 else LADDER.astype(np.uint16) * 257).save(path)
    with Image.open(path) as image:
        assert (image.mode == "L") == (bits == 8)
    assert [pixel(path, x, y) for y in range(2) for x in range(2)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_one_bit(tmp_path):
    Image.fromarray(LADDER > 100).save(tmp_path / "b.png")
    assert [pixel(tmp_path / "b.png", 0, y) for y in range(2)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("suffix, tolerance", [("tif", 0), ("jpg", 8)])
@pytest.mark.parametrize(
    "ink, colour",
    [
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_cmyk(tmp_path, suffix, tolerance, ink, colour):
    path = tmp_path / f"c.{suffix}"
    Image.new("CMYK", (16, 16), ink).save(path)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert np.abs(np.subtract(pixel(path, 8, 8), colour)).max() <= tolerance


@pytest.mark.parametrize(
    "suffix, transparency, opacity",
    [
        ("png", None, (1, 1, 1)),
        ("png", 1, (1, 0, 1)),
        ("png", bytes([255, 0, 128]), (1, 0, 128 / 255)),
        ("gif", None, (1, 1, 1)),
        ("gif", 1, (1, 0, 1)),
    ],
)
def test_palette(tmp_path, suffix, transparency, opacity):
    colours = [(200, 10, 20), (30, 210, 40), (50, 60, 220)]
    image = Image.new("P", (3, 1))
    image.putpalette([value for colour in colours for value in colour])
    for x in range(3):
        image.putpixel((x, 0), x)
    image.save(tmp_path / f"p.{suffix}", **({} if transparency is None else {"transparency": transparency}))
    for x, (colour, share) in enumerate(zip(colours, opacity)):
        shown = share * np.array(colour) + (1 - share) * 255
        assert np.abs(pixel(tmp_path / f"p.{suffix}", x, 0) - shown).max() < (1 if 0 < share < 1 else 0.001)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_shape_that_lies_in_the_alpha_is_seen_on_white(tmp_path, mode, suffix):
    """As icons and sketches are kept: all black, and drawn by how opaque it is."""
    alpha = Image.fromarray(np.array([[0, 51, 255]], np.uint8))
    image = Image.new("RGB", (3, 1)).convert(mode)
    image.putalpha(alpha)
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    assert [pixel(tmp_path / f"a.{suffix}", x, 0) for x in range(3)] == [(255,) * 3, (204,) * 3, (0,) * 3]


@pytest.mark.parametrize("transparency, expected", [(None, (0, 9)), (0, (255, 9))])
def test_one_grey_or_colour_that_is_transparent(tmp_path, transparency, expected):
    given = {} if transparency is None else {"transparency": transparency}
    Image.fromarray(np.array([[0, 9]], np.uint8)).save(tmp_path / "l.png", **given)
    given = {} if transparency is None else {"transparency": (transparency,) * 3}
    Image.fromarray(np.array([[[0] * 3, [9] * 3]], np.uint8)).save(tmp_path / "rgb.png", **given)
    for name in "l.png", "rgb.png":
        assert [pixel(tmp_path / name, x, 0) for x in range(2)] == [(value,) * 3 for value in expected]


def test_an_opaque_image_with_alpha_keeps_its_bytes(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    values[..., 3] = 255
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (np.asarray(read_rgb(tmp_path / "a.png")) == values[..., :3]).all()


def test_a_turned_image_is_turned_with_its_alpha(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the left is up
    image.save(tmp_path / "a.png", exif=exif)
    assert read_rgb(tmp_path / "a.png").size == (1, 2)
    assert [pixel(tmp_path / "a.png", 0, y) for y in range(2)] == [(255, 255, 255), (0, 0, 0)]


def png(width, height, pixels):
    """A PNG whose header claims this size, and whose pixels are these compressed bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def harm(kind, path):
    if kind == "text":
        path.write_text("I am no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "huge":
        path.write_bytes(png(12000, 10000, zlib.compress(b"\0" * 1000)))
    elif kind == "monstrous":
        path.write_bytes(png(60000, 60000, zlib.compress(b"\0" * 1000)))
    else:
        noise(path, 0, 64)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "kind, name",
    [
        ("cut", "x.png"),
        ("cut", "x.jpg"),
        ("cut", "x.webp"),
        ("text", "x.png"),
        ("empty", "x.jpg"),
        ("huge", "x.png"),
        ("monstrous", "x.png"),
        ("missing", "y.png"),
    ],
)
@pytest.mark.parametrize("read", [read_rgb, probe])
def test_a_bad_image_is_named(tmp_path, kind, name, read):
    if kind != "missing":
        harm(kind, tmp_path / name)
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    if kind in ("huge", "monstrous"):
        assert "pixels" in str(error.value), "refused for what it claims, before it is decoded"


def test_a_bomb_is_refused_by_what_it_claims(tmp_path):
    """A PNG of 30,000 x 30,000 equal pixels: 2.7 GB from a few kB."""
    packed = zlib.compressobj(9)
    content = png(30_000, 30_000, packed.compress(bytes(1 << 20)) + packed.flush())
    assert len(content) < 5000
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(content)
    for work in (lambda folder: folder.load(), lambda folder: folder.check(), lambda folder: folder.read(0)):
        with pytest.raises(UserError, match="x.png: .* pixels"):
            work(ImageFolder(tmp_path, "--train-dir"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_sizes_are_known_with_and_without_decoding(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (31, 17), (1, 2, 3)).save(path)
    assert size_of(path) == probe(path) == read_rgb(path).size == (31, 17)


@pytest.mark.parametrize(
    "sizes, size",
    [
        ([(28, 28)], 28),
        ([(32, 48), (64, 64)], 64),
        ([(5, 5)], 8),  # the smallest input
        ([(65, 65)], 224),
        ([(32, 32), (500, 375)], 224),
        ([(500, 20)], 20),  # its shorter side
        ([(300, 300)] + 19 * [(32, 32)], 32),  # 95 % are no larger
        ([(300, 300)] + 18 * [(32, 32)], 224),
        (5 * [(300, 300)] + 10 * [(48, 64)] + 85 * [(32, 32)], 48),
        (6 * [(300, 300)] + 94 * [(32, 32)], 224),
    ],
)
def test_the_input_size_that_suits_images(sizes, size):
    assert common_size(sizes) == size


@pytest.mark.parametrize("size, resized", [(32, 32), (64, 72), (224, 256), (14, 16), (13, 13)])
def test_the_test_geometry(size, resized):
    """The shorter side to size // 7 * 8, never below the size, and the centre of that."""
    # A gradient along each axis, so that the place of a pixel can be read off its colour.
    ramp = np.linspace(0, 255, 2 * resized).astype(np.uint8)
    image = np.zeros((2 * resized, 4 * resized, 3), np.uint8)
    image[..., 1] = ramp[:, None]
    found = np.asarray(resize_for_test(size)(Image.fromarray(image)), float)
    assert found.shape == (size, size, 3)
    middle = np.linspace(0, 255, resized)[(resized - size) // 2 : (resized - size) // 2 + size]
    assert np.abs(found[:, size // 2, 1] - middle).max() < 12


def test_png_is_lossless_and_jpg_close(tmp_path):
    pixels = torch.randint(256, (3, 9, 7), generator=torch.Generator().manual_seed(0)).byte()
    save_image(tmp_path / "new" / "x.png", pixels)
    found = np.asarray(read_rgb(tmp_path / "new" / "x.png"))
    assert np.array_equal(found, pixels.permute(1, 2, 0).numpy())
    # Random colours are the worst case: a mean error near 3 at quality 95, 6 at 90, and 47 with halved colour planes.
    pixels = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    save_image(tmp_path / "new" / "y.jpg", pixels)
    found = np.asarray(read_rgb(tmp_path / "new" / "y.jpg")).astype(int)
    assert np.abs(found - pixels.permute(1, 2, 0).numpy()).mean() < 4.5
    assert tree(tmp_path / "new") == ["x.png", "y.jpg"]
    with Image.open(tmp_path / "new" / "y.jpg") as image:
        assert image.format == "JPEG"


def test_an_image_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    gray(tmp_path / "x.png", 7, 4)
    before = (tmp_path / "x.png").read_bytes()

    def full(self, path, **options):
        with open(path, "wb") as file:
            file.write(b"half an im")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError):
        save_image(tmp_path / "x.png", torch.ones(3, 4, 4).byte())
    assert tree(tmp_path) == ["x.png"] and (tmp_path / "x.png").read_bytes() == before
