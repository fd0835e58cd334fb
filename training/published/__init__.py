"""Published parameters: safe readers, and the sources' facts about the models (models.json)."""
