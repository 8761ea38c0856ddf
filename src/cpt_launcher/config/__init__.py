"""The user's file as values: reading it with places, and LLaMA-Factory's arguments as data."""
