"""Market data: validated bars, their calendar and their contracts."""
