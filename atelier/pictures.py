"""Pictures to save, and to point into; they lie within the page's HTML, so that no file is served."""

import base64
from html import escape
from io import BytesIO
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

POINT = """
let place = {x: 0.5, y: 0.5};
const pad = () => element.querySelector('[role=slider]');
function go(x, y) {
    place = {x: Math.min(1, Math.max(0, x)), y: Math.min(1, Math.max(0, y))};
    const percent = {x: Math.round(100 * place.x), y: Math.round(100 * place.y)};
    element.querySelector('i').style.cssText = `display: block; left: ${percent.x}%; top: ${percent.y}%`;
    pad().setAttribute('aria-valuenow', percent.x);
    pad().setAttribute('aria-valuetext', `${percent.x} % across, ${percent.y} % down`);
    trigger('input', place);
}
function follow(event) {
    const box = pad().getBoundingClientRect();
    go((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}
watch('value', () => { place = {x: 0.5, y: 0.5}; });  // a new picture begins in the middle
element.addEventListener('pointerdown', event => {
    if (!pad()?.contains(event.target)) return;
    event.preventDefault();
    pad().focus({preventScroll: true});
    element.setPointerCapture(event.pointerId);
    follow(event);
});
element.addEventListener('pointermove', event => { if (element.hasPointerCapture(event.pointerId)) follow(event); });
element.addEventListener('keydown', event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!step || event.target !== pad()) return;
    event.preventDefault();
    go(place.x + step[0] / 50, place.y + step[1] / 50);
});
"""


def encoded(image: Image.Image | Tensor) -> bytes:
    """Return an image, or a tensor (3, H, W) in [0, 1], as PNG."""
    file = BytesIO()
    (image if isinstance(image, Image.Image) else to_pil_image(image)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def img(png: bytes, says: str) -> str:
    """Return the HTML of a PNG; ``says`` is for those who cannot see it."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(says)}">'


def saveable(png: bytes, caption: str, name: str) -> str:
    """Return the HTML of a PNG, its caption, and a link that saves it as ``name``."""
    picture = img(png, caption)
    source = picture.split('"', 2)[1]
    save = f'<a href="{source}" download="{escape(name)}">Save as {escape(name)}</a>'
    return f'<figure class="saveable">{picture}<figcaption>{escape(caption)}{save}</figcaption></figure>'


def pointable(label: str) -> Any:
    """Return a component that shows a picture to point into, by mouse, finger, or arrow keys.

    Its event ``input`` has ``x`` and ``y``, shares of the way across and down.
    """
    pad = (
        f'${{value && `<div class="pad" role="slider" tabindex="0" aria-label="{escape(label)}" aria-valuemin="0" '
        'aria-valuemax="100" aria-valuenow="50">${value}<i></i></div>`}'
    )
    return gr.HTML("", html_template=pad, js_on_load=POINT)
