"""Makes an image of a format that Drystone only reads: read_only.py bochs|cloop|dmg FILE.

Independent of Drystone's own code. Sources: Bochs' `hdimage.h` (redolog), cloop's `compressed_loop.h`, and the UDIF
structures that Apple's DiskImages framework writes (`koly`, `mish`), as published descriptions have them.
"""

import base64
import struct
import sys
import zlib

SECTOR = 512


def stones(first, count):
    """`count` sectors that differ from each other."""
    one = lambda sector: bytes((sector * 37 + at % 11) & 0xFF for at in range(SECTOR))
    return b"".join(one(sector) for sector in range(first, first + count))


def bochs():
    """Extents of 8 KiB in another order than on the disk, the second and fourth never written, with sectors left out."""
    extent, catalog = 8192, [2, 0xFFFFFFFF, 0, 0xFFFFFFFF, 1]
    head = struct.pack("<32s16s16sII", b"Bochs Virtual HD Image", b"Redolog", b"Growing", 0x20000, SECTOR)
    head += struct.pack("<IIIIQ", len(catalog), 2, extent, 0, len(catalog) * extent)
    image = head.ljust(SECTOR, b"\0") + struct.pack(f"<{len(catalog)}I", *catalog)
    for number, written in enumerate([0x0FF0, 0xFFFF, 0xA5A5]):
        bitmap = struct.pack("<H", written).ljust(SECTOR, b"\0")
        image += bitmap + stones(100 * number, extent // SECTOR)
    return image


def cloop():
    """Blocks of 32 KiB, some that pack well and some that do not."""
    block, blocks = 32768, 9
    packed = [zlib.compress(stones(64 * n, 64) if n % 3 else bytes(block)) for n in range(blocks)]
    script = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    image = script.ljust(128, b"\0") + struct.pack(">II", block, blocks)
    at = len(image) + 8 * (blocks + 1)
    for piece in [b""] + packed:
        at += len(piece)
        image += struct.pack(">Q", at)
    return image + b"".join(packed)


def dmg():
    """Chunks of each kind that the reference reads without a module, and zeros of both kinds, in one table."""
    chunks = [
        (0x80000005, zlib.compress(stones(0, 100)), 100),
        (0x00000002, b"", 50),
        (0x00000001, stones(150, 30), 30),
        (0x00000000, b"", 20),
        (0x80000005, zlib.compress(stones(200, 200)), 200),
        (0x80000005, zlib.compress(stones(400, 1)), 1),
    ]
    data, entries, sector = b"", b"", 0
    for kind, packed, count in chunks:
        entries += struct.pack(">IIQQQQ", kind, 0, sector, count, len(data), len(packed))
        data, sector = data + packed, sector + count
    entries += struct.pack(">IIQQQQ", 0xFFFFFFFF, 0, sector, 0, len(data), 0)
    table = struct.pack(">4sIQQQII24x", b"mish", 1, 0, sector, 0, 0x208, 0)
    table += struct.pack(">II128x", 2, 32) + struct.pack(">I", len(chunks) + 1) + entries
    plist = f"""<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0"><dict><key>resource-fork</key><dict><key>blkx</key><array><dict>
<key>Attributes</key><string>0x0050</string><key>Data</key><data>
{base64.encodebytes(table).decode()}</data><key>ID</key><string>0</string><key>Name</key><string>whole</string>
</dict></array></dict></dict></plist>
""".encode()
    trailer = struct.pack(">4sIII", b"koly", 4, 512, 1) + struct.pack(">QQQQQ", 0, 0, len(data), 0, 0)
    trailer += struct.pack(">II", 1, 1) + bytes(16) + struct.pack(">II128x", 2, 32)
    trailer += struct.pack(">QQ120x", len(data), len(plist)) + struct.pack(">II128x", 2, 32)
    trailer += struct.pack(">IQ", 1, sector)
    return data + plist + trailer.ljust(512, b"\0")


make, name = {"bochs": bochs, "cloop": cloop, "dmg": dmg}[sys.argv[1]], sys.argv[2]
with open(name, "wb") as file:
    file.write(make())
