"""Containers and lines: every byte is accounted for, and a hostile file costs little."""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import os
import stat
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestd.errors import FileRefused, FileVanished
from ingestd.pipeline import read
from ingestd.pipeline.read import (
    ReadLimits,
    Row,
    RowReader,
    Source,
    open_source,
    refusing_bad_zips,
    sha256_of,
)

LIMITS = ReadLimits(
    max_line_bytes=1 << 20,
    max_member_bytes=1 << 30,
    max_ratio=200,
    max_nesting=2,
    max_members=1000,
    max_name_bytes=300,
)
Members = list[tuple[str | zipfile.ZipInfo, bytes]]
Drop = Callable[..., Source]


def rows_of(data: bytes, *, most: int = 1 << 20, row: Row | None = None) -> list[Row]:
    """The rows of some bytes, or what is left of them behind the checkpoint of `row`."""
    return list(reader_of(data, most=most, row=row))


def reader_of(data: bytes, *, most: int = 1 << 20, row: Row | None = None) -> RowReader:
    """A reader of bytes in memory."""
    return RowReader(
        io.BytesIO(data),
        max_line_bytes=most,
        from_byte=row.end if row else 0,
        from_line=row.line if row else 0,
    )


def texts_of(data: bytes) -> list[bytes]:
    """What stands on the lines."""
    return [row.raw for row in rows_of(data)]


def zipped(members: Members, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP of members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def drop(tmp_path: Path) -> Iterator[Drop]:
    """Writes bytes to a file and looks at it; closes it, and nothing may be left open."""
    sources: list[Source] = []

    def write(data: bytes, name: str = "a.zip", limits: ReadLimits = LIMITS) -> Source:
        path = tmp_path / name
        path.write_bytes(data)
        sources.append(open_source(path, limits))
        return sources[-1]

    yield write
    open_before = _open_files(tmp_path)
    for source in sources:
        source.close()
    assert _open_files(tmp_path) == set(), open_before
    # An open file that only the collector closes is a ResourceWarning here.
    sources.clear()
    gc.collect()


def _open_files(folder: Path) -> set[str]:
    links = (Path("/proc/self/fd") / name for name in _names(Path("/proc/self/fd")))
    targets = set()
    for link in links:
        try:
            targets.add(str(link.readlink()))
        except FileNotFoundError:
            continue
    return {target for target in targets if target.startswith(str(folder))}


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def contents_of(source: Source) -> dict[str | None, bytes]:
    """All CSVs of a source by their way inside it."""
    contents = {}
    for csv in source.csvs():
        with source.open(csv) as stream:
            blocks = []
            while block := stream.read(1000):
                blocks.append(block)
            contents[csv.member] = b"".join(blocks)
    return contents


def refusal_of(source: Source) -> FileRefused:
    """Why a source is refused, when it is listed or when it is read."""
    with pytest.raises(FileRefused) as caught:
        contents_of(source)
    return caught.value


# ── lines ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"a\r\nb\nc\r\n", [b"a", b"b", b"c"]),
        (b"a\rb\rc\r", [b"a", b"b", b"c"]),
        (b"a\rb", [b"a", b"b"]),
        (b"a\r", [b"a"]),
        (b"\xef\xbb\xbfa\nb", [b"a", b"b"]),
        (b"\n\na\n\n", [b"", b"", b"a", b""]),
        (b"a\n\xef\xbb\xbfb", [b"a", b"\xef\xbb\xbfb"]),
        ("Округ;№\n".encode(), ["Округ;№".encode()]),
    ],
)
def test_lines_end_as_any_system_ends_them(data: bytes, lines: list[bytes]) -> None:
    """LF, CRLF, CR, with a byte order mark and without, with a last end and without."""
    assert lines == texts_of(data)


@pytest.mark.parametrize("raw", [b"", b" ", b"\t ", b"\r"])
def test_a_blank_line_is_nothing_but_counted(raw: bytes) -> None:
    """Line numbers stay those that an editor shows."""
    first, blank, last = rows_of(b"a\n" + raw + b"\nb\n")
    assert (False, True, False) == (first.is_blank, blank.is_blank, last.is_blank)
    assert last.line == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_characters_are_refused_with_what_to_do(encoding: str) -> None:
    """Told by the first bytes, with a mark or without."""
    with pytest.raises(FileRefused, match="save it as UTF-8 and drop it again") as caught:
        rows_of("abc;104\n".encode(encoding))
    assert caught.value.kind == "encoding"


