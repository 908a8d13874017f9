"""From files to the values that networks are trained on and asked with: images, sounds and text."""

import lzma
import math
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from scipy.io import wavfile
from scipy.signal import resample_poly

from child.task import Split, Unit

UNKNOWN = "<unk>"
LINE_END = "<eos>"

TURNS = {  # by the EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(file: Path, height: int, width: int, mode: str | None = None) -> NDArray[np.uint8]:
    """An image of any size and format, turned upright by its EXIF tag, scaled, and cropped to the middle.

    What is transparent lets a white background through. 16 bits are scaled to 8.

    Args:
        file: Anything that Pillow reads.
        height: In pixels.
        width: In pixels.
        mode: `L` for gray, (H, W), or `RGB`, (H, W, 3); None for whichever the file is.

    Raises:
        ValueError: It cannot be read; the message names it.
    """
    try:
        with Image.open(file) as image:
            image.load()  # first: a PNG may tell its orientation behind its pixels, and a TIFF is then upright already
            # The one tag alone: `ImageOps.exif_transpose` packs all of them anew, and fails where any is mistyped.
            turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            upright = image if turn is None else image.transpose(turn)
            # Only their owner knows the full scale of 32 bits; but Pillow reads 16 of a PGM file as 32, up to 65535.
            if upright.mode == "F" or (upright.mode == "I" and image.format != "PPM"):
                raise ValueError("its pixels have 32 bits; save it with 8 or 16")
            if upright.mode.startswith("I"):  # Pillow's own conversion clips instead of scaling
                upright = Image.fromarray((np.asarray(upright, np.int64) >> 8).clip(0, 255).astype(np.uint8))
            own = "L" if upright.mode in ("1", "L", "LA") else "RGB"
            if upright.has_transparency_data:  # a drawing may lie in the alpha channel alone
                layer = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            cropped = ImageOps.fit(upright.convert(mode or own), (width, height), Image.Resampling.BILINEAR)
            return np.asarray(cropped, np.uint8)
    except MemoryError:
        raise
    except Exception as error:  # there is no list of what Pillow's readers of so many formats may raise
        raise ValueError(f"cannot read the image {file}: {error}") from None


def read_wave(path: Path, rate: int) -> NDArray[np.int16]:
    """One channel of a WAV file, as 16-bit values at this rate.

    Raises:
        ValueError: It cannot be read, is cut short or empty; the message names it.
    """
    try:
        with warnings.catch_warnings():
            # SciPy only warns of a file that is cut short; of chunks that it does not know it need not warn.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            own_rate, values = wavfile.read(path)
    except (UnboundLocalError, TypeError):  # what SciPy makes of a header that lacks a part
        raise ValueError(f"cannot read {path} as a WAV file: its header is broken") from None
    except (OSError, ValueError, EOFError, struct.error, wavfile.WavFileWarning, ZeroDivisionError) as error:
        raise ValueError(f"cannot read {path} as a WAV file: {error}") from None
    if not values.size or own_rate < 1:
        raise ValueError(f"cannot read {path} as a WAV file: it has no samples")
    # 8 bits are stored from 0 to 255, 24 bits in the upper part of 32.
    zero, full = {"u": (128.0, 128.0), "i": (0.0, 128.0 * 256 ** (values.itemsize - 1)), "f": (0.0, 1.0)}[
        values.dtype.kind
    ]
    wave = (values.astype(np.float64) - zero) / full
    if wave.ndim == 2:
        wave = wave.mean(axis=1)
    if not np.isfinite(wave).all():
        raise ValueError(f"cannot read {path} as a WAV file: it has a value that is not finite")
    if own_rate != rate:
        common = math.gcd(own_rate, rate)
        wave = resample_poly(wave, rate // common, own_rate // common)
    return np.clip(np.round(wave * 32768), -32768, 32767).astype(np.int16)


def read_symbols(path: Path, unit: Unit, hint: str | None = None) -> list[str]:
    """The characters of a file, or its words and line ends (else ValueError); Windows' line ends are as any other."""
    try:
        data = path.read_bytes()
        content = (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror})" + (f"; {hint}" if hint else "")) from None
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: expected text in UTF-8, or that in .xz ({error})") from None
    content = content.replace("\r\n", "\n")  # of two signs one would be sure to follow the other
    if unit == "characters":
        return list(content)
    lines = content.removesuffix("\n").split("\n")
    return [word for line in lines for word in (*line.split(), LINE_END)]


def windows(numbers: NDArray[np.int64], context: int, length: int) -> Split:
    """Windows of a text, at least one, as views of it: their overlaps are not stored twice."""
    stored = torch.from_numpy(numbers)
    fitting = (kind for kind in (torch.uint8, torch.int16, torch.int32) if numbers.max() <= torch.iinfo(kind).max)
    inputs = stored[:-1].to(next(fitting)).unfold(0, context + length, length)
    return Split(inputs, stored[context + 1 :].unfold(0, length, length))
