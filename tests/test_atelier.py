"""The page to play in, in a real browser."""

from typing import Any

from tests.browser import Atelier


def test_the_page_has_three_tabs(atelier: Atelier, browser: Any) -> None:
    page = browser.new_page()
    page.goto(atelier.address)
    page.get_by_role("tab", name="Color").wait_for()
    assert page.get_by_role("tab").all_inner_texts() == ["Color", "Fruit", "Runs"]
    page.close()
