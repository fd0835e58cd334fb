"""The command-line fit: options, run, progress, demo."""
