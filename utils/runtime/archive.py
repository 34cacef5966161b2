"""Check that a zip archive, which checkpoints and files of scores are, is undamaged to its last byte.

An archive holds entries, one after another, each with a header in front and sometimes a trailer behind. Then
comes a directory, which repeats the header of each entry with the place and the checksum of its bytes, and at
the end a record that says where the directory is. A reader chooses which of these to believe:

- torch.load looks entries up in the directory alone and compares no checksum. One wrong bit there can make it
  skip the numbers of a tensor, and leave what the memory held before.
- Python's zipfile compares checksums, but does not see that bit. An entry whose name is damaged in the
  directory, such as the labels to ignore in a file of scores, seems never to have been there. What zipfile
  takes for an archive also differs between versions of Python.

So this module reads the archive by itself and believes none of them. Entries, directory and record must fill
the file without a gap, what is stored twice must be equal, and all bytes must have their checksum. Dates,
versions and the padding that puts tensors at round places are not compared: no reader uses these.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# How each part starts. The parts called LARGE belong to zip64, for numbers of more than 32 bits.
ENTRY_START = b"PK\x03\x04"
TRAILER_START = b"PK\x07\x08"
DIRECTORY_START = b"PK\x01\x02"
LARGE_END_START = b"PK\x06\x06"
LOCATOR_START = b"PK\x06\x07"
END_START = b"PK\x05\x06"
HEADER = struct.Struct("<4s5H3I2H")
TRAILER = struct.Struct("<4s3I")
LARGE_TRAILER = struct.Struct("<4sI2Q")
DIRECTORY_ENTRY = struct.Struct("<4s6H3I5H2I")
LARGE_END = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")  # says where LARGE_END is
END = struct.Struct("<4s4H2IH")
# Flags of an entry, and a bit of its attributes: torch.load does not read the bytes of a folder.
HAS_TRAILER = 0x0008
LEVEL = 0x0006  # how hard the writer tried to compress it
IS_UTF8 = 0x0800
IS_FOLDER = 0x10
STORED, DEFLATED = 0, 8  # values of `compression`
# These stand for a number that does not fit in 16 or 32 bits, and is stored elsewhere.
MAX_16 = 0xFFFF
MAX_32 = 0xFFFFFFFF
CHUNK = 2**20


class ArchiveError(ValueError):
    """The file is not an archive, or it is damaged; the message says where."""


class Header(NamedTuple):
    """The fields in front of an entry, in the order of HEADER."""

    signature: bytes
    version: int
    flags: int
    compression: int
    time: int
    date: int
    checksum: int
    packed_size: int
    size: int
    name_size: int
    extra_size: int


class DirectoryEntry(NamedTuple):
    """The fields of an entry in the directory, in the order of DIRECTORY_ENTRY."""

    signature: bytes
    made_by: int
    version: int
    flags: int
    compression: int
    time: int
    date: int
    checksum: int
    packed_size: int
    size: int
    name_size: int
    extra_size: int
    comment_size: int
    disk: int
    internal_attributes: int
    attributes: int
    start: int


class ArchiveEntry(NamedTuple):
    """What the directory says of an entry.

    start: where its header starts in the file. packed_size: of its bytes in the file, between header and
    trailer. size, checksum: of its bytes after decompression.
    """

    name: bytes
    flags: int
    compression: int
    checksum: int
    packed_size: int
    size: int
    start: int

    def __str__(self) -> str:
        return self.name.decode(errors="backslashreplace")


class Directory(NamedTuple):
    """Where the directory starts and ends, in bytes of the file, and how many entries it has."""

    start: int
    end: int
    num_entries: int


def check_archive(file: BinaryIO, compressed: bool = False) -> None:
    """Read a whole archive; raise ArchiveError unless every byte is as expected.

    compressed: whether entries may be compressed; they are decompressed in small parts.
    """
    allowed = (STORED, DEFLATED) if compressed else (STORED,)
    directory = find_directory(file)
    entries = read_directory(file, directory)
    position = 0
    for entry in entries:
        if entry.compression not in allowed:
            raise ArchiveError(f"{entry} is compressed with method {entry.compression}")
        if entry.start != position:
            raise ArchiveError(f"{entry} does not start where the entry before it ends")
        position = check_entry(file, entry)
    if position != directory.start:
        raise ArchiveError("its directory does not start where the last entry ends")


def find_directory(file: BinaryIO) -> Directory:
    """Find the directory by the records at the end of the file."""
    end_position = file.seek(0, os.SEEK_END) - END.size
    end = take(file, end_position, END.size)
    _, _, _, _, count, size, start, _ = END.unpack(end)
    directory_end = end_position
    locator_position = end_position - LOCATOR.size
    if locator_position >= 0 and take(file, locator_position, LOCATOR.size).startswith(LOCATOR_START):
        directory_end = locator_position - LARGE_END.size
        count, size, start = read_large_end(file, directory_end)
    short_count = min(count, MAX_16)
    expected = END.pack(END_START, 0, 0, short_count, short_count, min(size, MAX_32), min(start, MAX_32), 0)
    if end != expected or start + size != directory_end:
        raise ArchiveError("it is cut short, or the record at its end is damaged")
    return Directory(start, directory_end, count)


def read_large_end(file: BinaryIO, position: int) -> tuple[int, int, int]:
    """Return the number of entries, and the size and start of the directory, from LARGE_END at `position`."""
    record = take(file, position, LARGE_END.size)
    _, _, made_by, version, _, _, _, count, size, start = LARGE_END.unpack(record)
    rest_of_record = LARGE_END.size - 12  # it does not count its first two fields
    expected = LARGE_END.pack(
        LARGE_END_START, rest_of_record, made_by, version, 0, 0, count, count, size, start
    )
    locator = take(file, position + LARGE_END.size, LOCATOR.size)
    if record != expected or locator != LOCATOR.pack(LOCATOR_START, 0, position, 1):
        raise ArchiveError("a record at its end is damaged")
    return count, size, start


def read_directory(file: BinaryIO, directory: Directory) -> list[ArchiveEntry]:
    """Return the entries of the directory, which has to hold nothing else."""
    entries: list[ArchiveEntry] = []
    position = directory.start
    while position < directory.end:
        fields = DirectoryEntry._make(DIRECTORY_ENTRY.unpack(take(file, position, DIRECTORY_ENTRY.size)))
        position += DIRECTORY_ENTRY.size
        name = take(file, position, fields.name_size)
        position += fields.name_size
        extra = take(file, position, fields.extra_size)
        position += fields.extra_size
        entries.append(read_entry(fields, name, extra))
    if position != directory.end or len(entries) != directory.num_entries:
        raise ArchiveError("its directory is damaged")
    # torch.load looks names up without regard to case.
    if len({entry.name.lower() for entry in entries}) != len(entries):
        raise ArchiveError("two of its entries have the same name")
    return entries


def read_entry(fields: DirectoryEntry, name: bytes, extra: bytes) -> ArchiveEntry:
    """Return what the directory says of an entry; ArchiveError if it is not an ordinary file."""
    size, packed_size, start = read_large([fields.size, fields.packed_size, fields.start], extra)
    entry = ArchiveEntry(name, fields.flags, fields.compression, fields.checksum, packed_size, size, start)
    if fields.signature != DIRECTORY_START or fields.comment_size or fields.disk:
        raise ArchiveError("its directory is damaged")
    unknown_flags = fields.flags & ~(HAS_TRAILER | LEVEL | IS_UTF8)
    looks_like_folder = fields.attributes & IS_FOLDER or name.endswith(b"/")
    if unknown_flags or (looks_like_folder and size):
        raise ArchiveError(f"{entry} has other attributes than a file")
    if fields.compression == STORED and packed_size != size:
        raise ArchiveError(f"{entry} has two sizes")
    return entry


def read_large(numbers: list[int], extra: bytes) -> list[int]:
    """Return numbers of a header; those of more than 32 bits are in the extra bytes after its name."""
    large = [index for index, value in enumerate(numbers) if value == MAX_32]
    if not large:
        return numbers
    layout = struct.Struct(f"<2H{len(large)}Q")
    if len(extra) != layout.size:
        raise ArchiveError("a size in it is damaged")
    kind, length, *values = layout.unpack(extra)
    if kind != 1 or length != layout.size - 4:
        raise ArchiveError("a size in it is damaged")
    result = list(numbers)
    for index, value in zip(large, values, strict=True):
        result[index] = value
    return result


def check_entry(file: BinaryIO, entry: ArchiveEntry) -> int:
    """Compare an entry's header, bytes and trailer with the directory; return where the entry ends."""
    header = Header._make(HEADER.unpack(take(file, entry.start, HEADER.size)))
    position = entry.start + HEADER.size
    name = take(file, position, header.name_size)
    position += header.name_size
    extra = take(file, position, header.extra_size)
    position += header.extra_size

    has_trailer = bool(entry.flags & HAS_TRAILER)
    found = [header.checksum, *read_large([header.size, header.packed_size], extra)]
    # If there is a trailer, the header was written before these numbers were known.
    expected = [0, 0, 0] if has_trailer else [entry.checksum, entry.size, entry.packed_size]
    same_kind = (header.flags, header.compression) == (entry.flags, entry.compression)
    if header.signature != ENTRY_START or name != entry.name or not same_kind or found != expected:
        raise ArchiveError(f"the header of {entry} does not agree with the directory")

    if checksum_of(file, position, entry) != entry.checksum:
        raise ArchiveError(f"the bytes of {entry} do not have their checksum")
    position += entry.packed_size
    if not has_trailer:
        return position

    is_large = max(entry.size, entry.packed_size, entry.start) >= MAX_32
    layout = LARGE_TRAILER if is_large else TRAILER
    trailer = layout.pack(TRAILER_START, entry.checksum, entry.packed_size, entry.size)
    if take(file, position, layout.size) != trailer:
        raise ArchiveError(f"the trailer of {entry} does not agree with the directory")
    return position + layout.size


