from datamodules.demo.fruits import demo_fruits
from datamodules.demo.paintings import demo_paintings

__all__ = ["demo_fruits", "demo_paintings"]
