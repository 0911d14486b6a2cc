import errno
import io
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import store as stores
from datamodules.store import Entry, _part_of, leave_group, open_store, read_manifest
from images.reading import read_square
from system.errors import PigmentError
from tests.world import damaged_exif, write_bad_files

GRADIENT = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)


def save(path: Path, pixels: np.ndarray = GRADIENT, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def manifest(root: Path) -> dict[str, Entry]:
    return {entry.path: entry for entry in read_manifest(open_store(root, 16, None).folder)}


def test_the_longest_name_that_a_file_system_allows_works(tmp_path: Path) -> None:
    root = tmp_path / ("画" * 85)  # 255 bytes
    save(root / "a.png", np.full((16, 16, 3), 100, np.uint8))
    assert open_store(root, 16, None).folder == open_store(root, 16, None).folder
    assert len(list((tmp_path / "cache").glob("*px-*/"))) == 1


def test_pixels_are_the_files_in_the_manifests_order(tmp_path: Path) -> None:
    for name, value in {"b.png": 100, "a/2.png": 50, "a/1.png": 200}.items():
        save(tmp_path / "in" / name, np.full((16, 16, 3), (value, 0, 255), np.uint8))
    (tmp_path / "in" / "a" / "1 bad.png").write_text("bad")
    store = open_store(tmp_path / "in", 16, None)
    assert store.paths() == ["a/1 bad.png", "a/1.png", "a/2.png", "b.png"]
    assert store.pixels.shape == (4, 16, 16, 3)
    assert store.pixels[1:, 3, 5].tolist() == [[200, 0, 255], [50, 0, 255], [100, 0, 255]]
    assert sorted(np.concatenate(list(store.rows.values()))) == [1, 2, 3]


# What a viewer shows of each: GRADIENT's top left and bottom right corners, as they went in.
WELL_FORMED: dict[str, tuple[str, dict[str, Any]]] = {
    "rgb.png": ("RGB", {}),
    "gray.png": ("L", {}),
    "palette.png": ("P", {}),
    "gray with alpha.png": ("LA", {}),
    "rgb with alpha.png": ("RGBA", {}),
    "cmyk.jpg": ("CMYK", {"quality": 100, "subsampling": 0}),
    "cmyk.tif": ("CMYK", {}),
    "a webp called.jpg": ("RGB", {"format": "WEBP", "lossless": True}),
    "a gif.gif": ("P", {}),
    "UPPER CASE.JPG": ("RGB", {"quality": 100, "subsampling": 0, "format": "JPEG"}),
    "Äpfel 苹果 תפוח.png": ("RGB", {}),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_every_kind_of_image_is_read_as_a_viewer_shows_it(name: str, tmp_path: Path) -> None:
    mode, options = WELL_FORMED[name]
    ramp = np.linspace(0, 255, 256).reshape(16, 16)
    colors = np.stack([ramp, ramp.T, 255 - ramp], axis=2).astype(np.uint8)
    path = save(tmp_path / "in" / name, colors, mode, **options)
    assert manifest(tmp_path / "in")[name].status == "kept"
    expected = np.asarray(Image.fromarray(colors).convert("L" if "gray" in name else "RGB").convert("RGB"))
    got = read_square(path.read_bytes(), 16)[0]
    assert np.abs(got.astype(int) - expected).mean() < (15 if mode == "P" else 6)  # a palette is coarse


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    upright = np.rot90(GRADIENT, -1)
    data = save(tmp_path / "turned.png", exif=exif).read_bytes()
    assert (read_square(data, 16)[0] == upright).all()


def test_a_rotation_is_undone_beside_metadata_of_the_wrong_type(tmp_path: Path) -> None:
    data = save(tmp_path / "turned.png", exif=damaged_exif(orientation=6)).read_bytes()
    assert (read_square(data, 16)[0] == np.rot90(GRADIENT, -1)).all()


def test_transparency_is_laid_on_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (16, 16), (255, 0, 0, 128)).save(file, "PNG")
    assert read_square(file.getvalue(), 16)[0][0, 0].tolist() == [255, 127, 127]


def test_proportions_are_kept_and_the_center_is_cropped(tmp_path: Path) -> None:
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 24:40] = 255
    assert read_square(save(tmp_path / "wide.png", wide).read_bytes(), 16)[0].min() == 255