@pytest.mark.parametrize(("mark", "encoding"), [(b"\xef\xbb\xbf", "utf-8-sig"), (b"", "utf-8")])
def test_the_reader_says_which_encoding_it_found(mark: bytes, encoding: str) -> None:
    """A byte order mark is stripped, but not forgotten."""
    reader = reader_of(mark + b"a\n")
    assert next(iter(reader)).raw == b"a"
    assert encoding == reader.encoding


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("shift", range(-3, 4))
def test_a_line_that_ends_on_a_block_border_is_one_line(end: bytes, shift: int) -> None:
    """The CR may be the last byte of a block and its LF the first of the next."""
    first = b"a" * (read.BLOCK_BYTES - len(end) + shift)
    lines = [b"x", first[:-2], b"b" * read.BLOCK_BYTES, b"c"]
    lines[1] = lines[1][: -len(end)] or lines[1]
    assert lines == [row.raw for row in rows_of(end.join(lines) + end, most=read.BLOCK_BYTES)]


data_of_lines = st.lists(
    st.one_of(
        st.sampled_from([b"", b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf", b"abc;", b"x" * 30]),
        st.binary(max_size=12),
    ),
    max_size=30,
).map(b"".join)
sizes = st.integers(1, 16)


@pytest.fixture
def block_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the size of a block."""
    return lambda size: monkeypatch.setattr(read, "BLOCK_BYTES", size)


quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def readable(data: bytes) -> bool:
    """Whether the first bytes look like UTF-8, and like no other format."""
    other = (b"\xff\xfe", b"\xfe\xff", *read._NOT_A_TABLE)  # noqa: SLF001 - nothing else may be refused
    return not data.startswith(other) and b"\x00" not in data[:2]


@quick
@given(data=data_of_lines.filter(readable), size=sizes, most=st.integers(1, 40))
def test_the_size_of_a_block_changes_nothing(
    block_bytes: Callable[[int], None], data: bytes, size: int, most: int
) -> None:
    """Lines, offsets and digest are those of the bytes, however they come."""
    data = b"ab\n" + data
    block_bytes(1 << 20)
    whole = reader_of(data, most=most)
    expected = list(whole)
    block_bytes(max(size, 3))
    reader = reader_of(data, most=most)
    rows = list(reader)
    assert [row._replace(raw=row.raw[:most]) for row in expected] == [
        row._replace(raw=row.raw[:most]) for row in rows
    ]
    assert hashlib.sha256(data).hexdigest() == whole.sha256 == reader.sha256
    assert len(data) == reader.bytes_read


@quick
@given(data=data_of_lines.filter(readable), size=sizes)
def test_every_byte_belongs_to_one_row(
    block_bytes: Callable[[int], None], data: bytes, size: int
) -> None:
    """Rows follow each other without a gap; what stands at `start` is what the row holds."""
    block_bytes(size)
    rows = rows_of(data)
    at = len(b"\xef\xbb\xbf") if data.startswith(b"\xef\xbb\xbf") and size >= 3 else 0
    for number, row in enumerate(rows, 1):
        assert (number, at) == (row.line, row.start)
        assert row.raw == data[row.start : row.start + len(row.raw)]
        assert data[row.start + len(row.raw) : row.end] in (b"", b"\n", b"\r", b"\r\n")
        at = row.end
    assert at == len(data)


@quick
@given(data=data_of_lines.filter(readable), size=st.integers(3, 16), most=st.integers(1, 40))
def test_reading_goes_on_behind_any_row_as_if_it_had_not_stopped(
    block_bytes: Callable[[int], None], data: bytes, size: int, most: int
) -> None:
    """The same rows are left, and the digest is that of the whole stream."""
    block_bytes(size)
    rows = rows_of(data, most=most)
    for number, row in enumerate(rows, 1):
        resumed = reader_of(data, most=most, row=row)
        assert rows[number:] == list(resumed)
        assert hashlib.sha256(data).hexdigest() == resumed.sha256


def test_a_stream_that_ends_before_its_checkpoint_has_no_rows() -> None:
    """The file was cut: its digest tells, the reader only has to end."""
    reader = reader_of(b"a\nb\n", row=Row(9, 1000, b""))
    assert list(reader) == []
    assert reader.bytes_read == 4


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b""])
def test_an_over_long_line_is_passed_over_and_its_neighbours_are_read(end: bytes) -> None:
    """Its beginning is kept as evidence."""
    lines = [b"before", b"x" * (3 * read.BLOCK_BYTES), b"after"]
    if not end:
        lines, end = lines[:2], b"\n"
    first, long, *last = rows_of(end.join(lines), most=1000)
    assert (b"before", False) == (first.raw, first.is_too_long)
    assert (2, True, b"x" * 1000) == (long.line, long.is_too_long, long.raw)
    assert lines[2:] == [row.raw for row in last]


@pytest.mark.parametrize(("length", "is_too_long"), [(99, False), (100, False), (101, True)])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("size", [10, 50, 100, 101, 102, 1000])
def test_the_limit_of_a_line_counts_its_text_alone(
    block_bytes: Callable[[int], None], length: int, is_too_long: bool, end: bytes, size: int
) -> None:
    """Neither its end nor the border of a block makes a line longer."""
    block_bytes(size)
    (row,) = rows_of(b"x" * length + end, most=100)
    assert is_too_long == row.is_too_long


class Endless(io.RawIOBase):
    """A stream of one letter, and at last two lines."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        """One block, or the end."""
        if self.left > 0:
            self.left -= size
            return b"x" * size
        tail, self.left = (b"\nlast\n", -1) if self.left == 0 else (b"", -1)
        return tail


def test_an_over_long_line_costs_no_memory() -> None:
    """256 MB without an end are read in the memory of a few blocks."""
    tracemalloc.start()
    stream = Endless(256 << 20)
    rows = [len(row.raw) for row in RowReader(stream, max_line_bytes=1000)]  # type: ignore[arg-type]
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [1000, 4] == rows
    assert peak < 8 * read.BLOCK_BYTES


def test_a_long_line_within_the_limit_is_read_in_one_go() -> None:
    """A voters list of 50 MB is a good row, and joining it is not quadratic."""
    data = b"x" * (50 << 20)
    began = time.process_time()
    (row,) = rows_of(data + b"\n", most=64 << 20)
    assert len(data) == len(row.raw)
    assert time.process_time() - began < 3


# ── containers ────────────────────────────────────────────────────────────


def test_a_bare_csv_is_its_own_only_member(drop: Drop) -> None:
    """Without a way inside."""
    assert contents_of(drop(b"a\n", "a.csv")) == {None: b"a\n"}


def test_an_empty_csv_is_a_good_file(drop: Drop) -> None:
    """An hour without transactions may be an empty file."""
    assert contents_of(drop(b"", "a.csv")) == {None: b""}


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_its_csvs_in_their_order(drop: Drop, packing: int) -> None:
    """As they stand in the file, whatever their names; other members are nothing."""
    members: Members = [
        ("z.csv", b"1"),
        ("readme.txt", b"?"),
        ("a.CSV", b"2" * 5000),
        ("folder/", b""),
        ("folder.csv/", b""),
        ("folder/m.csv", b""),
        ("__MACOSX/._z.csv", b"litter"),
        ("folder/._m.csv", b"litter"),
    ]
    contents = contents_of(drop(zipped(members, packing)))
    assert [("z.csv", b"1"), ("a.CSV", b"2" * 5000), ("folder/m.csv", b"")] == list(
        contents.items()
    )


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_in_a_zip_are_read_in_place(drop: Drop, packing: int) -> None:
    """One ZIP an hour, all in one: members are named by the whole way to them."""
    inner = [zipped([(f"{n}.csv", b"%d" % n * 9000), ("x.csv", b"x")], packing) for n in range(3)]
    outer: Members = [(f"{n}.zip", data) for n, data in enumerate(inner)]
    expected = {
        f"{n}.zip/{name}": data
        for n in range(3)
        for name, data in ((f"{n}.csv", b"%d" % n * 9000), ("x.csv", b"x"))
    }
    source = drop(zipped([*outer, ("y.csv", b"y")], packing))
    assert expected | {"y.csv": b"y"} == contents_of(source)
    backwards = {}
    for csv in reversed(list(source.csvs())):
        with source.open(csv) as stream:
            backwards[csv.member] = stream.read(10_000)
    assert expected | {"y.csv": b"y"} == backwards


def test_nesting_ends_at_its_limit(drop: Drop) -> None:
    """A ZIP in a ZIP is allowed here, one level more is not."""
    twice = zipped([("b.zip", zipped([("a.csv", b"a")]))])
    assert contents_of(drop(twice)) == {"b.zip/a.csv": b"a"}
    refusal = refusal_of(drop(zipped([("c.zip", twice)])))
    assert (refusal.kind, refusal.field) == ("nesting", "c.zip/b.zip")


def encrypted() -> bytes:
    """A ZIP whose only member says that it is encrypted."""
    data = bytearray(zipped([("a.csv", b"a")]))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def link() -> bytes:
    """A ZIP with a symbolic link."""
    info = zipfile.ZipInfo("a.csv")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return zipped([(info, b"/etc/passwd")])


def twins() -> bytes:
    """A ZIP with two members of one name."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped([("a.csv", b"1"), ("a.csv", b"2")])


def twins_by_nesting() -> bytes:
    """A folder and a ZIP of one name: two ways that read the same."""
    return zipped([("a.zip", zipped([("b.csv", b"1")])), ("a.zip/b.csv", b"2")])


def wrong_crc() -> bytes:
    """A stored member whose bytes are not those of its checksum."""
    return zipped([("a.csv", b"good bytes")], zipfile.ZIP_STORED).replace(
        b"good bytes", b"bad bytes!"
    )


def lying_size() -> bytes:
    """A member of 5 000 bytes that says it has one."""
    data = bytearray(zipped([("a.csv", b"5" * 5000)]))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, 1)
    return bytes(data)


def edited(data: bytes, offset: int, value: int, *, size: str = "I") -> bytes:
    """The bytes with a number overwritten in the first entry of a ZIP's directory."""
    changed = bytearray(data)
    struct.pack_into(f"<{size}", changed, data.index(b"PK\x01\x02") + offset, value)
    return bytes(changed)


def greater_size() -> bytes:
    """A stored member of 9 bytes that says it has 12, so that its stream ends too early."""
    return edited(zipped([("a.csv", b"a" * 9)]), 24, 12)


def renamed(old: bytes, new: bytes) -> bytes:
    """A ZIP with other bytes for the name of its member."""
    return zipped([(old.decode(), b"x")]).replace(old, new)


def two_directories() -> bytes:
    """A ZIP whose comment is the directory of another one."""
    other, data = zipped([("b.csv", b"b")]), zipped([("a.csv", b"a")])
    tail = other[other.index(b"PK\x01\x02") :]
    return data[:-2] + struct.pack("<H", len(tail)) + tail


def cut_behind_an_inner_zip() -> bytes:
    """Of two stored inner ZIPs the first is whole: it could pass for all there is."""
    inner = zipped([("a.csv", b"a")])
    data = zipped([("1.zip", inner), ("2.zip", inner)], zipfile.ZIP_STORED)
    return data[: data.index(b"2.zip") + 20]


def overlapping() -> bytes:
    """Two members that share one kernel (D. Fifield, "A better zip bomb", 2019)."""
    data = zipped([("a.csv", b" " * 100_000)])
    start = data.index(b"PK\x01\x02")
    directory = data[start : data.index(b"PK\x05\x06")]
    inner = directory.replace(b"a.csv", b"b.csv")
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 2, 2, 2 * len(directory), start, 0)
    return data[:start] + directory + inner + end


