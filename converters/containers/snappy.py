"""Google's snappy compression: the decoder, for the blocks of a checkpoint's index."""

from __future__ import annotations


def decompress(data: bytes, most: int) -> bytes:
    """Return what `data` (the raw format, without frames) holds.

    Args:
        data: compressed.
        most: the largest length that is accepted.

    Raises:
        ValueError: the data are damaged, or hold more.
    """
    length = shift = at = 0
    while True:
        if at == len(data) or shift > 28:
            raise ValueError("compressed data without a length")
        length |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            break
    if length > most:
        raise ValueError(f"compressed data of {length} bytes, expected at most {most}")
    out = bytearray()
    while at < len(data):
        tag = data[at]
        kind, size = tag & 3, tag >> 2
        at += 1
        if kind == 0:
            # Literal bytes; a length above 60 follows in up to 4 bytes.
            if size >= 60:
                extra = size - 59
                size = int.from_bytes(data[at : at + extra], "little")
                at += extra
            size += 1
            piece = data[at : at + size]
            at += size
        else:
            # A copy of what came `offset` bytes before; it may overlap what it makes.
            extra = (1, 2, 4)[kind - 1]
            offset = int.from_bytes(data[at : at + extra], "little")
            at += extra
            if kind == 1:
                offset, size = offset | (size >> 3) << 8, (size & 7) + 3
            size += 1
            if not 0 < offset <= len(out):
                raise ValueError("compressed data that point before their start")
            start = len(out) - offset
            piece = bytes(out[start : start + size])
            piece = (piece * (size // len(piece) + 1))[:size]
        if at > len(data) or len(out) + size > length:
            raise ValueError("compressed data that end too early or go on too long")
        out += piece
    if len(out) != length:
        raise ValueError(f"compressed data of {len(out)} bytes, expected {length}")
    return bytes(out)
