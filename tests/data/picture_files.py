"""Pictures as bytes and on disk."""

import io

from PIL import Image

SIZE = (24, 32)


def save(image, path, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()
