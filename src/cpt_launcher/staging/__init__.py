"""What gets data, registry, DeepSpeed JSON and model onto the storage."""
