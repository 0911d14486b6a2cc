import system.environment  # noqa: F401 - before Lightning
