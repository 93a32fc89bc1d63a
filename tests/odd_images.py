"""Image files of every odd kind that decodes, with the pixels to expect, and of every kind that does not."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

Pixels = NDArray[np.uint8]

WIDTH, HEIGHT = 24, 16


@dataclass(frozen=True, kw_only=True)
class Odd:
    """A file and what to say of it: `rgb` where it decodes, `kind` and `reason` (a pattern) where it does not."""

    path: Path
    rgb: Pixels | None = None  # (H, W, 3)
    tolerance: int = 0  # how far a pixel may be off: what is not 0 goes through a lossy format
    notes: tuple[str, ...] = ()  # kinds of findings that do not stop a training
    kind: str = ""
    reason: str = ""


def picture() -> Pixels:
    """(16, 24, 3): smooth, so that JPEG keeps it, and unlike itself however it is turned."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([columns * 10, rows * 15, 255 - columns * 4 - rows * 6], -1).astype(np.uint8)


def grey_picture() -> Pixels:
    return picture()[..., 0]


def spread(grey: NDArray[Any]) -> Pixels:
    """(H, W) -> (H, W, 3)."""
    return grey[..., None].repeat(3, -1).astype(np.uint8)


def noise(height: int = 64, width: int = 64) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def turn(upright: Pixels, orientation: int) -> Pixels:
    """How EXIF's orientation stores an image, by what it says of the 0th row and the 0th column."""
    turned = upright.swapaxes(0, 1)
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[:, ::-1],  # left, bottom
    }[orientation]
    return np.ascontiguousarray(stored)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png_bytes(rows: bytes, *, depth: int, colour: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A PNG made by hand, of rows with their filter bytes: for what Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def write_odd_images(folder: Path) -> dict[str, Odd]:
    """The files of this module in a folder, flat, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    odd = [*_greys(folder), *_alphas(folder), *_colours(folder), *_sixteen_bits(folder), *_turned(folder)]
    odd += [*_frames(folder), *_misnamed(folder), *_cut(folder), *_damaged(folder), *_unknown_ranges(folder)]
    return {one.path.name: one for one in odd}


def save(path: Path, image: Image.Image | NDArray[Any], **options: Any) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


# what decodes


def _greys(folder: Path) -> list[Odd]:
    grey = grey_picture()
    bits = grey > 100
    return [
        Odd(path=save(folder / "grey.png", grey), rgb=spread(grey)),
        Odd(path=save(folder / "grey.jpg", grey, quality=95), rgb=spread(grey), tolerance=6),
        Odd(path=save(folder / "bits.png", bits), rgb=spread(bits * 255), notes=("converted",)),
        Odd(path=save(folder / "plain.jpg", picture(), quality=95, subsampling=0), rgb=picture(), tolerance=8),
        Odd(path=save(folder / "plain.ppm", picture()), rgb=picture()),
    ]


def _alphas(folder: Path) -> list[Odd]:
    """Transparency of every kind, on white; the left half is clear."""
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, : WIDTH // 2] = 0
    rgb, grey = picture(), grey_picture()
    on_white = np.where(alpha[..., None] > 0, rgb, 255).astype(np.uint8)
    half = np.full((HEIGHT, WIDTH, 4), (0, 0, 0, 51), np.uint8)  # black at 20 % is a grey of 80 %
    palette = Image.fromarray((alpha > 0).astype(np.uint8), "L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([200, 100, 50, 10, 20, 30])
    opaque = np.where(alpha[..., None] > 0, (10, 20, 30), (200, 100, 50)).astype(np.uint8)
    clear = np.where(alpha[..., None] > 0, (10, 20, 30), 255).astype(np.uint8)
    keyed = rgb.copy()
    keyed[:, : WIDTH // 2] = (1, 2, 3)
    note = ("converted",)
    grey_alpha = Image.fromarray(np.stack([grey, alpha], -1), "LA")
    rgba = np.concatenate([rgb, alpha[..., None]], -1)
    return [
        Odd(
            path=save(folder / "grey_alpha.png", grey_alpha),
            rgb=np.where(alpha[..., None] > 0, spread(grey), 255),
            notes=note,
        ),
        Odd(path=save(folder / "alpha.png", rgba), rgb=on_white, notes=note),
        Odd(path=save(folder / "alpha.webp", rgba, lossless=True), rgb=on_white, notes=note),
        Odd(path=save(folder / "half.png", half), rgb=np.full((HEIGHT, WIDTH, 3), 204, np.uint8), notes=note),
        Odd(path=save(folder / "key.png", keyed, transparency=(1, 2, 3)), rgb=on_white, notes=note),
        Odd(path=save(folder / "palette.png", palette), rgb=opaque, notes=note),
        Odd(path=save(folder / "palette.bmp", palette), rgb=opaque, notes=note),
        Odd(path=save(folder / "palette_clear.png", palette, transparency=bytes((0, 255))), rgb=clear, notes=note),
        Odd(path=save(folder / "palette_clear.gif", palette, transparency=0), rgb=clear, notes=note),
    ]


def _colours(folder: Path) -> list[Odd]:
    """Colour spaces; CMYK's expected pixels are (255 - ink) * (255 - black) / 255."""
    ink = np.concatenate([picture(), np.full((HEIGHT, WIDTH, 1), 40, np.uint8)], -1)
    rgb = np.rint((255.0 - ink[..., :3]) * (255 - 40) / 255).astype(np.uint8)
    note = ("converted",)
    adobe = save(folder / "cmyk_adobe.jpg", Image.fromarray(ink, "CMYK"), quality=95, subsampling=0)
    content = adobe.read_bytes()
    marker = content.index(
        b"\xff\xee\0\x0eAdobe"
    )  # the inks are inverted with it; without it, all take them to be, too
    (folder / "cmyk.jpg").write_bytes(content[:marker] + content[marker + 16 :])
    luma = np.asarray(Image.fromarray(ink[..., :3]).convert("YCbCr"))
    stored = np.concatenate([luma, 255 - ink[..., 3:]], -1)  # Adobe's YCCK: the inks' YCbCr, and black inverted
    content = save(folder / "ycck.jpg", Image.fromarray(255 - stored, "CMYK"), quality=95, subsampling=0).read_bytes()
    marker = content.index(b"\xff\xee\0\x0eAdobe")
    (folder / "ycck.jpg").write_bytes(content[: marker + 15] + b"\2" + content[marker + 16 :])
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    dull = picture() // 3 + 80  # LAB's trip through sRGB cuts what is most saturated
    in_lab = ImageCms.profileToProfile(Image.fromarray(dull), srgb, lab, outputMode="LAB")
    assert in_lab is not None
    in_ycbcr = Image.fromarray(picture()).convert("YCbCr")
    return [
        Odd(path=adobe, rgb=rgb, tolerance=8, notes=note),
        Odd(path=folder / "cmyk.jpg", rgb=rgb, tolerance=8, notes=note),
        Odd(path=folder / "ycck.jpg", rgb=rgb, tolerance=10, notes=note),
        Odd(path=save(folder / "cmyk.tiff", Image.fromarray(ink, "CMYK")), rgb=rgb, tolerance=1, notes=note),
        Odd(path=save(folder / "ycbcr.tiff", in_ycbcr), rgb=picture(), tolerance=3, notes=note),
        Odd(path=save(folder / "lab.tiff", in_lab), rgb=dull, tolerance=6, notes=note),
    ]


def _sixteen_bits(folder: Path) -> list[Odd]:
    grey = grey_picture().astype(np.uint16) * 257
    rgb = spread(grey_picture())
    note = ("converted",)
    rows = (picture().astype(np.uint16) * 257).astype(">u2")
    filtered = b"".join(b"\0" + row.tobytes() for row in rows)
    (folder / "rgb16.png").write_bytes(png_bytes(filtered, depth=16, colour=2))
    header = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT)
    (folder / "grey16.ppm").write_bytes(header + grey.astype(">u2").tobytes())
    big = Image.frombytes("I;16B", (WIDTH, HEIGHT), grey.astype(">u2").tobytes())
    return [
        Odd(path=save(folder / "grey16.png", grey), rgb=rgb, notes=note),
        Odd(path=save(folder / "grey16.tiff", grey), rgb=rgb, notes=note),
        Odd(path=save(folder / "grey16_big.tiff", big), rgb=rgb, notes=note),
        Odd(path=save(folder / "grey32.tiff", grey.astype(np.int32)), rgb=rgb, notes=note),
        Odd(path=save(folder / "key16.png", grey, transparency=0), rgb=np.where(rgb > 0, rgb, 255), notes=note),
        Odd(path=folder / "grey16.ppm", rgb=rgb, notes=note),
        Odd(path=folder / "rgb16.png", rgb=picture(), notes=note),
    ]


