"""What a run will do (a `Plan`, the training YAML) and what it will take (memory, time, cards)."""
