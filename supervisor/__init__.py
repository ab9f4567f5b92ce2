"""See docs/design.md for what supervisor/ owns. Imported as `morgan.background.supervisor`, never from the repository root."""

if not __name__.endswith("background.supervisor"):
    raise ImportError(f"import morgan.background.supervisor, not {__name__}: a second copy would have its own state")