def quine() -> bytes:
    """A ZIP that holds itself would nest for ever; this one does so four times."""
    data = zipped([("a.csv", b"a")])
    for _ in range(4):
        data = zipped([("r.zip", data)])
    return data


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no ZIP at all": (lambda: b"a;b;c\n" * 100, "bad_zip"),
    "an empty file": (lambda: b"", "bad_zip"),
    "a ZIP cut off": (lambda: zipped([("a.csv", b"a" * 9)])[:-30], "bad_zip"),
    "a wrong CRC": (wrong_crc, "bad_zip"),
    "a size that lies": (lying_size, "bad_zip"),
    "a greater size that lies": (greater_size, "bad_zip"),
    "a place that lies": (lambda: edited(zipped([("a.csv", b"a")]), 42, 7), "bad_zip"),
    "a compressed size that lies": (lambda: edited(zipped([("a.csv", b"a")]), 20, 999), "bomb"),
    "a name of nothing": (lambda: renamed(b"a", b"\0"), "empty_container"),
    "a name with NUL": (lambda: renamed(b"a.csv.csv", b"a.csv\0csv"), "nul"),
    "a name that is too long": (lambda: zipped([("a" * 300 + ".csv", b"")]), "name_bytes"),
    "a name that is no UTF-8": (
        lambda: edited(renamed(b"aa.csv", b"\xff\xfe.csv"), 8, 0x800, size="H"),
        "bad_zip",
    ),
    "two directories": (two_directories, "bad_zip"),
    "two ZIPs in one": (lambda: 2 * zipped([("a.csv", b"a")]), "bad_zip"),
    "cut behind an inner ZIP": (cut_behind_an_inner_zip, "bad_zip"),
    "members on each other": (overlapping, "bomb"),
    "ZIPs without end": (quine, "nesting"),
    "an inner ZIP that is none": (lambda: zipped([("a.zip", b"not a zip")]), "bad_zip"),
    "an encrypted member": (encrypted, "encrypted"),
    "a symbolic link": (link, "link"),
    "twins": (twins, "twin_members"),
    "twins by nesting": (twins_by_nesting, "twin_members"),
    "bzip2": (lambda: zipped([("a.csv", b"a")], zipfile.ZIP_BZIP2), "packing"),
    "LZMA": (lambda: zipped([("a.csv", b"a")], zipfile.ZIP_LZMA), "packing"),
    "no member": (lambda: zipped([]), "empty_container"),
    "no CSV": (lambda: zipped([("a.txt", b"a")]), "empty_container"),
    "only litter": (lambda: zipped([("__MACOSX/a.csv", b"a")]), "empty_container"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_damaged_or_tricky_zip_is_refused(drop: Drop, what: str) -> None:
    """Each with its own kind, and a reason for a person; nothing is left open."""
    make, kind = HOSTILE[what]
    refusal = refusal_of(drop(make()))
    assert kind == refusal.kind
    assert refusal.reason


@pytest.mark.parametrize(
    "name", ["../../etc/a.csv", "/etc/a.csv", "..\\a.csv", "C:/a.csv", ";.csv"]
)
def test_names_that_lead_outside_are_only_names(drop: Drop, tmp_path: Path, name: str) -> None:
    """Members are streams; nothing is ever unpacked to disk."""
    assert contents_of(drop(zipped([(name, b"a")]))) == {name: b"a"}
    assert ["a.zip"] == _names(tmp_path)


@pytest.mark.parametrize(
    ("encoding", "has_flag"), [("cp866", False), ("utf-8", False), ("utf-8", True)]
)
def test_cyrillic_member_names_are_read_as_they_were_written(
    drop: Drop, encoding: str, has_flag: bool
) -> None:
    """Windows writes cp866 without a flag, macOS UTF-8 without one."""
    name = "90 - Край/Округ 1_3.csv"
    raw = name.encode(encoding)
    stand_in = "x" * (len(raw) - 4) + ".csv"
    data = bytearray(zipped([(stand_in, b"a"), ("b.csv", b"b")]).replace(stand_in.encode(), raw))
    if has_flag:
        for signature, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
            data[data.index(signature) + offset] |= 0x08
    assert contents_of(drop(bytes(data))) == {name: b"a", "b.csv": b"b"}


def test_members_end_at_their_limit(drop: Drop) -> None:
    """A directory of a million empty members is refused by its length."""
    data = zipped([(f"{n}.csv", b"") for n in range(11)])
    assert refusal_of(drop(data, limits=replace(LIMITS, max_members=10))).kind == "members"
    assert len(contents_of(drop(data, limits=replace(LIMITS, max_members=11)))) == 11


def test_members_of_inner_zips_count_too(drop: Drop) -> None:
    """Ten ZIPs of ten are a hundred."""
    data = zipped([(f"{n}.zip", zipped([(f"{m}.csv", b"") for m in range(9)])) for n in range(9)])
    assert refusal_of(drop(data, limits=replace(LIMITS, max_members=89))).kind == "members"
    assert len(contents_of(drop(data, limits=replace(LIMITS, max_members=90)))) == 81


def test_a_directory_of_a_million_entries_is_not_taken_into_memory(drop: Drop) -> None:
    """`zipfile` would make an object of a kilobyte out of every 51 bytes."""
    data = zipped([("a.csv", b"")])
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = data[start:end] * 300_000
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 9, 9, len(entries), start, 0)
    source = drop(data[:start] + entries + tail)
    tracemalloc.start()
    assert refusal_of(source).kind == "members"
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20