def _turned(folder: Path) -> list[Odd]:
    odd = [
        Odd(
            path=save(
                folder / f"turned_{number}.jpg", turn(picture(), number), quality=95, subsampling=0, exif=exif(number)
            ),
            rgb=picture(),
            tolerance=8,
            notes=("rotated by EXIF",) if number > 1 else (),
        )
        for number in range(1, 9)
    ]
    note = ("rotated by EXIF",)
    for number, name, options in (
        (6, "turned.png", {}),
        (5, "turned.webp", {"lossless": True}),
        (8, "turned.tiff", {}),
        (7, "turned_lzw.tiff", {"compression": "tiff_lzw"}),
    ):
        path = save(folder / name, turn(picture(), number), exif=exif(number), **options)
        odd.append(Odd(path=path, rgb=picture(), notes=note))
    content = (folder / "turned.png").read_bytes()
    start, end = content.index(b"eXIf") - 4, content.index(b"IDAT") - 4  # the block may also stand behind the pixels
    (folder / "turned_late.png").write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    odd.append(Odd(path=folder / "turned_late.png", rgb=picture(), notes=note))
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>')
    path = save(folder / "turned_xmp.png", turn(picture(), 3), pnginfo=xmp)
    odd.append(Odd(path=path, rgb=picture(), notes=note))
    damaged = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12"
    path = save(folder / "exif_cut.jpg", picture(), quality=95, subsampling=0, exif=damaged)
    odd.append(Odd(path=path, rgb=picture(), tolerance=8))
    path = save(folder / "exif_wrong.png", picture(), exif=b"Exif\0\0no such thing")
    odd.append(Odd(path=path, rgb=picture()))
    return odd


