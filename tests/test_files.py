from pathlib import Path

from PIL import Image

from images.files import PASSED_OVER, SUFFIXES, find_images
from images.reading import FORMATS


def test_images_are_found_through_links_and_once(tmp_path: Path) -> None:
    there = ("a.png", "sub/b.JPG", ".hidden/c.png", "notes.txt", "out/e.png", "f.HEIC")
    for name in (*(f"in/{name}" for name in there), "elsewhere/d.tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere.png").symlink_to("missing.png")
    found = sorted(file.path for file in find_images(tmp_path / "in", skip=tmp_path / "in" / "out"))
    assert found == ["a.png", "f.HEIC", "linked/d.tif", "nowhere.png", "sub/b.JPG"]


def test_a_folder_is_found_under_its_own_name_before_any_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "in" / "z").mkdir(parents=True)
    (tmp_path / "in" / "z" / "a.png").touch()
    for name in ("a", "b"):
        (tmp_path / "in" / name).symlink_to("z")
    assert [file.path for file in find_images(tmp_path / "in")] == ["z/a.png"]


def test_every_format_that_is_read_is_found_by_all_its_suffixes() -> None:
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
    assert known == SUFFIXES
    assert not SUFFIXES & PASSED_OVER