def test_inner_zips_that_unpack_to_nothing_but_zeros_are_a_bomb(drop: Drop) -> None:
    """Each is small enough by itself, and has to be unpacked to find its directory."""
    inner = b"\0" * (40 << 20) + zipped([("a.csv", b"a")])
    assert refusal_of(drop(zipped([("1.zip", inner), ("2.zip", inner)]))).kind == "bomb"


def test_a_program_before_a_zip_does_no_harm(drop: Drop) -> None:
    """A self-extracting ZIP is read; so is one with a comment, or with a line's end behind it."""
    data = zipped([("a.csv", b"a")])
    comment = b"from the portal"
    for whole in (b"MZ" * 999 + data, data[:-2] + struct.pack("<H", 15) + comment, data + b"\n"):
        assert contents_of(drop(whole)) == {"a.csv": b"a"}


def test_folders_and_case_part_members(drop: Drop) -> None:
    """A folder named x.csv is no CSV; names that differ in case only are two."""
    members: Members = [("x.csv/", b""), ("x.csv/a.csv", b"1"), ("A.csv", b"2"), ("a.csv", b"3")]
    assert contents_of(drop(zipped(members))) == {"x.csv/a.csv": b"1", "A.csv": b"2", "a.csv": b"3"}


def test_a_member_is_read_by_its_own_name(drop: Drop) -> None:
    """What one name looks like in an old encoding may be the true name of another member."""
    raw = "Я".encode()
    mistaken = raw.decode("cp437")
    flagged = zipfile.ZipInfo(f"{mistaken}.csv")
    data = zipped([(flagged, b"flagged"), ("xx.csv", b"raw")]).replace(b"xx.csv", raw + b".csv")
    assert contents_of(drop(data)) == {f"{mistaken}.csv": b"flagged", "Я.csv": b"raw"}


