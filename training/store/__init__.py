"""What a fit keeps on disk: journal, locked folder, delivered files."""