def test_bad_files_are_named_with_their_reason_and_the_rest_is_used(tmp_path: Path) -> None:
    root = tmp_path / "in"
    whole = save(root / "whole.jpg", np.tile(GRADIENT, (4, 4, 1))).read_bytes()
    reasons = write_bad_files(root, whole)
    (root / "notes.txt").write_text("no image, and not named like one")
    (root / ".hidden.png").write_text("nor is this")
    entries = manifest(root)
    assert set(entries) == {"whole.jpg", *reasons}
    assert entries.pop("whole.jpg").status == "kept"
    assert {path: entry.status for path, entry in entries.items()} == dict.fromkeys(reasons, "unreadable")
    assert [path for path, entry in entries.items() if reasons[path] not in entry.reason.lower()] == []


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    save(root / "whole.png")
    save(root / "secret.png").chmod(0)
    save(root / "closed" / "in.png").parent.chmod(0)
    is_root = os.geteuid() == 0  # permissions do not stop root
    try:
        if is_root:
            for folder in (tmp_path, *tmp_path.parents[:3]):
                folder.chmod(0o777)
            os.seteuid(65534)
        entries = manifest(root)
    finally:
        if is_root:
            os.seteuid(0)
        (root / "closed").chmod(0o700)
    assert entries["whole.png"].status == "kept"
    assert entries["secret.png"].reason == entries["closed"].reason == "Permission denied"


def test_loops_of_links_end_and_links_are_followed(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "linked.png")
    save(tmp_path / "in" / "own.png", GRADIENT[::-1])
    (tmp_path / "in" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "elsewhere")
    assert set(manifest(tmp_path / "in")) == {"own.png", os.path.join("other", "linked.png")}


def test_copies_are_named_and_leaks_into_a_later_part_are_dropped(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("train/a.png", "train/b.png", "val/c.png"):
        save(root / name)
    save(root / "val/d.png", GRADIENT[::-1])
    store = open_store(root, 16, {"train": "train", "val": "val"})
    assert [entry[:5] for entry in read_manifest(store.folder)] == [
        ("train/a.png", "train", "kept", "", ""),
        ("train/b.png", "train", "kept", "", "train/a.png"),
        ("val/c.png", "val", "leak", "", "train/a.png"),
        ("val/d.png", "val", "kept", "", ""),
    ]
    assert {part: rows.tolist() for part, rows in store.rows.items()} == {"train": [0, 1], "val": [3], "test": []}
    assert store.summary().splitlines() == [
        "     train       val",
        "         2         1  kept",
        "         1         0  including exact copies of another",
        "         2         1  including nearly colorless ones",
        "         0         1  left out: also in training",
    ]
    assert list(store.findings()) == [
        "colorless   train/a.png  (colorfulness 0.8)",
        "duplicate   train/b.png  (same as train/a.png)",
        "colorless   train/b.png  (colorfulness 0.8)",
        "leak        val/c.png  (same as train/a.png)",
        "colorless   val/d.png  (colorfulness 0.8)",
    ]


def test_nearly_colorless_images_are_counted(tmp_path: Path) -> None:
    gray = np.full((16, 16, 3), 128, np.uint8)
    for name, tint in {"gray": (0, 0, 0), "old paper": (6, 3, -3), "pale blue": (-20, 0, 20)}.items():
        save(tmp_path / "in" / f"{name}.png", (gray + np.array(tint)).astype(np.uint8))
    entries = manifest(tmp_path / "in")
    measured = {path: float(entry.colorfulness) for path, entry in entries.items()}
    # a flat color has no deviation, so 0.3 times the length of its mean (red - green, (red + green) / 2 - blue)
    assert measured == {"gray.png": 0.0, "old paper.png": 2.4, "pale blue.png": 10.8}
    counts = open_store(tmp_path / "in", 16, None).counts
    assert sum(counts["colorless"].values()) == 2


def test_what_was_changed_or_passed_over_is_counted_and_named(tmp_path: Path) -> None:
    gray = imagecodecs.cms_profile("gray", whitepoint=(0.3127, 0.3290), gamma=1.0)
    save(tmp_path / "in" / "linear.png", mode="L", icc_profile=gray)
    pages = [Image.fromarray(GRADIENT).resize((40, 40))]
    save(tmp_path / "in" / "pages.tif", save_all=True, append_images=pages)
    whole = save(tmp_path / "in" / "whole.png", dpi=(72, 72)).read_bytes()
    (tmp_path / "in" / "damaged.png").write_bytes(whole.replace(b"pHYs", b"pHYS"))  # its checksum no longer matches
    (tmp_path / "in" / "a.heic").write_bytes(whole)
    store = open_store(tmp_path / "in", 16, None)
    assert {finding: sum(parts.values()) for finding, parts in store.counts.items() if finding != "colorless"} == {
        "kept": 4,
        "profile": 1,
        "page": 1,
        "damage": 1,
        "passed over": 1,
    }
    assert "1  left out: in a format that is not read" in store.summary()
    findings = dict(line.split(maxsplit=1) for line in store.findings() if not line.startswith("colorless"))
    assert findings == {
        "passed": "over a.heic  (.heic files are not read; save this one as JPEG, PNG, or TIFF)",
        "damage": "damaged.png  (read without its damaged metadata)",
        "profile": "linear.png  (converted to sRGB from 'gray built-in')",
        "page": "pages.tif  (only page 2 of 2, the largest)",
    }


def test_a_plain_folder_is_split_by_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        save(tmp_path / "in" / f"{number}.png", image)
    before = manifest(tmp_path / "in")
    for number in range(0, 200, 2):  # new names and fewer files: the rest keep their parts
        (tmp_path / "in" / f"{number}.png").unlink()
        (tmp_path / "in" / f"{number + 1}.png").rename(tmp_path / "in" / f"renamed {number}.png")
    after = manifest(tmp_path / "in")
    assert {path: entry.part for path, entry in after.items()} == {
        f"renamed {number}.png": before[f"{number + 1}.png"].part for number in range(0, 200, 2)
    }
    assert {entry.part for entry in before.values()} == {"train", "val", "test"}


def test_of_ten_images_eight_are_to_train_on() -> None:
    parts = Counter(_part_of(number.to_bytes(8, "big")) for number in range(10))
    assert parts == {"train": 8, "val": 1, "test": 1}


def test_a_store_is_found_again_until_a_file_changes(tmp_path: Path) -> None:
    path = save(tmp_path / "in" / "a.png")
    first = open_store(tmp_path / "in", 16, None)
    built = (first.folder / "pixels.uint8").stat().st_mtime_ns
    again = open_store(tmp_path / "in", 16, None)
    assert (again.folder, (again.folder / "pixels.uint8").stat().st_mtime_ns) == (first.folder, built)
    assert open_store(tmp_path / "in", 8, None).pixels.shape == (1, 8, 8, 3)

    save(path, GRADIENT[::-1])
    changed = open_store(tmp_path / "in", 16, None)
    assert (changed.pixels[0] == GRADIENT[::-1]).all()
    save(tmp_path / "in" / "b.png", 255 - GRADIENT)
    assert len(open_store(tmp_path / "in", 16, None).pixels) == 2


def test_a_file_that_has_become_readable_is_looked_at_again(tmp_path: Path) -> None:
    save(tmp_path / "in" / "whole.png")
    path = save(tmp_path / "in" / "late.png", 255 - GRADIENT)
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    stamp = path.stat()
    assert manifest(tmp_path / "in")["late.png"].status == "unreadable"
    path.write_bytes(whole)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as cp -p would leave it: same size, same time
    assert manifest(tmp_path / "in")["late.png"].status == "kept"


def test_the_users_folder_is_left_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "in" / "bad.png").write_text("bad")

    def look() -> list[tuple[Path, int, int]]:
        return sorted((path, path.stat().st_mtime_ns, path.stat().st_size) for path in (tmp_path / "in").rglob("*"))

    before = look()
    open_store(tmp_path / "in", 16, None)
    assert look() == before


