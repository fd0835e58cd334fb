"""Small benchmark networks in addition to the bundled digits; their weights are in this folder."""
