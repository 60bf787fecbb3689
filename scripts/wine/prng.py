# Writes a bcryptprimitives.dll without code: its one export, ProcessPrng, which
# the Go runtime cannot start without, is forwarded to RtlGenRandom, as
# SystemFunction036 of advapi32.dll. Wine before 9 has no such library.
import struct
import sys

RVA, ALIGN, FILE = 0x1000, 0x1000, 0x200
BASE = 0x6BC000000
DLL, NAME, TARGET = b"bcryptprimitives.dll\0", b"ProcessPrng\0", b"advapi32.SystemFunction036\0"

at = RVA + 40  # behind the export directory: its three tables, then the names
functions, names, ordinals = at, at + 4, at + 8
dll = at + 12
name = dll + len(DLL)
target = name + len(NAME)
section = struct.pack("<IIHHIIIIIII", 0, 0, 0, 0, dll, 1, 1, 1, functions, names, ordinals)
# An entry that points into the export directory is a forwarder.
section += struct.pack("<IIHH", target, name, 0, 0) + DLL + NAME + TARGET
size = len(section)

header = b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0"
header += struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 112 + 16 * 8, 0x2022)  # x86-64, executable, large addresses, DLL
header += struct.pack("<HBBIIIII", 0x20B, 1, 0, 0, FILE, 0, 0, RVA)
header += struct.pack("<QIIHHHHHHIIIIHH", BASE, ALIGN, FILE, 6, 0, 0, 0, 6, 0, 0, 2 * ALIGN, FILE, 0, 2, 0x100)
header += struct.pack("<QQQQII", 0x100000, 0x1000, 0x100000, 0x1000, 0, 16)
header += struct.pack("<II", RVA, size) + bytes(15 * 8)
header += struct.pack("<8sIIIIIIHHI", b".edata", size, RVA, FILE, FILE, 0, 0, 0, 0, 0x40000040)

with open(sys.argv[1], "wb") as f:
    f.write(header.ljust(FILE, b"\0") + section.ljust(FILE, b"\0"))