def test_each_row_is_its_own_file_whichever_process_is_done_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "CHUNK", 1)
    monkeypatch.setattr(stores, "ENOUGH_TO_FORK", 0)
    rng = np.random.default_rng(0)
    for number in range(40):
        side = rng.choice([16, 300])
        save(tmp_path / "in" / f"{number}.png", rng.integers(0, 256, (side, side, 3), np.uint8))
    (tmp_path / "in" / "20.png").write_text("bad")
    store = open_store(tmp_path / "in", 16, None)
    for row, path in enumerate(store.paths()):
        if path != "20.png":
            assert np.array_equal(store.pixels[row], read_square((tmp_path / "in" / path).read_bytes(), 16)[0]), path


def test_building_draws_no_random_numbers_from_what_trains(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    before = torch.get_rng_state()
    open_store(tmp_path / "in", 16, None)
    assert torch.equal(torch.get_rng_state(), before)


def build_in_background(root: Path, log: Path) -> BaseProcess:
    def build() -> None:
        with log.open("w") as sys.stderr:
            open_store(root, 64, None)

    process = multiprocessing.get_context("fork").Process(target=build)
    process.start()
    return process


def save_noise(root: Path, number: int) -> None:
    for index in range(number):
        save(root / f"{index}.png", np.random.default_rng(index).integers(0, 256, (200, 200, 3), np.uint8))


def test_of_processes_that_start_together_one_builds(tmp_path: Path) -> None:
    save_noise(tmp_path / "in", 40)
    logs = [tmp_path / f"log {number}" for number in range(3)]
    builders = [build_in_background(tmp_path / "in", log) for log in logs]
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert sum("Reading in" in log.read_text() for log in logs) == 1
    assert len(list((tmp_path / "cache").glob("*/manifest.csv"))) == 1


def test_what_a_killed_builder_left_is_built_anew(tmp_path: Path) -> None:
    save_noise(tmp_path / "in", 600)  # enough to be killed before it is done
    builder = build_in_background(tmp_path / "in", tmp_path / "log")
    partial: list[Path] = []
    while builder.is_alive() and not partial:
        with suppress(FileNotFoundError):  # it is renamed when it is done
            pixels = (tmp_path / "cache").glob("*.partial/pixels.uint8")
            partial = [path for path in pixels if path.stat().st_blocks]  # some were written
        time.sleep(0.001)
    builder.kill()
    builder.join()
    assert partial
    assert builder.exitcode == -signal.SIGKILL
    store = open_store(tmp_path / "in", 64, None)
    for row, path in enumerate(store.paths()):
        assert np.array_equal(store.pixels[row], read_square((tmp_path / "in" / path).read_bytes(), 64)[0]), path
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PigmentError, match=r"no folder '.*nowhere': root must name"):
        open_store(tmp_path / "nowhere", 16, None)


