"""The Fruit tab."""

import gradio as gr

from atelier.models import Models


def fruit_tab(models: Models) -> None:
    gr.Markdown("To come.")
