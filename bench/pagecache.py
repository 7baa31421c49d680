"""What the page cache holds of a file, and how to make it hold that."""

import ctypes
import mmap
import os
from pathlib import Path

from measure import BenchError

PAGE = mmap.PAGESIZE
LARGE_PIECE = 8 << 20
SMALL_PIECE = 4 << 10
# What a disk is called that was written in pieces of that size.
LARGE_FOLIOS, SMALL_PAGES = "large folios", "small pages"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                       ctypes.c_long]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def cached_mib(path: Path) -> float:
    """MiB of the file that are in the page cache."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address == _FAILED:
            raise BenchError(f"mmap of {path}: {os.strerror(ctypes.get_errno())}")
        pages = ctypes.create_string_buffer((size + PAGE - 1) // PAGE)
        status = _libc.mincore(address, size, pages)
        problem = ctypes.get_errno()
        _libc.munmap(address, size)
    if status != 0:
        raise BenchError(f"mincore of {path}: {os.strerror(problem)}")
    # Only the lowest bit of each byte has a meaning.
    return sum(value & 1 for value in pages.raw) * PAGE / (1 << 20)


def evict(path: Path) -> None:
    """Takes the file out of the page cache; BenchError when it stays there."""
    with path.open("rb+", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(file.fileno()).st_size
    left = cached_mib(path)
    if left * (1 << 20) > size / 100:
        raise BenchError(f"{left:.0f} MiB of {path} stay in the page cache")


def read_through(path: Path) -> None:
    """Brings the whole file into the page cache, but for what is there already."""
    with path.open("rb", buffering=0) as file:
        while file.read(LARGE_PIECE):
            pass


def copy_in_pieces(source: Path, target: Path, size: int, piece: int) -> None:
    """Fills the target from the source. The kernel holds what it is given in folios as large as
    the pieces, if the file was not in the page cache before."""
    with source.open("rb", buffering=0) as origin, target.open("rb+", buffering=0) as file:
        done = 0
        while done < size:
            block = memoryview(origin.read(min(LARGE_PIECE, size - done)))
            for place in range(0, len(block), piece):
                file.write(block[place:place + piece])
            done += len(block)
        os.fsync(file.fileno())