@pytest.mark.parametrize("is_about_it", [True, False])
def test_a_name_in_info_zips_field_is_read(drop: Drop, is_about_it: bool) -> None:
    """Beside the name in an old encoding; a field about another name is none."""
    raw = "Край.csv".encode("cp866")
    crc = zlib.crc32(raw) ^ (not is_about_it)
    name = "Край №1.csv"
    field = struct.pack("<BL", 1, crc) + name.encode()
    info = zipfile.ZipInfo("x" * (len(raw) - 4) + ".csv")
    info.extra = struct.pack("<HH", 0x7075, len(field)) + field
    data = zipped([(info, b"a")]).replace(info.filename.encode(), raw)
    assert contents_of(drop(data)) == {name if is_about_it else "Край.csv": b"a"}


@pytest.mark.parametrize("start", list(read._NOT_A_TABLE))  # noqa: SLF001 - each of them
def test_what_begins_like_another_format_is_refused(start: bytes) -> None:
    """Else a small ZIP named .csv would be three bad rows, which any file may have."""
    with pytest.raises(FileRefused) as caught:
        rows_of(start + b"more\n" * 3)
    assert ("format", 1) == (caught.value.kind, caught.value.line)


def test_a_pipe_in_place_of_a_file_is_no_file(drop: Drop) -> None:
    """It became one after it was found; opening it would wait for a writer for ever."""
    source = drop(b"a\n", "a.csv")
    source.path.unlink()
    os.mkfifo(source.path)
    (csv,) = source.csvs()
    with pytest.raises(FileVanished), source.open(csv):
        pass


