"""The DICOM files of a scan: in a folder and its subfolders, in a zip archive, or a file of its own.

Nothing is unpacked: what lies in an archive is read from there. Links are followed.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from pcdiff.errors import InputError

MAX_FILES = 50_000
MAX_BYTES = 2**31  # of one file
MAX_INFLATED = 2**28  # of a file whose data set is deflated as a whole
HEAD = 132  # bytes at the beginning by which a DICOM file is recognised
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"  # transfer syntaxes of one length
ZIP = b"PK\x03\x04"
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others can ask for gigabytes before they give a byte


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file: `path` itself, or a member of the zip archive at `path`."""

    path: Path
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    @property
    def size(self) -> int:
        """Bytes, unpacked."""
        return self.path.stat().st_size if self.member is None else self.member.file_size

    def open(self) -> IO[bytes]:
        """Opens it for reading; a member of an archive is unpacked as it is read. Raises InputError if that fails."""
        if self.archive is None or self.member is None:
            try:
                return self.path.open("rb")
            except OSError as error:
                raise InputError(f"{self}: cannot be read ({error.strerror}); check its permissions") from error
        if self.member.flag_bits & 1:
            raise InputError(f"{self.path}: the zip archive is encrypted; unpack it and give the folder")
        if self.member.compress_type not in ZIP_METHODS:
            raise InputError(f"{self.path}: the zip archive's compression is not read; unpack it and give the folder")
        try:
            return self.archive.open(self.member)
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
            raise _damaged_archive(self.path) from error

    def __str__(self) -> str:
        if self.member is None:
            return str(self.path)
        name = "".join(c if c.isprintable() else "?" for c in self.member.filename)
        return f"{self.path}/{name}"


class Window:
    """A stream of which at most `limit` bytes can be read in all; ValueError for more. Seeking costs nothing."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._left = stream, limit
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = -1) -> bytes:
        """Reads `count` bytes, or less at the end."""
        if not 0 <= count <= self._left:
            raise ValueError(f"more than {self._left} bytes are to be read")
        data = self._stream.read(count)
        self._left -= len(data)
        return data


def inflated(stream: IO[bytes]) -> IO[bytes]:
    """The stream of a DICOM file; that of the unpacked file for one whose data set is deflated as a whole.

    Raises ValueError for more than 256 MB.
    """
    head = stream.read(2**10)
    stream.seek(0)
    if head[128:HEAD] != b"DICM" or DEFLATED not in head:
        return stream
    begin = HEAD + 12 + int.from_bytes(head[140:144], "little")  # after the group that states its own length
    packed = stream.read(MAX_INFLATED)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    data = unpacker.decompress(packed[begin:], MAX_INFLATED)
    if not unpacker.eof:
        raise ValueError("the deflated data set is too large, or ends early")
    return io.BytesIO(packed[:begin].replace(DEFLATED, EXPLICIT) + data)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes. Raises OSError for a file that cannot be read."""
    with path.open("rb") as file:
        return _begins_like_dicom(file.read(HEAD))


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive by its first bytes. Raises OSError for a file that cannot be read."""
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def dicom_files(source: Path) -> list[DicomFile]:
    """The DICOM files in a folder and its subfolders, or in a zip archive, sorted by name; or one file itself.

    Raises InputError for a source that holds none, or more than 50,000 files; for a folder or file that cannot be read,
    a link that leads nowhere, and an archive that is damaged, encrypted, or packed by an uncommon method.
    """
    if source.is_dir():
        found, seen = _in_folder(source)
    elif is_zip(source):
        found, seen = _in_archive(source)
    else:
        return [DicomFile(source)]
    if not found:
        raise InputError(
            f"{source}: expected {'a folder' if source.is_dir() else 'an archive'} of DICOM files, got {seen} other "
            f"file{'s' * (seen != 1)}; "
            "give the CT's own folder, or an image file (.nrrd, .nii.gz, .mha)"
        )
    return sorted(found, key=str)


def _in_folder(folder: Path) -> tuple[list[DicomFile], int]:
    """(DICOM files, number of all files). A file to which several links lead is there once."""
    found, places, seen = [], set(), 0
    for seen, path in enumerate(_walk(folder), 1):
        if seen > MAX_FILES:
            raise InputError(f"{folder}: more than {MAX_FILES} files; give the folder of one patient's CT")
        try:
            status = path.stat()
            place = (status.st_dev, status.st_ino)
            # No pipes and devices, and no files of /proc, which have no size: reading them may never end.
            if stat.S_ISREG(status.st_mode) and status.st_size and place not in places and is_dicom(path):
                places.add(place)
                found.append(DicomFile(path))
        except FileNotFoundError as error:
            if path.name.startswith("."):  # a lock that an editor left
                continue
            raise InputError(
                f"{path}: the link leads to no file; fetch what it stands for (datalad get), or remove it"
            ) from error
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link that leads back to itself is no data
                raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return found, seen


def _walk(folder: Path) -> Iterator[Path]:
    """All that is no folder, in a folder and its subfolders but for hidden ones; each folder once despite links."""

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"{error.filename}: the folder cannot be read ({error.strerror}); check its permissions")

    places = set()
    for where, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        try:
            status = Path(where).stat()
        except OSError as error:
            refuse(error)
        if (status.st_dev, status.st_ino) in places:
            folders.clear()
            continue
        places.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]  # a cache, the store of datalad
        yield from (Path(where, name) for name in names)


def _in_archive(path: Path) -> tuple[list[DicomFile], int]:
    """(DICOM files, number of all files)."""
    try:
        archive = zipfile.ZipFile(path)
        members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged_archive(path) from error
    if len(members) > MAX_FILES:
        raise InputError(f"{path}: more than {MAX_FILES} files; give an archive of one patient's CT")
    found = []
    for file in (DicomFile(path, archive, member) for member in members if member.file_size):
        with file.open() as stream:
            try:
                head = stream.read(HEAD)
            except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
                raise _damaged_archive(path) from error
        if _begins_like_dicom(head):
            found.append(file)
    return found, len(members)


def _damaged_archive(path: Path) -> InputError:
    return InputError(f"{path}: the zip archive is truncated or damaged; copy or export it again")


def _begins_like_dicom(head: bytes) -> bool:
    """DICM after the preamble, or a data set without one (group 2 or 8)."""
    return head[128:132] == b"DICM" or head[:4] in (b"\x02\0\0\0", b"\x08\0\x05\0", b"\x08\0\0\0", b"\x08\0\x08\0")
