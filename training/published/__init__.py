"""Published parameters: reading them safely, and what their sources say about the models (models.json)."""
