"""Images of every common kind become RGB of the wanted size."""

import struct
import warnings

import numpy as np
import pytest
from picture_files import SIZE, encoded, save
from PIL import Image

from edge_sel.data.images import read_image


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "webp"])
def test_lossless_formats_come_back_unchanged_at_their_own_size(tmp_path, picture, suffix):
    path = save(picture, tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    result = read_image(path, SIZE)
    np.testing.assert_array_equal(result, picture)
    assert result.dtype == np.uint8 and result.flags.c_contiguous and result.flags.writeable


def test_the_content_decides_not_the_suffix(tmp_path, picture):
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encoded(picture, "PNG"))
    np.testing.assert_array_equal(read_image(path, SIZE), picture)


@pytest.mark.parametrize("name", ["ein bild.png", "写真 📷.png", "naïve;$(rm) 'x'.png", "%s\t.png"])
def test_unusual_file_names_are_read(tmp_path, picture, name):
    np.testing.assert_array_equal(read_image(save(picture, tmp_path / name), SIZE), picture)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_ends_upright(tmp_path, picture, orientation, kind):
    # What the camera stores, so that turning it as the tag says gives `picture`.
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = Image.fromarray(picture)
    if undo is not None:
        stored = stored.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "jpg" else {}
    path = save(stored, tmp_path / f"a.{kind}", exif=exif, **options)
    result = read_image(path, SIZE)
    assert np.abs(result.astype(int) - picture).max() <= (60 if kind == "jpg" else 0)
    assert np.abs(result.astype(int) - picture).mean() < 3
    small = read_image(path, (12, 16))  # and when it is resized as well
    assert np.abs(small.astype(int) - picture[::2, ::2]).mean() < 12


def test_damaged_exif_does_not_spoil_the_pixels(tmp_path, picture):
    path = save(picture, tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage", subsampling=0)
    assert np.abs(read_image(path, SIZE).astype(int) - picture).mean() < 4


def test_a_cmyk_jpeg_is_read_in_rgb(tmp_path, picture):
    path = save(Image.fromarray(picture).convert("CMYK"), tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(path, SIZE).astype(int) - picture).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 24 * 32).reshape(SIZE).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5\n32 24\n65535\n" + ramp.astype(">u2").tobytes())
    else:
        save(ramp, path)
    result = read_image(path, SIZE)
    np.testing.assert_array_equal(result, np.rint(ramp / 257).astype(np.uint8)[..., None].repeat(3, 2))


def test_a_big_endian_16_bit_tiff_is_scaled(tmp_path):
    values = np.array([[0, 257], [32896, 65535]], dtype=">u2")
    tags = [(256, 2), (257, 2), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, 8)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    body = b"MM\0*" + struct.pack(">I", 16) + values.tobytes() + struct.pack(">H", len(tags)) + entries + b"\0" * 4
    (tmp_path / "a.tif").write_bytes(body)
    assert read_image(tmp_path / "a.tif", (2, 2))[..., 0].tolist() == [[0, 1], [128, 255]]


def test_palette_with_transparency_is_laid_on_white(tmp_path):
    image = Image.new("P", (32, 24), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (16, 0, 32, 24))
    for suffix in ("png", "gif"):
        result = read_image(save(image, tmp_path / f"a.{suffix}", transparency=0), SIZE)
        assert (result[:, :16] == 255).all()
        assert (result[:, 16:] == (200, 100, 50)).all()
    partly = read_image(save(image, tmp_path / "b.png", transparency=bytes([128, 255])), SIZE)
    assert np.abs(partly[0, 0].astype(int) - (132, 137, 142)).max() <= 1
    opaque = read_image(save(image, tmp_path / "c.png"), SIZE)
    assert opaque[0, 0].tolist() == [10, 20, 30]


def test_alpha_is_laid_on_white_also_when_resized(tmp_path):
    rgba = np.zeros((48, 64, 4), dtype=np.uint8)
    rgba[:, 32:] = (0, 0, 255, 255)
    result = read_image(save(rgba, tmp_path / "a.png"), SIZE)
    assert (result[:, :15] == 255).all() and (result[:, 17:] == (0, 0, 255)).all()
    # At the edge blue meets white: the black under the transparent half must not show.
    assert result[0, 15:17, 2].min() == 255
    grey = read_image(save(Image.new("LA", (32, 24), (0, 128)), tmp_path / "b.png"), SIZE)
    assert np.abs(grey.astype(int) - 127).max() <= 1
    keyed = save(Image.new("L", (32, 24), 7), tmp_path / "c.png", transparency=7)
    assert (read_image(keyed, SIZE) == 255).all()


def test_one_bit_is_black_and_white(tmp_path):
    image = Image.new("1", (32, 24), 0)
    image.paste(1, (0, 0, 16, 24))
    for suffix in ("png", "tif", "bmp"):
        result = read_image(save(image, tmp_path / f"a.{suffix}"), SIZE)
        assert (result[:, :16] == 255).all() and (result[:, 16:] == 0).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (32, 24), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    path = save(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    result = read_image(path, SIZE)
    assert result[..., 0].min() > 240 and result[..., 1:].max() < 10


def test_a_cmyk_tiff_is_read_in_rgb(tmp_path, picture):
    path = save(Image.fromarray(picture).convert("CMYK"), tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(path, SIZE), picture)


# --- size


def test_wide_and_tall_images_keep_their_centre(tmp_path):
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 200
    assert (read_image(save(wide, tmp_path / "wide.png"), (20, 20)) == 200).all()
    tall = wide.transpose(1, 0, 2)
    assert (read_image(save(tall, tmp_path / "tall.png"), (20, 20)) == 200).all()
    assert (read_image(tmp_path / "wide.png", (10, 10))[:, 1:-1] == 200).all()


def test_downscaling_averages_pixels(tmp_path):
    """One pixel in four is white: without an antialiasing filter the result would be black or white."""
    fine = np.zeros((256, 256, 3), dtype=np.uint8)
    fine[::2, ::2] = 255
    for suffix in ("png", "jpg"):
        result = read_image(save(fine, tmp_path / f"a.{suffix}"), (16, 16))
        assert np.abs(result[1:-1, 1:-1].astype(int) - 64).max() < 8


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 7)])
def test_tiny_and_extreme_shapes_are_filled(tmp_path, shape):
    path = save(np.full((*shape, 3), 77, dtype=np.uint8), tmp_path / "a.png")
    assert (read_image(path, SIZE) == 77).all()


def test_a_large_jpeg_is_decoded_at_a_fraction(tmp_path, picture, monkeypatch):
    decoded = []
    load = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: decoded.append(self.size) or load(self, *a, **k))
    path = save(Image.fromarray(picture).resize((1600, 1200), Image.Resampling.NEAREST), tmp_path / "a.jpg")
    decoded.clear()
    assert np.abs(read_image(path, SIZE).astype(int) - picture).mean() < 6
    assert decoded == [(200, 150)]


def test_a_size_without_pixels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="size"):
        read_image(tmp_path / "a.png", (0, 8))


def test_warning_filters_are_left_as_they_were(tmp_path, picture):
    before = list(warnings.filters)
    read_image(save(picture, tmp_path / "a.png"), SIZE)
    assert warnings.filters == before