def checksum_of(file: BinaryIO, position: int, entry: ArchiveEntry) -> int:
    """Return the CRC-32 of the bytes of an entry, which are in the file from `position` on."""
    checksum = 0
    size = 0
    parts = read_parts(file, position, entry.packed_size)
    if entry.compression == DEFLATED:
        parts = decompress(parts, entry)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
        size += len(part)
    if size != entry.size:
        raise ArchiveError(f"{entry} has another size than the directory says")
    return checksum


def read_parts(file: BinaryIO, position: int, size: int) -> Iterator[bytes]:
    """Yield a part of the file in pieces that fit in memory."""
    end = position + size
    for start in range(position, end, CHUNK):
        yield take(file, start, min(CHUNK, end - start))


def decompress(parts: Iterator[bytes], entry: ArchiveEntry) -> Iterator[bytes]:
    """Yield a decompressed entry in pieces that fit in memory; it must end where the last part ends."""
    engine = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        for part in parts:
            piece = engine.decompress(part, CHUNK)
            while piece:
                yield piece
                piece = engine.decompress(engine.unconsumed_tail, CHUNK)
    except zlib.error as error:
        raise ArchiveError(f"the bytes of {entry} are damaged") from error
    if not engine.eof or engine.unused_data:
        raise ArchiveError(f"the bytes of {entry} are damaged")


def take(file: BinaryIO, position: int, size: int) -> bytes:
    """Return `size` bytes of the file; ArchiveError if the file ends before that."""
    if position < 0:
        raise ArchiveError("it is cut short")
    file.seek(position)
    data = file.read(size)
    if len(data) != size:
        raise ArchiveError("it is cut short")
    return data
