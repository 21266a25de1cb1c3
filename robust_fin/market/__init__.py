"""What the exchange gave us: validated bars, their calendar and their contracts."""
