"""The Runs tab."""

import gradio as gr

from atelier.models import Models


def runs_tab(models: Models) -> None:
    gr.Markdown("To come.")
