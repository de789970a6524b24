"""What images can be ingested from, well-formed and hostile: each image is found once, or there is a reason why not."""

import base64
import hashlib
import io
import json
import os
import sys
import tarfile

import pytest

from workbench.errors import CommandError
from workbench.inputs.found import Unreadable
from workbench.inputs.lists import split
from workbench.inputs.opening import open_inputs, with_more

_MOST = 1 << 20


def _look(*paths, **options):
    """Everything that is found, as id -> (bytes or the reason why there are none, source, attributes)."""
    seen = {}
    for each in open_inputs([str(path) for path in paths], **options):
        for found in each.find():
            assert found.id not in seen
            try:
                content = found.read(_MOST)
            except Unreadable as error:
                content = str(error)
            seen[found.id] = (content, found.source, dict(found.attributes))
    return seen


def _contents(seen):
    return {id: content for id, (content, _, _) in seen.items()}


# ---- Folders


def _folder(root):
    for name in ("cats/a.jpg", "cats/deep/b.PNG", "top.webp", "notes.txt", ".hidden.jpg", ".cache/c.jpg"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def test_a_folder_gives_ids_classes_and_sources(tmp_path):
    root = _folder(tmp_path / "root")
    assert _look(root) == {
        "cats/a.jpg": (b"cats/a.jpg", str(root / "cats/a.jpg"), {"class": "cats"}),
        "cats/deep/b.PNG": (b"cats/deep/b.PNG", str(root / "cats/deep/b.PNG"), {"class": "deep"}),
        "top.webp": (b"top.webp", str(root / "top.webp"), {"class": "root"}),
    }
    assert {attributes == {} for _, _, attributes in _look(root, class_from_folder=False).values()} == {True}


def test_links_in_a_folder_are_followed_to_files_and_not_to_folders_or_in_circles(tmp_path):
    root = _folder(tmp_path / "root")
    (root / "link.jpg").symlink_to(root / "cats/a.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    (root / "again").symlink_to(root)
    assert set(_look(root)) == {"cats/a.jpg", "cats/deep/b.PNG", "top.webp", "link.jpg"}


def test_a_name_that_is_not_utf_8_does_not_hide_the_others(tmp_path):
    root = _folder(tmp_path / "root")
    try:
        (root / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"coffee")
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    assert _contents(_look(root))["caf\udce9.jpg"] == b"coffee"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_reported(tmp_path):
    root = _folder(tmp_path / "root")
    (root / "cats").chmod(0)
    try:
        assert _contents(_look(root)) == {
            "top.webp": b"top.webp",
            "cats": "the folder cannot be read: Permission denied",
        }
    finally:
        (root / "cats").chmod(0o700)


# ---- Tar files


def _member(name, content=b"", kind=tarfile.REGTYPE, **about):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content)
    for key, value in about.items():
        setattr(member, key, value)
    return member, content


def _tar(path, *members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_a_tar_file_gives_the_ids_of_the_folder_it_was_made_of(tmp_path, suffix):
    root = _folder(tmp_path / "root")
    path = tmp_path / f"photos.{suffix}"
    compression = {"tar": "", "tgz": "gz"}.get(suffix, suffix.rpartition(".")[2])
    with tarfile.open(path, f"w:{compression}") as tar:
        tar.add(root, ".")
    seen = _look(path)
    assert _contents(seen) == _contents(_look(root))
    assert seen["cats/a.jpg"][1:] == (f"{path}!/cats/a.jpg", {"class": "cats"})
    assert seen["top.webp"][2] == {"class": "photos"}


def test_names_that_try_to_leave_the_archive_are_just_names(tmp_path):
    path = _tar(
        tmp_path / "a.tar", _member("/etc/a.jpg", b"a"), _member("../../b.jpg", b"b"), _member("./c/../c.jpg", b"c")
    )
    assert _contents(_look(path)) == {"etc/a.jpg": b"a", "../../b.jpg": b"b", "c.jpg": b"c"}
    assert list(tmp_path.rglob("*.jpg")) == []


def test_what_is_no_file_in_an_archive_is_reported_and_the_rest_read(tmp_path):
    path = _tar(
        tmp_path / "a.tar",
        _member("folder.jpg", kind=tarfile.DIRTYPE),
        _member("symbolic.jpg", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
        _member("hard.jpg", kind=tarfile.LNKTYPE, linkname="good.jpg"),
        _member("pipe.jpg", kind=tarfile.FIFOTYPE),
        _member("device.jpg", kind=tarfile.CHRTYPE),
        _member("good.jpg", b"good"),
    )
    assert _contents(_look(path)) == {
        "symbolic.jpg": "is a link in the archive",
        "hard.jpg": "is a link in the archive",
        "pipe.jpg": "is not a file in the archive",
        "device.jpg": "is not a file in the archive",
        "good.jpg": b"good",
    }


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_no_more_of_a_huge_member_is_read_than_asked_for(tmp_path, suffix):
    path = _tar(
        tmp_path / f"a.{suffix}",
        _member("huge.jpg", bytes(8 * _MOST)),
        _member("small.jpg", b"small"),
        mode="w:" + ("gz" if suffix == "tar.gz" else ""),
    )
    assert _contents(_look(path)) == {"huge.jpg": bytes(_MOST), "small.jpg": b"small"}
    [archive] = open_inputs([str(path)])
    assert next(iter(archive.find())).size == 8 * _MOST


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_an_archive_that_was_cut_off_gives_what_is_whole_and_says_so(tmp_path, suffix):
    members = [_member(f"{n}.jpg", os.urandom(3000)) for n in range(20)]
    path = _tar(tmp_path / f"a.{suffix}", *members, mode="w:" + ("gz" if suffix == "tar.gz" else ""))
    path.write_bytes(path.read_bytes()[:20_000])
    seen = _contents(_look(path))
    whole = {member.name: content for member, content in members}
    for id in ("0.jpg", "1.jpg"):
        assert seen[id] == whole[id]
    assert "the archive is broken after" in seen[str(path)]
    assert all(content == whole[id] for id, content in seen.items() if isinstance(content, bytes))


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    path = _tar(tmp_path / "a.tar", *(_member(f"{n}.jpg", bytes([n + 1])) for n in range(4)))
    data = bytearray(path.read_bytes())
    data[2 * 1024 : 2 * 1024 + 8] = b"garbage!"  # the header of the third
    path.write_bytes(data)
    seen = _contents(_look(path))
    assert set(seen) == {"0.jpg", "1.jpg", str(path)}
    assert seen[str(path)].startswith("the archive is broken after 2 images:")


def test_an_archive_without_its_end_is_reported(tmp_path):
    path = _tar(tmp_path / "a.tar", *(_member(f"{n}.jpg", b"x") for n in range(2)))
    path.write_bytes(path.read_bytes()[: 2 * 1024])
    assert _contents(_look(path))[str(path)] == "the archive is broken after 2 images: it ends without an end marker"


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    name = _member("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME)[0]
    name.size = 1 << 40
    path = tmp_path / "a.tar"
    good, content = _member("good.jpg", b"good")
    path.write_bytes(good.tobuf() + content.ljust(512, b"\0") + name.tobuf(tarfile.GNU_FORMAT))
    seen = _contents(_look(path))
    assert seen["good.jpg"] == b"good"
    assert "a header has 1,099,511,627,776 bytes" in seen[str(path)]


def test_an_archive_keeps_no_list_of_its_members(tmp_path):
    path = _tar(tmp_path / "a.tar", *(_member(f"{n}.jpg", b"x") for n in range(50)))
    [archive] = open_inputs([str(path)])
    for found in archive.find():
        tar = found.read.args[0]
        assert len(tar.members) <= 1


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz"])
def test_what_is_no_archive_is_said_before_anything_is_sent(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"this is no archive")
    with pytest.raises(CommandError, match="cannot be read as a tar file"):
        open_inputs([str(path)])


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 reads Zstandard")
def test_zstandard_needs_a_newer_python(tmp_path):
    (tmp_path / "a.tar.zst").write_bytes(b"")
    with pytest.raises(CommandError, match="decompress it first"):
        open_inputs([str(tmp_path / "a.tar.zst")])


# ---- Manifests


def _images(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "pictures" / name).write_bytes(name.encode())
    return tmp_path / "pictures"


def test_a_csv_gives_paths_relative_to_itself_and_text(tmp_path):
    pictures = _images(tmp_path)
    path = tmp_path / "list.csv"
    path.write_text(
        '\ufeffpath,id,year,note,attributes\r\npictures/a.jpg,A,1991,,"{""n"": 7, ""ok"": true}"\r\n'
        f'pictures/../pictures/b.jpg,,007,"two\nlines",\r\n\r\n{tmp_path}/gone.jpg,C,,,\r\n',
        encoding="utf-8",
    )
    assert _look(path) == {
        "A": (b"a.jpg", str(pictures / "a.jpg"), {"year": "1991", "n": 7, "ok": True}),
        "pictures/../pictures/b.jpg": (b"b.jpg", str(pictures / "b.jpg"), {"year": "007", "note": "two\nlines"}),
        "C": ("cannot be read: No such file or directory", str(tmp_path / "gone.jpg"), {}),
    }


@pytest.mark.parametrize(
    ("header", "reason"),
    [("file,id\n", "has no column path"), ("", "no columns at all"), ("path,x,x\n", "several columns 'x'")],
)
def test_a_csv_without_what_it_needs_is_refused_at_once(tmp_path, header, reason):
    path = tmp_path / "list.csv"
    path.write_text(header + "a.jpg,1,2\n" * bool(header))
    with pytest.raises(CommandError, match=reason):
        open_inputs([str(path)])


def test_bad_rows_of_a_csv_are_reported_by_their_number(tmp_path):
    _images(tmp_path)
    path = tmp_path / "list.csv"
    path.write_text('path,attributes\npictures/a.jpg\n,\npictures/a.jpg,[1]\npictures/a.jpg,{\npictures/b.jpg,\n"open')
    seen = _contents(_look(path))
    assert seen.pop("pictures/b.jpg") == b"b.jpg"
    assert {id.rpartition(" ")[2]: reason for id, reason in seen.items()} == {
        "2": "has 1 columns, but the header has 2",
        "3": "has neither a path nor an image",
        "4": "its attributes are not an object",
        "5": "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "7": "the table cannot be read from here on: unexpected end of data",
    }


def test_json_lines_keep_types(tmp_path):
    _images(tmp_path)
    path = tmp_path / "list.jsonl"
    rows = [
        {"path": "pictures/a.jpg", "id": 17, "n": 9007199254740993, "x": 1.0, "flag": False, "none": None},
        {"image": base64.b64encode(b"raw").decode(), "id": "raw", "attributes": {"list": [1, "2"]}},
        {"image": base64.b64encode(b"nameless").decode()},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    seen = _look(path)
    assert seen["17"] == (
        b"a.jpg",
        str(tmp_path / "pictures/a.jpg"),
        {"n": 9007199254740993, "x": 1.0, "flag": False, "none": None},
    )
    assert isinstance(seen["17"][2]["n"], int)
    assert isinstance(seen["17"][2]["x"], float)
    assert seen["raw"] == (b"raw", f"{path}!/raw", {"list": [1, "2"]})
    assert seen[f"sha256-{hashlib.sha256(b'nameless').hexdigest()}"][0] == b"nameless"


def test_bad_json_lines_fail_alone(tmp_path):
    _images(tmp_path)
    path = tmp_path / "list.jsonl"
    lines = [
        "{",
        "[]",
        '{"id": "x"}',
        '{"path": "pictures/a.jpg", "id": 1.5}',
        '{"image": "not base64!"}',
        '{"image": 7}',
        "[" * 100_000,
        '{"path": "pictures/\\u0000.jpg"}',
        '{"path": "pictures"}',
        '{"path": "pictures/b.jpg"}',
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    seen = _contents(_look(path))
    assert [content for content in seen.values() if isinstance(content, bytes)] == [b"b.jpg"]
    assert len(seen) == len(lines) + 1
    reasons = "\n".join(content for content in seen.values() if isinstance(content, str))
    for reason in (
        "is not a JSON object",
        "neither a path nor",
        "its id is 1.5",
        "not base64",
        "Is a directory",
        "null byte",
        "can't decode byte 0xff",
    ):
        assert reason in reasons


def test_parquet_keeps_types_and_takes_bytes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    _images(tmp_path)
    paths = tmp_path / "paths.parquet"
    columns = {
        "path": ["pictures/a.jpg", "pictures/b.jpg"],
        "n": [2**62, None],
        "tags": [["x"], []],
        "ok": [True, False],
    }
    pq.write_table(pa.table(columns), paths)
    images = tmp_path / "images.parquet"
    days = pa.array([0, 1], pa.date32())
    pq.write_table(
        pa.table({"id": ["one", "two"], "image": [b"1", b"2"], "day": days, "x": [0.5, float("nan")]}), images
    )
    seen = _look(paths, images)
    assert _contents(seen) == {"pictures/a.jpg": b"a.jpg", "pictures/b.jpg": b"b.jpg", "one": b"1", "two": b"2"}
    assert seen["pictures/a.jpg"][2] == {"n": 2**62, "tags": ["x"], "ok": True}
    assert seen["pictures/b.jpg"][2] == {"tags": [], "ok": False}
    assert seen["one"][1:] == (f"{images}!/one", {"day": "1970-01-01", "x": 0.5})


def test_broken_parquet_is_refused_and_one_damaged_further_on_reported(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    path.write_bytes(b"PAR1 is not enough PAR1")
    with pytest.raises(CommandError, match="cannot be read as Parquet"):
        open_inputs([str(path)])
    pq.write_table(pa.table({"file": ["a.jpg"]}), path)
    with pytest.raises(CommandError, match="has no column path or image"):
        open_inputs([str(path)])
    images = [os.urandom(1000) for _ in range(200)]
    table = pa.table({"id": [str(n) for n in range(200)], "image": images})
    pq.write_table(table, path, row_group_size=50, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    seen = _contents(_look(path))
    assert seen["0"] == images[0]
    assert all(content == images[int(id)] for id, content in seen.items() if isinstance(content, bytes))
    [reason] = [content for content in seen.values() if isinstance(content, str)]
    assert reason.startswith("the table cannot be read from here on")


# ---- Lists, and all of them


@pytest.mark.parametrize(("nul", "separator"), [(False, b"\n"), (True, b"\0")])
def test_standard_input_gives_paths(tmp_path, monkeypatch, nul, separator):
    pictures = _images(tmp_path)
    names = [os.fsencode(pictures / "a.jpg"), b"", b"nowhere.jpg"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(separator.join(names))))
    seen = _look("-", nul=nul)
    assert seen == {
        str(pictures / "a.jpg"): (b"a.jpg", str(pictures / "a.jpg"), {"class": "pictures"}),
        "nowhere.jpg": (
            "cannot be read: No such file or directory",
            os.path.abspath("nowhere.jpg"),
            {"class": os.path.basename(os.getcwd())},
        ),
    }


def test_a_list_that_is_none_does_not_fill_the_memory():
    with pytest.raises(CommandError, match="more than 65,536 bytes"):
        list(split(io.BufferedReader(io.BytesIO(b"x" * 10_000_000)), b"\n"))


def test_a_pipe_in_a_list_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(tmp_path / "pipe.jpg"))))
    assert list(_contents(_look("-")).values()) == ["is not a file"]


def test_several_inputs_and_single_images_come_one_after_the_other(tmp_path):
    root = _folder(tmp_path / "root")
    path = _tar(tmp_path / "a.tar", _member("b.jpg", b"b"))
    assert set(_look(root, path, root / "cats/a.jpg")) == {
        "cats/a.jpg",
        "cats/deep/b.PNG",
        "top.webp",
        "b.jpg",
        "a.jpg",
    }


def test_ids_get_a_prefix_and_images_further_attributes(tmp_path):
    [folder] = open_inputs([str(_folder(tmp_path / "root"))])
    found = list(with_more(folder, id_prefix="2024/", attributes={"class": "any", "n": 1}).find())
    assert {each.id: each.attributes for each in found} == {
        "2024/cats/a.jpg": {"class": "cats", "n": 1},
        "2024/cats/deep/b.PNG": {"class": "deep", "n": 1},
        "2024/top.webp": {"class": "root", "n": 1},
    }


@pytest.mark.parametrize("name", ["nowhere", "notes.txt"])
def test_what_is_of_no_kind_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("a.jpg")
    with pytest.raises(CommandError, match=name):
        open_inputs([str(tmp_path / name)])


def test_a_path_given_twice_is_refused(tmp_path):
    with pytest.raises(CommandError, match="given twice"):
        open_inputs([str(tmp_path), str(tmp_path / ".")])
