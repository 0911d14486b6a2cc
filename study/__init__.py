import system.matplotlib_backend  # noqa: F401 - before Lightning
