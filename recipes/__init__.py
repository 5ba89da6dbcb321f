"""The papers as recipes: configurations, data, models and one training loop."""
