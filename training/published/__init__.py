"""Published parameters and what their sources say."""
