"""See docs/design.md for what ipc/ owns. Imported as `morgan.background.ipc`, never from the repository root."""

if not __name__.endswith("background.ipc"):
    raise ImportError(f"import morgan.background.ipc, not {__name__}: a second copy would have its own state")
