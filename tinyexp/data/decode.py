"""One image file to upright RGB pixels, and what a file says of itself; no listing, no cropping."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tinyexp.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif")

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {  # what undoes each orientation, as ImageOps.exif_transpose has it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# where Pillow's getexif looks for an orientation (a TIFF's is applied by Pillow itself as it loads)
_ORIENTED = frozenset(("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"))
_NOT_PLAIN = _ORIENTED | {"transparency"}

# Pillow warns of large images and of damaged EXIF. What matters of it is an error here or a finding of verify, so
# decode sees to it that this filter comes first: catch_warnings around each file would not be safe among threads.
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class UnreadableError(DataError):
    """The system does not let the file be read: it is missing, forbidden, on a disk that fails."""


class UnknownRangeError(ValueError):
    """Pixels whose black and white are not known."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a file says of itself; of a file that Pillow does not know, the digest alone."""

    digest: str  # 16 hex digits, blake2b of the file's bytes
    format: str | None = None  # Pillow's name of it: "JPEG"
    size: tuple[int, int] = (0, 0)  # (W, H) px
    mode: str = ""  # Pillow's; "RGB;16B" and the like where it reduces 16 bits as it reads
    transparent: bool = False
    frames: int = 1
    orientation: int = 1  # EXIF's 1..8, 1 is upright


def decode(path: str, short_side: int | None = None) -> NDArray[np.uint8]:
    """An image file -> (H, W, 3) RGB uint8, upright, its size as it is; the array is read-only.

    Where `short_side` (px) is given and the image's short side is longer, the image is made smaller to that, bilinear
    with antialiasing, a JPEG first by its decoder; the aspect stays. The first frame is taken of several, transparency
    is composited on white, since the colour below it is arbitrary, and an EXIF orientation that cannot be read counts
    as upright. Raises DataError for whatever cannot be decoded in full, UnreadableError where the system forbids it.
    """
    quieten_pillow()
    try:
        with Image.open(path) as image:
            rgb = _load(image, short_side)
            # some 8 us less than np.asarray, of 108 for a JPEG of 64x64
            return np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.height, rgb.width, 3)
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # Pillow's decoders let through whatever happens in them: struct.error, KeyError, ...
        kind = UnreadableError if isinstance(error, OSError) and error.errno is not None else DataError
        raise kind(f"{path} cannot be decoded: {_tell(path, error)}") from error


def describe(path: str) -> Described:
    """What a file says of itself, without its pixels. Raises DataError where the file cannot be read."""
    quieten_pillow()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            return Described(
                digest=digest,
                format=image.format,
                size=image.size,
                mode=_stored_mode(image),
                transparent=image.has_transparency_data,
                orientation=_find_orientation(image) if _may_be_turned(image, content) else 1,
                frames=_count_frames(image),  # last, since it may seek
            )
    except MemoryError:
        raise
    except Exception:  # decode tells why
        return Described(digest=digest)


def quieten_pillow() -> None:
    if warnings.filters[:1] != [_QUIET]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _load(image: Image.Image, short_side: int | None) -> Image.Image:
    """The pixels of an opened file: RGB, upright, with the short side at most `short_side`."""
    size, box = image.size, None  # box is what the image covers of a JPEG's pixels, whose number was rounded up
    smaller = short_side is not None and min(size) > short_side
    if short_side is not None and smaller and (drafted := image.draft(None, _fit(size, short_side))):
        box = drafted[1]
    image.load()
    if image.mode == "RGB" and not smaller and _NOT_PLAIN.isdisjoint(image.info):
        return image
    rgb = _convert_to_rgb(image)
    if short_side is not None and smaller:
        rgb = rgb.resize(_fit(size if box else image.size, short_side), Image.Resampling.BILINEAR, box)
    if _ORIENTED.isdisjoint(image.info) or (turn := _UPRIGHT.get(_find_orientation(image))) is None:
        return rgb
    return rgb.transpose(turn)


def _fit(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(W, H) made smaller so that the short side is `short_side`."""
    width, height = size
    if width < height:
        return short_side, round(height * short_side / width)
    return round(width * short_side / height), short_side


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's to RGB. Raises UnknownRangeError for values whose range is not known."""
    if image.mode == "F":
        raise UnknownRangeError("floating-point pixels (mode F) have no known range, store them in 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own convert clips at 255: all white
        return _reduce_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _reduce_to_8_bits(image: Image.Image) -> Image.Image:
    """Grey values 0..65535 -> mode L. Raises UnknownRangeError for values beyond."""
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise UnknownRangeError(f"pixels must lie in 0..65535 (mode {image.mode}), got {grey.min()}..{grey.max()}")
    reduced = np.rint(grey / 257).astype(np.uint8)
    if (clear := image.info.get("transparency")) is not None:  # one grey value of a PNG
        reduced[grey == clear] = 255
    return Image.fromarray(reduced)


def _may_be_turned(image: Image.Image, content: bytes) -> bool:
    """Whether there is an orientation to be looked for; a PNG's may stand after the pixels, which are then decoded."""
    if image.format == "PNG" and b"eXIf" in content:
        return True
    return image.format == "TIFF" or not _ORIENTED.isdisjoint(image.info)


def _find_orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # a damaged EXIF block; the pixels are all there, and every viewer shows them
        return 1
    return orientation if orientation in range(1, 9) else 1


def _stored_mode(image: Image.Image) -> str:
    """The mode, or the file's own where Pillow reduces 16 bits to 8."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""  # "RGB;16B", or a tuple that begins with it
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) and ";16" in raw and not image.mode.startswith("I") else image.mode


def _count_frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except MemoryError:
        raise
    except Exception:  # damage behind the first frame, which is the one that is taken
        return 1


def _tell(path: str, error: Exception) -> str:
    """An exception's reason without the path, which the message has already."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty" if _is_empty(path) else "it is not an image that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, (OSError, SyntaxError, ValueError, Image.DecompressionBombError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _is_empty(path: str) -> bool:
    try:
        return Path(path).stat().st_size == 0
    except OSError:  # gone meanwhile
        return False