def _frames(folder: Path) -> list[Odd]:
    note = ("several frames",)
    first, second = Image.fromarray(picture()), Image.new("RGB", (WIDTH, HEIGHT), "red")
    flat = np.full((HEIGHT, WIDTH, 3), (10, 200, 90), np.uint8)
    options: dict[str, Any] = {"save_all": True, "append_images": [second]}
    return [
        Odd(path=save(folder / "frames.gif", flat, **options), rgb=flat, notes=("several frames", "converted")),
        Odd(path=save(folder / "frames.webp", first, lossless=True, **options), rgb=picture(), notes=note),
        Odd(path=save(folder / "frames.png", first, **options), rgb=picture(), notes=note),
        Odd(path=save(folder / "frames.tiff", first, **options), rgb=picture(), notes=note),
        Odd(
            path=save(folder / "frames.jpg", first, format="MPO", quality=95, subsampling=0, **options),
            rgb=picture(),
            tolerance=8,
            notes=note,
        ),
    ]


def _misnamed(folder: Path) -> list[Odd]:
    path = save(folder / "a_png.jpg", picture(), format="PNG")
    return [Odd(path=path, rgb=picture(), notes=("wrong extension",))]


# what does not


def _cut(folder: Path) -> list[Odd]:
    """Files without their end."""
    odd = []
    for name, keep in (
        ("cut.jpg", 0.6),
        ("cut_at_the_end.jpg", 0.999),
        ("cut.png", 0.6),
        ("cut.gif", 0.6),
        ("cut.webp", 0.6),
        ("cut.bmp", 0.6),
        ("cut.tiff", 0.6),
        ("cut.ppm", 0.6),
    ):
        content = save(folder / name, noise()).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])
        odd.append(Odd(path=folder / name, kind="truncated", reason="."))
    content = save(folder / "header.png", noise()).read_bytes()
    (folder / "header.png").write_bytes(content[:33])
    content = save(folder / "header.jpg", noise()).read_bytes()
    (folder / "header.jpg").write_bytes(content[:20])
    odd += [Odd(path=folder / name, kind="truncated", reason=".") for name in ("header.png", "header.jpg")]
    return odd


