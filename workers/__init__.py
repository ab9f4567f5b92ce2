"""See docs/design.md for what workers/ owns. Imported as `morgan.background.workers`, never from the repository root."""

if not __name__.endswith("background.workers"):
    raise ImportError(f"import morgan.background.workers, not {__name__}: a second copy would have its own state")
