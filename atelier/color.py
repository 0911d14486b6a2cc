"""The Color tab."""

import gradio as gr

from atelier.models import Models
from colorization import Colorizer


def color_tab(models: Models) -> None:
    choices = models.choices(Colorizer)
    gr.Dropdown(choices, value=[choices[0][1]], multiselect=True, label="Models")
