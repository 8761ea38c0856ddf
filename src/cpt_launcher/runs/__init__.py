"""What runs left behind: record, events, checkpoints; exporting and evaluating them."""