def test_a_root_without_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(PigmentError, match=r"no image in '.*in': no file there ends in \.apng, \.avif"):
        open_store(tmp_path / "in", 16, None)


def test_a_root_of_bad_images_alone(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(PigmentError, match=r"none of the 1 images in .* can be used \(a.png: empty file\)"):
        open_store(tmp_path / "in", 16, None)
    assert not list((tmp_path / "cache").glob("*/manifest.csv"))


def test_a_disk_that_is_too_small_is_refused_before_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "a.png")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(PigmentError, match=r"1 images at 16 px take 0.0 GB, but .* has 0.0 GB free. .*PIGMENT_CACHE"):
        open_store(tmp_path / "in", 16, None)


def full(file: int, data: memoryview, place: int) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def nearly_full(file: int, data: memoryview, place: int) -> int:
    return len(data) - 1


@pytest.mark.parametrize("write", [full, nearly_full])
@pytest.mark.parametrize("enough_to_fork", [0, 2])
def test_a_disk_that_is_full_while_building_leaves_no_store(
    enough_to_fork: int, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "ENOUGH_TO_FORK", enough_to_fork)  # so one image is decoded in a worker, or not
    monkeypatch.setattr(os, "pwrite", write)
    save(tmp_path / "in" / "a.png")
    with pytest.raises(PigmentError, match=r"Free some, raise your quota, or set PIGMENT_CACHE"):
        open_store(tmp_path / "in", 16, None)
    assert not list((tmp_path / "cache").glob("in-*/"))
    assert not multiprocessing.active_children()


class Stopped(Exception):
    """What a signal's handler raises."""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_processes_are_forked_ends_the_build(
    signum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(signum: int, frame: object) -> None:
        raise Stopped

    monkeypatch.setattr(stores, "ENOUGH_TO_FORK", 0)
    save_noise(tmp_path / "in", 40)
    handlers = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    pending = [signum]
    os.register_at_fork(after_in_parent=lambda: signal.raise_signal(pending.pop()) if pending else None)
    try:
        with pytest.raises(Stopped):
            open_store(tmp_path / "in", 16, None)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert not list((tmp_path / "cache").glob("in-*/"))
    assert not multiprocessing.active_children()


def test_a_store_that_was_cut_short_is_not_read(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png")
    store = open_store(tmp_path / "in", 16, None)
    os.truncate(store.folder / "pixels.uint8", 100)
    with pytest.raises(PigmentError, match=r"is damaged. Delete it"):
        store.read(np.array([0]), np.empty((1, 16, 16, 3), np.uint8))


def start_a_worker_and_end(writer: int) -> None:
    multiprocessing.get_context("fork").Process(target=work_alone, args=(os.getpid(), writer)).start()
    os._exit(0)


def work_alone(parent: int, writer: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.01)
    leave_group(0)
    os.write(writer, b"still here")


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers are not forked here")
def test_a_worker_that_starts_after_its_parent_was_killed_ends() -> None:
    reader, writer = os.pipe()
    multiprocessing.get_context("fork").Process(target=start_a_worker_and_end, args=(writer,)).start()
    os.close(writer)
    with open(reader, "rb") as said:
        assert said.read() == b""