def bomb(size: int) -> bytes:
    """A ZIP of blanks, a thousand times as large unpacked."""
    return zipped([("a.csv", b" " * size)])


def test_a_member_larger_than_the_limit_is_refused_by_its_own_word(drop: Drop) -> None:
    """Nothing is unpacked."""
    source = drop(bomb(5000), limits=replace(LIMITS, max_member_bytes=4999))
    with pytest.raises(FileRefused) as caught:
        list(source.csvs())
    assert caught.value.kind == "member_bytes"


def test_a_bomb_is_refused_before_it_unpacks(drop: Drop) -> None:
    """A ratio that no export has, past a size that matters."""
    assert contents_of(drop(bomb(1 << 20)))["a.csv"] == b" " * (1 << 20)
    source = drop(bomb(65 << 20))
    began = time.process_time()
    with pytest.raises(FileRefused) as caught:
        list(source.csvs())
    assert caught.value.kind == "bomb"
    assert time.process_time() - began < 0.5


def test_a_bomb_in_an_inner_zip_is_not_even_opened(drop: Drop) -> None:
    """To find an inner ZIP's directory it would have to be unpacked whole."""
    source = drop(zipped([("b.zip", b"\0" * (65 << 20))]))
    began = time.process_time()
    assert refusal_of(source).kind == "bomb"
    assert time.process_time() - began < 0.5


