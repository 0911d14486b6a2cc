"""The page: its tabs, how it looks, how it shows errors, and the server that shows it."""

import html
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from atelier.color import color_tab, draw_examples
from atelier.fruit import fruit_tabs
from atelier.runs import runs_tab
from study.models import Models
from system.errors import PigmentError, shown
from system.hardware import within_memory

FONTS = ("ui-sans-serif", "system-ui", "sans-serif")  # the visitor's own: nothing is fetched
MONOSPACE = ("ui-monospace", "Consolas", "monospace")
THEME = gr.themes.Default(primary_hue="orange", neutral_hue="stone", font=FONTS, font_mono=MONOSPACE).set(
    body_text_color_subdued="*neutral_500",  # WCAG's contrast, which Gradio's own colors lack
    color_accent="*primary_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    link_text_color_visited="*secondary_700",
    link_text_color_visited_dark="*secondary_400",
)
THEME.color_accent_dark = "*primary_500"  # type: ignore[attr-defined]  # set does not know it, but Gradio uses it
HERE = Path(__file__).parent
VISITORS = 100  # whose pictures are kept at a time: some 10 MB each, more if they compare several models
LARGEST = "500mb"  # of an upload
UPLOADS_KEPT = 900, 86_400  # seconds: every quarter of an hour, those that are older than a day are deleted


class Page(gr.Blocks):
    """Blocks that say a PigmentError on the page, and nothing in the terminal, and take an emptied number as 0."""

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **more: Any) -> dict[str, Any]:
        for index, (component, value) in enumerate(zip(block_fn.inputs, inputs, strict=False)):
            if value is None and isinstance(component, gr.Slider | gr.Number):
                inputs[index] = 0  # which a slider's emptied field shows, and where Gradio would raise a TypeError
        try:
            with within_memory("Try a smaller picture, or a smaller model."):
                return await super().process_api(block_fn, inputs, *args, **more)
        except PigmentError as error:
            raise gr.Error(html.escape(shown(error)), print_exception=False) from error
        except gr.Error as error:  # Gradio's own, about a number that is out of range
            error.print_exception = False
            raise


def make_page(models: Models, examples: list[Path]) -> gr.Blocks:
    with Page(title="Pigment", analytics_enabled=False, delete_cache=UPLOADS_KEPT, fill_width=True) as page:
        gr.Markdown("# Pigment")
        with gr.Tab("Color"):
            color_tab(page, models, examples)
        fruit_tabs(models)
        runs_tab(models)
    return page


@contextmanager
def open_page(models: Models, host: str = "127.0.0.1", port: int | None = None, share: bool = False) -> Iterator[str]:
    """Serve the page until the block ends, and yield its address. Only what was uploaded or made is served.

    Raises:
        PigmentError: if the address is taken or there is no such host.
    """
    with TemporaryDirectory(prefix="pigment-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        direct = {*os.environ.get("no_proxy", "").split(","), host, "localhost"}
        os.environ["no_proxy"] = ",".join(sorted(direct))  # Gradio asks itself once it listens
        page = make_page(models, draw_examples(Path(folder)))
        try:
            _, local, public = page.launch(
                server_name=host,
                server_port=port,
                share=share,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                max_file_size=LARGEST,
                ssr_mode=False,
                enable_monitoring=False,
                run_history=False,  # which would keep all pictures in the browser, and slow every answer down
                state_session_capacity=VISITORS,
                theme=THEME,
                css_paths=[HERE / "page.css"],
                js=(HERE / "page.js").read_text(),
            )
        except OSError as error:
            where = f"{host}:{port}" if port else host
            raise PigmentError(
                f"no page can be opened at {where}: the port is taken, or this machine has no such address. Choose "
                "others with --port and --host."
            ) from error
        try:
            if share and not public:
                raise PigmentError(
                    "Gradio's servers gave no public address; check your connection, or leave out --share"
                )
            yield public or local
        finally:
            page.close(verbose=False)
