from pathlib import Path

from images.files import find_images


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
