"""The chunks of a PNG, for what Pillow cannot do: 16 bits, and damaged metadata."""

from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # the kinds of chunks that pixels need
COLORS = (b"iCCP", b"sRGB", b"gAMA", b"cHRM")  # those that say what the colors mean; all others are metadata


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind of each chunk, and the whole chunk; the last may be cut off."""
    start = len(SIGNATURE)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])  # its length, kind and checksum take 12 bytes
        yield content[start + 4 : start + 8], content[start:end]
        start = end


def only(kinds: tuple[bytes, ...], content: bytes) -> bytes:
    """Return a PNG with only these kinds of chunks."""
    return SIGNATURE + b"".join(chunk for kind, chunk in chunks(content) if kind in kinds)


def with_metadata(content: bytes, other: bytes) -> bytes:
    """Return a PNG with the metadata of ``other`` instead of its own."""
    header, *pixels = (chunk for kind, chunk in chunks(content) if kind in PIXELS)
    return b"".join([SIGNATURE, header, *(chunk for kind, chunk in chunks(other) if kind not in PIXELS), *pixels])