def _damaged(folder: Path) -> list[Odd]:
    """No images, and images with damage that Pillow sees.

    Left out, since libjpeg warns of it and goes on: a JPEG with garbage among its pixels or with a wrong Huffman code.
    Damage of a lossless WebP's pixels, of a GIF's codes or close to a PNG's end decodes to other pixels, too.
    """
    content = save(folder / "flipped.png", noise()).read_bytes()
    middle = len(content) // 2
    (folder / "flipped.png").write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    content = save(folder / "huffman.jpg", noise()).read_bytes()
    table = content.index(b"\xff\xc4") + 5  # the counts of codes by length
    (folder / "huffman.jpg").write_bytes(content[:table] + b"\xff" * 16 + content[table + 16 :])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not an image, but a note to myself")
    (folder / "page.png").write_text("<!DOCTYPE html><title>404 Not Found</title>")
    (folder / "random.jpg").write_bytes(np.random.default_rng(1).bytes(500))
    (folder / "bomb.png").write_bytes(png_bytes(b"\0", depth=8, colour=2, size=(40_000, 40_000)))
    odd = [
        Odd(path=folder / "flipped.png", kind="broken", reason="PNG: "),
        Odd(path=folder / "huffman.jpg", kind="broken", reason="JPEG: "),
        Odd(path=folder / "bomb.png", kind="broken", reason="1600000000 pixels.*exceeds limit"),
        Odd(path=folder / "empty.jpg", kind="empty file", reason="it has 0 bytes"),
        Odd(path=folder / "text.jpg", kind="not an image", reason="Pillow knows, it starts with b'not an image, bu'"),
        Odd(path=folder / "page.png", kind="not an image", reason="b'<!DOCTYPE html><'"),
        Odd(path=folder / "random.jpg", kind="not an image", reason="Pillow knows"),
        Odd(path=folder / "nowhere.jpg", kind="missing", reason="No such file"),
    ]
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may read everything
        save(folder / "locked.png", noise()).chmod(0)
        odd.append(Odd(path=folder / "locked.png", kind="broken", reason="Permission denied"))
    return odd


def _unknown_ranges(folder: Path) -> list[Odd]:
    beyond = np.full((HEIGHT, WIDTH), 65536, np.int32)
    below = np.full((HEIGHT, WIDTH), -1, np.int32)
    real = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    kind = "unknown range"
    return [
        Odd(path=save(folder / "float.tiff", real), kind=kind, reason="floating-point pixels"),
        Odd(path=save(folder / "beyond.tiff", beyond), kind=kind, reason=r"in 0\.\.65535.*got 65536\.\.65536"),
        Odd(path=save(folder / "below.tiff", below), kind=kind, reason=r"in 0\.\.65535.*got -1\.\.-1"),
    ]
