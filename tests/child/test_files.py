"""Images are read as they are seen: upright, on white where they are transparent, whatever their file carries."""

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from child.files import read_image

DRAWING = np.zeros((16, 16), np.uint8)
DRAWING[4:12, 2:7] = 255


def tag(number: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", number, kind, count) + value


def exif(*tags: bytes) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


@pytest.mark.parametrize(
    "mistyped",
    [
        pytest.param(tag(0x128, 2, 4, b"abc\0"), id="resolution unit as text"),
        pytest.param(tag(0x128, 11, 1, struct.pack("<f", 2.5)), id="resolution unit as float"),
        pytest.param(tag(0x11A, 2, 4, b"abc\0"), id="resolution as text"),
    ],
)
def test_a_mistyped_tag_does_no_harm(tmp_path: Path, mistyped: bytes) -> None:
    turned = exif(tag(0x112, 3, 1, b"\6\0\0\0"), mistyped)
    Image.fromarray(DRAWING).save(tmp_path / "a.jpg", exif=turned, quality=100)
    read = read_image(tmp_path / "a.jpg", 16, 16)
    assert abs(read.astype(int) - np.rot90(DRAWING, -1)).max() < 9


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    upright = {
        2: np.fliplr(DRAWING),
        3: np.rot90(DRAWING, 2),
        4: np.flipud(DRAWING),
        5: DRAWING.T,
        6: np.rot90(DRAWING, -1),
        7: np.rot90(DRAWING, 2).T,
        8: np.rot90(DRAWING),
    }.get(orientation, DRAWING)
    tags = Image.Exif()
    tags[0x112] = orientation
    Image.fromarray(DRAWING).save(tmp_path / f"a.{ending}", exif=tags, quality=100)
    assert abs(read_image(tmp_path / f"a.{ending}", 16, 16).astype(int) - upright).max() < 9


def test_what_any_format_fails_with_names_the_file(tmp_path: Path) -> None:
    Image.fromarray(DRAWING).convert("RGB").save(tmp_path / "a.dds")
    content = bytearray((tmp_path / "a.dds").read_bytes())
    content[80:84] = bytes(4)  # the flags of its pixel format; Pillow raises NotImplementedError
    (tmp_path / "a.dds").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.dds: "):
        read_image(tmp_path / "a.dds", 16, 16)


def transparent(mode: str) -> Image.Image:
    """Black, whose alpha channel holds the drawing."""
    gray = Image.merge("LA", (Image.new("L", (16, 16)), Image.fromarray(DRAWING)))
    if mode != "P":
        return gray.convert(mode)
    image = Image.fromarray(DRAWING // 255).convert("P")
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    transparent(mode).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode and image.has_transparency_data
    expected = 255 - DRAWING
    assert np.array_equal(read_image(tmp_path / "a.png", 16, 16, "L"), expected)
    in_color = np.stack([expected] * 3, axis=2)
    assert np.array_equal(read_image(tmp_path / "a.png", 16, 16, "RGB"), in_color)
    assert np.array_equal(read_image(tmp_path / "a.png", 16, 16), expected if mode == "LA" else in_color)


def test_half_transparent_is_half_white_and_opaque_is_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4)).astype(np.uint8)
    pixels[0, :, 3], pixels[1], pixels[2, :, 3] = 255, (0, 100, 200, 128), 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", 16, 16)
    assert np.array_equal(read[0], pixels[0, :, :3]) and (read[2] == 255).all()
    assert abs(read[1].astype(int) - (127, 177, 227)).max() <= 1


def sixteen_bits() -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(np.uint16)


@pytest.mark.parametrize("ending", ["pgm", "png", "tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, ending: str) -> None:
    Image.fromarray(sixteen_bits()).save(tmp_path / f"a.{ending}")
    assert np.array_equal(read_image(tmp_path / f"a.{ending}", 16, 16), sixteen_bits() >> 8)


def test_sixteen_bits_in_color(tmp_path: Path) -> None:
    samples = np.stack([sixteen_bits()] * 3, axis=2)
    (tmp_path / "a.ppm").write_bytes(b"P6 16 16 65535\n" + samples.astype(">u2").tobytes())
    assert abs(read_image(tmp_path / "a.ppm", 16, 16).astype(int) - samples / 257).max() <= 1


def test_thirty_two_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(sixteen_bits().astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: its pixels have 32 bits; save it with 8 or 16"):
        read_image(tmp_path / "a.tif", 16, 16)


def test_memory_that_runs_out_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(DRAWING).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        read_image(tmp_path / "a.png", 16, 16)
