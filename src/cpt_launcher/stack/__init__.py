"""Code that runs inside the training stack: in Ray's workers, or in processes of its own."""