def test_many_small_bombs_are_one_big_one(drop: Drop) -> None:
    """Members may share their packed bytes: what counts is the sum beside the file's size."""
    data = bomb(33 << 20)
    directory = data[data.index(b"PK\x01\x02") : data.index(b"PK\x05\x06")]
    second = directory.replace(b"a.csv", b"b.csv")
    start = data.index(b"PK\x01\x02")
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 2, 2, 2 * len(directory), start, 0)
    refusal = refusal_of(drop(data[:start] + directory + second + end))
    assert refusal.kind == "bomb"


def test_a_stream_that_gives_more_than_it_may_is_stopped() -> None:
    """The last guard, should a header lie in a way that `zipfile` believes."""
    guarded = read._Guarded(  # noqa: SLF001 - not to be reached through a ZIP of today's zipfile
        io.BytesIO(b" " * 5000), zipfile.ZipInfo("a.csv"), replace(LIMITS, max_member_bytes=3000)
    )
    with guarded, pytest.raises(FileRefused) as caught:
        sha256_of(cast("BinaryIO", guarded))
    assert caught.value.kind == "bomb"


mutations = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
)


@quick
@given(mutations=mutations, cut=st.integers(0, 40), at_end=st.booleans())
def test_no_mutation_of_a_zip_breaks_the_reader(
    drop: Drop, mutations: list[tuple[float, int]], cut: int, at_end: bool
) -> None:
    """It is read or refused; any other error would be tried again for ever."""
    data = bytearray(zipped([("b.zip", zipped([("a.csv", b"abc" * 9)])), ("c.csv", b"c" * 99)]))
    data = data[: len(data) - cut]
    for place, byte in mutations:
        offset = int(place * min(len(data), 120))
        data[-1 - offset if at_end else offset] = byte
    source = drop(bytes(data))
    try:
        contents_of(source)
    except FileRefused:
        pass
    finally:
        source.close()


@quick
@given(data=st.binary(max_size=200))
def test_no_bytes_named_zip_break_the_reader(drop: Drop, data: bytes) -> None:
    """Whatever it is, it is refused."""
    for noise in (data, b"PK\x03\x04" + data, data + b"PK\x05\x06" + data):
        assert refusal_of(drop(noise)).kind in ("bad_zip", "empty_container")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_a_disk_that_fails_is_not_the_zips_fault(number: int) -> None:
    """The file stays where it is and is tried again."""
    with pytest.raises(OSError, match="disk"), refusing_bad_zips():
        raise OSError(number, "disk")


@pytest.mark.parametrize("name", ["a.zip", "a.csv"])
def test_a_file_that_is_gone_has_vanished(drop: Drop, tmp_path: Path, name: str) -> None:
    """When it is looked at, listed, opened or looked at again."""
    source = drop(zipped([("a.csv", b"a")]), name)
    (csv,) = source.csvs()
    source.close()
    source.path.unlink()
    with pytest.raises(FileVanished), source.open(csv):
        pass
    with pytest.raises(FileVanished):
        source.is_unchanged()
    with pytest.raises(FileVanished):
        open_source(source.path, LIMITS)
    if source.is_zip:
        with pytest.raises(FileVanished):
            list(source.csvs())


def test_a_file_that_was_written_to_is_not_the_same(drop: Drop) -> None:
    """Its stamp holds size and times."""
    source = drop(b"a\n", "a.csv")
    assert source.is_unchanged()
    with source.path.open("ab") as stream:
        stream.write(b"b\n")
    assert not source.is_unchanged()


def test_memory_stays_flat_over_many_inner_zips(drop: Drop) -> None:
    """Only the inner ZIP that is being read is open."""
    inner = zipped([("a.csv", b"a")])
    source = drop(zipped([(f"{n}.zip", inner) for n in range(50)]))
    assert len(contents_of(source)) == 50
    assert len(source._open_zips) == 2  # noqa: SLF001 - what is held is the claim


@given(st.binary(max_size=5000))
def test_a_stream_is_hashed_to_its_end(data: bytes) -> None:
    """Digest and size of what would be read."""
    assert (hashlib.sha256(data).hexdigest(), len(data)) == sha256_of(io.BytesIO(data))
