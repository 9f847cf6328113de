"""mvsearch inside other tools."""
